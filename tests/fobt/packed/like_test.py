"""Packed files in the containers of the model: those of Equinox are classes that are pytrees, those of NNX states."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import fobt

KERNEL = np.array([[1.0, -3.0, 2.0]], np.float32)
QUANTIZER = fobt.binary()


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: Any
    bias: Any
    activation: str = dataclasses.field(default="relu", metadata={"static": True})


class Pair(NamedTuple):
    first: Any
    second: Any


def model():
    """None stands for what a partition of Equinox takes out."""
    return Pair(Layer(jnp.asarray(KERNEL), jnp.zeros(3)), [Layer(jnp.asarray(2 * KERNEL), None, "tanh"), None])


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "model.safetensors"
    fobt.packed.save_packed(path, fobt.quantize(model(), None, QUANTIZER))
    return path


@pytest.mark.parametrize("like", [model(), jax.eval_shape(model)], ids=["params", "shapes"])
def test_what_is_loaded_has_the_containers_of_the_model(path, like):
    loaded = fobt.packed.load_packed(path, like=like)
    expected = fobt.quantized_params(model(), None, QUANTIZER)
    for weights in (loaded.weights(), fobt.dequantize(loaded.quantized()), fobt.dequantize(loaded.packed())):
        jax.tree.map(np.testing.assert_array_equal, weights, expected)  # containers and static fields are compared, too
    np.testing.assert_array_equal(loaded.weights().second[0].kernel, [[4.0, -4.0, 4.0]])
    assert isinstance(loaded.params.first.kernel, fobt.packed.PackedArray)
    assert loaded.quantized().second[0].activation == "tanh"
    assert type(fobt.packed.load_packed(path).weights()) is dict


def test_a_state_of_nnx(tmp_path):
    network = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    expected = fobt.quantized_params(nnx.as_pure(nnx.state(network, nnx.Param)), None, QUANTIZER)
    fobt.packed.save_packed(tmp_path / "file", fobt.quantize(nnx.state(network, nnx.Param), None, QUANTIZER))
    loaded = fobt.packed.load_packed(tmp_path / "file", like=nnx.state(network, nnx.Param))
    nnx.update(network, loaded.weights())
    np.testing.assert_allclose(network.kernel[...], expected["kernel"], rtol=1e-6)


def test_a_single_leaf(tmp_path):
    fobt.packed.save_packed(tmp_path / "file", fobt.quantize(KERNEL, None, QUANTIZER))
    weights = fobt.packed.load_packed(tmp_path / "file", like=KERNEL).weights()
    np.testing.assert_array_equal(weights, [[2.0, -2.0, 2.0]])


WRONG = {
    r"\['second/1'\] are not in the file, and without \[\], which": lambda tree: tree._replace(
        second=[tree.second[0], jnp.ones(2)]
    ),
    r"\[\] are not in the file, and without \['first/bias'\], which": lambda tree: tree._replace(
        first=dataclasses.replace(tree.first, bias=None)
    ),
    r"\['kernel'\] are not .* without \['first/kernel', 'first/bias', 'second/0/kernel'\], which": lambda tree: {
        "kernel": KERNEL
    },
    r"like must have the shapes of the file, got \(4,\) instead of \(3,\) at 'first/bias'": lambda tree: tree._replace(
        first=dataclasses.replace(tree.first, bias=jnp.zeros(4))
    ),
}


@pytest.mark.parametrize("message", WRONG)
def test_another_tree_is_an_error(path, message):
    with pytest.raises(ValueError, match=message):
        fobt.packed.load_packed(path, like=WRONG[message](model()))
