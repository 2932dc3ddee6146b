"""The method, one step forward and backtrack, its one-gradient form, and the preconditioner under them."""
