"""VGG on CIFAR-10 in the protocol of LAQ: global contrast normalisation, ZCA whitening, no augmentation."""

from experiments.core.config import TrainConfig
from experiments.core.schedules import LAQ_CIFAR10, PAPER_CIFAR10, CosineDecay

CONFIG = TrainConfig(
    job="cifar10_vgg",
    dataset="cifar10_whitened",
    network="vgg",
    schedules={"paper": PAPER_CIFAR10, "laq": LAQ_CIFAR10, "cosine": CosineDecay(learning_rate=0.005)},
    schedule="paper",
    epochs=100,
    batch_size=100,
    every=(5,),
    every_unit="epochs",
)
