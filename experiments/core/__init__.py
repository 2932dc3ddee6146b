"""Jobs: what they are, how a network is trained, and what a run leaves behind."""
