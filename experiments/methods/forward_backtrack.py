"""One step forward and backtrack."""

import fobt
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.registry import register


@register(
    "forward-backtrack",
    gradients=2,
    periodic=True,
    tuned={f"forward-backtrack, a = {a:g}": {"a": a} for a in (0.3, 0.6, 0.9)},
    step_costs="two-stage",
    memory_costs="two-stage",
)
def forward_backtrack(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, a: float) -> Method:
    """`fobt.forward_backtrack`."""
    return Method(hyper.forward_backtrack(quantizer, a), quantizer)
