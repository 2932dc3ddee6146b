"""The job without arguments: 8×8 handwritten digits, a small convolutional network, 1-bit weights, eight seeds.

Batch size and learning rate (of 32, 64 and 0.001, 0.003, 0.01, 0.03) have the best validation accuracy for LAQ and for
the method over 40 epochs, with seeds that the job does not use.
"""

from experiments.core.config import TrainConfig
from experiments.core.schedules import CosineDecay

CONFIG = TrainConfig(
    job="digits",
    dataset="digits",
    network="digits_cnn",
    schedules={"cosine": CosineDecay(learning_rate=0.01)},
    schedule="cosine",
    epochs=20,
    batch_size=64,
    methods=("full_precision", "laq", "parq", "two_steps", "forward_backtrack"),
    seeds=tuple(range(8)),
)
