"""Learning-rate schedules, stated in epochs."""

from dataclasses import dataclass
from typing import TypeAlias

import optax


@dataclass(frozen=True)
class StepDecay:
    """The learning rate is multiplied by `factor` after each of `epochs`.

    Attributes:
        learning_rate: Its value at the start, unless another one is asked for.
        factor: What it is multiplied by.
        epochs: After how many epochs, in increasing order.
    """

    learning_rate: float
    factor: float
    epochs: tuple[int, ...]

    def in_steps(self, learning_rate: float, epochs: int, steps_per_epoch: float) -> optax.Schedule:
        """The learning rate as a function of the number of steps taken before.

        Args:
            learning_rate: Its value at the start.
            epochs: Length of the training, which does not matter here.
            steps_per_epoch: Steps of an epoch; fewer compress the schedule.

        Example:
            >>> rate = StepDecay(0.5, 0.1, epochs=(2,)).in_steps(0.5, epochs=4, steps_per_epoch=10)
            >>> [round(float(rate(step)), 3) for step in (0, 19, 20)]
            [0.5, 0.5, 0.05]
        """
        del epochs
        boundaries = {round(epoch * steps_per_epoch): self.factor for epoch in self.epochs}
        return optax.piecewise_constant_schedule(learning_rate, boundaries)


@dataclass(frozen=True)
class CosineDecay:
    """The learning rate falls to 0 at the end of training along half a cosine.

    Attributes:
        learning_rate: Its value at the start, unless another one is asked for.
    """

    learning_rate: float

    def in_steps(self, learning_rate: float, epochs: int, steps_per_epoch: float) -> optax.Schedule:
        """The learning rate as a function of the number of steps taken before, as `StepDecay.in_steps`."""
        return optax.cosine_decay_schedule(learning_rate, round(epochs * steps_per_epoch))


Schedule: TypeAlias = StepDecay | CosineDecay

# The paper (its appendix), and the published code of LAQ; both decay to nothing long before the training ends.
PAPER_MNIST = StepDecay(learning_rate=0.005, factor=0.1, epochs=tuple(range(5, 50, 5)))
LAQ_MNIST = StepDecay(learning_rate=0.01, factor=0.1, epochs=(15, 25))
PAPER_CIFAR10 = StepDecay(learning_rate=0.02, factor=0.1, epochs=tuple(range(5, 100, 5)))
LAQ_CIFAR10 = StepDecay(learning_rate=0.002, factor=0.5, epochs=tuple(range(15, 200, 15)))
PAPER_SVHN = StepDecay(learning_rate=0.001, factor=0.1, epochs=(5,))
LAQ_SVHN = StepDecay(learning_rate=0.0005, factor=0.1, epochs=(15, 25))
PAPER_IMAGENET = StepDecay(learning_rate=2e-4, factor=0.95, epochs=tuple(range(1, 175)))
