"""784-256-256-10 on MNIST: small enough for studies with many seeds and settings."""

from experiments.core.config import TrainConfig
from experiments.core.schedules import LAQ_MNIST, PAPER_MNIST, CosineDecay

CONFIG = TrainConfig(
    job="mnist_small_mlp",
    dataset="mnist",
    network="small_mlp",
    schedules={"cosine": CosineDecay(learning_rate=0.01), "paper": PAPER_MNIST, "laq": LAQ_MNIST},
    schedule="cosine",
    epochs=6,
    batch_size=100,
    methods=("laq", "two_steps", "sam", "forward_backtrack"),
)
