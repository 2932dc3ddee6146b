"""Variants of the methods with one gradient per step, which the study of tuned methods compares.

What is varied: how far momentum looks ahead, which curvature projects the trial point, how the backtracking coefficient
a is chosen, and from which minibatch the trial gradient of a two-stage step comes.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import fobt
from experiments.methods.method import Hyperparameters, Method
from experiments.methods.one_gradient import at_trial_gradients, one_step_ahead
from experiments.methods.registry import register


@register(
    variants={
        "looking ahead half as far": {"factor": 0.5},
        "looking ahead twice as far": {"factor": 2},
        "looking ahead four times as far": {"factor": 4},
    }
)
def nesterov_farther(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, factor: float) -> Method:
    """The Nesterov form whose gradient is taken after a step with a multiple of the learning rate."""
    farther = dataclasses.replace(hyper, learning_rate=lambda count: factor * hyper.learning_rate(count))
    lookahead = one_step_ahead(quantizer, farther.bounded_adam(quantizer))
    return Method(hyper.bounded_adam(quantizer), quantizer, lookahead=lookahead)


@register(
    variants={
        "Nesterov, trial projection with curvature 1": {"weighted": True},
        "Nesterov with curvature 1 everywhere": {"weighted": False},
    }
)
def nesterov_curvature_one(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, weighted: bool) -> Method:
    """The Nesterov form whose trial point is projected without the curvature, and with `weighted` nothing else is."""
    adam = hyper.bounded_adam(quantizer)
    ahead = one_step_ahead(fobt.full_precision(), adam)

    def lookahead(params: Any, state: Any) -> Any:
        return fobt.quantized_params(ahead(params, state), None, quantizer)

    return Method(adam, quantizer, weighted=weighted, lookahead=lookahead)


@register(variants={"Nesterov with NAdam": {}})
def nesterov_nadam(hyper: Hyperparameters, quantizer: fobt.Quantizer) -> Method:
    """The Nesterov form of NAdam."""
    nadam = hyper.bounded(optax.nadam(hyper.learning_rate, **hyper.moments), quantizer)
    return Method(nadam, quantizer, lookahead=one_step_ahead(quantizer, nadam))


@register(
    variants={
        "optimistic, a from 0.3 to 0.9": {"start": 0.3, "end": 0.9},
        "optimistic, a from 0.9 to 0.3": {"start": 0.9, "end": 0.3},
    }
)
def optimistic_scheduled(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, start: float, end: float) -> Method:
    """The optimistic form whose a goes from `start` to `end` as the learning rate falls from its start to 0."""
    rate = hyper.learning_rate
    inner = optax.inject_hyperparams(lambda a: hyper.forward_backtrack(quantizer, a))
    scheduled = inner(a=lambda count: end + (start - end) * rate(count) / rate(0))
    return at_trial_gradients(fobt.optimistic(scheduled), quantizer)


@register(variants={"optimistic, a per layer": {}})
def optimistic_per_layer(hyper: Hyperparameters, quantizer: fobt.Quantizer) -> Method:
    """The optimistic form with `per_layer`."""
    return at_trial_gradients(per_layer(hyper, quantizer), quantizer)


@register(
    gradients=2,
    next_minibatch=True,
    variants={"forward-backtrack, a = 0.6, trial gradient of the next minibatch": {"a": 0.6}},
)
def forward_backtrack_next(hyper: Hyperparameters, quantizer: fobt.Quantizer, *, a: float) -> Method:
    """The method whose trial gradient is of the next minibatch."""
    return Method(hyper.forward_backtrack(quantizer, a), quantizer)


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


def per_layer(hyper: Hyperparameters, quantizer: fobt.Quantizer) -> optax.GradientTransformationExtraArgs:
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
            optimizer = hyper.forward_backtrack(quantizer, a)
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
