"""SVHNNet on SVHN, its extra images included, with the settings of the paper's appendix."""

from experiments.core.config import TrainConfig
from experiments.core.schedules import LAQ_SVHN, PAPER_SVHN

CONFIG = TrainConfig(
    job="svhn",
    dataset="svhn",
    network="svhn_net",
    schedules={"paper": PAPER_SVHN, "laq": LAQ_SVHN},
    schedule="paper",
    epochs=50,
    batch_size=50,
    every=(5,),
    every_unit="epochs",
)
