"""The registry of methods: a row of a comparison is one decorated function.

    @register("LAQ with SAM", gradients=2, tuned={"SAM": {"rho": 0.05}})
    def sam(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, rho: float) -> Method:

The name of the function is that of the method on the command line and on disk. A function with an argument `quantizer`
can have any grid; its keyword-only arguments are its options. Those without a default are fields of
`experiments.methods.rows.Row`; those with one can be set by studies.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from experiments.methods.method import Method

Options: TypeAlias = Mapping[str, Any]
METHODS: "dict[str, Entry]" = {}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A method, and where it appears.

    Attributes:
        make: From hyperparameters, quantizer and options to the method.
        title: Its name in the tables of `experiments.train`; None for methods that it does not have.
        gradients: Gradient evaluations of a step.
        periodic: Whether only every m-th step takes the second gradient.
        grids: Grids with its levels, where it has a grid of its own or is published for these only.
        bits: The fewest and the most bits, where they are an option.
        tuned: From a label in the comparison of tuned methods to options.
        step_costs: Its name in the tables of step costs.
        memory_costs: Its name in the tables of memory costs.
    """

    make: Callable[..., Method]
    title: str | None = None
    gradients: int = 1
    periodic: bool = False
    grids: tuple[str, ...] = ()
    bits: tuple[int, int] | None = None
    tuned: Mapping[str, Options] = field(default_factory=dict)
    step_costs: str | None = None
    memory_costs: str | None = None

    @property
    def on_grid(self) -> bool:
        """Whether it can have any grid."""
        return "quantizer" in inspect.signature(self.make).parameters

    @property
    def options(self) -> tuple[str, ...]:
        """The names of its options that have no default."""
        return tuple(option.name for option in self._keyword_only if option.default is option.empty)

    @property
    def all_options(self) -> tuple[str, ...]:
        """The names of all its options."""
        return tuple(option.name for option in self._keyword_only)

    @property
    def _keyword_only(self) -> tuple[inspect.Parameter, ...]:
        parameters = inspect.signature(self.make).parameters.values()
        return tuple(parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def register(title: str | None = None, **settings: Any) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    """Adds the decorated function to the registry; the arguments are the attributes of `Entry`."""

    def add(make: Callable[..., Method]) -> Callable[..., Method]:
        METHODS[make.__name__] = Entry(make=make, title=title, **settings)
        return make

    return add
