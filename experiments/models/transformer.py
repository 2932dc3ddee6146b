"""A stack of transformer blocks in Flax NNX, to measure steps on; no data set here trains it."""

import jax
from flax import nnx

HEADS, HIDDEN_PER_UNIT = 12, 4


class Block(nnx.Module):
    """Attention and a two-layer network, each behind a normalisation and with a shortcut (pre-norm, no biases)."""

    def __init__(self, units: int, *, rngs: nnx.Rngs):
        self.attention_norm = nnx.RMSNorm(units, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, units, use_bias=False, decode=False, rngs=rngs)
        self.dense_norm = nnx.RMSNorm(units, rngs=rngs)
        self.hidden = nnx.Linear(units, HIDDEN_PER_UNIT * units, use_bias=False, rngs=rngs)
        self.output = nnx.Linear(HIDDEN_PER_UNIT * units, units, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens of the same shape."""
        tokens = tokens + self.attention(self.attention_norm(tokens))
        return tokens + self.output(nnx.gelu(self.hidden(self.dense_norm(tokens))))


class Transformer(nnx.Module):
    """Blocks, one after the other: 12 d² weights each for tokens of d units.

    Args:
        rngs: Random numbers for the initial weights.
        width: Units of a token as a multiple of 768, in steps of 12.
        depth: Blocks; seven of full width have 50 million weights.

    Example:
        >>> Transformer(nnx.Rngs(0), width=1 / 32)(jax.numpy.ones((2, 5, 24)), training=True).shape
        (2, 5, 24)
    """

    def __init__(self, rngs: nnx.Rngs, width: float = 1.0, depth: int = 7):
        units = HEADS * max(1, round(64 * width))
        self.blocks = nnx.List([Block(units, rngs=rngs) for _ in range(depth)])

    def __call__(self, tokens: jax.Array, *, training: bool) -> jax.Array:
        """Tokens of shape (batch, length, units); nothing depends on `training`."""
        del training
        for block in self.blocks:
            tokens = block(tokens)
        return tokens
