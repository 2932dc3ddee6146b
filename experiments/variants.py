"""What `experiments.tuning` compares: methods and controls, and variants of the methods with one gradient per step.

What is varied: how far momentum looks ahead, which curvature projects the trial point, how the backtracking coefficient
a is chosen, and from which minibatch the trial gradient of a two-stage step comes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

import fobt
from experiments import controls

# From schedule, b1, b2 and quantizer to what takes the steps.
Optimizer: TypeAlias = Callable[[optax.Schedule, Any, Any, Any], optax.GradientTransformation]
BOUNDS = (-1.0, 1.0)  # latent weights of every variant are clipped to these


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        optimizer: What takes the steps.
        lookahead: The optimizer whose next step leads to the trial point, where the only gradient is taken; None takes
            the gradient at the quantized weights.
        weighted: Whether the curvature weights the projection.
        trial_weighted: Whether it weights the projection of the trial point.
        second_gradient: From which minibatch a second gradient in each step comes, if there is one.
    """

    optimizer: Optimizer
    lookahead: Optimizer | None = None
    weighted: bool = True
    trial_weighted: bool = True
    second_gradient: Literal["same", "next"] | None = None

    @property
    def gradients(self) -> int:
        """Gradient evaluations of a step."""
        return 1 if self.second_gradient is None else 2


def adam(schedule: optax.Schedule, b1: Any, b2: Any, quantizer: Any) -> optax.GradientTransformation:
    """Adam with bounded latent weights: LAQ, or with the gradient one step ahead the quantized Nesterov form."""
    return optax.chain(optax.adam(schedule, b1, b2), fobt.bound_weights(BOUNDS, quantizer))


def nadam(schedule: optax.Schedule, b1: Any, b2: Any, quantizer: Any) -> optax.GradientTransformation:
    """NAdam with bounded latent weights."""
    return optax.chain(optax.nadam(schedule, b1, b2), fobt.bound_weights(BOUNDS, quantizer))


def two_steps(schedule: optax.Schedule, b1: Any, b2: Any, quantizer: Any) -> optax.GradientTransformation:
    """Two LAQ steps on the same minibatch."""
    return controls.two_steps(adam(lambda count: schedule(count // 2), b1, b2, quantizer), quantizer)


def sam(schedule: optax.Schedule, b1: Any, b2: Any, quantizer: Any) -> optax.GradientTransformation:
    """Sharpness-aware minimisation, ρ = 0.05."""
    return controls.sharpness_aware(adam(schedule, b1, b2, quantizer), quantizer, 0.05)


def two_stage(a: Any) -> Optimizer:
    """The method."""
    return lambda schedule, b1, b2, quantizer: fobt.forward_backtrack(
        schedule, quantizer, a=a, b1=b1, b2=b2, weight_bounds=BOUNDS
    )


def optimistic(a: float) -> Optimizer:
    """The method with the last trial gradient in the place of the current one."""
    return lambda *arguments: fobt.optimistic(two_stage(a)(*arguments))


def farther(factor: float) -> Optimizer:
    """Adam with a multiple of the learning rate: as `lookahead`, a trial point farther away."""
    return lambda schedule, *rest: adam(lambda count: factor * schedule(count), *rest)


def scheduled(start: float, end: float) -> Optimizer:
    """The optimistic form whose a goes from `start` to `end` as the learning rate falls from its start to 0."""

    def make(schedule: optax.Schedule, *rest: Any) -> optax.GradientTransformation:
        inner = optax.inject_hyperparams(lambda a: two_stage(a)(schedule, *rest))
        return fobt.optimistic(inner(a=lambda count: end + (start - end) * schedule(count) / schedule(0)))

    return make


class PerLayerState(NamedTuple):
    """State of `per_layer`.

    Attributes:
        adam: Adam's moments.
        trial_grads: The last trial gradients, 0 before the first.
        cosines: For each leaf the moving average of the cosine between successive trial gradients.
    """

    adam: optax.ScaleByAdamState
    trial_grads: Any
    cosines: list[jax.Array]


def per_layer(schedule: optax.Schedule, b1: Any, b2: Any, quantizer: Any) -> optax.GradientTransformationExtraArgs:
    """The optimistic form with a = (1 + c)/2 in each leaf, c the average cosine between its successive gradients.

    Gradients that turn back (c < 0) are the sign of steps that overshoot, where a smaller a contracts faster.
    """

    def init(params: Any) -> PerLayerState:
        cosines = [jnp.zeros(()) for _ in jax.tree.leaves(params)]
        return PerLayerState(optax.scale_by_adam().init(params), optax.tree.zeros_like(params), cosines)

    def update(
        grads: Any, state: PerLayerState, params: Any = None, *, two_stage: bool = True, **extra_args: Any
    ) -> tuple[Any, PerLayerState]:
        del extra_args
        updates, mu, nu, cosines = [], [], [], []
        unflatten = functools.partial(jax.tree.unflatten, jax.tree.structure(grads))
        for g, last, w, m, v, cosine in zip(
            *map(jax.tree.leaves, (grads, state.trial_grads, params, state.adam.mu, state.adam.nu)),
            state.cosines,
            strict=True,
        ):
            a: Any = jnp.clip((1 + cosine) / 2, 0.05, 0.95)
            optimizer = fobt.forward_backtrack(schedule, quantizer, a=a, b1=b1, b2=b2, weight_bounds=BOUNDS)
            step, inner = optimizer.update(
                last if two_stage else g,
                optax.ScaleByAdamState(state.adam.count, m, v),
                w,
                grad_fn=lambda _, g=g: g,
                two_stage=two_stage,
            )
            updates.append(step)
            mu.append(inner.mu)
            nu.append(inner.nu)
            now = jnp.sum(g * last) / (jnp.linalg.norm(g.ravel()) * jnp.linalg.norm(last.ravel()) + 1e-30)
            cosines.append(0.9 * cosine + 0.1 * now)
        moments = optax.ScaleByAdamState(inner.count, unflatten(mu), unflatten(nu))
        return unflatten(updates), PerLayerState(moments, grads, cosines)

    return optax.GradientTransformationExtraArgs(init, update)


METHODS: dict[str, Variant] = {
    "LAQ": Variant(adam),
    "Adam, straight-through, curvature 1": Variant(adam, weighted=False),
    "LAQ with NAdam": Variant(nadam),
    "quantized Nesterov": Variant(adam, adam),
    "optimistic, a = 0.3": Variant(optimistic(0.3), optimistic(0.3)),
    "optimistic, a = 0.6": Variant(optimistic(0.6), optimistic(0.6)),
    "optimistic, a = 0.9": Variant(optimistic(0.9), optimistic(0.9)),
    "two LAQ steps": Variant(two_steps, second_gradient="same"),
    "SAM": Variant(sam, second_gradient="same"),
    "forward-backtrack, a = 0.3": Variant(two_stage(0.3), second_gradient="same"),
    "forward-backtrack, a = 0.6": Variant(two_stage(0.6), second_gradient="same"),
    "forward-backtrack, a = 0.9": Variant(two_stage(0.9), second_gradient="same"),
}
VARIANTS: dict[str, Variant] = {
    "looking ahead half as far": Variant(adam, farther(0.5)),
    "looking ahead twice as far": Variant(adam, farther(2)),
    "looking ahead four times as far": Variant(adam, farther(4)),
    "Nesterov, trial projection with curvature 1": Variant(adam, adam, trial_weighted=False),
    "Nesterov with curvature 1 everywhere": Variant(adam, adam, weighted=False, trial_weighted=False),
    "Nesterov with NAdam": Variant(nadam, nadam),
    "optimistic, a from 0.3 to 0.9": Variant(scheduled(0.3, 0.9), scheduled(0.3, 0.9)),
    "optimistic, a from 0.9 to 0.3": Variant(scheduled(0.9, 0.3), scheduled(0.9, 0.3)),
    "optimistic, a per layer": Variant(per_layer, per_layer),
    "forward-backtrack, a = 0.6, trial gradient of the next minibatch": Variant(two_stage(0.6), second_gradient="next"),
}
