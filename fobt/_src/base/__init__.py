"""What all other folders use: names of leaves, checks of arguments, sums over leaves, Flax's serialization."""
