"""An instrument around any optimizer: zig-zagging of codes, of latents and of gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fobt._src.base.checks import check_number
from fobt._src.base.flax_serialization import FlaxSerializable
from fobt._src.base.tree_paths import leaf_paths
from fobt._src.optimizers.quantized_optimizer import QuantizedOptimizer, gradients_at
from fobt._src.optimizers.trial import watch_trial
from fobt._src.oscillations.comparison import Comparison, compare, unknown
from fobt._src.oscillations.followed import Followed, follow, start, strides
from fobt._src.quantizers.quantized import Quantized
from fobt._src.trees.grad_fn import check_same_quantizer
from fobt._src.trees.leaves import TreeQuantizer, check_quantizer
from fobt._src.trees.params import leaves_of_quantized, quantize

CodesFn: TypeAlias = Callable[[optax.Params], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LeafOscillations(FlaxSerializable):
    """The followed weights of one quantized leaf, and what the last update saw of them.

    The floating fields are float32, or float64 for float64 weights.

    Attributes:
      followed: codes, latents and oscillations of single weights.
      gradient: the last gradient, in the shape of the followed weights.
      flip_share: scalar, share of codes that differ from those of the step before.
      successive: the last two gradients.
      trial: gradient and trial gradient.
      full_precision: the gradient at the quantized weights and that at the full-precision weights.
      size: number of weights of the leaf, static.
    """

    followed: Followed
    gradient: jax.Array
    flip_share: jax.Array
    successive: Comparison
    trial: Comparison
    full_precision: Comparison
    size: int = dataclasses.field(metadata={"static": True})


class OscillationState(NamedTuple):
    """State of `track_oscillations`.

    Attributes:
      inner: state of the wrapped optimizer.
      leaves: for the path of each quantized leaf what is followed of it.
    """

    inner: optax.OptState
    leaves: dict[str, LeafOscillations]


def track_oscillations(
    optimizer: optax.GradientTransformation,
    quantizer: TreeQuantizer | CodesFn,
    *,
    sample: int | None = 2**16,
    decay: float = 0.99,
    full_precision_gradient: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""Follows the oscillations of quantized weights, around an optimizer whose updates it does not change.

    In each update the codes, latents and gradients are those of the forward pass that has just run, at the incoming
    params and state. Inside one `jax.jit` with it XLA computes the projection once for both. Of every quantized leaf at
    most `sample` weights are followed, at regular strides of powers of two along its axes: in a larger leaf all shares,
    histograms, amplitudes and cosines are estimates, the largest amplitude one from below. `oscillation_metrics`
    reads these measures from the state:

    - *flips*: codes that differ from those of the step before;
    - *oscillations*: codes that change in the direction opposite to their last change, and their frequency, a moving
      average f ← d f + (1 - d) o of o = 1 in a step with an oscillation and o = 0 in the others, from f = 0;
    - *amplitude*: while a weight's code stays, the extreme of its latent in the direction of the last change is
      followed, anew from each change. At an oscillation the swing is how far the latent has moved in the new direction
      from the extreme that has just ended; it grows while the latent moves on in that direction until the next change.
      The amplitude is the largest swing so far: 2|w| for a latent that alternates between w and -w;
    - cosine between *successive gradients*;
    - cosine between gradient and *trial gradient*, the first result of `grad_fn` in an update. It is known where the
      optimizer calls `grad_fn` directly, and where the keyword `two_stage` selects it, which, traced, becomes a
      `lax.cond` here instead of in the optimizer, and may round differently there. It is NaN in steps without a trial
      gradient, and always where the optimizer selects by a `lax.cond` of its own, as `every` above 1 does, because
      values cannot leave it;
    - *error of the gradient by quantization*, the distance between the gradients at quantized and at full-precision
      weights relative to the norm of the latter, and the cosine between them; NaN unless `full_precision_gradient`.

    Args:
      optimizer: any optimizer; further keywords of `update` are passed on to it.
      quantizer: what is quantized and how, as for `fobt.quantized_params`, with the curvature from the state of
        `optimizer`. Or a function from params to a tree with their structure, of integer codes at quantized leaves and
        None at the others: for quantizers in the model, with straight-through gradients.
      sample: weights followed per leaf, at least 1; None follows all. The state has 4 floating numbers for each, its
        gradient, and 3 bytes.
      decay: d in [0, 1) of the frequency; the published 0.01 is the weight of the new value, 1 - d.
      full_precision_gradient: whether to take the gradient at params in every update, one more evaluation of `grad_fn`.

    Returns:
      A transformation around `optimizer`, with its state in the field `inner`, where `fobt.quantized_params` finds it.

    Raises:
      ValueError: an argument is out of range; at `init` and `update`, the function returns other leaves than params
        has; at `update`, params are missing, or `grad_fn` where `full_precision_gradient` needs it, or it was made by
        `fobt.value_and_grad` with another quantizer.

    Example:
      >>> import fobt, jax, optax
      >>> import jax.numpy as jnp
      >>> signs = lambda params: jnp.sign(params).astype(jnp.int8)
      >>> tx = fobt.oscillations.track_oscillations(optax.sgd(1.0), signs, decay=0.5)
      >>> params = jnp.array([[3.0, 4.0]])
      >>> state = tx.init(params)
      >>> for _ in range(3):
      ...     updates, state = tx.update(params * jnp.array([[2.0, 0.1]]), state, params)
      ...     params = optax.apply_updates(params, updates)  # 3, -3, 3, ... and 4, 3.6, 3.24, ...
      >>> total = fobt.oscillations.oscillation_metrics(state)["total"]
      >>> total["flip_share"], total["oscillation_frequency"], total["largest_amplitude"]
      (Array(0.5, dtype=float32), Array(0.25, dtype=float32), Array(6., dtype=float32))

    References:
      Nagel, Fournarakis, Bondarenko, Blankevoort, Overcoming Oscillations in Quantization-Aware Training, ICML 2022.
      Ma, Zhou, Ma, Yu, Li, One-Step Forward and Backtrack: Overcoming Zig-Zagging in Loss-Aware Quantization Training,
      AAAI 2024.
    """
    if not callable(quantizer):
        check_quantizer(quantizer)
    if sample is not None:
        check_number("sample", sample, "an integer of at least 1, or None", lambda n: n >= 1 and n % 1 == 0)
    check_number("decay", decay, "in [0, 1)", lambda d: 0 <= d < 1)
    point = gradients_at(optimizer)
    optimizer = optax.with_extra_args_support(optimizer)

    def take(leaf: Any) -> jax.Array:
        """The followed ones of the numbers of a leaf."""
        return jnp.asarray(leaf)[strides(jnp.shape(leaf), sample)]

    def init(params: optax.Params) -> OscillationState:
        inner = optimizer.init(params)
        leaves = {}
        for path, leaf, codes in zip(
            leaf_paths(params), jax.tree.leaves(params), _leaf_codes(quantizer, params, inner), strict=True
        ):
            if codes is not None:
                dtype = np.promote_types(jnp.result_type(leaf), jnp.float32)
                leaves[path] = LeafOscillations(
                    followed=start(take(codes), dtype),
                    gradient=jnp.zeros_like(take(codes), dtype),
                    flip_share=jnp.zeros((), dtype),
                    successive=compare(jnp.zeros((), dtype), jnp.zeros((), dtype)),
                    trial=unknown(dtype),
                    full_precision=unknown(dtype),
                    size=codes.size,
                )
        return OscillationState(inner, leaves)

    def update(
        updates: optax.Updates, state: OscillationState, params: optax.Params | None = None, **extra_args: Any
    ) -> tuple[optax.Updates, OscillationState]:
        if params is None:
            raise ValueError("track_oscillations: params must be given: update(grads, state, params), got None.")
        grad_fn = extra_args.get("grad_fn")
        if full_precision_gradient and not callable(grad_fn):
            raise ValueError(
                "track_oscillations: grad_fn must be given with full_precision_gradient: "
                f"update(grads, state, params, grad_fn=grad_fn), got {type(grad_fn).__name__}."
            )
        if isinstance(quantizer, TreeQuantizer):
            check_same_quantizer(grad_fn, quantizer, params)
        paths = leaf_paths(params)

        def gradients(tree: optax.Updates) -> dict[str, jax.Array]:
            """The gradients at the followed weights."""
            by_path = dict(zip(paths, jax.tree.leaves(tree), strict=True))
            return {path: take(by_path[path]).astype(leaf.gradient.dtype) for path, leaf in state.leaves.items()}

        def compared(other: optax.Updates | None) -> dict[str, Comparison]:
            """The gradients, compared with others at the same weights."""
            if other is None:
                return {path: unknown(leaf.gradient.dtype) for path, leaf in state.leaves.items()}
            others = gradients(other)
            return {path: compare(x, others[path]) for path, x in gradients(updates).items()}

        (new_updates, inner), trial = watch_trial(
            lambda watched: optimizer.update(updates, state.inner, params, **(extra_args | watched)),
            compared,
            grad_fn,
            extra_args.get("two_stage"),
        )
        full_precision = compared(grad_fn(params) if grad_fn is not None and full_precision_gradient else None)
        codes = dict(zip(paths, _leaf_codes(quantizer, params, state.inner), strict=True))
        latents = dict(zip(paths, jax.tree.leaves(params), strict=True))
        grads = gradients(updates)
        leaves = {}
        for path, leaf in state.leaves.items():
            followed = follow(leaf.followed, take(codes[path]), take(latents[path]), decay)
            flips = jnp.sum(followed.codes != leaf.followed.codes, dtype=leaf.flip_share.dtype)
            leaves[path] = dataclasses.replace(
                leaf,
                followed=followed,
                gradient=grads[path],
                flip_share=flips / float(max(1, followed.codes.size)),
                successive=compare(grads[path], leaf.gradient),
                trial=trial[path],
                full_precision=full_precision[path],
            )
        return new_updates, OscillationState(inner, leaves)

    known = quantizer if isinstance(quantizer, TreeQuantizer) else None
    return QuantizedOptimizer(init, update, known, gradients_at=point)


def _leaf_codes(
    quantizer: TreeQuantizer | CodesFn, params: optax.Params, state: optax.OptState
) -> list[jax.Array | None]:
    """The codes of every leaf of params, in their order; None for the leaves that are not quantized."""
    if isinstance(quantizer, TreeQuantizer):
        leaves = leaves_of_quantized(quantize(params, state, quantizer))
        return [leaf.codes if isinstance(leaf, Quantized) else None for leaf in leaves]
    codes = jax.tree.structure(params).flatten_up_to(quantizer(params))  # type: ignore[attr-defined]
    for path, leaf, coded in zip(leaf_paths(params), jax.tree.leaves(params), codes, strict=True):
        if coded is not None and not _are_codes(coded, jnp.shape(leaf)):
            raise ValueError(
                "quantizer must return integer codes in the shape of each quantized leaf and None for the others, got "
                f"{_described(coded)} at {path!r}, whose shape is {jnp.shape(leaf)}."
            )
    return codes


def _are_codes(value: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.integer) and value.shape == shape


def _described(value: Any) -> str:
    return f"{value.dtype} of shape {value.shape}" if isinstance(value, jax.Array) else f"a {type(value).__name__}"
