"""The job without arguments: 8×8 handwritten digits, a small convolutional network, 1-bit weights, eight seeds.

Learning rate, b1 and b2 are near those that most methods have in the comparison of tuned methods on this network.
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
    seeds=tuple(range(8)),
)
