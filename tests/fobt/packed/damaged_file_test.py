"""Packed files that are damaged or made up: an error, never a wrong array."""

import contextlib
import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from packed_cases import quantized

import fobt
from fobt._src.packed.packed_file import file_digest, parse

BIAS = np.array([0.5, -1.5], np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


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


@pytest.mark.slow
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
