"""The decoder as llama.cpp computes it: its graph of the architecture arcee in NumPy, on what is read from the file."""

import jax
import numpy as np
import pytest

import fobt
from experiments.deployment import gguf as deployment
from experiments.models.decoder import init_decoder, logits

gguf = pytest.importorskip("gguf", reason="needs pip install gguf")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
TOKENS = np.array([[72, 101, 108, 108, 111, 32, 119]], np.int32)
QUANTIZER = fobt.linear_maps(fobt.ternary(), ("head/kernel", fobt.linear(4)), stacked="layers/.*")


@pytest.fixture(scope="module")
def quantized():
    return fobt.quantize(init_decoder(0, width=256, depth=2), None, QUANTIZER)


def norm(x, scale, epsilon):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + epsilon) * scale


def turned(x, base, size):
    """Pairs of neighbours (2i, 2i + 1) turned by position · base^(-2i/size), as LLAMA_ROPE_TYPE_NORM."""
    angles = np.arange(len(x))[:, None] * base ** (-np.arange(0, size, 2) / size)
    pairs = x.reshape(len(x), -1, size // 2, 2)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    first = pairs[..., 0] * cos - pairs[..., 1] * sin
    second = pairs[..., 0] * sin + pairs[..., 1] * cos
    return np.stack([first, second], axis=-1).reshape(len(x), -1, size)


def arcee(reader, tokens):
    """llm_build_arcee of llama.cpp, for one text."""
    w = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
    setting = lambda key: reader.get_field(f"arcee.{key}").contents()  # noqa: E731
    heads, epsilon = setting("attention.head_count"), setting("attention.layer_norm_rms_epsilon")
    size, base, n = setting("rope.dimension_count"), setting("rope.freq_base"), len(tokens)
    assert size == setting("embedding_length") // heads
    x = w["token_embd.weight"][tokens]
    for i in range(setting("block_count")):
        layer = {
            name: w[f"blk.{i}.{name}.weight"] for name in ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
        }
        layer |= {name: w[f"blk.{i}.{name}.weight"] for name in ("ffn_norm", "ffn_up", "ffn_down")}
        normed = norm(x, layer["attn_norm"], epsilon)
        q, k = (turned(normed @ layer[name].T, base, size) for name in ("attn_q", "attn_k"))
        v = (normed @ layer["attn_v"].T).reshape(n, heads, size)
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(size)
        scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + np.einsum("hqk,khd->qhd", shares, v).reshape(n, -1) @ layer["attn_output"].T
        up = norm(x, layer["ffn_norm"], epsilon) @ layer["ffn_up"].T
        assert layer["ffn_up"].shape[0] == setting("feed_forward_length")
        x = x + np.maximum(up, 0) ** 2 @ layer["ffn_down"].T
    return norm(x, w["output_norm.weight"], epsilon) @ w["output.weight"].T


@pytest.mark.parametrize("ternary", ["TQ1_0", "Q4_0"])
def test_logits_are_those_of_jax(quantized, ternary, tmp_path):
    path = tmp_path / "decoder.gguf"
    path.write_bytes(deployment.to_gguf(quantized, context=64, ternary=ternary))
    reader = gguf.GGUFReader(path)
    expected = np.asarray(jax.jit(logits)(fobt.dequantize(quantized), TOKENS))[0]
    np.testing.assert_allclose(arcee(reader, TOKENS[0]), expected, atol=3e-3 * np.abs(expected).max())
    names = gguf.constants.MODEL_TENSORS[gguf.constants.MODEL_ARCH.ARCEE]
    known = {gguf.constants.TENSOR_NAMES[name] for name in names}
    assert {
        t.name.removesuffix(".weight").replace("blk.0", "blk.{bid}").replace("blk.1", "blk.{bid}")
        for t in reader.tensors
    } <= known


def test_the_command(quantized, tmp_path, capsys):
    weights, output = tmp_path / "weights.safetensors", tmp_path / "decoder.gguf"
    fobt.packed.save_packed(weights, quantized)
    deployment.main([str(weights), "--output", str(output)])
    assert f"{output.stat().st_size:,} bytes" in capsys.readouterr().out
    assert output.read_bytes() == deployment.to_gguf(quantized, context=256)
    fobt.packed.save_packed(weights, fobt.quantize(init_decoder(0, width=64, depth=1), None, QUANTIZER))
    with pytest.raises(SystemExit, match="2"):
        deployment.main([str(weights), "--output", str(output)])
    assert "which the type TQ2_0 cannot hold: its last axis has size 64" in capsys.readouterr().err
