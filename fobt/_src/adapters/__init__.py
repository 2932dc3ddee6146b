"""The training loops of Flax: `fobt.Training` in the shape of its optimizers and train states."""
