"""VGG on CIFAR-10 with random crops and flips."""

import dataclasses

from experiments.configs import cifar10_vgg

CONFIG = dataclasses.replace(cifar10_vgg.CONFIG, job="cifar10_vgg_augmented", dataset="cifar10_augmented")
