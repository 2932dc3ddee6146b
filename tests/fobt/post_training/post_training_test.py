"""Loss-aware post-training quantization, its clipping values by Lp norms, and rounding with a given scale."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from grid_cases import GRIDS, allowed_levels, make
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import fobt
from fobt._src.quantizers.clipping import lp_clipping_value

NORMS = (2.0, 2.5, 3.0, 4.0)


def some_weights(shape, seed=0):
    return np.random.default_rng(seed).standard_t(df=4, size=shape).astype(np.float32)


def nearest_levels(grid, weights, scale):
    """Every weight to the nearest of the levels written by hand, in float64."""
    levels = scale * allowed_levels(grid)
    return levels[np.argmin(np.abs(np.asarray(weights, np.float64)[..., None] - levels), axis=-1)]


def lp_error(grid, weights, scale, norm):
    return np.sum(np.abs(np.asarray(weights, np.float64) - nearest_levels(grid, weights, scale)) ** norm)


# --- Rounding with a given scale -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.2])
@pytest.mark.parametrize("grid", GRIDS)
def test_rounding_takes_the_nearest_level(grid, scale):
    weights = some_weights((7, 5))
    quantized = make(grid).round_to_nearest(weights, scale)
    np.testing.assert_allclose(quantized.dequantize(), nearest_levels(grid, weights, scale), rtol=1e-5)
    assert quantized.codes.dtype == jnp.int8
    assert quantized.scale == np.float32(scale)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_linear_codes_are_those_of_clipping_and_rounding(dtype, x64):
    weights = jnp.asarray(some_weights((40, 30)), dtype)
    quantized = fobt.linear(4).round_to_nearest(weights, 1.7)
    clipped = np.clip(np.asarray(weights, np.float64), -1.7, 1.7)
    np.testing.assert_array_equal(quantized.codes, np.round(clipped / (1.7 / 7)))
    assert quantized.dequantize().dtype == dtype
    assert quantized.scale.dtype == jnp.promote_types(dtype, jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "quantizer",
    [
        fobt.linear(3, granularity=fobt.per_channel()),
        fobt.linear(4, granularity=fobt.per_block(3)),
        fobt.ternary(scale_per_sign=True),
        fobt.ternary(scale_per_sign=True, granularity=fobt.per_block(3, axis=1)),
        fobt.binary(granularity=fobt.per_channel(0)),
    ],
)
def test_rounding_with_the_scale_of_a_projection_keeps_its_weights(quantizer):
    """The weights of a projection are levels already, so each of them is its own nearest level."""
    projected = jax.jit(quantizer)(some_weights((8, 6)))
    again = quantizer.round_to_nearest(projected.dequantize(), projected.scale)
    np.testing.assert_allclose(again.dequantize(), projected.dequantize(), rtol=1e-6)
    chex.assert_trees_all_equal_structs(again, projected)


@pytest.mark.slow
def test_rounding_with_scale_zero_gives_zeros():
    for quantizer in (fobt.binary(), fobt.linear(3)):
        np.testing.assert_array_equal(quantizer.round_to_nearest([[1.0, 0.0]], 0.0).dequantize(), [[0.0, 0.0]])
    assert fobt.linear(2).round_to_nearest(jnp.zeros((0, 3)), 1.0).codes.shape == (0, 3)


def test_rounding_says_which_shape_a_scale_has():
    with pytest.raises(ValueError, match=r"scale must have shape \(2, 1, 3\) for weights of \(4, 3\), got \(\)"):
        fobt.ternary(scale_per_sign=True, granularity=fobt.per_channel()).round_to_nearest(jnp.ones((4, 3)), 1.0)
    with pytest.raises(ValueError, match="weights must be floating, got dtype int32"):
        fobt.linear(2).round_to_nearest(jnp.ones((4, 3), int), 1.0)


# --- The clipping value of an Lp norm ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("grid", ["binary", "ternary", "linear(3)", "linear(4)", "linear(8)", "logarithmic(3)"])
def test_no_clipping_value_has_a_smaller_error(grid, norm):
    """Brute force over a fine grid of clipping values, among few weights, whose objective has many local minima."""
    weights = some_weights((30,))
    found = lp_clipping_value(weights, make(grid), norm)
    assert found.shape == ()
    candidates = np.max(np.abs(weights)) * np.geomspace(1e-2, 3, 3000)
    lowest = min(lp_error(grid, weights, c, norm) for c in candidates)
    assert lp_error(grid, weights, float(found), norm) <= lowest * (1 + 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_norm_2_is_the_projection_with_the_least_squared_error(bits, x64):
    """In float64, where the running sums of the exact solver do not cancel."""
    weights = jnp.asarray(some_weights((60, 20)), jnp.float64)
    projected = jax.jit(fobt.linear(bits, solver="exact"))(weights)
    found = fobt.linear(bits).round_to_nearest(weights, lp_clipping_value(weights, fobt.linear(bits), 2.0))
    least, got = (jnp.sum((weights - q.dequantize()) ** 2) for q in (projected, found))
    assert least <= got <= least * (1 + 1e-5)
    np.testing.assert_allclose(found.scale, projected.scale, rtol=1e-3)


@pytest.mark.slow
def test_many_weights_with_few_candidates():
    """The candidates become fewer with the number of weights."""
    weights = some_weights((300, 400))
    for norm in (2.0, 4.0):
        found = float(lp_clipping_value(weights, fobt.linear(4), norm))
        near = min(lp_error("linear(4)", weights, c, norm) for c in found * np.geomspace(0.8, 1.25, 9))
        assert lp_error("linear(4)", weights, found, norm) <= near * (1 + 1e-5)


@pytest.mark.slow
def test_a_single_outlier_does_not_hide_the_other_weights():
    """One weight is 1 and n - 1 are δ. Ternary, p = 2: the error is (1 - δ)² with c = δ, and (n - 1) δ² with c = 1."""
    n = 10_000
    for delta, best in [(0.9 / math.sqrt(n), 1.0), (1.5 / math.sqrt(n), 1.5 / math.sqrt(n))]:
        weights = np.full(n, delta, np.float32)
        weights[3] = -1
        # With c = δ the outlier, clipped to c, moves the mean of the n codes.
        expected = best if best == 1 else (1 + (n - 1) * delta) / n
        np.testing.assert_allclose(lp_clipping_value(weights, fobt.ternary(), 2.0), expected, rtol=1e-3)
    mean = np.mean(np.abs(weights))
    np.testing.assert_allclose(lp_clipping_value(weights, fobt.binary(), 2.0), mean, rtol=1e-3)


@pytest.mark.parametrize("magnitude", [1e-35, 0.3, 1e37])
@pytest.mark.parametrize("weights", [[[0.7]], [[1.0, -1.0], [1.0, 1.0]]])
@pytest.mark.parametrize("grid", ["binary", "ternary", "linear(8)", "logarithmic(3)"])
def test_one_or_equal_weights_are_kept(grid, weights, magnitude):
    weights = np.float32(magnitude) * np.float32(weights)
    found = make(grid).round_to_nearest(weights, lp_clipping_value(weights, make(grid), 3.0))
    np.testing.assert_allclose(found.dequantize(), weights, rtol=1e-3)


def test_the_clipping_value_of_nothing_is_zero():
    for shape in [(3, 2), (0, 2)]:
        assert lp_clipping_value(jnp.zeros(shape), fobt.linear(3), 2.0) == 0


# --- The three phases ----------------------------------------------------------------------------------------------

TARGET = some_weights((20, 12), seed=1)


def quadratic(weights):
    """A loss that wants other weights than those given, so that no norm has its clipping values."""
    return jnp.sum((weights["first"] - 0.8 * TARGET) ** 2) + 3 * jnp.sum((weights["second"] - 1.1 * TARGET.T) ** 2)


def two_leaves():
    return {"bias": jnp.ones(3), "first": jnp.asarray(TARGET), "second": jnp.asarray(TARGET.T)}


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", [fobt.linear(4), fobt.logarithmic(3), fobt.binary()])
def test_the_result_is_what_it_says(quantizer):
    params = two_leaves()
    result = fobt.lapq(quadratic, params, quantizer)
    expected = jax.eval_shape(lambda params: fobt.quantize(params, None, quantizer), params)
    chex.assert_trees_all_equal_structs(result.quantized, expected)
    chex.assert_trees_all_equal_shapes_and_dtypes(result.quantized, expected)
    np.testing.assert_array_equal(result.quantized["bias"], params["bias"])
    assert list(result.clipping_values) == ["first", "second"]
    for name, clipping_value in result.clipping_values.items():
        by_hand = quantizer.round_to_nearest(params[name], clipping_value)
        np.testing.assert_array_equal(result.quantized[name].codes, by_hand.codes)
        np.testing.assert_allclose(result.quantized[name].scale, clipping_value, rtol=1e-6)
    np.testing.assert_allclose(result.loss, quadratic(fobt.dequantize(result.quantized)), rtol=1e-5)


@pytest.mark.slow
def test_no_phase_makes_it_worse_and_the_joint_search_helps():
    for bits in (2, 3, 4):
        result = fobt.lapq(quadratic, two_leaves(), fobt.linear(bits))
        assert result.loss == min(result.losses)
        assert result.norm_loss <= min(result.norm_losses)
        assert result.loss < 0.999 * result.norm_loss
        assert result.losses[:10] == result.norm_losses


def test_the_norm_phases_are_those_of_their_definition():
    params, norms = two_leaves(), (2.0, 2.5, 4.0)
    result = fobt.lapq(quadratic, params, fobt.linear(3), norms=norms, max_evaluations=0)

    def loss_at(norm):
        rounded = {k: nearest_levels("linear(3)", w, brute_force(w, norm)) for k, w in params.items() if k != "bias"}
        return float(quadratic(rounded))

    def brute_force(weights, norm):
        candidates = np.max(np.abs(weights)) * np.geomspace(0.2, 2, 1000)
        return min(candidates, key=lambda c: lp_error("linear(3)", weights, c, norm))

    expected = [loss_at(norm) for norm in norms]
    np.testing.assert_allclose(result.norm_losses, expected, rtol=2e-2)
    assert len(result.losses) in (3, 4)
    assert result.loss == result.norm_loss == min(result.losses)


@pytest.mark.slow
def test_the_vertex_of_the_parabola_is_tried_where_it_is_a_minimum():
    params = jnp.asarray(some_weights((40, 30)))
    norms = (2.0, 3.0, 4.0)
    clipping_values = [float(lp_clipping_value(params, fobt.linear(4), norm)) for norm in norms]

    def losing(losses):
        """The loss whose values at the three norms are given, interpolated in the clipping value by a parabola."""
        fit = np.polyfit(clipping_values, losses, 2).astype(np.float32)
        return lambda weights: jnp.polyval(jnp.asarray(fit), jnp.max(jnp.abs(weights)))

    def search(losses):
        return fobt.lapq(losing(losses), params, fobt.linear(4), norms=norms, max_evaluations=0)

    convex = search([1.0, 0.5, 1.2])  # 0.5 + 0.1 (p - 3) + 0.6 (p - 3)²
    assert len(convex.losses) == 4
    np.testing.assert_allclose(convex.norm, 3 - 0.1 / 1.2, rtol=1e-2)
    assert convex.norm_loss < 0.5
    for losses, best in [([0.5, 1.0, 0.6], 2.0), ([1.0, 0.5, 0.2], 4.0), ([0.1, 0.25, 0.5], 2.0)]:
        result = search(losses)  # concave; falling and rising with a vertex out of range
        assert len(result.losses) == 3
        assert result.norm == best
        np.testing.assert_allclose(result.norm_losses, losses, atol=1e-4)


def test_a_vertex_that_is_worse_than_a_sample_is_not_taken():
    params = jnp.asarray(some_weights((40, 30)))
    norms = (2.0, 3.0, 4.0)
    values = np.array([float(lp_clipping_value(params, fobt.linear(4), norm)) for norm in norms])

    def loss_fn(weights):
        """1, 0.5 and 1.2 at the three clipping values, and 2 everywhere else."""
        distances = jnp.abs(jnp.max(jnp.abs(weights)) - jnp.asarray(values, jnp.float32))
        return jnp.where(jnp.min(distances) < 1e-4, jnp.array([1.0, 0.5, 1.2])[jnp.argmin(distances)], 2.0)

    result = fobt.lapq(loss_fn, params, fobt.linear(4), norms=norms, max_evaluations=30)
    assert result.losses[:4] == pytest.approx((1, 0.5, 1.2, 2))
    assert (result.norm, result.norm_loss, result.loss) == (3.0, 0.5, 0.5)
    np.testing.assert_allclose(list(result.clipping_values.values()), values[1], rtol=1e-5)


def test_the_joint_search_finds_the_best_scale_of_a_quadratic_loss():
    """Of binary weights the loss is (c s - 2)² with s = 3 signs' sum, so c = 2/3, whatever the weights are."""
    params = {"w": jnp.array([[0.9, 0.7, -1.5, 0.8, 0.9]])}
    result = fobt.lapq(lambda weights: (jnp.sum(weights["w"]) - 2) ** 2, params, fobt.binary())
    np.testing.assert_allclose(result.clipping_values["w"], 2 / 3, rtol=1e-2)
    assert result.loss < 1e-3 < result.norm_loss


def test_the_joint_search_moves_leaves_against_each_other():
    """The loss sees only the product of two scales and their ratio: min at c₁ c₂ = 1.2, c₁ / c₂ = 1.5."""

    def loss_fn(weights):
        first, second = (jnp.abs(weights[name][0, 0]) for name in "ab")
        return (jnp.log(first * second) - math.log(1.2)) ** 2 + 0.1 * (jnp.log(first / second) - math.log(1.5)) ** 2

    params = {"a": jnp.array([[1.0, -1.0]]), "b": jnp.array([[1.0, 1.0]])}
    result = fobt.lapq(loss_fn, params, fobt.binary(), tolerance=1e-6)
    expected = [math.sqrt(1.2 * 1.5), math.sqrt(1.2 / 1.5)]
    np.testing.assert_allclose(list(result.clipping_values.values()), expected, rtol=2e-2)


@pytest.mark.slow
def test_the_budget_is_kept_and_the_loss_compiled_once():
    before = len(fobt.lapq(quadratic, two_leaves(), fobt.linear(3), max_evaluations=0).losses)
    for max_evaluations in (1, 7, 20):
        chex.clear_trace_counter()
        loss_fn = chex.assert_max_traces(quadratic, 1)
        options = {"max_evaluations": max_evaluations, "tolerance": 0}
        assert len(fobt.lapq(loss_fn, two_leaves(), fobt.linear(3), **options).losses) == before + max_evaluations


@pytest.mark.slow
def test_the_joint_search_stops_early():
    few, many = (
        fobt.lapq(quadratic, two_leaves(), fobt.linear(3), max_evaluations=1000, tolerance=tolerance)
        for tolerance in (1.0, 1e-9)
    )
    assert len(few.losses) < len(many.losses) < 1000
    assert many.loss <= few.loss


@pytest.mark.slow
def test_an_independent_search_does_no_better():
    """Differential evolution, within a factor of 2 of the start, finds nothing that is more than 5 % better."""
    params = two_leaves()
    result = fobt.lapq(quadratic, params, fobt.linear(4))

    def loss_at(clipping_values):
        first, second = (
            nearest_levels("linear(4)", params[name], c)
            for name, c in zip(("first", "second"), clipping_values, strict=True)
        )
        return float(np.sum((first - 0.8 * TARGET) ** 2) + 3 * np.sum((second - 1.1 * TARGET.T) ** 2))

    start = np.array(list(fobt.lapq(quadratic, params, fobt.linear(4), max_evaluations=0).clipping_values.values()))
    best = scipy.optimize.differential_evolution(loss_at, list(zip(start / 2, start * 2, strict=True)), seed=0)
    assert result.loss <= 1.05 * best.fun


# --- Leaves, dtypes, degenerate cases, errors ----------------------------------------------------------------------


@pytest.mark.slow
def test_every_leaf_has_its_own_grid():
    params = two_leaves()
    quantizer = fobt.per_leaf(("first", fobt.linear(3)), ("bias", fobt.full_precision()), default=fobt.linear(4))
    result = fobt.lapq(quadratic, params, quantizer)
    assert [result.quantized[name].grid.bits for name in ("first", "second")] == [3, 4]
    only_first = fobt.lapq(quadratic, params, fobt.per_leaf(("first", fobt.linear(3))))
    assert list(only_first.clipping_values) == ["first"]
    np.testing.assert_array_equal(only_first.quantized["second"], params["second"])


@pytest.mark.slow
def test_zero_and_empty_leaves_are_those_of_quantize():
    params = {"empty": jnp.zeros((0, 3)), "one": jnp.array([[0.7]]), "zero": jnp.zeros((2, 2))}
    for quantizer in (fobt.binary(), fobt.linear(3, solver="exact")):
        result = fobt.lapq(lambda weights: sum(jnp.sum(w**2) for w in weights.values()), params, quantizer)
        assert list(result.clipping_values) == ["one"]
        expected = jax.jit(lambda params, q=quantizer: fobt.quantize(params, None, q))(params)
        for name in ("empty", "zero"):
            chex.assert_trees_all_equal(result.quantized[name], expected[name])
        assert math.isfinite(result.loss)


def test_a_tree_without_quantized_leaves_stays_as_it_is():
    params = {"bias": jnp.ones(3)}
    result = fobt.lapq(lambda weights: jnp.sum(weights["bias"]), params, fobt.linear(2))
    chex.assert_trees_all_equal(result.quantized, params)
    assert (result.clipping_values, result.loss) == ({}, 3.0)


@pytest.mark.slow
def test_values_that_are_not_finite_are_never_chosen():
    def loss_fn(weights):
        value = quadratic(weights)
        return jnp.where(jnp.max(jnp.abs(weights["first"])) > limit, jnp.nan, value)

    norms = np.linspace(2, 4, 10)
    values = [float(lp_clipping_value(two_leaves()["first"], fobt.linear(3), norm)) for norm in norms]
    limit = float(np.median(values))
    result = fobt.lapq(loss_fn, two_leaves(), fobt.linear(3))
    assert math.inf in result.norm_losses
    assert math.isfinite(result.loss)
    assert result.clipping_values["first"] <= limit
    with pytest.raises(ValueError, match=r"loss_fn must be finite for some of the norms \(2.0, .* got none"):
        fobt.lapq(lambda weights: quadratic(weights) * jnp.nan, two_leaves(), fobt.linear(3))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtypes(dtype, x64):
    params = jax.tree.map(lambda w: jnp.asarray(w, dtype), two_leaves())
    result = fobt.lapq(quadratic, params, fobt.linear(3), max_evaluations=40)
    expected = jax.eval_shape(lambda params: fobt.quantize(params, None, fobt.linear(3)), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(result.quantized, expected)
    assert result.loss < result.norm_loss


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_params(axis_type):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(axis_type,) * 2)
    params = two_leaves()
    sharding = NamedSharding(mesh, P("x", "y"))
    sharded = {name: jax.device_put(w, sharding) if w.ndim == 2 else w for name, w in params.items()}
    expected = fobt.lapq(quadratic, params, fobt.linear(3), max_evaluations=20)
    with jax.set_mesh(mesh):
        result = fobt.lapq(quadratic, sharded, fobt.linear(3), max_evaluations=20)
    np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-3)
    assert result.quantized["first"].codes.sharding.is_equivalent_to(sharding, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norms": (2.0, 3.0)}, r"norms must be three or more different numbers of at least 1, got \(2.0, 3.0\)"),
        ({"norms": (2.0, 3.0, 3.0)}, "norms must be three or more different"),
        ({"norms": (0.5, 2.0, 3.0)}, "norms must be three or more different"),
        ({"norms": 2.0}, "norms must be three or more different"),
        ({"max_evaluations": -1}, "max_evaluations must be an integer of at least 0, got -1"),
        ({"max_evaluations": 2.5}, "max_evaluations must be an integer of at least 0, got 2.5"),
        ({"tolerance": -0.1}, "tolerance must be a number of at least 0, got -0.1"),
        ({"quantizer": 3}, "quantizer must be made by"),
        (
            {"quantizer": fobt.ternary(scale_per_sign=True)},
            r"one scale per tensor, got PerTensor\(\) with 2 scale\(s\) at 'first'",
        ),
        ({"quantizer": fobt.linear(3, granularity=fobt.per_channel())}, "one scale per tensor, got PerChannel"),
        ({"loss_fn": lambda weights: weights["first"][0]}, r"loss_fn must return a scalar, got shape \(12,\)"),
    ],
)
def test_errors_name_the_argument(options, message):
    arguments = {"loss_fn": quadratic, "params": two_leaves(), "quantizer": fobt.linear(3)} | options
    with pytest.raises(ValueError, match=message):
        fobt.lapq(arguments.pop("loss_fn"), arguments.pop("params"), arguments.pop("quantizer"), **arguments)
