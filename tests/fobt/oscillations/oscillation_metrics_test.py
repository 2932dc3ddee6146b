"""What the state of the instrument says, and its figure."""

import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oscillation_cases import QUANTIZER, STEP, followed, make_params, signs

import fobt


@pytest.mark.slow
def test_an_unknown_measure_is_nan_and_0_in_a_search_for_nan():
    state = fobt.oscillations.track_oscillations(optax.sgd(STEP), signs).init(make_params())
    assert np.isnan(fobt.oscillations.oscillation_metrics(state)["total"]["trial_gradient_cosine"])
    with jax.debug_nans(True):
        assert fobt.oscillations.oscillation_metrics(state)["total"]["trial_gradient_cosine"] == 0
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))


def test_histogram_and_oscillating_share():
    """One weight oscillates always, one never, and one did once: f = 1 - 0.9⁴, 0, and 0.1 · 0.9²."""
    codes = np.array([[1, -1, 1, -1, 1, -1], [1] * 6, [1, -1, 1, 1, 1, 1], [1] * 6]).T[:, None]
    state = followed(codes, codes)
    np.testing.assert_allclose(state.leaves["latents"].followed.frequency, [[0.3439, 0, 0.0729, 0]], rtol=1e-5)
    # The third weight oscillated in the third step; the last bins are from 10^-1.5, 10^-1 and 10^-0.5.
    total = fobt.oscillations.oscillation_metrics(state)["total"]
    np.testing.assert_array_equal(total["frequency_histogram"], [0.5, 0, 0, 0, 0, 0, 0.25, 0, 0.25])
    assert total["oscillating_share"] == 0.5
    assert fobt.oscillations.oscillation_metrics(state, threshold=0.1)["total"]["oscillating_share"] == 0.25
    np.testing.assert_allclose(total["oscillation_frequency"], (0.3439 + 0.0729) / 4, rtol=1e-5)


@pytest.mark.parametrize("quantizer", [fobt.full_precision(), fobt.binary()])
def test_nothing_to_follow_and_zeros_give_no_nan(quantizer):
    params = {"bias": jnp.ones(3), "empty": jnp.zeros((0, 4)), "zeros": jnp.zeros((2, 2))}
    tx = fobt.oscillations.track_oscillations(optax.adam(STEP), quantizer, full_precision_gradient=True)
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, state = tx.update(zeros, tx.init(params), params, grad_fn=lambda weights: zeros)
    total = fobt.oscillations.oscillation_metrics(state)["total"]
    chex.assert_tree_all_finite({name: value for name, value in total.items() if name != "trial_gradient_cosine"})
    assert total["flip_share"] == total["gradient_cosine"] == total["gradient_quantization_error"] == 0


def test_missing_params_and_states():
    tx = fobt.oscillations.track_oscillations(optax.adam(STEP), QUANTIZER)
    params = jnp.ones((2, 2))
    state = tx.init(params)
    with pytest.raises(ValueError, match="params must be given"):
        tx.update(params, state)
    with pytest.raises(ValueError, match="state must hold one state of track_oscillations, found 0"):
        fobt.oscillations.oscillation_metrics(state.inner)
    with pytest.raises(ValueError, match="found 2"):
        fobt.oscillations.oscillation_metrics((state, state))
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\), got 1"):
        fobt.oscillations.oscillation_metrics(state, threshold=1)


@pytest.mark.slow
def test_the_figure_has_the_numbers_of_the_history(tmp_path):
    measures = fobt.oscillations.oscillation_metrics(followed(np.ones((2, 1, 1)), np.ones((2, 1, 1))))
    history = [{"total": measures["total"] | {"flip_share": share}} for share in (0.1, 0.3, 0.2)]
    figure = fobt.oscillations.plot_oscillations(history)
    flips = figure.axes[0].lines[0]
    np.testing.assert_array_equal(flips.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(flips.get_ydata(), [0.1, 0.3, 0.2])
    bars = figure.axes[-1].patches
    np.testing.assert_allclose([bar.get_height() for bar in bars], measures["total"]["frequency_histogram"])
    assert [len(axes.lines) // 2 for axes in figure.axes] == [1, 2, 1, 1, 0, 0]  # what is NaN is left out
    figure.savefig(tmp_path / "figure.png")


def test_the_figure_needs_a_history_and_matplotlib(monkeypatch):
    with pytest.raises(ValueError, match="history must hold the metrics of at least one update"):
        fobt.oscillations.plot_oscillations([])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="plot_oscillations needs Matplotlib"):
        fobt.oscillations.plot_oscillations([{}])
