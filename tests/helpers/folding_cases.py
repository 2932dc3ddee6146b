"""Trees for tests of folding."""

import jax
import jax.numpy as jnp
import numpy as np

import fobt


def perturbed(tree, seed: int, *, positive: bool):
    """The tree with vectors of random numbers, all positive or of both signs."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if leaf.ndim >= 2:
            return leaf
        numbers = rng.normal(size=leaf.shape) + 0.2
        return jnp.asarray(np.abs(numbers) + 0.1 if positive else numbers, leaf.dtype)

    return jax.tree.map(draw, tree)


def codes(tree) -> list[np.ndarray]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, fobt.Quantized))
    return [np.asarray(leaf.codes) for leaf in leaves if isinstance(leaf, fobt.Quantized)]
