"""The seam between the method and the optimizer under it: what turns gradients into a direction and a curvature."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from fobt._src.base.checks import check_floating, check_number


class PreconditionerInit(Protocol):
    """Makes the first state for params; the state has a field `count`, the number of updates so far."""

    def __call__(self, params: optax.Params, /) -> Any:
        """Returns the state."""


class PreconditionerUpdate(Protocol):
    """Takes in one gradient, without a learning rate."""

    def __call__(self, grads: optax.Updates, state: Any, /) -> tuple[optax.Updates, optax.Updates, Any]:
        """Returns direction, curvature and the state with `count` increased by one."""


class WithCurvature(Protocol):
    """Writes a curvature into a state, so that the state's quantized weights are projections with it."""

    def __call__(self, state: Any, curvature: optax.Updates, /) -> tuple[optax.Updates, Any]:
        """Returns the curvature as the state holds it, and the state changed."""


class Preconditioner(NamedTuple):
    """What `forward_backtrack` asks of the optimizer under it: three pure functions.

    A step with learning rate η is w ← w - η · direction ⊘ curvature.

    Attributes:
      init: params -> state, with a field `count`.
      update: (grads, state) -> (direction, curvature, state), both with the structure of grads and curvature > 0.
      with_curvature: (state, curvature) -> (curvature, state): a state that holds this curvature, and the curvature as
        it holds it, to rounding.

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> adam = fobt.adam_preconditioner()
      >>> direction, curvature, state = adam.update(jnp.array([3.0]), adam.init(jnp.array([1.0])))
      >>> direction.round(4), curvature.round(4), state.count
      (Array([3.], dtype=float32), Array([3.], dtype=float32), Array(1, dtype=int32))
    """

    init: PreconditionerInit
    update: PreconditionerUpdate
    with_curvature: WithCurvature


def adam_preconditioner(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, *, mu_dtype: DTypeLike | None = None
) -> Preconditioner:
    r"""Adam's bias-corrected moments: direction m̂ and curvature ε + √v̂, with the state of `optax.scale_by_adam`.

    Squares, second moment and curvature are in float32 or wider, whatever the dtype of the params: in bfloat16 the
    steps of the second moment would be lost in rounding, as 1 - b2 = 0.001 is less than 2⁻⁸, and in float16 ε would be
    0 and the squares of gradients above 255 infinite.

    Args:
      b1: decay rate of the first moment, in [0, 1).
      b2: decay rate of the second moment, in [0, 1).
      eps: ε ≥ 0.
      mu_dtype: dtype in which the first moment is stored, as for `optax.adam`; None is that of the params. With
        bfloat16 the state has 6 bytes per float32 parameter instead of 8.

    Returns:
      The preconditioner.

    Raises:
      ValueError: an argument is out of range.

    Example:
      >>> import fobt
      >>> import jax.numpy as jnp
      >>> adam = fobt.adam_preconditioner(b1=0.0)
      >>> _, curvature, state = adam.update(jnp.array([2.0]), adam.init(jnp.zeros(1)))
      >>> curvature, state = adam.with_curvature(state, 2 * curvature)
      >>> curvature.round(4), (state.nu / (1 - 0.999**1)).round(2)  # the bias-corrected second moment is now 4²
      (Array([4.], dtype=float32), Array([16.], dtype=float32))
    """
    check_number("b1", b1, "in [0, 1)", lambda value: 0 <= value < 1)
    check_number("b2", b2, "in [0, 1)", lambda value: 0 <= value < 1)
    check_number("eps", eps, "at least 0 and finite", lambda value: 0 <= value < math.inf)
    check_floating("mu_dtype", mu_dtype)

    adam = optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype)

    def init(params: optax.Params) -> Any:
        state = adam.init(params)
        return state._replace(nu=jax.tree.map(lambda v: jnp.zeros_like(v, dtype=_wide(v)), state.nu))

    def curvature_of(nu: optax.Updates, count: jax.Array) -> optax.Updates:
        return jax.tree.map(lambda v: jnp.sqrt(v) + eps, optax.tree.bias_correction(nu, b2, count))

    def update(grads: optax.Updates, state: Any) -> tuple[optax.Updates, optax.Updates, Any]:
        count = optax.safe_increment(state.count)
        exponent = count.astype(jnp.result_type(float))  # strict promotion takes no integer here
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        wide_grads, wide_nu = (jax.tree.map(lambda x: x.astype(_wide(x)), tree) for tree in (grads, state.nu))
        nu = optax.tree.update_moment_per_elem_norm(wide_grads, wide_nu, b2, 2)
        state = optax.ScaleByAdamState(count, optax.tree.cast_like(mu, state.mu), optax.tree.cast_like(nu, state.nu))
        return optax.tree.bias_correction(mu, b1, exponent), curvature_of(nu, exponent), state

    def with_curvature(state: Any, curvature: optax.Updates) -> tuple[optax.Updates, Any]:
        exponent = state.count.astype(jnp.result_type(float))
        correction = 1 - b2**exponent
        # A product of two factors: a square, whose one factor costs little to compute, XLA would compute a second time
        # for the step instead of reading the second moment.
        nu = jax.tree.map(lambda c: (c - eps) * (correction.astype(c.dtype) * (c - eps)), curvature)
        return curvature_of(nu, exponent), state._replace(nu=optax.tree.cast_like(nu, state.nu))

    return Preconditioner(init, update, with_curvature)


def _wide(x: jax.Array) -> np.dtype:
    return np.promote_types(x.dtype, np.float32)
