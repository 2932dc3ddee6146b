"""Elementwise primitives as ONNX operators."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from fobt._src.export.onnx.functions import DOMAIN, numeric_function
from fobt._src.export.onnx.graph import Constant, Graph, Value
from fobt._src.export.onnx.types import Unsupported, carrier

Converter: TypeAlias = Callable[..., Any]


def broadcast_shape(values: Sequence[Value]) -> tuple[Any, ...]:
    """The shape of an elementwise result; NumPy's rule, with dimensions that may be symbolic."""
    rank = max(len(value.shape) for value in values)
    padded = [(1,) * (rank - len(value.shape)) + tuple(value.shape) for value in values]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*padded, strict=True))


def trimmed(values: Sequence[Value]) -> list[Value]:
    """The values, constants without leading axes of 1 where that leaves the shape of the result as it is.

    For a bias of shape (1, n) onnxruntime 1.32 takes Gemm, and dequantizes the whole matrix in each run.
    """
    rank = max((len(value.shape) for value in values if not isinstance(value, Constant)), default=None)
    if rank is None:
        return list(values)

    def without_ones(value: Value) -> Value:
        if not isinstance(value, Constant) or len(value.shape) > rank:
            return value
        return Constant(value.array.reshape(list(itertools.dropwhile(lambda size: size == 1, value.shape))))

    return list(map(without_ones, values))


def elementwise(op: str, **attributes: Any) -> Converter:
    """The operator of that name; its inputs may still have to be broadcast."""

    def convert(graph: Graph, eqn: Any, *inputs: Value) -> Value:
        del eqn
        return graph.compute(op, trimmed(inputs), broadcast_shape(inputs), **attributes)

    return convert


def comparison(op: str) -> Converter:
    """The operator of that name, from two values of one dtype to bool."""

    def convert(graph: Graph, eqn: Any, *inputs: Value) -> Value:
        del eqn
        return graph.compare(op, trimmed(inputs), broadcast_shape(inputs))

    return convert


def logical(op: str) -> Converter:
    """The operator of that name of bools, and the bitwise one of integers."""

    def convert(graph: Graph, eqn: Any, *inputs: Value) -> Value:
        del eqn
        name = op if inputs[0].dtype == bool else f"Bitwise{op}"
        return graph.compute(name, trimmed(inputs), broadcast_shape(inputs))

    return convert


def function(name: str) -> Converter:
    """A function of standard operators."""

    def convert(graph: Graph, eqn: Any, value: Value) -> Value:
        del eqn
        wide = graph.cast(value, carrier(name, value.dtype))
        result = graph.add(numeric_function(graph, name), [wide], value.shape, domain=DOMAIN)
        return graph.cast(result, value.dtype)

    return convert


def same(graph: Graph, eqn: Any, *values: Value) -> Any:
    """The values themselves."""
    del graph
    return list(values) if eqn.primitive.multiple_results else values[0]


def number_like(value: Value, number: float) -> Constant:
    """A number in the dtype of a value."""
    return Constant(np.asarray(number, value.dtype))


def not_equal(graph: Graph, eqn: Any, *inputs: Value) -> Value:
    """Not, of Equal."""
    equal = comparison("Equal")(graph, eqn, *inputs)
    return graph.compute("Not", [equal], equal.shape)


def rsqrt(graph: Graph, eqn: Any, value: Value) -> Value:
    """The reciprocal of the root."""
    return elementwise("Reciprocal")(graph, eqn, elementwise("Sqrt")(graph, eqn, value))


def square(graph: Graph, eqn: Any, value: Value) -> Value:
    """The value times itself."""
    return elementwise("Mul")(graph, eqn, value, value)


def erfc(graph: Graph, eqn: Any, value: Value) -> Value:
    """1 - erf(x), to the rounding of 1: runtimes recognise the exact GELU by it."""
    return elementwise("Sub")(graph, eqn, number_like(value, 1), elementwise("Erf")(graph, eqn, value))


def exp2(graph: Graph, eqn: Any, value: Value) -> Value:
    """A power of two."""
    return elementwise("Pow")(graph, eqn, number_like(value, 2), value)


def cbrt(graph: Graph, eqn: Any, value: Value) -> Value:
    """The third root, with the sign of the value."""
    root = elementwise("Pow")(graph, eqn, elementwise("Abs")(graph, eqn, value), number_like(value, 1 / 3))
    return elementwise("Mul")(graph, eqn, elementwise("Sign")(graph, eqn, value), root)


def is_finite(graph: Graph, eqn: Any, value: Value) -> Value:
    """Whether |x| < ∞, which NaN is not."""
    return comparison("Less")(graph, eqn, elementwise("Abs")(graph, eqn, value), number_like(value, np.inf))


def round_(graph: Graph, eqn: Any, value: Value) -> Value:
    """The nearest integer; halves to the even one or away from zero."""
    if eqn.params["rounding_method"] == jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        return elementwise("Round")(graph, eqn, value)
    magnitude = elementwise("Abs")(graph, eqn, value)
    floor = elementwise("Floor")(graph, eqn, magnitude)
    rest = elementwise("Sub")(graph, eqn, magnitude, floor)
    is_up = comparison("GreaterOrEqual")(graph, eqn, rest, number_like(value, 0.5))
    rounded = elementwise("Add")(graph, eqn, floor, graph.cast(is_up, value.dtype))
    return elementwise("Mul")(graph, eqn, elementwise("Sign")(graph, eqn, value), rounded)


def power(graph: Graph, eqn: Any, value: Value, exponent: Value) -> Value:
    """A power; an exponent of integers is one of floating numbers here."""
    return elementwise("Pow")(graph, eqn, value, graph.cast(exponent, value.dtype))


def integer_power(graph: Graph, eqn: Any, value: Value) -> Value:
    """A power with a static integer exponent; of integers by multiplications, which wrap around as JAX's do."""
    y = eqn.params["y"]
    if jnp.issubdtype(value.dtype, jnp.floating):
        return elementwise("Pow")(graph, eqn, value, number_like(value, y))
    if y < 0:
        raise Unsupported(f"of {value.dtype} with the exponent {y}")
    result: Value = number_like(value, 1)
    for digit in f"{y:b}":
        result = square(graph, eqn, result)
        result = elementwise("Mul")(graph, eqn, result, value) if digit == "1" else result
    return result


def divide(graph: Graph, eqn: Any, dividend: Value, divisor: Value) -> Value:
    """The quotient, of integers rounded towards zero, with JAX's -1 for a divisor of 0."""
    if jnp.issubdtype(dividend.dtype, jnp.floating):
        return elementwise("Div")(graph, eqn, dividend, divisor)
    return _of_integers("Div", {}, graph, eqn, dividend, divisor, Constant(np.array(-1).astype(dividend.dtype)))


def remainder(graph: Graph, eqn: Any, dividend: Value, divisor: Value) -> Value:
    """The remainder with the sign of the dividend, which of integers JAX returns for a divisor of 0."""
    if jnp.issubdtype(dividend.dtype, jnp.floating):
        return elementwise("Mod", fmod=1)(graph, eqn, dividend, divisor)
    return _of_integers("Mod", {"fmod": 1}, graph, eqn, dividend, divisor, dividend)


def _of_integers(
    op: str, attributes: dict[str, int], graph: Graph, eqn: Any, dividend: Value, divisor: Value, by_zero: Value
) -> Value:
    """A division of integers, without what would end the process: a divisor of 0, and -1 with the lowest int32."""
    if isinstance(divisor, Constant) and not np.any((divisor.array == 0) | (divisor.array == np.int8(-1))):
        return elementwise(op, **attributes)(graph, eqn, dividend, divisor)
    dtype = np.dtype(np.int64) if dividend.dtype == np.int32 else dividend.dtype
    is_zero = comparison("Equal")(graph, eqn, divisor, number_like(divisor, 0))
    safe = where(graph, is_zero, number_like(divisor, 1), divisor)
    result = elementwise(op, **attributes)(graph, eqn, graph.cast(dividend, dtype), graph.cast(safe, dtype))
    return where(graph, is_zero, by_zero, graph.cast(result, dividend.dtype))


def where(graph: Graph, condition: Value, yes: Value, no: Value) -> Value:
    """One value where the condition holds, otherwise another."""
    wide = carrier("Where", yes.dtype)
    values = [condition, graph.cast(yes, wide), graph.cast(no, wide)]
    return graph.cast(graph.add("Where", trimmed(values), broadcast_shape(values), wide), yes.dtype)


def select(graph: Graph, eqn: Any, which: Value, *cases: Value) -> Value:
    """The case whose number is `which`."""
    if which.dtype == bool:
        return where(graph, which, cases[1], cases[0]) if len(cases) == 2 else cases[0]
    result = cases[-1]
    for number, case in reversed(list(enumerate(cases[:-1]))):
        is_this = comparison("Equal")(graph, eqn, which, number_like(which, number))
        result = where(graph, is_this, case, result)
    return result


def clamp(graph: Graph, eqn: Any, low: Value, value: Value, high: Value) -> Value:
    """The value between two bounds."""
    return elementwise("Min")(graph, eqn, elementwise("Max")(graph, eqn, value, low), high)


def convert_element_type(graph: Graph, eqn: Any, value: Value) -> Value:
    """Another dtype; numbers out of the range of an integer become its nearest one, where C leaves them undefined."""
    dtype = np.dtype(eqn.outvars[0].aval.dtype)
    if not (jnp.issubdtype(value.dtype, jnp.floating) and jnp.issubdtype(dtype, jnp.integer)):
        return graph.cast(value, dtype)
    limits = jnp.iinfo(dtype)
    wide = graph.cast(value, jnp.promote_types(value.dtype, jnp.float32))
    bounded = elementwise("Max")(graph, eqn, wide, number_like(wide, limits.min))
    if limits.bits <= 16:  # floating numbers hold the largest one
        bounded = elementwise("Min")(graph, eqn, bounded, number_like(wide, limits.max))
        return graph.cast(graph.cast(bounded, np.int32), dtype)
    is_above = comparison("GreaterOrEqual")(
        graph, eqn, wide, number_like(wide, 2.0 ** (limits.bits - (limits.min < 0)))
    )
    return where(graph, is_above, Constant(np.asarray(limits.max, dtype)), graph.cast(bounded, dtype))


def shift(direction: str) -> Converter:
    """A shift of bits that fills up with zeros."""

    def convert(graph: Graph, eqn: Any, value: Value, places: Value) -> Value:
        unsigned = np.dtype(f"uint{8 * value.dtype.itemsize}")
        operands = [graph.cast(value, unsigned), graph.cast(places, unsigned)]
        return graph.cast(elementwise("BitShift", direction=direction)(graph, eqn, *operands), value.dtype)

    return convert


def shift_right_arithmetic(graph: Graph, eqn: Any, value: Value, places: Value) -> Value:
    """Division by a power of two, rounded down, of the bits as a signed number."""
    power_of_two = shift("LEFT")(graph, eqn, Constant(np.asarray(1, np.int64)), graph.cast(places, np.int64))
    wide = graph.cast(graph.cast(value, f"int{8 * value.dtype.itemsize}"), np.int64)
    rest = elementwise("Mod")(graph, eqn, wide, power_of_two)
    quotient = elementwise("Div")(graph, eqn, elementwise("Sub")(graph, eqn, wide, rest), power_of_two)
    return graph.cast(quotient, value.dtype)


ELEMENTWISE: Mapping[str, Converter] = MappingProxyType(
    {
        "abs": elementwise("Abs"),
        "acos": elementwise("Acos"),
        "acosh": elementwise("Acosh"),
        "add": elementwise("Add"),
        "add_any": elementwise("Add"),
        "and": logical("And"),
        "asin": elementwise("Asin"),
        "asinh": elementwise("Asinh"),
        "atan": elementwise("Atan"),
        "atanh": elementwise("Atanh"),
        "cbrt": cbrt,
        "ceil": elementwise("Ceil"),
        "clamp": clamp,
        "convert_element_type": convert_element_type,
        "copy": same,
        "cos": elementwise("Cos"),
        "cosh": elementwise("Cosh"),
        "div": divide,
        "eq": comparison("Equal"),
        "erf": elementwise("Erf"),
        "erfc": erfc,
        "exp": elementwise("Exp"),
        "exp2": exp2,
        "expm1": function("expm1"),
        "floor": elementwise("Floor"),
        "ge": comparison("GreaterOrEqual"),
        "gt": comparison("Greater"),
        "integer_pow": integer_power,
        "is_finite": is_finite,
        "le": comparison("LessOrEqual"),
        "log": elementwise("Log"),
        "log1p": function("log1p"),
        "logistic": elementwise("Sigmoid"),
        "lt": comparison("Less"),
        "max": elementwise("Max"),
        "min": elementwise("Min"),
        "mul": elementwise("Mul"),
        "name": same,
        "ne": not_equal,
        "neg": elementwise("Neg"),
        "not": logical("Not"),
        "optimization_barrier": same,
        "or": logical("Or"),
        "pow": power,
        "rem": remainder,
        "round": round_,
        "rsqrt": rsqrt,
        "select_n": select,
        "sharding_constraint": same,
        "shift_left": shift("LEFT"),
        "shift_right_arithmetic": shift_right_arithmetic,
        "shift_right_logical": shift("RIGHT"),
        "sign": elementwise("Sign"),
        "sin": elementwise("Sin"),
        "sinh": elementwise("Sinh"),
        "sqrt": elementwise("Sqrt"),
        "square": square,
        "stop_gradient": same,
        "sub": elementwise("Sub"),
        "tan": elementwise("Tan"),
        "tanh": elementwise("Tanh"),
        "xor": logical("Xor"),
    }
)
