"""The reader of packed files in plain Python, against what was saved."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fobt
from experiments.deployment.read_packed import main, read_packed

GRIDS = {
    "binary": fobt.binary,
    "ternary": fobt.ternary,
    "two scales": lambda **options: fobt.ternary(scale_per_sign=True, **options),
    **{f"linear {bits}": lambda bits=bits, **options: fobt.linear(bits, **options) for bits in range(3, 9)},
    **{f"logarithmic {bits}": lambda bits=bits, **options: fobt.logarithmic(bits, **options) for bits in (2, 3, 4)},
}
NUMBERS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
GRANULARITIES = {
    "tensor": fobt.per_tensor(),
    "channel": fobt.per_channel(),
    "first axis": fobt.per_channel(0),
    "both axes": fobt.per_channel((-2, -1)),
    "blocks": fobt.per_block(3),
    "blocks of columns": fobt.per_block(2, axis=-1),
    "one block": fobt.per_block(1000),
}


def read(path, quantized):
    """The leaves of a file, as arrays."""
    fobt.packed.save_packed(path, quantized)
    return {name: np.reshape(numbers, shape) for name, (shape, numbers) in read_packed(path).items()}


def drawn(quantizer: fobt.Quantizer, shape: tuple[int, ...]) -> fobt.Quantized:
    """Codes and scales of the shapes that the quantizer gives, of random numbers."""
    rng = np.random.default_rng(0)
    quantized = jax.eval_shape(quantizer, jax.ShapeDtypeStruct(shape, jnp.float32))
    levels = np.arange(-quantizer.grid.max_code, quantizer.grid.max_code + 1)
    levels = levels[levels != 0] if quantizer.grid.spacing == "binary" else levels
    codes = rng.choice(levels, shape).astype(np.int8)
    scale = rng.uniform(0.5, 2.0, quantized.scale.shape).astype(np.float32)
    return dataclasses.replace(quantized, codes=jnp.asarray(codes), scale=jnp.asarray(scale))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("grid", GRIDS)
def test_quantized_leaves(tmp_path, grid: str, granularity: str):
    quantizer = GRIDS[grid](granularity=GRANULARITIES[granularity])
    quantized = drawn(quantizer, (7, 5))
    (kernel,) = read(tmp_path / "file", {"kernel": quantized}).values()
    np.testing.assert_allclose(kernel, quantized.dequantize(), rtol=1e-6)


@pytest.mark.parametrize("dtype", [*NUMBERS, "bool", "float16", "bfloat16", "float32", "float64"])
def test_other_leaves(tmp_path, dtype: str):
    array = np.array([[0, 1, 2], [3, 100, 1]]).astype(jnp.dtype(dtype))
    leaves = read(tmp_path / "file", {"array": array, "scalar": jnp.float32(1.5)})
    np.testing.assert_array_equal(leaves["params/array"], np.asarray(array, np.float64))
    assert leaves["params/scalar"] == 1.5


def test_damage_is_found(tmp_path):
    path = tmp_path / "file"
    fobt.packed.save_packed(path, {"bias": jnp.ones(3)})
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        read_packed(path)


def test_the_command_prints_every_leaf(tmp_path, capsys: pytest.CaptureFixture[str]):
    fobt.packed.save_packed(tmp_path / "file", {"bias": jnp.array([0.5, -1.0])})
    main([str(tmp_path / "file")])
    assert capsys.readouterr().out == "params/bias [2] [0.5, -1.0]\n"
