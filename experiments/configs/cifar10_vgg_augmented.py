"""VGG on CIFAR-10 with random crops and flips, and a cosine schedule that uses all of its 30 epochs.

The paper's schedule leaves nothing of the learning rate after an eighth of its 100 epochs.
"""

import dataclasses

from experiments.configs import cifar10_vgg

CONFIG = dataclasses.replace(
    cifar10_vgg.CONFIG,
    job="cifar10_vgg_augmented",
    dataset="cifar10_augmented",
    schedule="cosine",
    epochs=30,
    every=(1,),
    every_unit="steps",
)
