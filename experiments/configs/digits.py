"""The job without arguments: 8×8 handwritten digits, a small convolutional network, 1-bit weights, eight seeds.

Learning rate, b1 and b2 are those that `fobt.recipe` starts with; they suit all rows better than Adam's own.
"""

from experiments.core.config import TrainConfig
from experiments.core.schedules import CosineDecay

CONFIG = TrainConfig(
    job="digits",
    dataset="digits",
    network="digits_cnn",
    schedules={"cosine": CosineDecay(learning_rate=0.03)},
    schedule="cosine",
    epochs=20,
    batch_size=64,
    b1=0.6,
    b2=0.8,
    methods=("full_precision", "laq", "parq", "two_steps", "forward_backtrack"),
    seeds=tuple(range(8)),
)
