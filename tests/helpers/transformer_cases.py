"""Small pre-norm transformers of Flax: attention with biases, learned positions, a causal mask."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

WORDS, LENGTH, WIDTH, HEADS, LAYERS = 11, 6, 16, 4, 3


class Block(nn.Module):
    """A layer of Linen, in the form that nn.scan takes."""

    @nn.compact
    def __call__(self, x, mask):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=HEADS)(y, mask=mask)
        y = nn.gelu(nn.Dense(2 * WIDTH)(nn.RMSNorm()(x)))
        return x + nn.Dense(WIDTH)(y), None


class LinenTransformer(nn.Module):
    """Logits of the next word, with layers one after the other, or scanned."""

    scanned: bool = False

    @nn.compact
    def __call__(self, words):
        x = nn.Embed(WORDS, WIDTH)(words)
        x = x + self.param("pos_embedding", nn.initializers.normal(0.02), (LENGTH, WIDTH))[None]
        mask = nn.make_causal_mask(words)
        if self.scanned:
            layers = nn.scan(
                Block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=nn.broadcast, length=LAYERS
            )
            x, _ = layers(name="layers")(x, mask)
        else:
            for _ in range(LAYERS):
                x, _ = Block()(x, mask)
        return nn.Dense(WORDS, name="head")(nn.LayerNorm()(x))


class NnxBlock(nnx.Module):
    """A layer of NNX."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm_1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.norm_2 = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.up = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.attention(self.norm_1(x), mask=mask)
        return x + self.down(nnx.gelu(self.up(self.norm_2(x))))


class NnxTransformer(nnx.Module):
    """The same network in NNX, whose layers may be stacked by nnx.vmap."""

    def __init__(self, rngs: nnx.Rngs, stacked: bool = False):
        self.embed = nnx.Embed(WORDS, WIDTH, rngs=rngs)
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (LENGTH, WIDTH)))
        if stacked:
            make = nnx.split_rngs(splits=LAYERS)(nnx.vmap(NnxBlock, in_axes=0, out_axes=0))
            self.layers = make(rngs)
        else:
            self.layers = nnx.List([NnxBlock(rngs) for _ in range(LAYERS)])
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, WORDS, rngs=rngs)

    def __call__(self, words):
        x = self.embed(words) + self.positions[None]
        mask = nnx.make_causal_mask(words)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(self.norm(x))


def words(batch: int) -> jax.Array:
    """Some sequences of words."""
    return jax.random.randint(jax.random.key(1), (batch, LENGTH), 0, WORDS)


def linen_params(scanned: bool):
    """Params of the network of Linen, none of them zero, as biases are at first."""
    params = LinenTransformer(scanned).init(jax.random.key(0), words(1))["params"]
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape, jnp.float32), params)
