"""Zig-zagging of codes: an instrument around any optimizer, and the published remedies."""

from fobt._src.oscillations.dampening import dampening_loss
from fobt._src.oscillations.freezing import freeze_oscillations, is_frozen
from fobt._src.oscillations.metrics import oscillation_metrics
from fobt._src.oscillations.plot import plot_oscillations
from fobt._src.oscillations.tracking import OscillationState, track_oscillations

__all__ = [
    "OscillationState",
    "dampening_loss",
    "freeze_oscillations",
    "is_frozen",
    "oscillation_metrics",
    "plot_oscillations",
    "track_oscillations",
]
