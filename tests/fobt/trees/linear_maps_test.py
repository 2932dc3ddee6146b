"""Which leaves of transformers are quantized, and with which scales, against lists by hand and matrices alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from transformer_cases import HEADS, LAYERS, WIDTH, NnxTransformer, linen_params

import fobt

HEAD_DIM = WIDTH // HEADS


def scale_shapes(params, quantizer):
    """The shape of the scale of every quantized leaf, by its path."""
    report = fobt.choices(quantizer, params)
    quantized = jax.eval_shape(lambda params: fobt.quantize(params, None, quantizer), params)
    leaves = jax.tree.leaves(quantized, is_leaf=lambda x: isinstance(x, fobt.Quantized))
    return {
        leaf.path: found.scale.shape
        for leaf, found in zip(report.leaves, leaves, strict=True)
        if isinstance(found, fobt.Quantized)
    }


def arrays(shapes):
    """Weights of different sizes along the first axis, so that a scale for several shows."""
    return {
        path: jax.random.normal(jax.random.key(i), shape)
        * jnp.arange(1.0, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
        for i, (path, shape) in enumerate(shapes.items())
    }


def test_a_transformer_of_linen():
    attention, dense = "MultiHeadDotProductAttention_0", ("Dense_0", "Dense_1")
    expected = {f"Block_{i}/{name}/kernel": () for i in range(LAYERS) for name in dense}
    expected |= {f"Block_{i}/{attention}/{name}/kernel": () for i in range(LAYERS) for name in ATTENTION}
    assert scale_shapes(linen_params(scanned=False), fobt.linear_maps(fobt.ternary())) == expected | {"head/kernel": ()}


ATTENTION = ("query", "key", "value", "out")


@pytest.mark.parametrize("stacked", [None, "layers/.*"])
def test_scanned_layers_of_linen_have_scales_each(stacked):
    attention = "layers/MultiHeadDotProductAttention_0"
    expected = {f"layers/Dense_{i}/kernel": (LAYERS, 1, 1) for i in range(2)}
    expected |= {f"{attention}/{name}/kernel": (LAYERS, 1, 1, 1) for name in ATTENTION}
    found = scale_shapes(linen_params(scanned=True), fobt.linear_maps(fobt.ternary(), stacked=stacked))
    assert found == expected | {"head/kernel": ()}


@pytest.mark.parametrize("stacked", [False, True])
def test_a_transformer_of_nnx(stacked):
    params = jax.eval_shape(lambda: nnx.state(NnxTransformer(nnx.Rngs(0), stacked), nnx.Param))
    found = scale_shapes(params, fobt.linear_maps(fobt.binary(granularity=fobt.per_channel())))
    layers, front = (["layers"], (LAYERS,)) if stacked else ([f"layers/{i}" for i in range(LAYERS)], ())
    expected = {"head/kernel": (1, 11)}
    for layer in layers:
        splits, merges = (*front, 1, HEADS, HEAD_DIM), (*front, 1, 1, WIDTH)
        expected |= {f"{layer}/attention/{name}/kernel": splits for name in ATTENTION[:3]}
        expected |= {f"{layer}/attention/out/kernel": merges, f"{layer}/down/kernel": (*front, 1, WIDTH)}
        expected |= {f"{layer}/up/kernel": (*front, 1, 2 * WIDTH)}
    assert found == expected


NAMED = {
    # Equinox: weights are (outputs, inputs), and a norm has one, too.
    "embedding/weight": ((50, 8), None),
    "blocks/0/norm1/weight": ((3, 8), None),
    "blocks/0/attn/query_proj/weight": ((16, 8), (16, 1)),
    "blocks/0/mlp/layers/1/weight": ((4, 8), (4, 1)),
    "blocks/0/mlp/layers/1/bias": ((3, 4), None),
    "blocks/conv/weight": ((5, 8, 3, 3), (5, 1, 1, 1)),
    "stack/mlp/weight": ((3, 4, 8), (3, 4, 1)),
    # Haiku: modules in one key.
    "net~1~0~1linear/w": ((8, 5), (1, 5)),
    "net~1~0~1linear/b": ((3, 5), None),
    "net~1~0~1layer_norm/scale": ((3, 5), None),
    "net~1~0~1embed/embeddings": ((8, 5), None),
    "net~1~0~1conv2_d/w": ((3, 3, 8, 5), (1, 1, 1, 5)),
    # Of one's own.
    "wte": ((50, 8), None),
    "pos": ((6, 8), None),
    "cls_token": ((1, 8), None),
    "rel_bias": ((4, 9), None),
    "wq": ((8, 5), (1, 5)),
    "scan/w": ((3, 8, 5), (3, 1, 5)),
    "moe/wi": ((6, 8, 5), (6, 1, 5)),
    "scan/moe/wi": ((3, 6, 8, 5), (3, 6, 1, 5)),
    "unembed/w": ((8, 50), (1, 50)),
    "patch_embed/kernel": ((4, 4, 3, 8), (1, 1, 1, 8)),
    "steps": ((8,), None),
}


@pytest.mark.parametrize("path", NAMED)
def test_names(path):
    shape, scale = NAMED[path]
    params = weights = {}
    *modules, name = path.split("/")
    for module in modules:
        weights = weights.setdefault(module.replace("~1", "/").replace("~0", "~"), {})
    weights[name] = jax.ShapeDtypeStruct(shape, jnp.float32)
    found = scale_shapes(params, fobt.linear_maps(fobt.binary(granularity=fobt.per_channel())))
    assert found == ({} if scale is None else {path: scale})


def attention(front, d=8, heads=3, head_dim=4, kv_heads=3, kv_inputs=8):
    shapes = {"query": (d, heads, head_dim), "key": (kv_inputs, kv_heads, head_dim), "out": (heads, head_dim, d)}
    return {name: {"kernel": jax.ShapeDtypeStruct((*front, *shape), jnp.float32)} for name, shape in shapes.items()}


@pytest.mark.parametrize("options", [{}, {"kv_heads": 1}, {"kv_inputs": 5}], ids=str)
@pytest.mark.parametrize("front", [(), (2,)], ids=str)
def test_heads(front, options):
    found = scale_shapes(attention(front, **options), fobt.linear_maps(fobt.binary()))
    expected = (*front, 1, 1, 1) if front else ()
    assert found == {"query/kernel": expected, "key/kernel": expected, "out/kernel": expected}


def test_stacked_matrices_that_are_called_like_heads():
    params = {name: {"kernel": jnp.ones((3, 8, 8))} for name in ATTENTION}
    assert set(scale_shapes(params, fobt.linear_maps(fobt.binary())).values()) == {(3, 1, 1)}


@pytest.mark.parametrize(
    "split",
    [fobt.per_tensor(), fobt.per_channel(), fobt.per_channel(0), fobt.per_block(2), fobt.per_block(2, axis=1)],
    ids=str,
)
@pytest.mark.parametrize(
    ("path", "shape", "matrix"),
    [
        ("query/kernel", (8, 3, 4), lambda w: w.reshape(8, 12)),
        ("out/kernel", (3, 4, 8), lambda w: w.reshape(12, 8)),
        ("dense/weight", (4, 6), lambda w: w.T),
        ("conv/kernel", (3, 3, 2, 4), lambda w: w.reshape(18, 4)),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_granularity_is_that_of_the_matrix(path, shape, matrix, split):
    """A leaf of several axes is quantized as its matrix (inputs, outputs) is."""
    module, name = path.split("/")
    params = {"query": {"kernel": jnp.ones((8, 3, 4))}, "out": {"kernel": jnp.ones((3, 4, 8))}}
    weights = jax.random.normal(jax.random.key(0), shape)
    params |= {module: {name: weights}}
    quantized = fobt.quantize(params, None, fobt.linear_maps(fobt.linear(3, granularity=split)))[module][name]
    expected = fobt.linear(3, granularity=split)(matrix(weights)).dequantize()
    np.testing.assert_allclose(matrix(quantized.dequantize()), expected, rtol=1e-6)


def test_stacked_says_what_vectors_are():
    params = {"layers": {"own_gain": jnp.ones((3, 8)), "w": jnp.ones((3, 8, 8))}, "last": jnp.ones((8, 8))}
    found = scale_shapes(params, fobt.linear_maps(fobt.binary(), stacked="layers/.*"))
    assert found == {"layers/w": (3, 1, 1), "last": ()}


def test_a_stacked_convolution():
    params = {"layers": {"conv": {"kernel": jnp.ones((2, 3, 3, 4, 5))}}}
    channels = fobt.binary(granularity=fobt.per_channel())
    found = scale_shapes(params, fobt.linear_maps(channels, stacked=lambda path, leaf: path.startswith("layers")))
    assert found == {"layers/conv/kernel": (2, 1, 1, 1, 5)}


def test_layers_are_quantized_as_alone():
    weights = jnp.arange(1.0, 4).reshape(3, 1, 1) * jax.random.normal(jax.random.key(0), (3, 8, 5))
    quantized = fobt.quantized_params({"w": weights}, None, fobt.linear_maps(fobt.ternary(), stacked=".*"))["w"]
    for layer, expected in zip(quantized, map(fobt.ternary(), weights), strict=True):
        np.testing.assert_allclose(layer, expected.dequantize(), rtol=1e-6)


def test_rules_go_first_and_find_axes_too():
    params = {"layers": {"w": jnp.ones((3, 8, 5)), "wo": jnp.ones((3, 5, 8))}, "wte": jnp.ones((9, 8))}
    maps = fobt.linear_maps(
        fobt.binary(), ("layers/wo", fobt.linear(4)), ("wte", fobt.linear(8, granularity=fobt.per_channel(0)))
    )
    assert scale_shapes(params, maps) == {"layers/w": (3, 1, 1), "layers/wo": (3, 1, 1), "wte": (9, 1)}
    kept = fobt.per_leaf(("layers/wo", fobt.full_precision()), default=maps)
    assert scale_shapes(params, kept) == {"layers/w": (3, 1, 1), "wte": (9, 1)}


def test_choices_are_those_of_the_file(tmp_path):
    params, quantizer = linen_params(scanned=True), fobt.linear_maps(fobt.ternary(scale_per_sign=True))
    chosen = fobt.choices(quantizer, params)
    fobt.packed.save_packed(tmp_path / "model", fobt.quantize(params, None, quantizer))
    stored = fobt.packed.size_report(tmp_path / "model")
    fields = [(leaf.shape, leaf.stored_as, leaf.scale_for, leaf.scales, leaf.nbytes) for leaf in chosen.leaves]
    assert fields == [(leaf.shape, leaf.stored_as, leaf.scale_for, leaf.scales, leaf.nbytes) for leaf in stored.leaves]
    dense = next(leaf for leaf in chosen.leaves if leaf.path == "layers/Dense_0/kernel")
    assert (dense.scale_for, dense.scales) == ("axis 0", 2 * LAYERS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fobt.linear_maps(fobt.full_precision()), "linear_maps: quantizer must be made by .* FullPrecision"),
        (lambda: fobt.linear_maps(fobt.binary(stacked=1)), r"must have stacked=0, got 1: .*stacked='layers/"),
        (lambda: fobt.linear_maps(fobt.binary(granularity=fobt.per_channel(2))), "matrix .*: .*axis 2 is out of range"),
        (lambda: fobt.linear_maps(fobt.binary(), ("a", fobt.linear(4, stacked=1))), "must have stacked=0, got 1"),
        (lambda: fobt.linear_maps(fobt.binary(), "a"), "linear_maps: a rule must be a pair"),
        (lambda: fobt.linear_maps(fobt.binary(), stacked="("), "no regular expression"),
        (lambda: fobt.choices(fobt.linear_maps(fobt.binary(), stacked="x"), {"w": jnp.ones((2, 2))}), "none of the le"),
        (lambda: fobt.choices(fobt.linear_maps(fobt.binary(), stacked="w"), {"w": jnp.ones(())}), "'w', which has no"),
        (lambda: fobt.per_leaf(("a", fobt.linear_maps(fobt.binary()))), "per_leaf: a rule must be a pair"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
