"""Networks with folded batch normalisation: the same outputs, and the same codes."""

import jax
import numpy as np
import pytest
from flax import nnx
from folding_cases import codes, perturbed

import fobt
from experiments.core.network import split_model
from experiments.deployment.folding import fold
from experiments.models import NETWORKS


@pytest.mark.parametrize("positive", [True, False], ids=["positive gains", "gains of both signs"])
@pytest.mark.parametrize(
    ("name", "shape", "width", "quantizer", "pooled"),
    [
        ("digits_cnn", (8, 8, 1), 0.5, fobt.binary(), 2),
        ("small_mlp", (28, 28, 1), 0.1, fobt.linear(3), 0),
        ("vgg", (32, 32, 3), 0.03, fobt.ternary(scale_per_sign=True), 3),
        ("resnet18", (32, 32, 3), 0.05, fobt.binary(), 0),
    ],
)
def test_folded_networks_have_the_same_outputs_and_codes(
    name: str, shape: tuple, width: float, quantizer: fobt.Quantizer, pooled: int, positive: bool
):
    model = NETWORKS[name](nnx.Rngs(0), width)
    graph, params, batch_stats = split_model(model)
    params, batch_stats = perturbed(params, 0, positive=positive), perturbed(batch_stats, 1, positive=True)
    quantized = jax.jit(fobt.quantize, static_argnums=2)(params, None, quantizer)
    images = jax.random.normal(jax.random.key(0), (3, *shape))
    original = jax.jit(lambda weights: nnx.merge(graph, weights, batch_stats)(images, training=False))
    expected = original(fobt.dequantize(quantized))
    folded = fold(model, quantized, batch_stats)
    scores = jax.jit(lambda weights: folded(weights, images))(fobt.dequantize(folded.quantized))
    largest = np.abs(expected).max()
    np.testing.assert_allclose(scores / largest, expected / largest, atol=1e-5)
    assert all(map(np.array_equal, codes(folded.quantized), codes(quantized)))
    # Only the normalisations behind a pooling can stay, each with two averages, and the model is as it was.
    assert len(jax.tree.leaves(folded.batch_stats)) == (0 if positive else 2 * pooled)
    assert len(jax.tree.leaves(split_model(model)[2])) == len(jax.tree.leaves(batch_stats))
