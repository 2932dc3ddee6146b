"""Studies: each compares many trainings, and writes a table, a figure and the numbers behind them."""
