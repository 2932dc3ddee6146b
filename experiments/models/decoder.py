"""A decoder of bytes: the next byte from those before it, in pure functions of a tree of weights.

Layers are pre-norm with RMSNorm, causal attention with rotary positions, squared ReLU, and no biases. They are stacked
along the first axis of their leaves, and `jax.lax.scan` goes through them. Everything about the network can be read
from the shapes of its weights, heads have 32 dimensions each.

References:
    Su, Lu, Pan, Murtadha, Wen, Liu, RoFormer, 2021, Eq. 34 (rotary positions, halves instead of pairs).
    Zhang, Sennrich, Root Mean Square Layer Normalization, NeurIPS 2019, Eq. 4.
    So, Mańke, Liu, Dai, Shazeer, Le, Primer, NeurIPS 2021 (squared ReLU).
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

BYTES = 256
HEAD_DIM = 32
HIDDEN_PER_UNIT = 4
# By its name a linear map of a layer has inputs and outputs in units of the width.
LINEAR_MAPS = {
    "query": (1, 1),
    "key": (1, 1),
    "value": (1, 1),
    "output": (1, 1),
    "up": (1, HIDDEN_PER_UNIT),
    "down": (HIDDEN_PER_UNIT, 1),
}
NORMS = ("attention_norm", "hidden_norm")

Weights: TypeAlias = Any
Cache: TypeAlias = dict[str, jax.Array]


def init_decoder(seed: int, *, width: int, depth: int) -> Weights:
    """Initial weights: normal with variance 1/inputs, what a layer adds divided by √(2 · depth) (GPT-2).

    Args:
        seed: Of the random numbers.
        width: Units of a token, d, a multiple of 32.
        depth: Layers; each has 12 d² weights.

    Example:
        >>> weights = init_decoder(0, width=64, depth=2)
        >>> weights["layers"]["up"]["kernel"].shape, init_cache(weights, 1, 8)["key"].shape
        ((2, 64, 256), (2, 1, 8, 2, 32))
        >>> logits(weights, jnp.zeros((3, 8), jnp.int32)).shape
        (3, 8, 256)
    """
    rng = np.random.default_rng(seed)

    def normal(variance: float, *shape: int) -> jax.Array:
        return jnp.asarray(variance**0.5 * rng.standard_normal(shape), jnp.float32)

    layers: dict[str, Any] = {name: {"scale": jnp.ones((depth, width))} for name in NORMS}
    for name, (inputs, outputs) in LINEAR_MAPS.items():
        variance = 1 / (inputs * width) / (2 * depth if name in ("output", "down") else 1)
        layers[name] = {"kernel": normal(variance, depth, inputs * width, outputs * width)}
    return {
        "embedding": {"table": normal(1.0, BYTES, width)},
        "layers": layers,
        "norm": {"scale": jnp.ones(width)},
        "head": {"kernel": normal(1 / width, width, BYTES)},
    }


def logits(weights: Weights, tokens: jax.Array) -> jax.Array:
    """Logits of the byte after each one, shape (batch, length, 256), for int32 tokens of shape (batch, length)."""
    positions = jnp.arange(tokens.shape[1])
    x, _ = jax.lax.scan(
        lambda x, layer: (_layer(layer, x, positions, None)[0], None),
        weights["embedding"]["table"][tokens],
        weights["layers"],
    )
    return _rms_norm(x, weights["norm"]) @ weights["head"]["kernel"]


def init_cache(weights: Weights, batch: int, length: int) -> Cache:
    """Keys and values of no token so far, with room for `length`: (depth, batch, length, heads, 32) each."""
    depth, width = weights["layers"]["attention_norm"]["scale"].shape
    empty = jnp.zeros((depth, batch, length, width // HEAD_DIM, HEAD_DIM))
    return {"key": empty, "value": empty}


def step(weights: Weights, token: jax.Array, cache: Cache, position: jax.Array) -> tuple[jax.Array, Cache]:
    """One token more: what `logits` gives at its position, from the keys and values of the tokens before it.

    Args:
        weights: Those of `logits`.
        token: int32, shape (batch,).
        cache: Of `init_cache`, with the tokens before.
        position: int32 scalar: the place of the token, below the length of the cache.

    Returns:
        Logits of the next byte, shape (batch, 256), and the cache with the token.
    """
    x, cache = jax.lax.scan(
        lambda x, layer: _layer(layer[0], x, position[None], layer[1]),
        weights["embedding"]["table"][token][:, None],
        (weights["layers"], cache),
    )
    return (_rms_norm(x, weights["norm"]) @ weights["head"]["kernel"])[:, 0], cache


def _layer(
    weights: Weights, x: jax.Array, positions: jax.Array, cache: Cache | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Tokens (batch, n, d) at n positions, and the keys and values that they see: those of a cache, or their own."""
    normed = _rms_norm(x, weights["attention_norm"])
    query, key, value = (
        (normed @ weights[name]["kernel"]).reshape(*x.shape[:2], x.shape[2] // HEAD_DIM, HEAD_DIM)
        for name in ("query", "key", "value")
    )
    query, key = _rotate(query, positions), _rotate(key, positions)
    if cache is not None:
        # A selection instead of an update in place: runtimes for small devices have the one and not the other.
        is_here = (jnp.arange(cache["key"].shape[1]) == positions)[None, :, None, None]
        key, value = jnp.where(is_here, key, cache["key"]), jnp.where(is_here, value, cache["value"])
    is_past = jnp.arange(key.shape[1])[None] <= positions[:, None]
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / HEAD_DIM**0.5
    shares = jax.nn.softmax(jnp.where(is_past[None, None], scores, -1e9))
    attended = jnp.einsum("bhqk,bkhd->bqhd", shares, value).reshape(x.shape)
    x = x + attended @ weights["output"]["kernel"]
    hidden = jnp.square(jax.nn.relu(_rms_norm(x, weights["hidden_norm"]) @ weights["up"]["kernel"]))
    return x + hidden @ weights["down"]["kernel"], {"key": key, "value": value}


def _rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Pairs (i, i + 16) of each head turned by position · 10000^(-i/16); x has shape (batch, n, heads, 32)."""
    half = HEAD_DIM // 2
    angles = positions[:, None].astype(x.dtype) * 10_000.0 ** -(jnp.arange(half, dtype=x.dtype) / half)[None]
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _rms_norm(x: jax.Array, norm: Weights) -> jax.Array:
    scale = norm["scale"][None, None]
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6) * scale
