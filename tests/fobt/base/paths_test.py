"""One name for a leaf in rules, states, results, files and messages, unique in its tree whatever the keys are."""

import collections
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import fobt
from fobt._src.base.tree_paths import leaf_paths

SLASHES = {"a/b": jnp.ones((8, 8)), "a": {"b": 2 * jnp.ones((8, 4))}, "~1": {"~": jnp.ones((2, 2))}}
WRITTEN = ["a/b", "a~1b", "~01/~0"]  # as trees are flattened


def test_a_json_pointer_without_its_first_slash():
    Pair = collections.namedtuple("Pair", ["left", "right"])
    tree = {"a": [1, (2, {"": 3})], "b": Pair(4, None), "c": {0: 5, 10: 6}, "": {"a": 7}}
    assert leaf_paths(tree) == ["/a", "a/0", "a/1/0", "a/1/1/", "b/left", "c/0", "c/10"]
    assert leaf_paths(SLASHES) == WRITTEN
    assert leaf_paths(1.0) == [""]
    module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert leaf_paths(nnx.state(module, nnx.Param)) == ["bias", "kernel"]  # of variables, not of what is in them


@pytest.mark.slow
def test_everything_that_names_leaves_names_them_alike(tmp_path: Path):
    quantized = fobt.quantize(SLASHES, None, fobt.binary())
    assert list(fobt.oscillations.track_oscillations(optax.adam(1e-3), fobt.binary()).init(SLASHES).leaves) == WRITTEN

    def loss(weights):
        return jnp.sum(weights["a/b"]) - jnp.sum(weights["a"]["b"]) + jnp.sum(weights["~1"]["~"])

    assert list(fobt.lapq(loss, SLASHES, fobt.linear(2), max_evaluations=3).clipping_values) == WRITTEN
    fobt.packed.save_packed(tmp_path / "file", quantized)
    for source in (quantized, fobt.packed.pack(quantized)):
        assert [leaf.path for leaf in fobt.packed.size_report(source).leaves] == WRITTEN
    assert [leaf.path for leaf in fobt.packed.size_report(tmp_path / "file").leaves] == [
        f"params/{path}" for path in WRITTEN
    ]
    jax.tree.map(
        np.testing.assert_array_equal, fobt.packed.load_packed(tmp_path / "file").weights(), fobt.dequantize(quantized)
    )
    by_rule = fobt.quantize(SLASHES, None, fobt.per_leaf(("a~1b", fobt.binary())))
    assert isinstance(by_rule["a/b"], fobt.Quantized)
    assert not isinstance(by_rule["a"]["b"], fobt.Quantized)
    with pytest.raises(ValueError, match="fits the quantized leaf 'a~1b'"):
        fobt.quantize({"a/b": jnp.ones((2, 2))}, optax.sgd(1e-3).init(None), fobt.binary())


@pytest.mark.slow
def test_both_leaves_are_followed():
    tx = fobt.oscillations.track_oscillations(
        optax.sgd(1.0), lambda params: jax.tree.map(lambda w: (w > 0).astype(jnp.int8), params)
    )
    params = {"a/b": jnp.array([[1.0]]), "a": {"b": jnp.array([[-1.0]])}}
    state = tx.init(params)
    grads = {"a/b": jnp.array([[2.0]]), "a": {"b": jnp.array([[0.0]])}}  # the first one changes its sign
    for _ in range(2):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    leaves = fobt.oscillations.oscillation_metrics(state)["leaves"]
    assert {path: float(measures["flip_share"]) for path, measures in leaves.items()} == {"a/b": 0.0, "a~1b": 1.0}


KEYS = st.text(alphabet="a/~01", max_size=3)
TREES = st.recursive(
    st.just(1.0),
    lambda children: st.one_of(
        st.lists(children, max_size=3), st.dictionaries(KEYS, children, max_size=3), st.tuples(children, children)
    ),
    max_leaves=8,
)


@hypothesis.given(TREES)
def test_no_two_leaves_have_one_path(tree):
    paths = leaf_paths(tree)
    assert len(paths) == len(jax.tree.leaves(tree))
    assert len(set(paths)) == len(paths)
