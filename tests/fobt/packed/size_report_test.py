"""Size reports: bytes counted by hand, and those that a file has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed_cases import quantized

import fobt
from fobt.__main__ import main

TREE = {
    "conv": {"kernel": quantized("ternary", (3, 3, 1, 7)), "bias": np.zeros(7, np.float16)},
    "dense": quantized("linear(3)", (11, 5), "channel"),
    "one": np.array(1.0, np.float32),
    "out": quantized("binary", (5, 3), "rows"),
}
# Path: shape, codes, scales.
BYTES = {
    "conv/bias": ((7,), 14, 0),
    "conv/kernel": ((3, 3, 1, 7), 13, 4),  # 63 codes, five a byte
    "dense": ((11, 5), 21, 20),  # 165 bits
    "one": ((), 4, 0),
    "out": ((5, 3), 2, 20),
}


@pytest.mark.parametrize("how", ["quantized", "packed", "abstract"])
def test_a_tree(how):
    tree = {
        "quantized": lambda: TREE,
        "packed": lambda: fobt.packed.pack(TREE),
        "abstract": lambda: jax.eval_shape(lambda: TREE),
    }
    report = fobt.packed.size_report(tree[how]())
    assert {leaf.path: (leaf.shape, leaf.nbytes) for leaf in report.leaves} == {
        path: (shape, codes + scales) for path, (shape, codes, scales) in BYTES.items()
    }
    assert (report.quantized.nbytes, report.quantized.size) == (80, 63 + 55 + 15)
    assert (report.total.nbytes, report.total.size) == (98, 63 + 55 + 15 + 8)
    assert report.total.bits_per_weight == 8 * 98 / 141
    assert report.total.times_smaller == 4 * 141 / 98
    assert report.file is None
    assert [leaf.stored_as for leaf in report.leaves] == [
        "float16",
        "ternary, base 3",
        "linear, 3 bits",
        "float32",
        "binary, 1 bit",
    ]


def test_two_bits():
    report = fobt.packed.size_report(fobt.packed.pack(TREE, base3=False))
    (kernel,) = (leaf for leaf in report.leaves if leaf.path == "conv/kernel")
    assert (kernel.nbytes, kernel.stored_as) == (16 + 4, "ternary, 2 bits")


def test_a_file(tmp_path, capsys):
    path = tmp_path / "model"
    fobt.packed.save_packed(path, TREE, batch_stats={"mean": np.zeros(7, np.float32)})
    report = fobt.packed.size_report(path)
    assert [leaf.path for leaf in report.leaves] == [*(f"params/{name}" for name in BYTES), "batch_stats/mean"]
    assert (report.quantized.nbytes, report.total.nbytes) == (80, 98 + 28)
    assert report.file.nbytes == path.stat().st_size
    assert main([str(path)]) == 0
    output = capsys.readouterr().out
    assert output == f"{path}\n{report}\n"
    assert f"{path.stat().st_size:,}" in output.splitlines()[-1]


def test_a_large_file_is_as_small_as_promised(tmp_path):
    """A file of a million binary weights takes a million bits, and 2 kB at most for everything else."""
    path = tmp_path / "model"
    fobt.packed.save_packed(path, {"kernel": quantized("binary", (1000, 1000))})
    assert 0 <= path.stat().st_size - 1000 * 1000 / 8 < 2048


@pytest.mark.parametrize(("leaf", "largest"), [(quantized("binary", (8,)), 30), (np.zeros(8, np.float32), 110)])
def test_description_of_a_network_of_many_layers(tmp_path, leaf, largest):
    """Bytes for each leaf besides its numbers, names of 38 to 40 characters included."""
    layers = {f"Block_{i}": {"MultiHeadAttention_0": {f"query_{j}": leaf for j in range(4)}} for i in range(12)}
    fobt.packed.save_packed(tmp_path / "model", layers)
    report = fobt.packed.size_report(tmp_path / "model")
    assert report.file.nbytes - report.total.nbytes < largest * len(report.leaves)


def test_empty():
    assert np.isnan(fobt.packed.size_report({}).total.bits_per_weight)
    report = fobt.packed.size_report({"kernel": quantized("binary", (0, 3))})
    assert (report.total.nbytes, report.total.size) == (4, 0)
    assert "0×3" in str(report)


def test_a_wrong_file_is_one_line_and_exit_code_2(tmp_path, capsys):
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"wrong")
    for path, reason in ((wrong, "is no intact packed file"), (tmp_path / "missing", "No such file")):
        assert main([str(path)]) == 2
        error = capsys.readouterr().err
        assert error.startswith("python -m fobt: ")
        assert reason in error
        assert error.count("\n") == 1


def test_variables_of_nnx_have_the_paths_of_rules():
    from flax import nnx

    tree = nnx.State({"kernel": nnx.Param(jnp.ones((2, 2)))})
    report = fobt.packed.size_report(fobt.quantize(tree, None, fobt.binary()))
    assert [leaf.path for leaf in report.leaves] == ["kernel"]
