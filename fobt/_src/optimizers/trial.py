"""Seeing the trial gradient that an optimizer takes, from outside of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.extend
import optax

from fobt._src.trees.grad_fn import with_function

Result = TypeVar("Result")
Seen = TypeVar("Seen")


def watch_trial(
    update: Callable[[dict[str, Any]], Result],
    see: Callable[[optax.Updates | None], Seen],
    grad_fn: Callable[[optax.Params], optax.Updates] | None,
    two_stage: Any,
) -> tuple[Result, Seen]:
    """Runs an update and looks at its trial gradient.

    Args:
      update: the update of an optimizer as a function of its keywords `grad_fn` and `two_stage`.
      see: what is wanted of the first gradient that the update takes by a direct call of `grad_fn`, or of None where it
        takes none, or takes it inside of a transformation such as `lax.cond`, whose values cannot leave it.
      grad_fn: from weights to gradients, or None where the update takes none.
      two_stage: the keyword; where it is traced, `lax.cond` selects here between updates with True and with False.

    Returns:
      What `update` and `see` return.
    """
    if grad_fn is None:
        return update({}), see(None)

    def run(keywords: dict[str, Any]) -> tuple[Result, Seen]:
        trace, trials = jax.extend.core.get_opaque_trace_state(), []

        def watched(weights: optax.Params) -> optax.Updates:
            trial_grads = grad_fn(weights)
            if jax.extend.core.get_opaque_trace_state() == trace:
                trials.append(trial_grads)
            return trial_grads

        result = update({"grad_fn": with_function(grad_fn, watched), **keywords})
        return result, see(trials[0] if trials else None)

    if isinstance(two_stage, jax.core.Tracer):
        return jax.lax.cond(two_stage, *(functools.partial(run, {"two_stage": now}) for now in (True, False)))
    return run({})
