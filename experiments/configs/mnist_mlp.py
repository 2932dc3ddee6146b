"""The 784-2048-2048-2048-10 network on MNIST with the settings of the paper's appendix."""

from experiments.core.config import TrainConfig
from experiments.core.schedules import LAQ_MNIST, PAPER_MNIST

CONFIG = TrainConfig(
    job="mnist_mlp",
    dataset="mnist",
    network="mlp",
    schedules={"paper": PAPER_MNIST, "laq": LAQ_MNIST},
    schedule="paper",
    epochs=50,
    batch_size=100,
    every=(5,),
    every_unit="epochs",
)
