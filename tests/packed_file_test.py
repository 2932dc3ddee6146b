"""Packed files: what is read is what was saved, and a file that is damaged or made up is an error."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from packed_cases import GRANULARITIES, PACKED_GRIDS, bytes_of, quantized, weights_of

import fobt
from fobt._src.packed.packed_file import file_digest, parse

BIAS = np.array([0.5, -1.5], np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def saved(path, *args, **kwargs):
    """The content of a file that has been saved."""
    fobt.packed.save_packed(path, *args, **kwargs)
    return fobt.packed.load_packed(path)


# --- What is saved is read -----------------------------------------------------------------------------------------


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
    tensor = quantized("ternary", granularity=granularity, scales=2)
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
        "import sys; sys.modules['jax'] = sys.modules['ml_dtypes'] = None\n"
        "import fobt, fobt.size, json\n"
        "weights = fobt.packed.load_packed(sys.argv[1]).weights()\n"
        "assert fobt.size.main([sys.argv[1]]) == 0\n"
        "print(json.dumps({name: array.tolist() for name, array in weights.items()}))"
    )
    command = [sys.executable, "-c", program, str(path)]
    output = subprocess.run(
        command, capture_output=True, check=True, text=True, cwd=Path(__file__).parent.parent
    ).stdout
    weights = json.loads(output.splitlines()[-1])
    np.testing.assert_allclose(weights["kernel"], weights_of(tensor, "ternary"), rtol=1e-6)
    np.testing.assert_array_equal(weights["bias"], BIAS)


# --- Saving fails --------------------------------------------------------------------------------------------------


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
        with pytest.raises(ModuleNotFoundError, match=r"need safetensors: pip install 'fobt\[export\]'"):
            use()


# --- Damaged files -------------------------------------------------------------------------------------------------


def small_content(path):
    tree = {"k": quantized("ternary", (3, 4), "channel"), "b": BIAS}
    fobt.packed.save_packed(path, tree, batch_stats=[BIAS], metadata={"a": "b"})
    return path.read_bytes()


def test_every_flipped_bit_is_an_error(path):
    content = bytearray(small_content(path))
    for i in range(len(content)):
        for bit in range(8):
            content[i] ^= 1 << bit
            with pytest.raises(ValueError):
                parse(bytes(content))
            content[i] ^= 1 << bit
    parse(bytes(content))


def test_every_other_length_is_an_error(path):
    content = small_content(path)
    for length in range(len(content)):
        with pytest.raises(ValueError):
            parse(content[:length])
    for more in (b"\0", b" ", content):
        with pytest.raises(ValueError):
            parse(content + more)


def test_the_message_names_the_file(path):
    content = small_content(path)
    for damaged, reason in (
        (b"", "it is not of safetensors"),
        (content[:-1], "it is not of safetensors"),
        (content[:-1] + b"\xff", "its digest is not that of its content"),
        (safetensors.numpy.save({"a": BIAS}), "its header has no description 'fobt'"),
        (safetensors.numpy.save({"a": BIAS}, {"fobt": "1"}), "its header has no description 'fobt'"),
        (safetensors.numpy.save({"a": BIAS}, {"fobt": "[" * 100_000}), "its header has no description 'fobt'"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{re.escape(repr(str(path)))} is no intact packed file: {reason}"):
            fobt.packed.load_packed(path)


# --- Files that are made up, with a digest that is right -----------------------------------------------------------


def remade(content, change):
    """A file with another description and other arrays, and their digest."""
    arrays = safetensors.numpy.load(content)
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    description = json.loads(header["__metadata__"]["fobt"])
    change(description, arrays)
    description["digest"] = "0" * 64
    made = safetensors.numpy.save(arrays, {"fobt": json.dumps(description)})
    return made.replace(b"0" * 64, file_digest(made, "0" * 64).encode(), 1)


def setting(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(description, arrays):
        place = description
        for key in keys:
            place = place[key]
        place[last] = value

    return change


def codes(*data):
    return lambda description, arrays: arrays.update({"params/k/codes": np.array(data, np.uint8)})


def leaf(field, value):
    return setting("quantized", "params/k", field, value)


CHANNEL = {"per": "channel", "axes": [-1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("version", 2), "format version 2, and this fobt reads version 1"),
        (setting("version", True), "format version True"),
        (setting("extra", 1), "must have the fields"),
        (lambda description, arrays: description.pop("metadata"), "must have the fields"),
        (setting("metadata", {"a": 1}), "metadata must be strings"),
        (setting("quantized", []), "quantized leaves must be objects"),
        (setting("quantized", "params/k", 3), "quantized leaves must be objects"),
        (leaf("shape", [4, 4]), "codes must be an array of uint8 and shape .4,., got .* .3,."),
        (leaf("shape", [4, 3]), "scale must be an array of float32 and shape .1, 3., got .*1, 4"),
        (leaf("shape", [2**40, 2**40]), "shape must be of integers"),
        (leaf("shape", [0, 10**30]), "shape must be of integers"),
        (leaf("shape", [-3, -4]), "shape must be of integers"),
        (leaf("shape", [3.0, 4]), "shape must be of integers"),
        (leaf("shape", [True, 12]), "shape must be of integers"),
        (leaf("shape", "34"), "shape must be of integers"),
        (leaf("shape", [1] * 40), "shape must be of integers"),
        (leaf("shape", 12), "not iterable"),
        (leaf("spacing", "cubic"), "spacing must be of"),
        (leaf("spacing", ["linear"]), "spacing must be of"),
        (leaf("bits", 3), "encoding must be of"),
        (leaf("bits", 9), "bits must be from 2 to 8, got 9"),
        (leaf("bits", 2.0), "bits must be from 2 to 8"),
        (leaf("encoding", "zip"), "encoding must be of"),
        (leaf("encoding", "bits"), r"'params/k': codes must be those of the linear grid|zeros up to the end"),
        (leaf("scales", 3), "scales must be of"),
        (leaf("scales", 2), "scale must be an array of float32 and shape .2, 1, 4."),
        (leaf("dtype", "int8"), "dtype must be of"),
        (leaf("dtype", "float64"), "scale must be an array of float64"),
        (leaf("granularity", {"per": "tensor"}), "scale must be an array of float32 and shape .., got"),
        (leaf("granularity", {"per": "channel", "axes": [2]}), "granularity must be"),
        (leaf("granularity", {"per": "channel", "axes": []}), "granularity must be"),
        (leaf("granularity", {"per": "channel", "axes": ["1"]}), "granularity must be"),
        (leaf("granularity", {"per": "block", "size": 0, "axis": 0}), "granularity must be"),
        (leaf("granularity", {"per": "block", "size": 2**64, "axis": 0}), "granularity must be"),
        (leaf("granularity", {"per": "block", "size": True, "axis": 0}), "granularity must be"),
        (leaf("granularity", {"per": "block", "size": 2, "axis": 1}), "scale must be"),
        (leaf("granularity", CHANNEL | {"more": 1}), "granularity must be"),
        (leaf("granularity", None), "granularity must be"),
        (leaf("codes", [1]), "multiple values"),
        (leaf("more", 1), "unexpected keyword"),
        (lambda description, arrays: description["quantized"]["params/k"].pop("bits"), "missing 1 required"),
        (codes(242, 242, 243), "codes must be those of the linear grid"),
        (codes(242, 242, 9), "followed by zeros up to the end"),
        (codes(242, 242), "codes must be an array"),
        (lambda description, arrays: arrays.update({"params/k/scale": np.full((1, 4), np.inf, np.float32)}), "finite"),
        (lambda description, arrays: arrays.pop("params/k/scale"), "has no array 'params/k/scale'"),
        (lambda description, arrays: arrays.pop("params/b"), "has no array 'params/b'"),
        (lambda description, arrays: arrays.update({"../more": BIAS}), r"trees leave out \['../more'\]"),
        (setting("quantized", "params/b", {}), "has no array 'params/b/codes'"),
        (setting("batch_stats", None), r"trees leave out \['batch_stats/0'\]"),
        (setting("batch_stats", "params/b"), "or uses it twice"),
        (setting("batch_stats", 1), "trees must be of null, names"),
        (setting("batch_stats", {"set": []}), "trees must be of null, names"),
        (setting("batch_stats", {"list": [], "tuple": []}), "trees must be of null, names"),
        (setting("batch_stats", {"dict": {"a": None}}), "trees must be of null, names"),
        (setting("batch_stats", {"dict": [["a", None], ["a", None]]}), "a key twice"),
        (setting("batch_stats", {"dict": [["a", None], [1, None]]}), "all be strings, or all integers"),
        (setting("batch_stats", {"dict": [[1.5, None]]}), "trees must be of null, names"),
        (setting("batch_stats", {"dict": [[[], None]]}), "trees must be of null, names"),
        (setting("batch_stats", json.loads('{"list":[' * 70 + "]}" * 70)), "not be deeper than 64"),
    ],
)
def test_a_description_that_lies_is_an_error(path, change, message):
    content = small_content(path)
    path.write_bytes(remade(content, change))
    with pytest.raises(ValueError, match=message):
        fobt.packed.load_packed(path)


def test_blocks_of_any_size_take_no_more_memory_than_the_axis(path):
    fobt.packed.save_packed(path, quantized("ternary", (3, 4), "one block"))
    huge = {"per": "block", "size": 2**48, "axis": 0}
    path.write_bytes(remade(path.read_bytes(), setting("quantized", "params", "granularity", huge)))
    loaded = fobt.packed.load_packed(path)
    np.testing.assert_allclose(loaded.weights(), loaded.quantized().dequantize(), rtol=1e-6)


def scalars(value, path=()):
    """The places of everything in a JSON value."""
    yield path
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from scalars(child, (*path, key))


def test_random_lies_are_errors_or_arrays_that_fit_their_description(path):
    content = small_content(path)
    rng = np.random.default_rng(0)
    odd = [
        None,
        True,
        -1,
        0,
        1,
        2,
        3,
        2**31,
        2**63,
        1e308,
        "",
        "params/b",
        "bits",
        "linear",
        "float16",
        [],
        {},
        [3, 4],
        [12],
    ]
    accepted = 0
    for _ in range(2000):

        def change(description, arrays):
            places = [place for place in scalars(description) if place and place[0] not in ("digest", "version")]
            for i in rng.integers(len(places), size=rng.integers(1, 3)):
                # An earlier change may have taken the place away.
                with contextlib.suppress(KeyError, TypeError, IndexError):
                    setting(*places[i], odd[rng.integers(len(odd))])(description, arrays)

        try:
            loaded = parse(remade(content, change))
        except ValueError:
            continue
        accepted += 1
        for array in jax.tree.leaves(loaded.weights()):
            assert np.all(np.isfinite(array))
    assert accepted < 200
