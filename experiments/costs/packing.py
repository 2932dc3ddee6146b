"""What packed weights cost: packing against a copy of the float32 tensor, products against float32 products."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fobt
from experiments.costs.timing import PlainProgram, Program, median_seconds, ratios

COPY, PRODUCT = "copy of the float32 tensor", "float32 product"
# Quantizers, and whether ternary codes are in base 3.
GRIDS = {
    "binary": (fobt.binary(), True),
    "ternary, base 3": (fobt.ternary(), True),
    "ternary, 2 bits": (fobt.ternary(), False),
    "linear(3)": (fobt.linear(3), True),
    "linear(4)": (fobt.linear(4), True),
    "linear(8)": (fobt.linear(8), True),
}


def packed_weights(side: int) -> dict[str, fobt.packed.Packed]:
    """A random matrix on every grid."""
    weights = jax.random.normal(jax.random.key(0), (side, side))
    return {
        name: fobt.packed.pack(jax.jit(quantizer)(weights), base3=base3) for name, (quantizer, base3) in GRIDS.items()
    }


def packing_ratios(side: int, rounds: int) -> list[dict[str, Any]]:
    """Times of packing and unpacking in JAX and in NumPy, in copies of the float32 tensor."""
    weights = jnp.ones((side, side))
    programs: dict[str, Program | PlainProgram] = {COPY: Program(jnp.copy, weights)}
    plain: dict[str, Program | PlainProgram] = {COPY: PlainProgram(np.copy, np.asarray(weights))}
    for name, packed in packed_weights(side).items():
        base3 = packed.encoding == "base3"
        programs[f"{name}, packed"] = Program(lambda q, base3=base3: fobt.packed.pack(q, base3=base3), packed.unpack())
        programs[f"{name}, unpacked"] = Program(fobt.packed.unpack, packed)
        programs[f"{name}, unpacked and dequantized"] = Program(fobt.dequantize, packed)
        stored = fobt.packed.PackedArray(
            codes=np.asarray(packed.codes),
            scale=np.asarray(packed.scale),
            shape=packed.shape,
            spacing=packed.grid.spacing,
            bits=packed.grid.bits,
            granularity={"per": "tensor"},
            scales=1,
            dtype="float32",
            encoding=packed.encoding,
        )
        plain[f"{name}, unpacked in NumPy"] = PlainProgram(stored.unpack)
    rows = []
    for group in (programs, plain):
        targets = {name: 3.0 for name in group if "unpacked" in name and "dequantized" not in name}
        rows += ratios(f"{side}×{side} tensor: ", median_seconds(group, rounds), COPY, targets)
    return rows


def product_ratios(side: int, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Time and memory of products with packed weights, in float32 products."""
    x = jax.random.normal(jax.random.key(1), (batch_size, side))
    programs = {PRODUCT: Program(jnp.matmul, x, jnp.ones((side, side)))}
    for name, packed in packed_weights(side).items():
        programs[name] = Program(fobt.packed.packed_matmul, x, packed)
    title = f"{side}×{side} product, batch {batch_size}: "
    rows = ratios(title, median_seconds(programs, rounds), PRODUCT, {})
    for name, program in programs.items():
        if name != PRODUCT:
            memory = {"memory": program.memory, "ratio": program.memory / programs[PRODUCT].memory}
            rows.append({"what": f"{title}{name}, memory", **memory, "unit": PRODUCT, "target": None})
    return rows
