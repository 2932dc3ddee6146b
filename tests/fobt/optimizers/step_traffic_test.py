"""What steps read and write on a CPU, where each array that a compiled program stores costs time."""

import jax
import jax.numpy as jnp
import optax
import pytest

import fobt

SIDE = 512
QUANTIZER = fobt.full_precision()  # without a projection, whose passes are not those of the step
ADAM = optax.adam(1e-2)
TWO_STAGE = fobt.forward_backtrack(1e-2, QUANTIZER)
OPTIMISTIC = fobt.optimistic(TWO_STAGE)

# The least that loops with one result each read and write, in arrays of the size of the weights. The weights are read
# for the loss and the gradient is written; then m and v of Adam are made of themselves and the gradient, and w of w, m
# and v.
GRADIENT, ADAM_UPDATE = 2, 3 + 3 + 4
# The trial point is made of w, m, v and a gradient; the trial gradient is read for its norm, for m and for v.
TRIAL_POINT, TRIAL_GRADIENT = 5, 3
# The last trial gradient is copied, as it is read after the next one has been written in its place.
COPY = 2
LEAST = {
    "adam": (ADAM, GRADIENT + ADAM_UPDATE),
    "two-stage": (TWO_STAGE, 2 * GRADIENT + TRIAL_POINT + TRIAL_GRADIENT + ADAM_UPDATE),
    "around adam": (fobt.forward_backtrack(ADAM, QUANTIZER), 2 * GRADIENT + TRIAL_POINT + TRIAL_GRADIENT + ADAM_UPDATE),
    "optimistic": (OPTIMISTIC, GRADIENT + TRIAL_POINT + TRIAL_GRADIENT + ADAM_UPDATE + COPY),
}


def compiled_step(training):
    x = jnp.sin(jnp.arange(8.0 * SIDE)).reshape(8, SIDE)

    def loss_fn(weights):
        return jnp.mean(jnp.tanh(x @ weights["kernel"]) ** 2)

    params = {"kernel": jax.random.normal(jax.random.key(0), (SIDE, SIDE))}
    step = jax.jit(training.step(loss_fn), donate_argnums=(0, 1))
    return step.lower(params, training.init(params)).compile()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other compilers make other loops")
@pytest.mark.parametrize("name", LEAST)
def test_a_step_reads_and_writes_no_more_than_it_must(name):
    optimizer, arrays = LEAST[name]
    compiled = compiled_step(fobt.Training(optimizer, QUANTIZER))
    assert compiled.cost_analysis()["bytes accessed"] / (4 * SIDE**2) == pytest.approx(arrays, abs=0.5)
    # Of gradients, and of what the optimizer derives from them, no more than two arrays at a time are stored.
    assert compiled.memory_analysis().temp_size_in_bytes / (4 * SIDE**2) < 2.1
