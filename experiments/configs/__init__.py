"""The jobs of `python -m experiments.train`, one small file each, which holds what differs from the defaults."""

from collections.abc import Mapping
from types import MappingProxyType

from experiments.config import TrainConfig
from experiments.configs import digits, mnist_lenet5, mnist_mlp

JOBS: Mapping[str, TrainConfig] = MappingProxyType(
    {module.CONFIG.job: module.CONFIG for module in (digits, mnist_lenet5, mnist_mlp)}
)
