"""784-256-256-10 on MNIST without normalisation, where the scale of a weight tensor reaches the loss."""

import dataclasses

from experiments.configs import mnist_small_mlp

CONFIG = dataclasses.replace(mnist_small_mlp.CONFIG, job="mnist_plain_mlp", network="plain_mlp", loss="cross_entropy")
