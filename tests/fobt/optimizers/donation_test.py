"""A step whose params and state are donated writes the new ones where the old ones were."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest

import fobt

QUANTIZER = fobt.binary()
ADAM, TWO_STAGE = optax.adam(1e-2), fobt.forward_backtrack(1e-2, QUANTIZER)
OPTIMISTIC = fobt.optimistic(TWO_STAGE)
# The optimizer, and whether its gradient is taken one step ahead.
STEPS = {
    "loss-aware": (ADAM, False),
    "two-stage": (TWO_STAGE, False),
    "lax.cond": (fobt.forward_backtrack(1e-2, QUANTIZER, every=2), False),
    "optimistic": (OPTIMISTIC, True),
    "bounded": (optax.chain(ADAM, fobt.bound_weights((-1.0, 1.0), QUANTIZER)), False),
    "tracked, loss-aware": (fobt.oscillations.track_oscillations(ADAM, QUANTIZER), False),
    "tracked, two-stage": (
        fobt.oscillations.track_oscillations(TWO_STAGE, QUANTIZER, full_precision_gradient=True),
        False,
    ),
    "tracked, optimistic": (fobt.oscillations.track_oscillations(OPTIMISTIC, QUANTIZER), True),
    "frozen, loss-aware": (fobt.oscillations.freeze_oscillations(ADAM, QUANTIZER, 0.01), False),
    "frozen, two-stage": (fobt.oscillations.freeze_oscillations(TWO_STAGE, QUANTIZER, 0.01), False),
}


def make_params():
    first, second = jax.random.split(jax.random.key(0))
    return {"kernel": jax.random.normal(first, (16, 8)), "bias": jax.random.normal(second, (8,))}


def loss_fn(weights):
    x = jnp.sin(jnp.arange(64.0)).reshape(4, 16)
    return jnp.mean(jnp.tanh(x @ weights["kernel"] + weights["bias"][None]) ** 2)


def make_step(name):
    optimizer, ahead = STEPS[name]
    optimizer = optax.with_extra_args_support(optimizer)

    def step(params, state):
        if ahead:
            weights = fobt.quantized_trial_params(params, state, QUANTIZER, optimizer)
            updates, state = optimizer.update(jax.grad(loss_fn)(weights), state, params)
        else:
            _, grads, grad_fn = fobt.value_and_grad(loss_fn, QUANTIZER)(params, state)
            updates, state = optimizer.update(grads, state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    return step


@pytest.mark.parametrize("name", STEPS)
def test_every_leaf_has_the_buffer_of_its_successor(name):
    params = make_params()
    carry = jax.tree.map(jnp.copy, (params, STEPS[name][0].init(params)))  # each leaf in a buffer of its own
    leaves = jax.tree.leaves(carry)
    # What a step does not read, as an instrument's measures of the step before, would otherwise be no argument at all.
    compiled = jax.jit(make_step(name), donate_argnums=(0, 1), keep_unused=True).lower(*carry).compile()
    header = compiled.as_text().partition("\n")[0]
    aliases = {int(output): int(argument) for output, argument in re.findall(r"\{(\d+)\}: \((\d+), \{\}", header)}
    assert aliases == {number: number for number in range(len(leaves))}
    assert compiled.memory_analysis().alias_size_in_bytes == sum(leaf.nbytes for leaf in leaves)
    places = [leaf.unsafe_buffer_pointer() for leaf in leaves]
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(compiled(*carry))] == places
    assert all(leaf.is_deleted() for leaf in leaves)
