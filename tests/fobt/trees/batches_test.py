"""Leaves that are projected together come out as each does on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fobt
from fobt._src.quantizers import quantizer as quantizer_module

# Below a row, of an odd size, a whole number of rows; the last is sampled.
SHAPES = [(7, 9), (5, 5, 29), (32, 16), (257, 259)]


def draw(seed, bound=6.0):
    rng = np.random.default_rng(seed)
    return {
        f"w{i}": jnp.asarray(np.exp(rng.uniform(-bound, bound, shape)), jnp.float32) for i, shape in enumerate(SHAPES)
    }


def draw_params():
    signs = jax.tree.map(lambda x: jnp.where(x > 1, 1.0, -1.0), draw(2))
    return jax.tree.map(lambda x, sign: 1e3 * x.size * sign * x, draw(1, bound=2), signs)


@pytest.fixture
def on_one_device(monkeypatch):
    """Rows are made on one device only; what was traced before stays as it is."""
    return lambda: monkeypatch.setattr(quantizer_module, "fits_loops", lambda x: True)


def together(params, curvature, quantizer):
    state = None if curvature is None else fobt.Curvature(curvature)
    return jax.jit(lambda params: fobt.quantized_params(params, state, quantizer))(params)


def assert_as_good(params, curvature, found, alone):
    """Sums in another order, and another sample, may choose another α that is about as good."""
    for path, w in params.items():
        c = 1 if curvature is None else np.where(np.isinf(curvature[path]), 0, np.float64(curvature[path]))
        ours, theirs = (np.sum(c * (np.float64(w) - np.float64(q[path])) ** 2) for q in (found, alone))
        np.testing.assert_allclose(ours, theirs, rtol=5e-4, err_msg=path)
        assert found[path].dtype == w.dtype


@pytest.mark.parametrize("quantizer", [fobt.linear(3), fobt.ternary(scale_per_sign=True)], ids=["linear", "two scales"])
def test_each_leaf_as_on_its_own(on_one_device, quantizer):
    params, curvature = draw_params(), draw(3)
    curvature["w1"] = curvature["w1"].at[0, 0].set(jnp.inf)
    alone = {path: quantizer(leaf, curvature[path]).dequantize() for path, leaf in params.items()}
    on_one_device()
    assert_as_good(params, curvature, together(params, curvature, quantizer), alone)


@pytest.mark.parametrize(
    "granularity", [fobt.per_channel(), fobt.per_block(16)], ids=["channel", "block"]
)  # 40 rows: the last block is shorter
@pytest.mark.parametrize("scale_per_sign", [False, True])
def test_leaves_of_one_shape_and_several_scales(on_one_device, granularity, scale_per_sign):
    rng = np.random.default_rng(4)
    params = {f"w{i}": jnp.asarray(rng.standard_normal((40, 6)), jnp.float32) for i in range(3)}
    curvature = {path: jnp.asarray(rng.uniform(0.1, 9, (40, 6)), jnp.float32) for path in params}
    quantizer = fobt.ternary(scale_per_sign=scale_per_sign, granularity=granularity)
    alone = {path: quantizer(leaf, curvature[path]) for path, leaf in params.items()}
    on_one_device()
    found = jax.jit(lambda params: fobt.quantize(params, fobt.Curvature(curvature), quantizer))(params)
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-6), found, alone)


def test_without_curvature_and_in_other_dtypes(on_one_device):
    params = draw_params()
    params = {path: params[path] for path in ("w0", "w1")} | {"half": params["w2"].astype(jnp.bfloat16)}
    quantizer = fobt.linear(4)
    alone = {path: quantizer(leaf).dequantize() for path, leaf in params.items()}
    on_one_device()
    assert_as_good(params, None, together(params, None, quantizer), alone)


def test_what_is_not_finite_stays_in_its_leaf(on_one_device):
    on_one_device()
    params, curvature = draw_params(), draw(3)
    params["w1"] = params["w1"].at[0, 0].set(jnp.nan)
    params["w3"] = jnp.zeros_like(params["w3"])
    params = {path: params[path] for path in ("w1", "w2", "w3")}
    found = together(params, {path: curvature[path] for path in params}, fobt.linear(3))
    finite = {path: bool(jnp.all(jnp.isfinite(leaf))) for path, leaf in found.items()}
    assert finite == {path: path != "w1" for path in params}
    assert not jnp.any(found["w3"])


def loops(params, quantizer):
    text = jax.jit(lambda params: fobt.quantized_params(params, None, quantizer)).lower(params).as_text()
    return text.count("stablehlo.while")


def test_programs_grow_with_leaves_and_not_with_shapes(on_one_device):
    """One loop over candidates, one over steps of Newton for all leaves of a size, of whatever shapes."""
    on_one_device()
    params = {f"w{i}": jnp.ones((30 + i, 40 + i)) for i in range(9)}
    assert loops(params, fobt.linear(3)) == loops({"w0": params["w0"]}, fobt.linear(3)) > 0


@pytest.mark.parametrize("granularity", [fobt.per_channel(), fobt.per_block(16)], ids=["channel", "block"])
def test_leaves_of_one_shape_share_a_program(on_one_device, granularity):
    on_one_device()
    quantizer = fobt.linear(3, granularity=granularity)
    params = {f"w{i}": jnp.ones((320, 40)) for i in range(5)}
    assert loops(params, quantizer) == loops({"w0": params["w0"]}, quantizer) > 0
