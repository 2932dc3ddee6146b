"""Experiments: networks, data sets and training runs that use fobt from outside, as any other project would."""
