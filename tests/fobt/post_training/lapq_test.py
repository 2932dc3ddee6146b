"""Loss-aware post-training quantization: its three phases against their definitions, and what it owes its users."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from rounding_cases import lp_error, nearest_levels, some_weights

import fobt
from fobt._src.quantizers.clipping import lp_clipping_value

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


@pytest.mark.slow
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


@pytest.mark.slow
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
            r"one scale per tensor or per channel, got PerTensor\(\) with 2 scale\(s\) at 'first'",
        ),
        ({"quantizer": fobt.linear(3, granularity=fobt.per_block(2))}, "per tensor or per channel, got PerBlock"),
        ({"loss_fn": lambda weights: weights["first"][0]}, r"loss_fn must return a scalar, got shape \(12,\)"),
    ],
)
def test_errors_name_the_argument(options, message):
    arguments = {"loss_fn": quadratic, "params": two_leaves(), "quantizer": fobt.linear(3)} | options
    with pytest.raises(ValueError, match=message):
        fobt.lapq(arguments.pop("loss_fn"), arguments.pop("params"), arguments.pop("quantizer"), **arguments)


def test_channels_have_clipping_values_of_their_own():
    """Those of each channel alone, times one factor for the leaf that the joint search finds."""
    kernel = jnp.array([1.0, 5.0, 0.0])[None] * jax.random.normal(jax.random.key(3), (8, 3))
    quantizer = fobt.linear(3, granularity=fobt.per_channel())

    def loss_fn(weights):
        return jnp.sum((weights["w"] - 0.7 * kernel) ** 2)  # smaller levels are better

    def lapq(**options):
        return fobt.lapq(loss_fn, {"w": kernel}, quantizer, norms=(2.0, 3.0, 4.0), **options)

    start = lapq(max_evaluations=0)
    alone = [float(lp_clipping_value(kernel[:, i], fobt.linear(3), start.norm)) for i in range(2)]
    np.testing.assert_allclose(start.clipping_values["w"], [[*alone, 1.0]], rtol=1e-5)  # a channel of zeros has scale 1
    found = lapq()
    factors = found.clipping_values["w"] / start.clipping_values["w"]
    np.testing.assert_allclose(factors, factors[0, 0], rtol=1e-6)
    assert factors[0, 0] < 0.9
    assert found.loss < 0.9 * start.loss
    np.testing.assert_allclose(found.quantized["w"].scale, found.clipping_values["w"], rtol=1e-6)
    np.testing.assert_allclose(loss_fn(fobt.dequantize(found.quantized)), found.loss, rtol=1e-5)
