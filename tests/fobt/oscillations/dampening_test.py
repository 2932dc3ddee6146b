"""The dampening loss against its definition in NumPy, and its effect on a weight between two levels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import fobt


def dampening(w, w_hat, lowest, highest):
    """‖ŵ - clip(w, lowest, highest)‖², summed over the last axis and averaged over the others."""
    total = 0.0
    for index in np.ndindex(*w.shape):
        total += (w_hat[index] - min(max(w[index], lowest), highest)) ** 2
    return total / (w.size / w.shape[-1])


@pytest.mark.parametrize(("grid", "bits"), [("binary", None), ("ternary", None), ("linear", 3)])
@pytest.mark.parametrize("shape", [(4, 5), (2, 3, 4)])
def test_follows_the_definition(grid, bits, shape):
    rng = np.random.default_rng(0)
    w, nu = rng.normal(size=shape), rng.uniform(0.1, 2, size=shape) ** 2
    options = {} if grid == "binary" else {"solver": "exact"}
    quantizer = getattr(fobt, grid)(*([] if bits is None else [bits]), **options)
    w_hat = reference.quantize_tensor(w, np.sqrt(nu), Q=reference.levels(grid, bits))
    highest = np.abs(w_hat).max()
    with jax.enable_x64(True):
        params = {"kernel": jnp.asarray(w), "bias": jnp.ones(3)}
        state = optax.scale_by_adam().init(params)
        state = state._replace(nu={"kernel": jnp.asarray(nu), "bias": jnp.ones(3)})
        got, gradient = jax.jit(jax.value_and_grad(lambda p: fobt.oscillations.dampening_loss(p, state, quantizer)))(
            params
        )
    np.testing.assert_allclose(got, dampening(w, w_hat, -highest, highest), rtol=1e-6)
    # ŵ is a constant: 2 (w - ŵ) within the levels, 0 beyond them.
    inside = np.abs(w) < highest
    expected = np.where(inside, 2 * (w - w_hat), 0) / (w.size / shape[-1])
    np.testing.assert_allclose(gradient["kernel"], expected, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(gradient["bias"], 0)


def test_nothing_is_damped_where_nothing_is_quantized_or_all_is_on_the_levels():
    assert fobt.oscillations.dampening_loss({"bias": jnp.ones(3)}, None, fobt.binary()) == 0
    assert fobt.oscillations.dampening_loss({"kernel": jnp.array([[2.0, -2.0]])}, None, fobt.binary()) == 0
    assert fobt.oscillations.dampening_loss({"kernel": jnp.zeros((0, 2))}, None, fobt.binary()) == 0


def test_an_axis_that_a_leaf_does_not_have_is_an_error():
    with pytest.raises(ValueError, match=r"axis must be one of a quantized leaf of shape \(2, 2\), got 2"):
        fobt.oscillations.dampening_loss({"kernel": jnp.ones((2, 2))}, None, fobt.binary(), axis=2)


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_a_damped_weight_stops_going_back_and_forth(weight):
    """Two weights fix the scale; the target of the third is between two levels, where it flips without end."""
    quantizer = fobt.ternary(solver="exact")
    targets = jnp.array([[2.0, -2.0, 0.7]])
    tx = optax.adam(0.02, b1=0.0)

    def step(carry, _):
        params, state = carry
        _, grads, _ = fobt.value_and_grad(lambda weights: jnp.sum((weights - targets) ** 2), quantizer)(params, state)
        damping = jax.grad(fobt.oscillations.dampening_loss)(params, state, quantizer)
        updates, state = tx.update(grads + weight * damping, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), fobt.quantize(params, state, quantizer).codes[0, 2]

    params = jnp.array([[1.0, -1.0, 0.2]])
    _, codes = jax.jit(lambda carry: jax.lax.scan(step, carry, length=600))((params, tx.init(params)))
    flips = np.count_nonzero(np.diff(np.asarray(codes)[300:]))
    assert (flips > 20) if weight == 0 else (flips == 0)
