"""The functions that networks and losses are made of, from jax.nn, flax.linen, flax.nnx and optax, through ONNX."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from onnx_cases import assert_exported, assert_same, normal, run

import fobt

# Layers of Flax have biases of several axes, and it does not matter here that they are quantized.
pytestmark = pytest.mark.filterwarnings("ignore:the quantizer takes these leaves for matrices")

ACTIVATIONS = {
    *("celu", "elu", "gelu", "glu", "hard_sigmoid", "hard_silu", "hard_swish", "hard_tanh", "identity", "leaky_relu"),
    *("log_sigmoid", "log_softmax", "logsumexp", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softmax"),
    *("softplus", "standardize", "swish", "tanh"),
}
OF_JAX_ALONE = {"log1mexp", "logmeanexp", "mish", "sparse_plus", "sparse_sigmoid", "squareplus"}
# Functions of these modules that are no activations.
NO_ACTIVATIONS = {
    *("dot_product_attention", "get_scaled_dot_general_config", "one_hot", "scaled_dot_general", "scaled_matmul"),
    "initializers",
}


@pytest.mark.slow
@pytest.mark.parametrize("module", [jax.nn, flax.linen, nnx], ids=lambda module: module.__name__)
def test_activations(module):
    x = 2 * normal(6, 4)
    available = {name: getattr(module, name) for name in ACTIVATIONS | OF_JAX_ALONE if hasattr(module, name)}
    if module is jax.nn:
        public = {name for name in dir(jax.nn) if not name.startswith("_")} - NO_ACTIVATIONS
        assert set(available) | {"relu6"} >= public - {"identity"}

    def function(weights, x):
        inputs = {"log1mexp": jnp.abs(x) + 0.1}
        results = {name: activation(inputs.get(name, x)) for name, activation in available.items()}
        return results, module.gelu(x, approximate=False), module.one_hot(jnp.argmax(x, -1), 4)

    assert_exported(function, {}, x)


@pytest.mark.slow
def test_activations_of_half_precision():
    x = 2 * normal(6, 4)

    def function(weights, x):
        return {name: getattr(jax.nn, name)(x) for name in ACTIVATIONS if hasattr(jax.nn, name)}

    model = fobt.export.to_onnx(function, {}, x.astype(np.float16))
    expected = jax.tree.map(lambda y: y.astype(jnp.float16), function({}, x))
    assert_same(run(model, x.astype(np.float16)), expected, 5e-3)


@pytest.mark.slow
def test_functions_with_masks():
    x, mask = normal(3, 4), np.tril(np.ones((3, 4), bool))

    def function(weights, x, mask):
        masked = jax.nn.softmax(x, where=mask), jax.nn.logsumexp(x, where=mask, axis=-1), jnp.mean(x, where=mask)
        constant = jnp.tril(jnp.ones((3, 4), bool))
        causal = jnp.where(constant, x, -jnp.inf)
        return masked, jax.nn.softmax(causal), x * jnp.tril(jnp.ones((3, 4))), jnp.max(x, where=mask, initial=-1.0)

    assert_exported(function, {}, x, mask)


LOSSES = {
    "generalized_kl_divergence": (jax.nn.log_softmax, jax.nn.softmax),
    "cosine_distance": (),
    "cosine_similarity": (),
    "hinge_loss": (),
    "huber_loss": (),
    "kl_divergence": (jax.nn.log_softmax, jax.nn.softmax),
    "kl_divergence_with_log_targets": (jax.nn.log_softmax, jax.nn.log_softmax),
    "l2_loss": (),
    "log_cosh": (),
    "perceptron_loss": (),
    "poly_loss_cross_entropy": (None, jax.nn.softmax),
    "ranking_softmax_loss": (),
    "safe_softmax_cross_entropy": (None, jax.nn.softmax),
    "sigmoid_binary_cross_entropy": (None, jax.nn.sigmoid),
    "sigmoid_focal_loss": (None, jax.nn.sigmoid),
    "softmax_cross_entropy": (None, jax.nn.softmax),
    "squared_error": (),
}
LOSSES_OF_LABELS = (
    *("multiclass_hinge_loss", "multiclass_perceptron_loss", "ntxent", "softmax_cross_entropy_with_integer_labels"),
    "triplet_margin_loss",
)


@pytest.mark.slow
def test_losses():
    x, y, labels = normal(6, 4), normal(6, 4, seed=1), np.array([0, 3, 1, 1, 2, 0], np.int32)

    def function(weights, x, y, labels):
        def prepared(functions):
            return [z if f is None else f(z) for f, z in zip(functions or (None, None), (x, y), strict=True)]

        two = {name: getattr(optax.losses, name)(*prepared(functions)) for name, functions in LOSSES.items()}
        third = {"triplet_margin_loss": (y, x + y)}
        few = {name: getattr(optax.losses, name)(x, *third.get(name, (labels,))) for name in LOSSES_OF_LABELS}
        return two, few

    assert_exported(function, {}, x, y, labels)


LAYERS = {
    "linen attention": (flax.linen.MultiHeadDotProductAttention(2), (2, 5, 8)),
    "linen norms": (
        flax.linen.Sequential([flax.linen.LayerNorm(), flax.linen.RMSNorm(), flax.linen.GroupNorm(2)]),
        (2, 8),
    ),
    "linen dense general": (flax.linen.DenseGeneral((2, 3), axis=(-2, -1)), (4, 3, 5)),
    "linen embedding": (flax.linen.Embed(7, 4), None),
    "linen einsum": (flax.linen.Einsum((8, 2, 3), "bi,ihd->bhd"), (2, 8)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str):
    layer, shape = LAYERS[name]
    x = np.array([[1, 0, 6]], np.int32) if shape is None else normal(*shape)
    params = layer.init(jax.random.key(0), jnp.asarray(x))
    for quantizer in (fobt.linear(4), fobt.ternary()):
        quantized = jax.jit(fobt.quantize, static_argnums=2)(params, None, quantizer)
        assert_exported(layer.apply, quantized, x, tolerance=2e-5)


@pytest.mark.slow
def test_a_causal_decoder_block():
    layer = flax.linen.MultiHeadDotProductAttention(2)
    x = normal(2, 5, 8)

    def attend(weights, x):
        mask = flax.linen.make_causal_mask(x[..., 0])
        angles = jnp.arange(5.0)[:, None] / 10 ** jnp.arange(4.0)[None]
        rotated = x * jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)[None]
        return layer.apply(weights, rotated, mask=mask) + jax.nn.dot_product_attention(
            *(x.reshape(2, 5, 2, 4) for _ in range(3)), is_causal=True
        ).reshape(x.shape)

    params = layer.init(jax.random.key(0), jnp.asarray(x))
    assert_exported(attend, fobt.quantize(params, None, fobt.linear(4)), x, tolerance=2e-5)
