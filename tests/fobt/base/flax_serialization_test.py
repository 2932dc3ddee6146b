"""Round trips of quantized weights and of states through the state dicts and the bytes of Flax."""

import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

import fobt

WEIGHTS = {"kernel": jnp.array([[0.9, -0.1, 0.4], [-1.2, 0.3, 0.0]]), "bias": jnp.zeros(3)}
TERNARY = fobt.ternary(granularity=fobt.per_channel())


def after_an_update(tx):
    """The state of an optimizer after its first update, on the loss ½ Σ w²."""
    return jax.jit(lambda grads: tx.update(grads, tx.init(WEIGHTS), WEIGHTS, grad_fn=lambda w: w)[1])(WEIGHTS)


METHOD = fobt.forward_backtrack(0.1, TERNARY)
TREES = {
    "quantized": lambda: fobt.quantize(WEIGHTS, None, TERNARY),
    "two scales": lambda: fobt.quantize(WEIGHTS, None, fobt.ternary(scale_per_sign=True)),
    "packed": lambda: fobt.packed.pack(fobt.quantize(WEIGHTS, None, TERNARY)),
    "bfloat16": lambda: fobt.quantize(optax.tree.cast(WEIGHTS, "bfloat16"), None, fobt.binary()),
    "tracked": lambda: after_an_update(
        fobt.oscillations.track_oscillations(METHOD, TERNARY, full_precision_gradient=True)
    ),
    "frozen": lambda: after_an_update(fobt.oscillations.freeze_oscillations(optax.adam(0.1), TERNARY, 0.1)),
    "optimistic": lambda: after_an_update(fobt.optimistic(METHOD)),
    "method": lambda: after_an_update(METHOD),
}


@pytest.mark.parametrize("kind", TREES)
def test_what_is_restored_is_what_was_stored(kind):
    tree = TREES[kind]()
    target = jax.tree.map(jnp.zeros_like, tree)
    state_dict = serialization.to_state_dict(tree)
    assert not any(isinstance(leaf, fobt.Quantized | fobt.packed.Packed) for leaf in jax.tree.leaves(state_dict))
    for restored in (
        serialization.from_state_dict(target, state_dict),
        serialization.from_bytes(target, serialization.to_bytes(tree)),
    ):
        chex.assert_trees_all_equal(restored, tree)  # their structures too, which hold the static fields
        chex.assert_trees_all_equal_dtypes(restored, tree)


def test_restored_weights_can_be_used():
    quantized = fobt.quantize(WEIGHTS, None, TERNARY)
    packed = fobt.packed.pack(quantized)
    restored = serialization.from_bytes((quantized, packed), serialization.to_bytes((quantized, packed)))
    for weights in (*restored, fobt.packed.pack(restored[0])):
        chex.assert_trees_all_equal(fobt.dequantize(weights), fobt.dequantize(quantized))


def test_the_target_has_the_static_fields():
    codes, scale = jnp.ones((2, 3), jnp.int8), jnp.float32(2)
    target = fobt.Quantized(codes, scale, fobt.linear(3).grid, fobt.per_tensor(), 1, jnp.dtype("float32"))
    stored = {"codes": np.full((2, 3), -3, np.int8), "scale": np.float32(6)}
    restored = serialization.from_state_dict(target, stored)
    np.testing.assert_array_equal(restored.dequantize(), np.full((2, 3), -6.0))


@pytest.mark.parametrize("stored", [{"codes": np.ones(2)}, {"codes": np.ones(2), "scale": 1.0, "zero": 0.0}])
def test_other_fields_are_an_error_that_names_the_place(stored):
    target = {"dense": fobt.quantize(WEIGHTS, None, TERNARY)["kernel"]}
    with pytest.raises(ValueError, match=r"Quantized must have the fields \['codes', 'scale'\], got .* \./dense"):
        serialization.from_state_dict(target, {"dense": stored})


@pytest.mark.parametrize("imports", ["import fobt; assert 'flax' not in sys.modules; import flax", "import flax, fobt"])
def test_in_every_order_of_imports(imports):
    program = f"""
import sys
{imports}
import numpy as np
from flax import serialization
weights = fobt.Quantized(np.int8([1, -1]), np.float32(2), fobt.binary().grid, fobt.per_tensor(), 1, np.dtype("float32"))
restored = serialization.from_bytes(weights, serialization.to_bytes(weights))
assert type(restored) is fobt.Quantized and restored.codes.tolist() == [1, -1] and restored.scale == 2
"""
    subprocess.run([sys.executable, "-c", program], check=True)
