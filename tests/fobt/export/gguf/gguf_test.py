"""GGUF files, read by the package of llama.cpp: exact codes, scales in half precision, metadata, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fobt
from fobt._src.quantizers.grid import Grid

gguf = pytest.importorskip("gguf", reason="needs pip install gguf")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

GRIDS = {
    "binary": Grid("binary", 1),
    "ternary": Grid("linear", 2),
    "linear 3": Grid("linear", 3),
    "linear 4": Grid("linear", 4),
    "logarithmic 3": Grid("logarithmic", 3),
}


def leaf(shape, grid, split=None, scale_shape=(), seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.integers(-grid.max_code, grid.max_code + 1, shape)
    codes = 2 * rng.integers(0, 2, shape) - 1 if grid.spacing == "binary" else codes
    scale = rng.uniform(0.01, 2, scale_shape) * rng.choice([-1, 1], scale_shape)
    split = fobt.per_tensor() if split is None else split
    return fobt.Quantized(
        jnp.asarray(codes, jnp.int8), jnp.asarray(scale, jnp.float32), grid, split, 1, jnp.dtype(jnp.float32)
    )


def read(content, path):
    path.write_bytes(content)
    return gguf.GGUFReader(path)


def weights_in(reader):
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}


def types_in(reader):
    return {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ternary", ["TQ1_0", "TQ2_0", "Q4_0"])
def test_codes_are_exact_and_scales_half_precision(grid, ternary, tmp_path):
    quantized = {
        "tensor": leaf((512, 6), GRIDS[grid]),
        "outputs": leaf((256, 4), GRIDS[grid], fobt.per_channel(), (1, 4), 1),
        "blocks": leaf((512, 3), GRIDS[grid], fobt.per_block(256, axis=0), (2, 3), 2),
    }
    content = fobt.export.to_gguf(
        lambda w: {name: kernel.T for name, kernel in w.items()},
        quantized,
        {"general.architecture": "x"},
        ternary=ternary,
    )
    reader = read(content, tmp_path / "x.gguf")
    expected_type = ternary if grid in ("binary", "ternary") else "Q4_0"
    assert set(types_in(reader).values()) == {expected_type}
    for name, got in weights_in(reader).items():
        expected = np.asarray(fobt.dequantize(quantized)[name]).T
        assert got.shape == expected.shape
        np.testing.assert_array_equal(got == 0, expected == 0)
        np.testing.assert_allclose(got, expected, rtol=2.0**-11, atol=0)
        # With scales that half precision holds, nothing is rounded.
        assert len(np.unique(np.abs(got))) == len(np.unique(np.abs(expected).astype(np.float16)))
    bits = {"TQ1_0": 54 * 8 / 256, "TQ2_0": 66 * 8 / 256, "Q4_0": 4.5}[expected_type]
    assert len(content) - sum(q.codes.size for q in quantized.values()) * bits / 8 < 400


def test_parts_of_leaves_and_other_dtypes(tmp_path):
    tree = {
        "layers": leaf((2, 64, 3), GRIDS["linear 4"], fobt.per_channel().stacked(1), (2, 1, 3)),
        "norm": jnp.arange(5.0),
        "table": jnp.ones((3, 2), jnp.float16),
    }

    def names(w):
        layers = {f"blk.{i}.weight": jnp.swapaxes(w["layers"], 1, 2)[i][::-1] for i in range(2)}
        return layers | {"norm.weight": w["norm"], "table.weight": w["table"]}

    metadata = {
        "general.architecture": "llama",
        "a.count": 7,
        "a.negative": -7,
        "a.epsilon": 1e-6,
        "a.flag": True,
        "a.list": ["x", "ÿ"],
        "a.empty": [],
    }
    reader = read(fobt.export.to_gguf(names, fobt.packed.pack(tree), metadata), tmp_path / "x.gguf")
    assert {key: reader.get_field(key).contents() for key in metadata} == metadata | {"a.epsilon": np.float32(1e-6)}
    got, expected = weights_in(reader), np.asarray(fobt.dequantize(tree)["layers"])
    assert types_in(reader) == {
        "blk.0.weight": "Q4_0",
        "blk.1.weight": "Q4_0",
        "norm.weight": "F32",
        "table.weight": "F16",
    }
    for i in range(2):
        np.testing.assert_allclose(got[f"blk.{i}.weight"], expected[i].T[::-1], rtol=2.0**-11)
    np.testing.assert_array_equal(got["norm.weight"], np.arange(5))


def export(quantized, function=lambda w: w, metadata=None, **options):
    return fobt.export.to_gguf(function, {"kernel": quantized}, metadata or {}, **options)


def test_refusals_name_the_leaf():
    ternary = GRIDS["ternary"]
    with pytest.raises(
        ValueError, match=r"'kernel', which the type TQ2_0 cannot hold: its last axis has size 64, allowed"
    ):
        export(leaf((4, 64), ternary))
    with pytest.raises(ValueError, match=r"'kernel', which the type Q4_0 cannot hold: .* vary within 32 neighbours"):
        export(leaf((3, 32), GRIDS["linear 4"], fobt.per_channel(), (1, 32)))
    with pytest.raises(ValueError, match=r"'kernel', .* linear grid of 5 bits, allowed are multiples -8 to 7"):
        export(leaf((4, 64), Grid("linear", 5)))
    with pytest.raises(ValueError, match=r"'kernel', which GGUF cannot store: it has two scales"):
        export(fobt.ternary(scale_per_sign=True)(jax.random.normal(jax.random.key(0), (4, 256))))
    for scale in (1e-6, 1e6):
        small = leaf((4, 256), ternary)
        small = fobt.Quantized(small.codes, jnp.float32(scale), ternary, small.granularity, 1, small.dtype)
        with pytest.raises(ValueError, match=r"its scales are .*, allowed are those of float16"):
            export(small)
    with pytest.raises(ValueError, match=r"each a part of one leaf, got 'x' from \['kernel'\]"):
        export(leaf((4, 256), ternary), lambda w: {"x": np.pad(w["kernel"], 1)})
    with pytest.raises(ValueError, match=r"must hold float32 or float16, got int32 at 'kernel'"):
        export(jnp.arange(3))
    with pytest.raises(ValueError, match=r"metadata must hold .* got None for 'x'"):
        export(jnp.ones(3), metadata={"x": None})
    with pytest.raises(ValueError, match=r"ternary must be 'TQ1_0', 'TQ2_0' or 'Q4_0', got 'TQ3'"):
        export(jnp.ones(3), ternary="TQ3")
    with pytest.warns(UserWarning, match=r"does not use the leaves \['kernel'\]"):
        export(leaf((4, 256), ternary), lambda w: {})
