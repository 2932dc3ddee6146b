"""The decoder of bytes: a reference in NumPy, the past alone counts, a cache changes nothing, scales for each layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fobt
from experiments.models import decoder
from experiments.studies.language.training import loss_fn, of_layers


@pytest.fixture(scope="module")
def weights():
    """A decoder with gains that are not 1."""
    noise = np.random.default_rng(0)
    start = decoder.init_decoder(0, width=64, depth=2)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf * noise.uniform(0.5, 1.5, leaf.shape), jnp.float32), start)


@pytest.fixture(scope="module")
def tokens():
    return np.random.default_rng(0).integers(0, 256, (3, 7)).astype(np.int32)


@pytest.fixture(scope="module")
def logits(weights, tokens):
    return np.asarray(jax.jit(decoder.logits)(weights, tokens))


def reference(weights, text):
    """Logits after each byte of one text, position by position; rotations are those of complex numbers."""
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), weights)
    layers = weights["layers"]

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2) + 1e-6) * scale

    def turned(head, position):
        turns = np.exp(1j * position * 10_000.0 ** (-np.arange(16) / 16))
        pairs = (head[:16] + 1j * head[16:]) * turns
        return np.concatenate([pairs.real, pairs.imag])

    past = {layer: ([], []) for layer in range(len(layers["up"]["kernel"]))}
    outputs = []
    for position, byte in enumerate(text):
        x = weights["embedding"]["table"][byte]
        for layer, (keys, values) in past.items():
            kernel = {name: layers[name]["kernel"][layer] for name in decoder.LINEAR_MAPS}
            normed = norm(x, layers["attention_norm"]["scale"][layer])
            query, key, value = ((normed @ kernel[name]).reshape(-1, 32) for name in ("query", "key", "value"))
            keys.append([turned(head, position) for head in key])
            values.append(value)
            attended = []
            for number, head in enumerate(query):
                scores = np.array([turned(head, position) @ key[number] for key in keys]) / np.sqrt(32)
                shares = np.exp(scores) / np.exp(scores).sum()
                attended.append(sum(share * value[number] for share, value in zip(shares, values, strict=True)))
            x = x + np.concatenate(attended) @ kernel["output"]
            hidden = norm(x, layers["hidden_norm"]["scale"][layer]) @ kernel["up"]
            x = x + np.maximum(hidden, 0) ** 2 @ kernel["down"]
        outputs.append(norm(x, weights["norm"]["scale"]) @ weights["head"]["kernel"])
    return np.stack(outputs)


def test_logits_are_those_of_a_reference_in_numpy(weights, tokens, logits):
    np.testing.assert_allclose(logits[0], reference(weights, tokens[0]), rtol=1e-4, atol=1e-4)


def test_a_byte_changes_nothing_before_it(weights, tokens, logits):
    changed = tokens.copy()
    changed[:, 4] = (changed[:, 4] + 1) % 256
    after = np.asarray(jax.jit(decoder.logits)(weights, changed))
    np.testing.assert_array_equal(after[:, :4], logits[:, :4])
    assert np.all(np.abs(after[:, 4:] - logits[:, 4:]).max(axis=-1) > 1e-3)


def test_steps_with_a_cache_give_the_logits_of_the_whole_text(weights, tokens, logits):
    step, cache = jax.jit(decoder.step), decoder.init_cache(weights, 3, 9)
    for position, token in enumerate(tokens.T):
        here, cache = step(weights, token, cache, jnp.array(position))
        np.testing.assert_allclose(here, logits[:, position], rtol=1e-4, atol=1e-4)


def test_linear_maps_have_scales_for_each_layer_and_the_rest_stays_float32(weights):
    quantized = fobt.quantize(weights, None, of_layers(fobt.binary()))
    for name in decoder.LINEAR_MAPS:
        leaf = quantized["layers"][name]["kernel"]
        expected = np.abs(np.asarray(weights["layers"][name]["kernel"])).mean(axis=(1, 2))
        np.testing.assert_allclose(leaf.scale.ravel(), expected, rtol=1e-5)
    assert isinstance(quantized["head"]["kernel"], fobt.Quantized)
    for name in decoder.NORMS:
        assert quantized["layers"][name]["scale"] is weights["layers"][name]["scale"]
    assert quantized["embedding"]["table"] is weights["embedding"]["table"]
    assert quantized["norm"]["scale"] is weights["norm"]["scale"]


def test_the_loss_is_that_of_the_bytes_after_the_first(weights, tokens, logits):
    odds = np.exp(logits.astype(np.float64))
    odds /= odds.sum(axis=-1, keepdims=True)
    losses = [-np.log(odds[i, j, tokens[i, j + 1]]) for i in range(3) for j in range(6)]
    assert float(loss_fn(weights, tokens)) == pytest.approx(np.mean(losses), rel=1e-5)
