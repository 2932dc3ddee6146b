"""Packed files: what is read is what was saved, and what cannot be saved is an error."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from packed_cases import GRANULARITIES, PACKED_GRIDS, bytes_of, quantized, saved, weights_of

import fobt

BIAS = np.array([0.5, -1.5], np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("grid", PACKED_GRIDS)
def test_quantized_leaves(path, grid, granularity):
    tensor = quantized(grid, granularity=granularity)
    loaded = saved(path, {"kernel": tensor})
    stored = loaded.params["kernel"]
    assert bytes(stored.codes) == bytes_of(tensor.codes, grid)
    np.testing.assert_array_equal(stored.unpack(), tensor.codes)
    np.testing.assert_allclose(loaded.weights()["kernel"], weights_of(tensor, grid), rtol=1e-6)
    chex.assert_trees_all_equal(loaded.quantized(), {"kernel": tensor})


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_two_scales(path, granularity):
    tensor = quantized("ternary", granularity=granularity, scale_per_sign=True)
    loaded = saved(path, tensor)
    np.testing.assert_allclose(loaded.weights(), weights_of(tensor, "ternary"), rtol=1e-6)
    chex.assert_trees_all_equal(loaded.quantized(), tensor)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (11,), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("grid", ["binary", "ternary", "linear(3)", "linear(4)"])
def test_shapes(path, grid, shape):
    tensor = quantized(grid, shape)
    loaded = saved(path, tensor)
    chex.assert_trees_all_equal(loaded.quantized(), tensor)
    assert loaded.weights().shape == shape


def test_packed_leaves_stay_as_they_are_packed(path):
    packed = fobt.packed.pack({"kernel": quantized("ternary")}, base3=False)
    loaded = saved(path, packed)
    chex.assert_trees_all_equal(loaded.packed(), packed)
    chex.assert_trees_all_equal(loaded.quantized(), fobt.packed.unpack(packed))


TREES = {
    "array": BIAS,
    "none": None,
    "empty": {},
    "nested": {"b": [BIAS, (BIAS, None, [])], "a": {"c": {}, "d": ()}},
    "integer keys": {10: BIAS, 2: {-1: BIAS}},
    "odd keys": {
        "": BIAS,
        "a/b": BIAS,
        "a": {"b": BIAS},
        "a~1b": BIAS,
        "~1": BIAS,
        "../../etc/passwd": BIAS,
        "ключ\n\0": BIAS,
    },
    "codes and scale": {"kernel": {"codes": BIAS, "scale": BIAS}, "__metadata__": BIAS},
    "deep": {"a": [({"b": [({"c": [(BIAS,)]},)]},)]},
}


@pytest.mark.parametrize("name", TREES)
def test_trees(path, name):
    loaded = saved(path, TREES[name], batch_stats=TREES[name])
    for tree in (loaded.params, loaded.weights(), loaded.batch_stats):
        assert jax.tree.structure(tree) == jax.tree.structure(TREES[name])
        chex.assert_trees_all_equal(tree, TREES[name])
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "dtype",
    ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "bfloat16", "float32"],
)
def test_dtypes(path, dtype):
    array = jnp.array([[0.0, 1.0, 3.0]]).astype(dtype)
    loaded = saved(path, {"array": array, "scalar": array[0, 1]})
    for tree in (loaded.params, loaded.quantized()):
        assert tree["array"].dtype == array.dtype
        np.testing.assert_array_equal(tree["array"], array)
        assert tree["scalar"].shape == ()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_weights(path, dtype):
    tensor = quantized("linear(4)", (40, 30), "channel", dtype=jnp.dtype(dtype))
    weights = saved(path, tensor).weights()
    assert weights.dtype == dtype
    np.testing.assert_array_equal(weights, tensor.dequantize())


def test_ties_of_bfloat16_go_to_even(path):
    """Half way between 1 and 1 + 2⁻⁷, and between 1 + 2⁻⁷ and 1 + 2⁻⁶."""
    scale = np.array([[1 + 2**-8, 1 + 3 * 2**-8]], np.float32)
    tensor = dataclasses.replace(quantized("binary", (1, 2), "channel", dtype=jnp.bfloat16), scale=scale)
    np.testing.assert_array_equal(np.abs(saved(path, tensor).weights().astype(float)), [[1, 1 + 2**-6]])


def test_bfloat16_without_ml_dtypes(path, monkeypatch):
    tensor = quantized("linear(4)", (40, 30), "channel", dtype=jnp.bfloat16)
    fobt.packed.save_packed(path, {"kernel": tensor, "bias": jnp.array([1.5, -0.1], jnp.bfloat16)})
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    weights = fobt.packed.load_packed(path).weights()
    monkeypatch.undo()
    assert weights["kernel"].dtype == weights["bias"].dtype == np.float32
    np.testing.assert_array_equal(weights["kernel"], tensor.dequantize().astype(jnp.float32))
    np.testing.assert_array_equal(weights["bias"], jnp.array([1.5, -0.1], jnp.bfloat16).astype(jnp.float32))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_float64(path):
    tree = {"kernel": quantized("linear(3)", dtype=np.float64), "bias": np.array([0.1]), "count": np.array(2**40)}
    loaded = saved(path, tree)
    chex.assert_trees_all_equal(loaded.quantized(), tree)
    np.testing.assert_allclose(loaded.weights()["kernel"], weights_of(tree["kernel"], "linear(3)"), rtol=1e-15)
    with jax.enable_x64(False):
        for name in tree:
            with pytest.raises(ValueError, match=rf"'{name}' is of (float|int)64.*jax_enable_x64"):
                saved(path, {name: tree[name]}).quantized()


@pytest.mark.slow
def test_flax_nnx(path):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(6, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)])
            self.norm = nnx.BatchNorm(4, rngs=rngs)

        def __call__(self, x):
            return self.layers[1](self.norm(self.layers[0](x), use_running_average=True))

    graph, params, batch_stats = nnx.split(Network(nnx.Rngs(0)), nnx.Param, nnx.BatchStat)
    tree = fobt.quantize(params, None, fobt.ternary())
    apply = jax.jit(lambda *trees: nnx.merge(graph, *trees)(jnp.ones((2, 6))))
    expected = apply(fobt.dequantize(tree), batch_stats)
    loaded = saved(path, tree, batch_stats=batch_stats)
    assert list(loaded.params["layers"]) == [0, 1]
    for weights in (fobt.dequantize(loaded.quantized()), loaded.weights()):
        np.testing.assert_allclose(apply(weights, loaded.batch_stats), expected, rtol=1e-6)


def test_flax_linen(path):
    model, x = nn.Dense(3), jnp.ones((2, 6))
    params = model.init(jax.random.key(0), x)["params"]
    tree = fobt.quantize(params, None, fobt.binary())
    expected = model.apply({"params": fobt.dequantize(tree)}, x)
    np.testing.assert_allclose(model.apply({"params": saved(path, tree).weights()}, x), expected, rtol=1e-6)


def test_metadata_and_equal_bytes(path):
    tree, metadata = {"b": quantized("binary"), "a": BIAS}, {"network": "mlp", "accuracy": "98,8 % ±"}
    assert saved(path, tree, metadata=metadata).metadata == metadata
    before = path.read_bytes()
    fobt.packed.save_packed(path, dict(reversed(tree.items())), metadata=metadata)
    assert path.read_bytes() == before


def test_a_file_is_read_without_jax(path):
    tensor = quantized("ternary", granularity="blocks")
    fobt.packed.save_packed(path, {"kernel": tensor, "bias": BIAS})
    program = (
        "import sys; sys.modules.update(dict.fromkeys(('jax', 'jaxlib', 'optax', 'chex', 'ml_dtypes')))\n"
        "import fobt, fobt.__main__, json\n"
        "weights = fobt.packed.load_packed(sys.argv[1]).weights()\n"
        "assert fobt.__main__.main([sys.argv[1]]) == 0\n"
        "print(json.dumps({name: array.tolist() for name, array in weights.items()}))"
    )
    command = [sys.executable, "-c", program, str(path)]
    output = subprocess.run(command, capture_output=True, check=True, text=True, cwd=Path(__file__).parents[3]).stdout
    weights = json.loads(output.splitlines()[-1])
    np.testing.assert_allclose(weights["kernel"], weights_of(tensor, "ternary"), rtol=1e-6)
    np.testing.assert_array_equal(weights["bias"], BIAS)


@pytest.mark.parametrize("missing", ["jax", "optax"])
def test_names_that_need_jax_say_so_without_it(path, missing):
    fobt.packed.save_packed(path, BIAS)
    program = (
        "import sys; sys.modules[sys.argv[2]] = None\n"
        "import fobt\n"
        "assert not hasattr(fobt, 'misspelt') and not hasattr(fobt.packed, 'misspelt')\n"
        "loaded = fobt.packed.load_packed(sys.argv[1])\n"
        "for name in ('linear', 'export', 'nnx', 'packed.pack'):\n"
        "    try: eval(f'fobt.{name}')\n"
        "    except ModuleNotFoundError as error: print(error)\n"
        "for use in (loaded.packed, loaded.quantized, lambda: fobt.packed.load_packed(sys.argv[1], like={}),\n"
        "            lambda: fobt.packed.size_report({})):\n"
        "    try: use()\n"
        "    except ModuleNotFoundError as error: print(error)\n"
        "try: from fobt import export\n"
        "except ImportError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(path), missing]
    output = subprocess.run(command, capture_output=True, check=True, text=True, cwd=Path(__file__).parents[3]).stdout
    names = ["fobt.linear", "fobt.export", "fobt.nnx", "fobt.packed.pack", "PackedFile.packed", "PackedFile.quantized"]
    names += ["load_packed(..., like=...)", "size_report of a tree", "fobt.export"]
    assert output.splitlines() == [
        f"{name} needs JAX, Optax and Chex, which `pip install fobt` installs" for name in names
    ]


def with_codes(grid, codes):
    return dataclasses.replace(quantized(grid, (len(codes),)), codes=np.array(codes, np.int8))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"k": with_codes("binary", [1, 0])}, "'params/k': codes must be those of the binary grid of 1 bits"),
        ({"k": with_codes("ternary", [1, -2])}, "'params/k': codes must be those of the linear grid of 2 bits"),
        ({"k": with_codes("linear(3)", [4, 1])}, "'params/k': codes must be those of the linear grid of 3 bits"),
        ({"k": with_codes("linear(3)", [5, 1, 1])}, "'params/k': codes must be those of the linear grid of 3 bits"),
        ({"k": with_codes("linear(8)", [-128])}, "'params/k': codes must be those of the linear grid of 8 bits"),
        ({"k": dataclasses.replace(quantized("binary"), scale=np.float32("nan"))}, "'params/k': scale must be finite"),
        (
            {"k": jax.tree.map(lambda leaf: np.stack([leaf] * 2), quantized("binary"))},
            "'params/k': scale must be an array",
        ),
        (
            {"k": jax.tree.map(lambda leaf: np.stack([leaf] * 2), fobt.packed.pack(quantized("binary")))},
            "'params/k': codes must",
        ),
        ({"name": "mlp"}, "'params/name' must be an array, got str"),
        ({"key": jax.random.key(0)}, "'params/key' must be"),
        ({"x": np.zeros(2, np.complex64)}, "'params/x' must be of .*got complex64"),
        ({True: BIAS}, "keys of 'params' must be strings or integers"),
        ({(1, 2): BIAS}, "keys of 'params' must be strings or integers"),
        ({"\ud800": BIAS}, "surrogates not allowed"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_cannot_be_saved(path, tree, message):
    fobt.packed.save_packed(path, {"old": BIAS})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        fobt.packed.save_packed(path, tree)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_other_arguments_that_are_wrong(path):
    with pytest.raises(ValueError, match=r"metadata must map strings to strings, got \{'epochs': 3\}"):
        fobt.packed.save_packed(path, BIAS, metadata={"epochs": 3})
    tree = BIAS
    for _ in range(65):
        tree = [tree]
    with pytest.raises(ValueError, match="must not be deeper than 64"):
        fobt.packed.save_packed(path, tree)
    with pytest.raises(FileNotFoundError):
        fobt.packed.save_packed(path.parent / "missing" / "model", BIAS)
    with pytest.raises(FileNotFoundError):
        fobt.packed.load_packed(path)
    assert not any(path.parent.iterdir())


@pytest.mark.parametrize("step", ["os.fsync", "pathlib.Path.replace"])
def test_a_write_that_fails_leaves_the_file_as_it_was(path, monkeypatch, step):
    fobt.packed.save_packed(path, {"old": BIAS})
    before = path.read_bytes()

    def fail(*args):
        raise OSError("no space left")

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="no space left"):
        fobt.packed.save_packed(path, {"new": BIAS})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_links_and_permissions(path):
    link = path.parent / "latest"
    link.symlink_to(path.name)
    umask = os.umask(0o027)
    try:
        fobt.packed.save_packed(link, BIAS)
    finally:
        os.umask(umask)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640


def test_safetensors_is_missing(path, monkeypatch):
    fobt.packed.save_packed(path, BIAS)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    for use in (lambda: fobt.packed.load_packed(path), lambda: fobt.packed.save_packed(path, BIAS)):
        with pytest.raises(ModuleNotFoundError, match="need safetensors: pip install safetensors"):
            use()
