"""The fast form: integers that come through exactly where activations need no rounding, and what onnxruntime runs.

Activations that are integers, with the largest ones that 8 bits hold among them, are quantized with scale 1. Then
products are those of float64, to the rounding of float32.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_cases import free_batch, output

import fobt
from fobt._src.quantizers.granularity import Granularity
from fobt._src.quantizers.grid import Grid

SPLITS = {"tensor": fobt.per_tensor(), "outputs": fobt.per_channel(), "blocks": fobt.per_block(64, axis=0)}
FEW, MANY = "MatMulNBits", "MatMulIntegerToFloat"


def leaf(shape: tuple[int, ...], grid: Grid, split: Granularity = SPLITS["tensor"]) -> fobt.Quantized:
    """Random codes and scales; scales of both signs, as folding makes them, and a zero among several."""
    rng = np.random.default_rng(sum(shape))
    codes = rng.integers(-grid.max_code, grid.max_code + 1, shape)
    codes = 2 * rng.integers(0, 2, shape) - 1 if grid.spacing == "binary" else codes
    scales: tuple[int, ...] = ()
    if split == SPLITS["outputs"]:
        scales = (*(1 for _ in shape[:-1]), shape[-1])
    elif split == SPLITS["blocks"]:
        scales = (-(-shape[0] // 64), *shape[1:])
    scale = rng.normal(size=scales)
    if scales:
        scale[..., 1] = 0
    return fobt.Quantized(
        jnp.asarray(codes, jnp.int8), jnp.asarray(scale, jnp.float32), grid, split, 1, jnp.dtype(jnp.float32)
    )


def signed_integers(*shape: int) -> np.ndarray:
    """From -127 to 127, which is in every block of a row."""
    x = np.random.default_rng(3).integers(-127, 128, shape).astype(np.float32)
    x[..., ::32] = 127
    return x


def bytes_of_images(*shape: int) -> np.ndarray:
    """From 0 to 255, as after ReLU."""
    x = np.random.default_rng(4).integers(0, 256, shape).astype(np.float32)
    x.flat[:2] = 0, 255
    return x


def weights_of(quantized: Any) -> Any:
    return jax.tree.map(lambda weights: np.asarray(weights, np.float64), fobt.dequantize(quantized))


def fast(function: Callable[..., Any], quantized: Any, *inputs: Any) -> tuple[onnx.ModelProto, list[str]]:
    """The model, and the operator of each leaf."""
    model = fobt.export.to_onnx(function, quantized, *inputs, form="fast")
    return model, [leaf.operator.partition(",")[0] for leaf in fobt.export.operator_report(model).leaves]


def assert_equal(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=3e-6 * np.abs(expected).max())


GRIDS = {
    "binary": Grid("binary", 1),
    **{f"linear {bits}": Grid("linear", bits) for bits in (2, 3, 4, 6, 8)},
    **{f"logarithmic {bits}": Grid("logarithmic", bits) for bits in (2, 3, 4)},
}


@pytest.mark.parametrize(
    ("grid", "split"),
    [*((grid, "tensor") for grid in GRIDS), *((g, s) for g in ("binary", "linear 4") for s in ("outputs", "blocks"))],
)
@pytest.mark.parametrize("rows", [2, 5])
def test_codes_and_scales_are_exact(grid: str, split: str, rows: int):
    quantized = {"kernel": leaf((523, 257), GRIDS[grid], SPLITS[split])}
    x = signed_integers(rows, 523)
    x = x if rows == 2 else np.abs(x) * 2 + (x > 126)  # 0 to 255
    x.flat[1] = 0
    model, operators = fast(lambda w, x: x @ w["kernel"], quantized, x)
    assert_equal(output(model, x), x.astype(np.float64) @ weights_of(quantized)["kernel"])
    assert operators == ["float32" if rows == 5 and split == "blocks" else FEW if rows == 2 else MANY]


@pytest.mark.parametrize(("grid", "bits"), [("binary", 1), ("linear 2", 2), ("linear 4", 4)])
def test_files_are_small_and_so_are_models_in_memory(grid: str, bits: int, tmp_path):
    quantized = {"kernel": leaf((512, 512), GRIDS[grid]), "bias": jnp.arange(512.0)}
    for rows, operator, width in ((1, FEW, 4), (8, "DynamicQuantizeMatMul", 8)):
        model, _ = fast(lambda w, x: x @ w["kernel"] + w["bias"][None], quantized, signed_integers(rows, 512))
        assert len(model.SerializeToString()) - (512 * 512 * bits / 8 + 4 * 512) < 3000
        output(model, signed_integers(rows, 512), path=tmp_path / "optimized.onnx")
        optimized = onnx.load(tmp_path / "optimized.onnx").graph
        assert {node.op_type for node in optimized.node} <= {operator, "Add"}
        loaded = sum(len(tensor.raw_data) for tensor in optimized.initializer)
        assert loaded <= 512 * 512 * width / 8 + 4 * 512 * (4 + 1) + 100


def test_a_large_matrix_of_two_bits_stays_in_two_bits():
    quantized = {"kernel": leaf((4096, 1024), GRIDS["binary"])}
    x = signed_integers(1, 4096)
    model = fobt.export.to_onnx(lambda w, x: x @ w["kernel"], quantized, x, form="fast")
    (entry,) = fobt.export.operator_report(model).leaves
    assert entry == fobt.export.LeafOperator("kernel", (4096, 1024), "1 bit", "MatMulNBits, 2 bits", "1 row at a time")
    assert_equal(output(model, x), x.astype(np.float64) @ weights_of(quantized)["kernel"])


@pytest.mark.parametrize("rows", [1, 7])
def test_activations_are_rounded_to_eight_bits(rows: int):
    """By at most half a step, that of the largest number in a block of 128, or of the range of the whole array."""
    quantized = {"kernel": leaf((640, 256), GRIDS["linear 2"], SPLITS["outputs"])}
    x = np.random.default_rng(0).normal(size=(rows, 640)).astype(np.float32)
    model, _ = fast(lambda w, x: x @ w["kernel"], quantized, x)
    weights = weights_of(quantized)["kernel"]
    blocks = np.abs(x).reshape(rows, 5, 128).max(-1) / 127
    step = np.repeat(blocks, 128, axis=1) if rows == 1 else np.full(x.shape, (x.max() - x.min()) / 255)
    error = np.abs(output(model, x) - x.astype(np.float64) @ weights)
    bound = 0.5 * step @ np.abs(weights)
    assert np.all(error <= 1.001 * bound + 1e-5)
    assert error.max() > 0.01 * bound.max()  # it is no product of floats


WINDOWS: dict[str, dict[str, Any]] = {
    "same": {"padding": "SAME"},
    "strides": {"padding": "VALID", "window_strides": (2, 1)},
    "dilated": {"padding": ((2, 1), (0, 3)), "rhs_dilation": (2, 3)},
    "axes in another order": {"padding": "SAME", "dimension_numbers": ("NCHW", "OIHW", "NHWC")},
}


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("size", [(3, 2), (1, 1)])
def test_convolutions_of_many_channels(name: str, size: tuple[int, int]):
    options = {"window_strides": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **WINDOWS[name]}
    channels = 24 if size == (3, 2) else 130
    other = options["dimension_numbers"][0] == "NCHW"
    kernel = leaf((128, channels, *size) if other else (*size, channels, 128), GRIDS["binary"])
    x = bytes_of_images(2, channels, 9, 10) if other else bytes_of_images(2, 9, 10, channels)

    def convolve(weights, x):
        return jax.lax.conv_general_dilated(x, weights["kernel"], **options)

    model, operators = fast(convolve, {"kernel": kernel}, free_batch(*x.shape[1:]))
    assert operators == [MANY]
    assert "Conv" not in {node.op_type for node in model.graph.node}
    assert_equal(output(model, x), np.asarray(convolve(fobt.dequantize({"kernel": kernel}), x), np.float64))


def test_convolutions_that_stay_in_floats():
    x = bytes_of_images(1, 9, 9, 64)
    for channels, options in ((96, {}), (128, {"feature_group_count": 2}), (128, {"lhs_dilation": (2, 2)})):
        kernel = {"kernel": leaf((3, 3, 64 // options.get("feature_group_count", 1), channels), GRIDS["linear 4"])}

        def convolve(weights, x, options=options):
            return jax.lax.conv_general_dilated(
                x,
                weights["kernel"],
                (1, 1),
                ((1, 1), (1, 1)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                **options,
            )

        model, operators = fast(convolve, kernel, x)
        assert operators == ["float32"]
        np.testing.assert_allclose(output(model, x), convolve(fobt.dequantize(kernel), x), rtol=1e-4, atol=1e-2)


def test_kernels_of_attention_are_matrices():
    quantized = {
        "query": leaf((512, 4, 66), GRIDS["linear 4"], SPLITS["outputs"]),
        "out": leaf((4, 66, 512), GRIDS["binary"], SPLITS["outputs"]),
    }

    def heads(w, x):
        return jnp.einsum("btd,dhk->hbtk", x, w["query"]), jnp.einsum(
            "bthk,hkd->btd", x[..., :264].reshape(1, 2, 4, 66), w["out"]
        )

    x = signed_integers(1, 2, 512)
    model, operators = fast(heads, quantized, x)
    assert operators == [FEW, FEW]
    weights = weights_of(quantized)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    query, out = session.run(None, {"input": x})
    assert_equal(query, np.einsum("btd,dhk->hbtk", x.astype(np.float64), weights["query"]))
    assert_equal(out, x[0, :, :264].astype(np.float64)[None] @ weights["out"].reshape(264, 512))


def test_a_matrix_in_front_and_a_vector():
    quantized = {"kernel": leaf((300, 512), GRIDS["linear 4"])}
    x = signed_integers(512)
    model, operators = fast(lambda w, x: w["kernel"] @ x, quantized, x)
    assert operators == [FEW]
    assert_equal(output(model, x), weights_of(quantized)["kernel"] @ x.astype(np.float64))
    assert output(model, x).shape == (300,)


def test_a_table_for_both_ends_and_products_that_share_rows():
    quantized = {"table": leaf((512, 260), GRIDS["linear 2"]), "other": leaf((260, 512), GRIDS["linear 2"])}

    def function(w, words, x):
        return w["table"][words], x @ w["table"].T + x @ w["other"]

    words, x = np.array([3, 511], np.int32), bytes_of_images(5, 260)
    model, operators = fast(function, quantized, words, x)
    assert sorted(operators) == [MANY, MANY, "float32"]
    assert [node.op_type for node in model.graph.node].count("DynamicQuantizeLinear") == 1
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows, product = session.run(None, {"input_0": words, "input_1": x})
    weights = weights_of(quantized)
    assert_equal(rows, weights["table"][words])
    assert_equal(product, x.astype(np.float64) @ (weights["table"].T + weights["other"]))


def test_a_square_matrix_in_two_orders():
    quantized = {"kernel": leaf((384, 384), GRIDS["linear 2"])}
    x = bytes_of_images(5, 384)
    model, operators = fast(lambda w, x: x @ w["kernel"] - 2 * (x @ w["kernel"].T), quantized, x)
    assert operators == [MANY]  # an entry is there once
    weights = weights_of(quantized)["kernel"]
    assert_equal(output(model, x), x.astype(np.float64) @ (weights - 2 * weights.T))


def test_what_stays_in_floats_and_why():
    two_scales = fobt.ternary(scale_per_sign=True)(jnp.asarray(np.random.default_rng(0).normal(size=(512, 256)), "f"))
    half = dataclasses.replace(leaf((512, 256), GRIDS["binary"]), dtype=jnp.dtype(jnp.float16))
    cases = {
        "fewer than 131,072 weights or 64 outputs": leaf((512, 255), GRIDS["binary"]),
        "it has two scales, allowed is one": two_scales,
        "it is on a logarithmic grid of 5 bits, allowed are 2 to 4": leaf((512, 256), Grid("logarithmic", 5)),
        "it has dtype float16, allowed is float32": half,
        "scales vary within 32 inputs": fobt.binary(granularity=fobt.per_channel(0))(
            leaf((512, 256), GRIDS["linear 4"]).dequantize()
        ),
    }
    x = signed_integers(1, 512)
    for reason, kernel in cases.items():
        model, operators = fast(lambda w, x: x.astype(w["kernel"].dtype) @ w["kernel"], {"kernel": kernel}, x)
        (entry,) = fobt.export.operator_report(model).leaves
        assert (operators, entry.reason) == (["float32"], reason)
        expected = x.astype(np.float64) @ weights_of({"kernel": kernel})["kernel"]
        np.testing.assert_allclose(output(model, x), expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_options_are_checked():
    x = jnp.ones((1, 2))
    with pytest.raises(ValueError, match="form must be 'portable' or 'fast', got 'quick'"):
        fobt.export.to_onnx(lambda w, x: x, {}, x, form="quick")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="base3 must be False for form='fast'"):
        fobt.export.to_onnx(lambda w, x: x, {}, x, form="fast", base3=True)
    with pytest.raises(ValueError, match="model must be one that was exported with form='fast'"):
        fobt.export.operator_report(fobt.export.to_onnx(lambda w, x: x, {}, x))
