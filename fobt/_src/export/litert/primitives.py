"""A function in the primitives that LiteRT has, or has right: its jaxpr, evaluated with others for some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from fobt._src.export.calls import called_jaxpr, is_fake_quantize
from fobt._src.export.litert.activations import composite_name

# What the converter makes wrong models of, or models that do not run.
_REFUSED = {
    "cumlogsumexp": "LiteRT cannot run it",
    "debug_callback": "LiteRT has no callbacks",
    "debug_print": "LiteRT has no callbacks",
    "io_callback": "LiteRT has no callbacks",
    "pure_callback": "LiteRT has no callbacks",
    "while": "LiteRT has no loops; those with a known number of steps (lax.scan, lax.fori_loop) are unrolled",
}


def in_known_primitives(function: Callable[..., Any]) -> Callable[..., list[jax.Array]]:
    """The same function, returning the leaves of its result, in primitives that the converter knows.

    A rounding of activations to 8 bits, with a range that is known, becomes a composite.

    Raises (when it is traced):
      ValueError: a primitive has no counterpart; the message names it.
    """

    def rewritten(*arguments: Any) -> list[jax.Array]:
        results = _evaluate(jax.make_jaxpr(function)(*arguments), jax.tree.leaves(arguments))
        for i, result in enumerate(results):
            if 0 in result.shape and not isinstance(result, jax.core.Tracer):
                raise refusal(f"an empty array as output {i}", "LiteRT cannot return one that is no input")
        return results

    return rewritten


def _evaluate(closed: core.ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    jaxpr = closed.jaxpr
    values: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *arguments], strict=True))
    for eqn in jaxpr.eqns:
        inputs = [atom.val if isinstance(atom, core.Literal) else values[atom] for atom in eqn.invars]
        values.update(zip(eqn.outvars, _results(eqn, inputs), strict=True))
    return [atom.val if isinstance(atom, core.Literal) else values[atom] for atom in jaxpr.outvars]


def _results(eqn: Any, inputs: list[Any]) -> Sequence[Any]:
    name = eqn.primitive.name
    if name in _REFUSED:
        raise refusal(name, _REFUSED[name])
    if is_fake_quantize(eqn) and (rounded := _rounded(*inputs)) is not None:
        return [rounded]
    if (called := called_jaxpr(eqn)) is not None:
        return _evaluate(called, inputs)
    if _is_known_number(eqn, inputs):
        with jax.ensure_compile_time_eval():
            return [_bind(eqn, *map(jnp.asarray, inputs))]
    if name not in ("cond", "scan") and any(0 in atom.aval.shape for atom in (*eqn.invars, *eqn.outvars)):
        return _with_empty_arrays(eqn, inputs)
    results = _RULES.get(name, _bind)(eqn, *inputs)
    return results if eqn.primitive.multiple_results else [results]


def _is_known_number(eqn: Any, inputs: list[Any]) -> bool:
    """Whether an equation computes a scale or zero point, or some other number that does not depend on the inputs."""
    if eqn.primitive.multiple_results or any(isinstance(value, jax.core.Tracer) for value in inputs):
        return False
    (out,) = eqn.outvars
    is_number = bool(inputs) and all(size == 1 for size in out.aval.shape)
    return is_number and out.aval.dtype in (np.float32, np.bool_)


def _rounded(x: Any, *numbers: Any) -> Any:
    """Activations rounded to 8 bits as a composite; None where they have other bits or a range that is not known."""
    if any(isinstance(number, jax.core.Tracer) or np.shape(number) for number in numbers) or x.dtype != np.float32:
        return None
    scale, zero, top = map(float, numbers)
    # What it consists of is thrown away later.
    return lax.composite(lambda x: x + 0, composite_name(scale, int(zero)))(x) if top == 255 else None


def refusal(name: str, reason: str) -> ValueError:
    """The error of a function with a primitive or operation that cannot be converted."""
    return ValueError(f"function uses {name}, which to_litert cannot convert: {reason}.")


def _bind(eqn: Any, *inputs: Any, **changed: Any) -> Any:
    """What the primitive itself computes, with some of its parameters changed."""
    return eqn.primitive.bind(*inputs, **{**eqn.params, **changed})


def _with_empty_arrays(eqn: Any, inputs: list[Any]) -> Sequence[Any]:
    """Without any operation on them: the converter can crash where one is a constant."""
    name, results = eqn.primitive.name, [atom.aval for atom in eqn.outvars]
    full = [value for value, atom in zip(inputs, eqn.invars, strict=True) if 0 not in atom.aval.shape]
    if all(0 in result.shape for result in results):
        return [np.zeros(result.shape, result.dtype) for result in results]
    if not full:
        with jax.ensure_compile_time_eval():
            known = _bind(eqn, *(jnp.zeros(atom.aval.shape, atom.aval.dtype) for atom in eqn.invars))
        return known if eqn.primitive.multiple_results else [known]
    if name == "concatenate":
        return [_bind(eqn, *full)]
    if name == "pad":
        return [jnp.broadcast_to(inputs[1], results[0].shape)]
    if name.startswith("scatter") or name == "dynamic_update_slice":
        return [inputs[0]]
    shapes = ", ".join(str(atom.aval.shape) for atom in eqn.invars)
    raise refusal(f"{name} of shapes {shapes}", "its converter cannot be trusted with an empty array")


def _scan(eqn: Any, *inputs: Any) -> list[Any]:
    """Unrolled: the converter cannot write loops."""
    params, length = eqn.params, eqn.params["length"]
    if not isinstance(length, int):
        raise refusal(f"scan of {length} steps", "LiteRT has no loops, and a symbolic number cannot be unrolled")
    begin, end = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, stacked = inputs[:begin], list(inputs[begin:end]), inputs[end:]
    steps: list[Any] = [None] * length
    for i in reversed(range(length)) if params["reverse"] else range(length):
        rows = [lax.index_in_dim(array, i, keepdims=False) for array in stacked]
        results = _evaluate(params["jaxpr"], [*consts, *carry, *rows])
        carry, steps[i] = results[: len(carry)], results[len(carry) :]
    if not steps:
        return [*carry, *(np.zeros(atom.aval.shape, atom.aval.dtype) for atom in eqn.outvars[len(carry) :])]
    return [*carry, *map(jnp.stack, zip(*steps, strict=True))]


def _cond(eqn: Any, index: Any, *operands: Any) -> Any:
    """Its branches rewritten; of those for several platforms that of the CPU, for which everything is lowered."""
    branches = [lambda *values, branch=branch: _evaluate(branch, values) for branch in eqn.params["branches"]]
    for i, platforms in enumerate(eqn.params.get("branches_platforms") or ()):
        if platforms is None or "cpu" in platforms:
            return branches[i](*operands)
    return lax.switch(index, branches, *operands)


def _conv_general_dilated(eqn: Any, images: Any, kernel: Any) -> Any:
    """Zeros between pixels, and around them, are padded beforehand: LiteRT misplaces those of a TRANSPOSE_CONV."""
    params = eqn.params
    spatial, groups = len(params["window_strides"]), params["feature_group_count"]
    if params["batch_group_count"] > 1 or spatial > 3 or (spatial == 3 and groups > 1):
        shapes = f"{images.shape} and {kernel.shape}, {groups} groups and {params['batch_group_count']} batch groups"
        raise refusal(f"conv_general_dilated of shapes {shapes}", "LiteRT has no such convolution")
    if all(dilation == 1 for dilation in params["lhs_dilation"]):
        return _bind(eqn, images, kernel)
    config = [(0, 0, 0)] * images.ndim
    dimensions = params["dimension_numbers"].lhs_spec[2:]
    for axis, (low, high), dilation in zip(dimensions, params["padding"], params["lhs_dilation"], strict=True):
        config[axis] = (low, high, dilation - 1)
    images = lax.pad(images, jnp.zeros((), images.dtype), config)
    return _bind(eqn, images, kernel, lhs_dilation=(1,) * spatial, padding=((0, 0),) * spatial)


def _gather(eqn: Any, operand: Any, indices: Any) -> Any:
    """Indices are brought into range beforehand: those out of it end the run in LiteRT."""
    mode, numbers, sizes = (eqn.params[name] for name in ("mode", "dimension_numbers", "slice_sizes"))
    limited = [operand.shape[axis] for axis in numbers.start_index_map]
    known = all(isinstance(size, int) for size in limited)
    if mode == lax.GatherScatterMode.PROMISE_IN_BOUNDS or not known:
        return _bind(eqn, operand, indices)
    largest = jnp.iinfo(indices.dtype).max
    last = [min(size - sizes[axis], largest) for size, axis in zip(limited, numbers.start_index_map, strict=True)]
    inside = jnp.clip(indices, 0, jnp.broadcast_to(jnp.asarray(last, indices.dtype), indices.shape))
    result = _bind(eqn, operand, inside, mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)
    if mode == lax.GatherScatterMode.CLIP:
        return result
    batch = [axis for axis in range(result.ndim) if axis not in numbers.offset_dims]
    valid = lax.broadcast_in_dim(jnp.all(indices == inside, axis=-1), result.shape, batch)
    return jnp.where(valid, result, _fill_value(eqn.params["fill_value"], result.dtype))


def _fill_value(value: Any, dtype: Any) -> Any:
    """What `jax.lax.gather` returns for an index out of range."""
    if value is not None:
        return jnp.asarray(value, dtype)
    if jnp.issubdtype(dtype, jnp.integer):
        limits = jnp.iinfo(dtype)
        return jnp.asarray(limits.min or limits.max, dtype)
    return jnp.asarray(jnp.nan, dtype)  # True as boolean.


def _cbrt(eqn: Any, x: Any) -> Any:
    """LiteRT's is NaN below zero."""
    return jnp.sign(x) * _bind(eqn, jnp.abs(x))


def _rem(eqn: Any, x: Any, y: Any) -> Any:
    """LiteRT's has the sign of the divisor."""
    if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        return _bind(eqn, x, y)
    rest = _bind(eqn, jnp.abs(x), jnp.abs(y))
    return jnp.where(x < 0, -rest, rest)


def _round(eqn: Any, x: Any) -> Any:
    if eqn.params["rounding_method"] == lax.RoundingMethod.TO_NEAREST_EVEN:
        return _bind(eqn, x)
    magnitude = jnp.abs(x)
    whole = jnp.floor(magnitude)
    return jnp.sign(x) * jnp.where(magnitude - whole >= 0.5, whole + 1, whole)


def _rev(eqn: Any, x: Any) -> Any:
    """One axis after the other: LiteRT reverses neighbouring axes only."""
    for axis in eqn.params["dimensions"]:
        x = _bind(eqn, x, dimensions=(axis,))
    return x


def _clamp(eqn: Any, low: Any, x: Any, high: Any) -> Any:
    """The upper bound wins where the bounds are in the wrong order."""
    return jnp.minimum(jnp.maximum(x, low), high)


def _shift_right_logical(eqn: Any, x: Any, y: Any) -> Any:
    if jnp.issubdtype(x.dtype, jnp.signedinteger):
        raise refusal("shift_right_logical of signed integers", "LiteRT keeps their sign")
    return _bind(eqn, x, y)


_RULES: dict[str, Callable[..., Any]] = {
    "cbrt": _cbrt,
    "clamp": _clamp,
    "cond": _cond,
    "conv_general_dilated": _conv_general_dilated,
    "gather": _gather,
    "rem": _rem,
    "rev": _rev,
    "round": _round,
    "scan": _scan,
    "shift_right_logical": _shift_right_logical,
}
