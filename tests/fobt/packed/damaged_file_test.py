"""Packed files that are damaged or made up: an error, never a wrong array."""

import base64
import contextlib
import json
import re
import tracemalloc
import zlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from made_up_files import made_up, parts, setting
from packed_cases import quantized

import fobt
from fobt._src.packed.compressed import compress, decompress
from fobt._src.packed.content import parse

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
    """A file with another description and other arrays."""
    stored, arrays = parts(content)
    description = json.loads(decompress(stored["description"]))
    change(description, arrays)
    return made_up({"version": 2, "description": compress(json.dumps(description))}, arrays)


def codes(*data):
    return array("codes", np.array(data, np.uint8))


def array(name, value):
    return lambda description, arrays: arrays.update({name: value})


def leaf(field, value):
    """Another layout or shape of the leaf k, which is the second one of the dict."""
    return setting("params", "dict", 1, 1, field, value) if field == "shape" else setting("layouts", 0, field, value)


CHANNEL = {"per": "channel", "axes": [-1]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("extra", 1), "must have the fields"),
        (lambda description, arrays: description.pop("metadata"), "must have the fields"),
        (setting("metadata", {"a": 1}), "metadata must be strings"),
        (setting("layouts", {}), "layouts must be a list"),
        (setting("layouts", []), "'params/k': layout must be one of 0, got 0"),
        (setting("layouts", [3]), "must be a mapping"),
        (setting("params", "dict", 1, 1, "layout", -1), "'params/k': layout must be one of 1, got -1"),
        (setting("params", "dict", 1, 1, "layout", True), "trees must be of null, leaves"),
        (setting("params", "dict", 1, 1, "more", 1), "trees must be of null, leaves"),
        (setting("params", "dict", 1, 1, "array"), "has no array 'params/k'"),
        (leaf("shape", [4, 4]), "'codes' must have one axis, and 4 more numbers"),
        (leaf("shape", [4, 3]), r"trees leave out \['scales/float32'\]"),
        (leaf("shape", [2**40, 2**40]), "shape must be of integers"),
        (leaf("shape", [0, 10**30]), "shape must be of integers"),
        (leaf("shape", [-3, -4]), "shape must be of integers"),
        (leaf("shape", [3.0, 4]), "shape must be of integers"),
        (leaf("shape", [True, 12]), "shape must be of integers"),
        (leaf("shape", "34"), "trees must be of null, leaves"),
        (leaf("shape", [1] * 40), "shape must be of integers"),
        (leaf("spacing", "cubic"), "spacing must be of"),
        (leaf("spacing", ["linear"]), "spacing must be of"),
        (leaf("bits", 3), "encoding must be of"),
        (leaf("bits", 9), "bits must be from 2 to 8, got 9"),
        (leaf("bits", 2.0), "bits must be from 2 to 8"),
        (leaf("encoding", "zip"), "encoding must be of"),
        (leaf("encoding", "bits"), r"'params/k': codes must be those of the linear grid|zeros up to the end"),
        (leaf("scales", 3), "scales must be of"),
        (leaf("scales", 2), "'scales/float32' must have one axis, and 8 more numbers"),
        (leaf("dtype", "int8"), "dtype must be of"),
        (leaf("dtype", "float64"), "'scales/float64' must have one axis, and 4 more numbers"),
        (leaf("granularity", {"per": "tensor"}), r"trees leave out \['scales/float32'\]"),
        (leaf("granularity", {"per": "channel", "axes": [2]}), "granularity must be"),
        (leaf("granularity", {"per": "channel", "axes": []}), "granularity must be"),
        (leaf("granularity", {"per": "channel", "axes": ["1"]}), "granularity must be"),
        (leaf("granularity", {"per": "block", "size": 0, "axis": 0}), "granularity must be"),
        (leaf("granularity", {"per": "block", "size": 2**64, "axis": 0}), "granularity must be"),
        (leaf("granularity", {"per": "block", "size": True, "axis": 0}), "granularity must be"),
        (
            leaf("granularity", {"per": "block", "size": 2, "axis": 0}),
            "'scales/float32' must have one axis, and 8 more",
        ),
        (leaf("granularity", CHANNEL | {"more": 1}), "granularity must be"),
        (leaf("granularity", None), "granularity must be"),
        (leaf("codes", [1]), "unexpected keyword"),
        (leaf("more", 1), "unexpected keyword"),
        (lambda description, arrays: description["layouts"][0].pop("bits"), "missing 1 required"),
        (codes(242, 242, 243), "codes must be those of the linear grid"),
        (codes(242, 242, 9), "followed by zeros up to the end"),
        (codes(242, 242), "'codes' must have one axis, and 3 more numbers"),
        (codes(121, 121, 4, 0), r"trees leave out \['codes'\]"),
        (codes([121, 121, 121]), "'codes' must have one axis"),
        (array("codes", np.array([121, 121, 4], np.uint16)), "codes must be an array of uint8"),
        (array("scales/float32", np.ones(4)), "scale must be an array of float32"),
        (array("scales/float32", np.full(4, np.inf, np.float32)), "finite"),
        (array("scales/float64", np.ones(1)), r"trees leave out \['scales/float64'\]"),
        (lambda description, arrays: arrays.pop("scales/float32"), "'scales/float32' must have one axis"),
        (lambda description, arrays: arrays.pop("params/b"), "has no array 'params/b'"),
        (array("../more", BIAS), r"trees leave out \['../more'\]"),
        (setting("batch_stats", None), r"trees leave out \['batch_stats/0'\]"),
        (setting("batch_stats", "array"), "has no array 'batch_stats', or uses it twice"),
        (setting("batch_stats", "params/b"), "trees must be of null, leaves"),
        (setting("batch_stats", 1), "trees must be of null, leaves"),
        (setting("batch_stats", {"set": []}), "trees must be of null, leaves"),
        (setting("batch_stats", {"list": [], "tuple": []}), "trees must be of null, leaves"),
        (setting("batch_stats", {"dict": {"a": None}}), "trees must be of null, leaves"),
        (setting("batch_stats", {"dict": [["a", None], ["a", None]]}), "a key twice"),
        (setting("batch_stats", {"dict": [["a", None], [1, None]]}), "all be strings, or all integers"),
        (setting("batch_stats", {"dict": [[1.5, None]]}), "trees must be of null, leaves"),
        (setting("batch_stats", {"dict": [[[], None]]}), "trees must be of null, leaves"),
        (setting("batch_stats", json.loads('{"list":[' * 70 + "]}" * 70)), "not be deeper than 64"),
    ],
)
def test_a_description_that_lies_is_an_error(path, change, message):
    content = small_content(path)
    path.write_bytes(remade(content, change))
    with pytest.raises(ValueError, match=message):
        fobt.packed.load_packed(path)


NESTED = json.dumps({"batch_stats": None, "layouts": [], "metadata": {}, "params": None})[:-5] + "[" * 100_000
BOMB = base64.b64encode(zlib.compress(b" " * (2**20 + 2**17 + 1))).decode()


@pytest.mark.parametrize(
    ("description", "changes", "message"),
    [
        (compress("{}"), {"version": 3}, "format version 3, and this fobt reads versions 1, 2"),
        (compress("{}"), {"version": True}, "format version True"),
        (compress("{}"), {"more": 1}, r"must have the fields \('description', 'digest', 'version'\)"),
        (compress("[]"), {}, r"must have the fields \('batch_stats'"),
        (3, {}, "its description cannot be read"),
        ("é", {}, "its description cannot be read"),
        ("!" + compress("{}"), {}, "its description cannot be read, .*base64"),
        ("", {}, "its description cannot be read"),
        ("AAAA", {}, "its description cannot be read, it cannot be decompressed"),
        (compress("null"), {"digest": 3}, "its digest is not"),
        (compress(NESTED), {}, "its description cannot be read"),
        (base64.b64encode(zlib.compress(b"{}")[:-1]).decode(), {}, "must end where the string ends"),
        (base64.b64encode(zlib.compress(b"{}") + b"!").decode(), {}, "must end where the string ends"),
        (base64.b64encode(zlib.compress(b"\xff")).decode(), {}, "can't decode byte"),
        (BOMB, {}, r"must not be longer than 1,\d\d\d,\d\d\d bytes when it is decompressed"),
    ],
)
def test_a_description_that_cannot_be_read_is_an_error(description, changes, message):
    with pytest.raises(ValueError, match=message):
        parse(made_up({"version": 2, "description": description} | changes, {}))


def test_what_is_decompressed_is_bounded():
    """By 1 MiB and 64 times what is compressed; text that could be compressed further is kept as it is."""
    bomb = zlib.compress(b" " * 10_000_000)
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"must not be longer than {2**20 + 64 * len(bomb):,} bytes"):
        decompress(base64.b64encode(bomb).decode())
    assert tracemalloc.get_traced_memory()[1] < 4e6
    tracemalloc.stop()
    for length in (0, 2**20, 10_000_000):
        assert decompress(compress(" " * length)) == " " * length


@pytest.mark.slow
def test_blocks_of_any_size_take_no_more_memory_than_the_axis(path):
    fobt.packed.save_packed(path, quantized("ternary", (3, 4), "one block"))
    huge = {"per": "block", "size": 2**48, "axis": 0}
    path.write_bytes(remade(path.read_bytes(), setting("layouts", 0, "granularity", huge)))
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
        "array",
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
            places = [place for place in scalars(description) if place]
            for i in rng.integers(len(places), size=rng.integers(1, 3)):
                # An earlier change may have taken the place away.
                with contextlib.suppress(KeyError, TypeError, IndexError):
                    setting(*places[i], odd[rng.integers(len(odd))])(description, arrays)

        try:
            loaded = fobt.packed.PackedFile(*parse(remade(content, change)))
        except ValueError:
            continue
        accepted += 1
        for array in jax.tree.leaves(loaded.weights()):
            assert np.all(np.isfinite(array))
    assert accepted < 200
