"""Which leaves are quantized and how: rules by path, mask and callable, and the bounds of quantized leaves."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fobt


def make_params():
    keys = jax.random.split(jax.random.key(0), 4)
    return {
        "conv0": {"kernel": jax.random.normal(keys[0], (3, 3, 2, 4)), "bias": jnp.arange(1.0, 5.0)},
        "conv1": {"kernel": jax.random.normal(keys[1], (3, 3, 4, 4)), "bias": jnp.arange(1.0, 5.0)},
        "dense": {"kernel": jax.random.normal(keys[2], (8, 3)), "bias": jnp.arange(1.0, 4.0)},
        "steps": jnp.arange(6).reshape(2, 3),
    }


def bits(params, quantizer):
    """The bits of every quantized leaf, by its path."""
    quantized = fobt.quantize(params, None, quantizer)
    leaves = jax.tree_util.tree_flatten_with_path(quantized, is_leaf=lambda x: isinstance(x, fobt.Quantized))[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.grid.bits
        for path, leaf in leaves
        if isinstance(leaf, fobt.Quantized)
    }


@pytest.mark.slow
def test_a_quantizer_takes_floating_leaves_of_two_or_more_dimensions():
    assert bits(make_params(), fobt.binary()) == {"conv0/kernel": 1, "conv1/kernel": 1, "dense/kernel": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (r"conv\d/kernel", {"conv0/kernel": 1, "conv1/kernel": 1}),
        ("conv1/kernel", {"conv1/kernel": 1}),
        (".*kernel", {"conv0/kernel": 1, "conv1/kernel": 1, "dense/kernel": 1}),
        ("dense/.*", {"dense/kernel": 1, "dense/bias": 1}),  # a rule takes any rank
        (lambda path, leaf: path.startswith("conv") and leaf.ndim > 1, {"conv0/kernel": 1, "conv1/kernel": 1}),
        (lambda path, leaf: leaf.shape == (8, 3), {"dense/kernel": 1}),
        ({"conv0": True, "conv1": False, "dense": False, "steps": False}, {"conv0/kernel": 1, "conv0/bias": 1}),
        (
            {
                "conv0": {"kernel": np.bool_(True), "bias": False},
                "conv1": {"kernel": False, "bias": False},
                "dense": {"kernel": True, "bias": False},
                "steps": False,
            },
            {"conv0/kernel": 1, "dense/kernel": 1},
        ),
        (
            {"conv0": False, "conv1": False, "dense": {"kernel": True, "bias": False}, "steps": False},
            {"dense/kernel": 1},
        ),
    ],
)
def test_selectors(selector, expected):
    assert bits(make_params(), fobt.per_leaf((selector, fobt.binary()))) == expected


def test_a_regular_expression_matches_the_whole_path():
    with pytest.raises(ValueError, match=r"selector 'kernel' selects none .*'conv0/kernel'"):
        bits(make_params(), fobt.per_leaf(("kernel", fobt.binary())))


def test_first_rule_wins_and_default_takes_the_rest():
    quantizer = fobt.per_leaf(
        ("conv0/.*", fobt.full_precision()),
        ("conv.*/kernel", fobt.linear(3)),
        default=fobt.binary(),
    )
    assert bits(make_params(), quantizer) == {"conv1/kernel": 3, "dense/kernel": 1}


def test_without_default_the_rest_stays():
    params = make_params()
    quantizer = fobt.per_leaf(("conv1/kernel", fobt.ternary()))
    got = fobt.quantized_params(params, None, quantizer)
    assert bits(params, quantizer) == {"conv1/kernel": 2}
    chex.assert_trees_all_equal({**got, "conv1": 0}, {**params, "conv1": 0})


@pytest.mark.slow
def test_bits_granularity_and_solver_per_layer():
    params = make_params()
    quantizer = fobt.per_leaf(
        ("conv.*/kernel", fobt.linear(4, granularity=fobt.per_channel())),
        ("dense/kernel", fobt.ternary(granularity=fobt.per_block(4), solver="exact")),
    )
    quantized = fobt.quantize(params, None, quantizer)
    assert quantized["conv0"]["kernel"].scale.shape == (1, 1, 1, 4)
    assert quantized["dense"]["kernel"].scale.shape == (2, 3)
    assert bits(params, quantizer) == {"conv0/kernel": 4, "conv1/kernel": 4, "dense/kernel": 2}


@pytest.mark.slow
def test_the_transformation_agrees_with_the_accessors():
    """The trial point is quantized where quantized_params quantizes, and nowhere else."""
    params = {name: leaf for name, leaf in make_params().items() if name != "steps"}
    quantizer = fobt.per_leaf(("conv1/kernel", fobt.binary()), ("dense/.*", fobt.binary()))
    tx = fobt.forward_backtrack(0.01, quantizer)
    seen = []

    def grad_fn(weights):
        seen.append(weights)
        return jax.tree.map(jnp.ones_like, weights)

    tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params, grad_fn=grad_fn)
    magnitudes = jax.tree.map(lambda w: np.unique(np.abs(w)).size, seen[0])
    assert magnitudes["conv1"] == {"kernel": 1, "bias": 4}
    assert magnitudes["dense"] == {"kernel": 1, "bias": 1}
    assert magnitudes["conv0"]["kernel"] == params["conv0"]["kernel"].size


def test_trees_without_leaves():
    quantizer = fobt.per_leaf((".*", fobt.binary()))
    for params in ({}, [], None, {"a": ()}):
        assert fobt.quantized_params(params, None, quantizer) == params
    for params in ({}, [], {"a": ()}):
        tx = fobt.forward_backtrack(0.1, quantizer)
        updates, _ = tx.update(params, tx.init(params), params, grad_fn=lambda weights: weights)
        assert updates == params


def test_the_default_may_select_nothing():
    params = {"bias": jnp.ones(3)}
    chex.assert_trees_all_equal(fobt.quantized_params(params, None, fobt.binary()), params)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            [("conv7/.*", fobt.binary())],
            r"selector 'conv7/\.\*' selects none of the leaves .*; paths: \['conv0",
        ),
        ([("dense/.*", fobt.full_precision()), ("dense/.*", fobt.binary())], "selects none of the leaves left to it"),
        ([(lambda path, leaf: False, fobt.binary())], "selects none"),
        ([("steps", fobt.binary())], r"selects 'steps' of dtype int32; only floating leaves can be quantized"),
        ([({"conv0": True}, fobt.binary())], r"the mask \{'conv0': True\} does not match the params"),
    ],
)
def test_rules_that_do_not_fit_the_tree_raise(rules, message):
    quantizer = fobt.per_leaf(*rules)
    with pytest.raises(ValueError, match=message):
        fobt.quantize(make_params(), None, quantizer)
    with pytest.raises(ValueError, match=message):
        fobt.forward_backtrack(0.1, quantizer).init(make_params())


def test_a_mask_with_as_many_leaves_but_other_names_raises():
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="does not match the params"):
        fobt.quantize(params, None, fobt.per_leaf(({"x": True, "y": False}, fobt.binary())))


def test_a_mask_that_is_not_of_bools_raises():
    params = {"a": jnp.ones((2, 2))}
    with pytest.raises(ValueError, match="per_leaf"):
        fobt.quantize(params, None, fobt.per_leaf((params, fobt.binary())))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kernel", fobt.binary()), r"a rule must be a pair \(selector, quantizer\), got 'kernel'"),
        ((("kernel",),), "a rule must be a pair"),
        ((("kernel", "binary"),), r"a rule must be a pair .* got \('kernel', 'binary'\)"),
        ((("kernel", fobt.per_leaf()),), "a rule must be a pair"),
        ((("(kernel", fobt.binary()),), r"selector '\(kernel' is no regular expression: missing \)"),
    ],
)
def test_bad_rules_raise_at_construction(arguments, message):
    with pytest.raises(ValueError, match=message):
        fobt.per_leaf(*arguments)


def test_bad_default_raises_at_construction():
    with pytest.raises(ValueError, match="default must be a quantizer, got None"):
        fobt.per_leaf(default=None)


@pytest.mark.slow
def test_paths_are_the_same_in_nnx_states_and_pure_arrays():
    """Wrappers of Flax do not show in paths, so a rule holds for State, pure arrays and optimizer alike."""
    state = nnx.state(nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1))), nnx.Param)
    seen = {}

    def spy(name):
        def select(path, leaf):
            seen.setdefault(name, []).append(path)
            return True

        return select

    trees = {"state": state, "pure": nnx.as_pure(state), "dict": nnx.to_pure_dict(state)}
    for name, tree in trees.items():
        fobt.quantize(tree, None, fobt.per_leaf((spy(name), fobt.binary())))
    assert seen["state"] == seen["pure"] == seen["dict"]
    assert "layers/0/kernel" in seen["state"]
    quantizer = fobt.per_leaf((".*/1/kernel", fobt.binary()))
    weights = [fobt.quantized_params(tree, None, quantizer) for tree in trees.values()]
    for other in weights[1:]:
        for x, y in zip(jax.tree.leaves(weights[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(x, y)


# --- bound_weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_bound_weights_clips_quantized_leaves_only(dtype):
    params = {"kernel": jnp.array([[0.9, -0.9], [0.1, 3.0]], dtype), "bias": jnp.array([0.9], dtype)}
    updates = {"kernel": jnp.array([[0.5, -0.5], [0.25, -0.5]], dtype), "bias": jnp.array([0.5], dtype)}
    tx = fobt.bound_weights((-1.0, 1.0), fobt.binary())
    clipped, state = tx.update(updates, tx.init(params), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(clipped, updates)
    assert not jax.tree.leaves(state)
    moved = optax.apply_updates(params, clipped)
    expected = {"kernel": jnp.array([[1, -1], [0.35, 1]]), "bias": jnp.array([1.4])}
    chex.assert_trees_all_close(jax.tree.map(jnp.float32, moved), expected, rtol=1e-2 if dtype == "bfloat16" else 1e-6)
    assert np.all(np.abs(np.asarray(moved["kernel"], np.float32)) <= 1)


@pytest.mark.slow
def test_bound_weights_is_weight_bounds_of_a_plain_step():
    params = {"kernel": jnp.array([[0.99, -0.99, 0.5]]), "bias": jnp.array([0.99])}
    grads = jax.tree.map(lambda w: -w, params)
    chained = optax.chain(optax.adam(0.1), fobt.bound_weights((-1, 1), fobt.binary()))
    own = fobt.forward_backtrack(0.1, fobt.binary(), weight_bounds=(-1, 1))
    expected, _ = chained.update(grads, chained.init(params), params)
    got, _ = own.update(grads, own.init(params), params, grad_fn=lambda weights: weights, two_stage=False)
    chex.assert_trees_all_equal(got, expected)


@pytest.mark.parametrize("bounds", [(1, -1), (0, 0), 1.0, (1, 2, 3), (float("nan"), 1), ("a", "b"), None])
def test_bad_bounds_raise(bounds):
    with pytest.raises(ValueError, match=r"weight_bounds must be two increasing numbers \(low, high\), got "):
        fobt.bound_weights(bounds, fobt.binary())


def test_bound_weights_without_params_raises():
    tx = fobt.bound_weights((-1, 1), fobt.binary())
    with pytest.raises(ValueError, match="params must be given"):
        tx.update(jnp.ones((2, 2)), tx.init(jnp.ones((2, 2))))


def test_bound_weights_without_quantizer_raises():
    with pytest.raises(ValueError, match="quantizer must be made by"):
        fobt.bound_weights((-1, 1), lambda w: w)
