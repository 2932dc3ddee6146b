"""LeNet5 on MNIST with the settings of the paper's appendix."""

from experiments.core.config import TrainConfig
from experiments.core.schedules import LAQ_MNIST, PAPER_MNIST

CONFIG = TrainConfig(
    job="mnist_lenet5",
    dataset="mnist",
    network="lenet5",
    schedules={"paper": PAPER_MNIST, "laq": LAQ_MNIST},
    schedule="paper",
    epochs=20,
    batch_size=128,
    every=(5,),
    every_unit="epochs",
)
