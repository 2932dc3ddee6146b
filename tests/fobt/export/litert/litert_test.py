"""Export to LiteRT: what its interpreter computes, against JAX, and the stored bytes decoded by hand."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from litert_cases import GRIDS, PER_TENSOR, close, leaf, normal, run, stored_weights

import fobt
from fobt._src.quantizers.grid import Grid

SPLITS = {"tensor": PER_TENSOR, "outputs": fobt.per_channel(), "inputs": fobt.per_channel(0)}


@pytest.mark.parametrize(
    ("grid", "split"),
    [*((grid, "tensor") for grid in GRIDS), *((g, s) for g in ("binary", "linear 4") for s in ("outputs", "inputs"))],
)
def test_a_dense_layer(grid: str, split: str):
    quantized = {"kernel": leaf((10, 7), GRIDS[grid], SPLITS[split]), "bias": jnp.arange(7.0)[None]}

    def function(weights, x):
        return jax.nn.relu(x @ weights["kernel"] + weights["bias"])

    x = normal(3, 10)
    model = fobt.export.to_litert(function, quantized, x)
    close(run(model, x), function(fobt.dequantize(quantized), x))
    (stored,) = stored_weights(model)
    np.testing.assert_allclose(stored, quantized["kernel"].dequantize().T, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 4], ids=["depthwise", "conv"])
@pytest.mark.parametrize("split", [PER_TENSOR, fobt.per_channel()], ids=["tensor", "channel"])
@pytest.mark.parametrize("grid", ["binary", "linear 2", "linear 4", "linear 8"])
def test_a_convolution(grid: str, split, channels: int):
    quantized = {"kernel": leaf((3, 3, channels, 6), GRIDS[grid], split)}

    def function(weights, x):
        return jax.lax.conv_general_dilated(
            x, weights["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x = normal(2, 8, 8, channels)
    model = fobt.export.to_litert(function, quantized, x)
    close(run(model, x), function(fobt.dequantize(quantized), x))
    assert sorted(stored_weights(model)[0].ravel()) == pytest.approx(
        sorted(np.asarray(quantized["kernel"].dequantize()).ravel()), rel=1e-6
    )


def test_a_file_takes_the_bits_it_promises():
    x = normal(1, 256)
    sizes = {}
    for grid in ("binary", "linear 4", "linear 8"):
        kernel = {"kernel": leaf((256, 512), GRIDS[grid])}
        sizes[grid] = len(fobt.export.to_litert(lambda w, x: x @ w["kernel"], kernel, x))
    for grid, bits in (("binary", 2), ("linear 4", 4), ("linear 8", 8)):
        assert 0 <= sizes[grid] - bits * 256 * 512 / 8 < 2000


def test_a_free_batch_and_two_inputs():
    quantized = {"kernel": leaf((5, 4), GRIDS["linear 2"])}

    def function(weights, x, y):
        return x @ weights["kernel"] + y

    batch = jax.export.symbolic_shape("batch, 5")
    examples = jax.ShapeDtypeStruct(batch, jnp.float32), jax.ShapeDtypeStruct((batch[0], 4), jnp.float32)
    model = fobt.export.to_litert(function, quantized, *examples)
    for size in (1, 3):
        x, y = normal(size, 5), normal(size, 4)
        close(run(model, x, y), function(fobt.dequantize(quantized), x, y))


def test_equal_leaves_are_both_stored():
    kernel = leaf((4, 4), GRIDS["binary"])
    quantized = {"first": kernel, "second": kernel}
    x = normal(2, 4)
    model = fobt.export.to_litert(lambda w, x: jax.nn.relu(x @ w["first"]) @ w["second"], quantized, x)
    weights = np.asarray(kernel.dequantize())
    close(run(model, x), np.maximum(x @ weights, 0) @ weights)
    assert stored_weights(model)
    assert weights.tobytes() not in model
    assert weights.T.tobytes() not in model


def test_leaves_that_differ_in_shape_only_are_both_stored():
    constant = leaf((2, 8), GRIDS["binary"])
    quantized = {
        "wide": dataclasses.replace(constant, codes=jnp.ones((2, 8), jnp.int8)),
        "square": dataclasses.replace(constant, codes=jnp.ones((4, 4), jnp.int8)),
    }
    x, y = normal(1, 2), normal(1, 4)
    model = fobt.export.to_litert(lambda w, x, y: (x @ w["wide"], y @ w["square"]), quantized, x, y)
    assert sorted(weights.shape for weights in stored_weights(model)) == [(4, 4), (8, 2)]


@pytest.mark.slow
def test_what_litert_cannot_store_is_named():
    cases = {
        "it has two scales, allowed is one": leaf((4, 4), GRIDS["linear 2"], scales=2),
        "it has a scale for each block": fobt.linear(2, granularity=fobt.per_block(2))(jnp.ones((4, 4))),
        r"where it is used it has scales of shape \(4, 4\)": leaf((4, 4), GRIDS["linear 2"], fobt.per_channel((0, 1))),
        "it is on a logarithmic grid of 5 bits, allowed are 2 to 4": leaf((4, 4), Grid("logarithmic", 5)),
        "it has dtype bfloat16, allowed is float32": fobt.binary()(jnp.ones((4, 4), jnp.bfloat16)),
    }
    for message, kernel in cases.items():
        with pytest.raises(ValueError, match=f"quantized has the leaf 'kernel', which LiteRT cannot store: {message}"):
            fobt.export.to_litert(lambda w, x: x @ w["kernel"], {"kernel": kernel}, normal(1, 4))
    broken = dataclasses.replace(leaf((4, 4), GRIDS["binary"]), scale=jnp.float32(jnp.nan))
    with pytest.raises(ValueError, match=r"the leaf 'kernel'.* it has a scale that is infinite or no number"):
        fobt.export.to_litert(lambda w, x: x @ w["kernel"], {"kernel": broken}, normal(1, 4))


def test_without_the_packages_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    quantized = {"kernel": leaf((4, 4), GRIDS["binary"])}
    for module, command in {
        "litert_converter": "pip install --no-deps litert-converter",
        "ai_edge_litert.tools": r"pip install 'fobt\[litert\]'",
    }.items():
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(ImportError, match=command):
                fobt.export.to_litert(lambda w, x: x @ w["kernel"], quantized, normal(1, 4))
