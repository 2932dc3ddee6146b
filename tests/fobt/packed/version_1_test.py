"""Files of version 1, which are read for ever: one that version 1 has written, and what is wrong with others."""

from pathlib import Path

import chex
import ml_dtypes
import numpy as np
import pytest
from made_up_files import made_up, parts, setting
from packed_cases import quantized

import fobt
from fobt._src.packed.content import parse

FILE = Path(__file__).with_name("version_1.safetensors")
GRIDS = ("binary", "ternary", "linear(3)", "linear(4)", "logarithmic(3)")
BATCH_STATS = [np.array([0.5], np.float32)]


def every_kind():
    """What the file holds: every grid, granularity and container."""
    return {
        "grids": [quantized(grid, (3, 5)) for grid in GRIDS],
        "granularities": {
            n: quantized("ternary", (3, 5), name) for n, name in enumerate(("channel", "rows", "blocks", "one block"))
        },
        "others": (
            fobt.packed.pack(quantized("ternary", (3, 5), scale_per_sign=True), base3=False),
            quantized("linear(4)", (2, 2), dtype=ml_dtypes.bfloat16),
            quantized("binary", (2, 2), dtype=np.float64),
            None,
            {"a/b": np.arange(3, dtype=np.int16), "~": np.array([1.5, -2], ml_dtypes.bfloat16), "": np.array(True)},
        ),
    }


@pytest.mark.usefixtures("x64")
def test_it_is_read(tmp_path):
    loaded = fobt.packed.load_packed(FILE)
    chex.assert_trees_all_equal(loaded.quantized(), fobt.packed.unpack(every_kind()))
    chex.assert_trees_all_equal(loaded.batch_stats, BATCH_STATS)
    assert loaded.metadata == {"network": "mlp"}
    # What is read is written again as version 2, with the same bytes as that which version 1 was written from.
    fobt.packed.save_packed(tmp_path / "a", loaded.packed(), batch_stats=loaded.batch_stats, metadata=loaded.metadata)
    fobt.packed.save_packed(tmp_path / "b", every_kind(), batch_stats=BATCH_STATS, metadata={"network": "mlp"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").stat().st_size < FILE.stat().st_size / 2


def remade(change):
    """The file with another description and other arrays."""
    description, arrays = parts(FILE.read_bytes())
    change(description, arrays)
    return made_up(description | {"digest": "0" * 64}, arrays)


LEAF = "params/granularities/0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("extra", 1), "must have the fields"),
        (setting("metadata", {"a": 1}), "metadata must be strings"),
        (setting("quantized", []), "quantized leaves must be objects"),
        (setting("quantized", LEAF, 3), "quantized leaves must be objects"),
        (setting("quantized", LEAF, "shape", [5, 5]), "codes must be an array of uint8 and shape .5,., got .* .3,."),
        (setting("quantized", LEAF, "shape", [5, 3]), "scale must be an array of float32 and shape .1, 3., got .*1, 5"),
        (setting("quantized", LEAF, "shape", 15), "not iterable"),
        (setting("quantized", LEAF, "codes", [1]), "multiple values"),
        (lambda description, arrays: description["quantized"][LEAF].pop("shape"), f"'{LEAF}': 'shape'"),
        (lambda description, arrays: arrays.pop(f"{LEAF}/scale"), f"has no array '{LEAF}/scale'"),
        (lambda description, arrays: arrays.update(more=arrays[f"{LEAF}/scale"]), r"trees leave out \['more'\]"),
        (setting("batch_stats", None), r"trees leave out \['batch_stats/0'\]"),
        (setting("batch_stats", "list", 0, LEAF), f"null, paths, .*, got '{LEAF}' at 'batch_stats/0'"),
        (setting("batch_stats", "batch_stats"), "has no array 'batch_stats', or uses it twice"),
        (setting("batch_stats", {"list": [], "tuple": []}), "trees must be of null, paths"),
        (setting("version", 2), r"must have the fields \('description', 'digest', 'version'\)"),
    ],
)
def test_a_description_that_lies_is_an_error(change, message):
    parse(remade(lambda description, arrays: None))
    with pytest.raises(ValueError, match=message):
        parse(remade(change))


def test_a_flipped_bit_is_an_error():
    content = FILE.read_bytes()
    for i in range(0, len(content), 37):
        damaged = bytearray(content)
        damaged[i] ^= 1 << i % 8
        with pytest.raises(ValueError):
            parse(bytes(damaged))
