"""Oscillations over a training run, as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fobt._src.oscillations.metrics import FREQUENCY_EDGES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# For each panel its title, whether its axis is logarithmic, and the measures in it.
PANELS = (
    ("share of codes that flip per update", True, {"flip_share": "codes that flip"}),
    (
        "oscillations",
        True,
        {"oscillation_frequency": "mean frequency", "oscillating_share": "share of oscillating weights"},
    ),
    ("largest amplitude of a latent weight", False, {"largest_amplitude": "largest swing so far"}),
    (
        "cosine of the gradient with",
        False,
        {
            "gradient_cosine": "the one before",
            "trial_gradient_cosine": "the trial gradient",
            "full_precision_gradient_cosine": "that at full precision",
        },
    ),
    ("error of the gradient by quantization", False, {"gradient_quantization_error": "relative distance"}),
)


def plot_oscillations(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draws measures of oscillation over the updates of a training run, and the last histogram of frequencies.

    Measures that are NaN throughout are left out. Thin lines are the updates, thick ones their running means over a
    fiftieth of the run.

    Args:
      history: what `oscillation_metrics` returned after each update, at least one; the total is drawn.

    Returns:
      A Matplotlib figure, to be shown or saved with its `savefig`.

    Raises:
      ImportError: Matplotlib is not installed.
      ValueError: `history` is empty.

    Example:
      >>> import fobt, optax
      >>> import jax.numpy as jnp
      >>> tx = fobt.oscillations.track_oscillations(optax.adam(1e-3), fobt.binary())
      >>> metrics = fobt.oscillations.oscillation_metrics(tx.init({"kernel": jnp.ones((2, 2))}))
      >>> figure = fobt.oscillations.plot_oscillations([metrics])
      >>> figure.axes[0].get_title()
      'share of codes that flip per update'
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot_oscillations needs Matplotlib: pip install matplotlib.") from error
    if not history:
        raise ValueError("history must hold the metrics of at least one update, got none.")
    totals = [metrics["total"] for metrics in history]
    updates = np.arange(1, len(totals) + 1)
    window = max(1, len(totals) // 50)
    figure = Figure(figsize=(15, 8), layout="constrained")
    *panels, last = figure.subplots(2, 3).flat
    for axes, (title, logarithmic, measures) in zip(panels, PANELS, strict=True):
        for number, (measure, label) in enumerate(measures.items()):
            values = np.array([total[measure] for total in totals], float)
            if np.all(np.isnan(values)):
                continue
            axes.plot(updates, values, color=f"C{number}", linewidth=0.5, alpha=0.4)
            axes.plot(updates, _running_mean(values, window), color=f"C{number}", label=label)
        axes.set(title=title, xlabel="update")
        if logarithmic:
            axes.set_yscale("symlog", linthresh=1e-5)
            axes.set_ylim(bottom=0)
        if axes.lines:
            axes.legend(frameon=False)
        axes.grid(alpha=0.3)
    shares = np.asarray(totals[-1]["frequency_histogram"])
    last.bar(range(len(shares)), shares, width=1, align="edge", edgecolor="white")
    labels = [f"{edge:.2g}" for edge in FREQUENCY_EDGES]
    last.set_xticks(range(len(labels)), labels, fontsize="small", rotation=45)
    last.set(title="share of weights by frequency, last update", xlabel="frequency of oscillations", yscale="log")
    last.grid(alpha=0.3, axis="y")
    return figure


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Means over the last `window` values, or those that there are, of those that are not NaN; NaN of none."""
    known = ~np.isnan(values)
    sums, counts = (np.cumsum(x) for x in (np.where(known, values, 0), known))
    sums[window:], counts[window:] = sums[window:] - sums[:-window], counts[window:] - counts[:-window]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
