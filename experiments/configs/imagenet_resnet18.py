"""ResNet-18 on ImageNet (2012) with the settings of the paper's appendix.

The paper starts from no stated weights; here training starts from scratch, at the paper's small learning rate.
"""

from experiments.core.config import TrainConfig
from experiments.core.schedules import PAPER_IMAGENET

CONFIG = TrainConfig(
    job="imagenet_resnet18",
    dataset="imagenet",
    network="resnet18",
    loss="cross_entropy",
    schedules={"paper": PAPER_IMAGENET},
    schedule="paper",
    epochs=175,
    batch_size=256,
    a=0.9,
    every=(10,),
    every_unit="epochs",
    seeds=(0,),
)
