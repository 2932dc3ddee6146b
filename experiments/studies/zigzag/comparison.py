"""Looking ahead against loss-aware quantization, over learning rates and seeds, at equal steps and at equal gradients.

A two-stage step takes two gradients. So T of them are compared with T loss-aware steps, and with 2T or T, whichever
have the lower mean loss: more steps are not always better, because the scale of binary weights follows latents that may
drift.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

import fobt
from experiments.core.records import write_results
from experiments.reporting.statistics import Estimate, paired_difference
from experiments.reporting.tables import Columns, markdown
from experiments.studies.zigzag.iteration import gradient_descent, run

A_VALUES = (0.5, 0.6, 0.75, 0.875)
OPTIMIZERS = {
    "gradient steps": gradient_descent(),
    "Adam, b1 = 0": fobt.adam_preconditioner(b1=0.0),
    "Adam, b1 = 0.9": fobt.adam_preconditioner(),
}
# Losses are cut here, in units of their setting, so that runs that diverge have one.
WORST = 1e3
# Losses and flips are means over this last part of the steps.
LAST_PART = 4
SHOWN_A = (0.6, 0.75)
VERDICTS = ("better", "same", "worse")


def _counts_text(values: Sequence[int]) -> str:
    return " / ".join(map(str, values))


def _ratio_text(ratio: Mapping[str, Any]) -> str:
    interval = "" if ratio["low"] is None else f" [{ratio['low']:.3g}, {ratio['high']:.3g}]"
    return f"{ratio['ratio']:.3g}{interval}"


SUMMARY_COLUMNS: Columns = {
    "optimizer": ("better / same / worse than LAQ", str),
    "a": ("a", "{:g}".format),
    "every_steps": ("same η, equal steps", _counts_text),
    "every_gradients": ("same η, up to equal gradients", _counts_text),
    "best_steps": ("each at its best η, equal steps", _counts_text),
    "best_gradients": ("each at its best η, up to equal gradients", _counts_text),
}
LEARNING_RATE_COLUMNS: Columns = {
    "optimizer": ("same η, up to equal gradients", str),
    "learning_rate": ("η", "{:g}".format),
    **{f"a = {a:g}": (f"a = {a:g}", _counts_text) for a in A_VALUES},
    "laq_flips": ("flips per weight and step, LAQ", "{:.3f}".format),
    "flips": (f"the same, a = {SHOWN_A[0]:g}", "{:.3f}".format),
}
BEST_COLUMNS: Columns = {
    "optimizer": ("loss relative to LAQ, each at its best η", str),
    "quantizer": ("quantizer", str),
    "problem": ("problem", str),
    "a": ("a", "{:g}".format),
    "steps": ("equal steps", _ratio_text),
    "gradients": ("up to equal gradients", _ratio_text),
    "learning_rate": ("η", "{:g}".format),
    "laq_learning_rate_equal_gradients": ("η of LAQ", "{:g}".format),
    "laq_steps_equal_gradients": ("its steps", str),
}


@dataclass(frozen=True)
class Setting:
    """The runs on one family of problems, with one quantizer and one optimizer.

    Attributes:
        problem: What is minimised.
        quantizer: The name of the quantizer.
        optimizer: One of OPTIMIZERS.
        learning_rates: In units of 1/L for gradient steps, where L is the largest curvature.
        log_losses: log10 of the loss, in units of the setting, for each a of (*A_VALUES, 1), learning rate and seed
            after T and after 2T steps: shape (a, learning rate, seed, 2).
        flips: Share of the weights that flip per step, in the same shape.
    """

    problem: str
    quantizer: str
    optimizer: str
    learning_rates: tuple[float, ...]
    log_losses: np.ndarray
    flips: np.ndarray

    def difference(self, a: int, learning_rate: int, laq: tuple[int, int], seeds: slice) -> Estimate:
        """Mean over seeds of log10 of the loss of the method over that of loss-aware quantization.

        Args:
            a: Which of A_VALUES.
            learning_rate: Which one the method has.
            laq: Which learning rate loss-aware quantization has, and 0 for T steps of it or 1 for 2T.
            seeds: Which seeds.
        """
        method = self.log_losses[a, learning_rate, seeds, 0]
        reference = self.log_losses[-1, laq[0], seeds, laq[1]]
        estimate = paired_difference(dict(enumerate(method.tolist())), dict(enumerate(reference.tolist())))
        assert estimate is not None
        return estimate


def measure(
    loss_fn: Callable[[jax.Array, Any], jax.Array],
    data: Any,
    starts: jax.Array,
    units: np.ndarray,
    *,
    problem: str,
    quantizer: tuple[str, fobt.Quantizer],
    optimizer: str,
    learning_rates: tuple[float, ...],
    largest_curvature: float,
    steps: int,
) -> Setting:
    """Runs every coefficient, learning rate and seed.

    Args:
        loss_fn: From weights and the data of a seed to a scalar.
        data: Arrays with a leading axis of seeds.
        starts: First latents of each seed.
        units: The unit of the loss of each seed.
        problem: What is minimised, in words.
        quantizer: Name and quantizer.
        optimizer: One of OPTIMIZERS.
        learning_rates: In units of 1/largest_curvature for gradient steps.
        largest_curvature: L.
        steps: T.
    """

    def last_parts(a: jax.Array, learning_rate: jax.Array, data: Any, start: jax.Array) -> tuple[jax.Array, jax.Array]:
        path = run(
            lambda weights: loss_fn(weights, data),
            start,
            2 * steps,
            learning_rate=learning_rate,
            a=a,
            quantizer=quantizer[1],
            preconditioner=OPTIMIZERS[optimizer],
        )
        codes = path.quantized.codes
        flips = jnp.mean(codes[1:] != codes[:-1], axis=tuple(range(1, codes.ndim)))
        parts = [slice(end - steps // LAST_PART, end) for end in (steps, 2 * steps)]
        return jnp.stack([jnp.mean(path.losses[part]) for part in parts]), jnp.stack(
            [jnp.mean(flips[part.start - 1 : part.stop - 1]) for part in parts]
        )

    unit = 1 / largest_curvature if optimizer == "gradient steps" else 1.0
    over_seeds = jax.vmap(last_parts, (None, None, 0, 0))
    over_learning_rates = jax.vmap(over_seeds, (None, 0, None, None))
    losses, flips = jax.jit(jax.vmap(over_learning_rates, (0, None, None, None)))(
        jnp.array([*A_VALUES, 1.0]), jnp.array(learning_rates) * unit, data, starts
    )
    log_losses = np.log10(np.nan_to_num(np.asarray(losses) / units[:, None], nan=WORST, posinf=WORST))
    log_losses = np.minimum(log_losses, np.log10(WORST))
    return Setting(problem, quantizer[0], optimizer, learning_rates, log_losses, np.asarray(flips))


def compare(setting: Setting) -> list[dict[str, Any]]:
    """A record for each learning rate and a: loss relative to loss-aware quantization with the same learning rate."""
    everything = slice(None)
    means, flips = np.mean(setting.log_losses, axis=2), np.mean(setting.flips, axis=2)
    return [
        {
            **_identity(setting),
            "learning_rate": learning_rate,
            "a": a,
            "loss": float(10 ** means[i, j, 0]),
            "laq_loss_equal_steps": float(10 ** means[-1, j, 0]),
            "laq_loss_twice_the_steps": float(10 ** means[-1, j, 1]),
            "flips": float(flips[i, j, 0]),
            "laq_flips": float(flips[-1, j, 0]),
            "steps": _ratio(setting.difference(i, j, (j, 0), everything)),
            "gradients": _ratio(setting.difference(i, j, (j, int(np.argmin(means[-1, j]))), everything)),
        }
        for j, learning_rate in enumerate(setting.learning_rates)
        for i, a in enumerate(A_VALUES)
    ]


def compare_at_best(setting: Setting) -> list[dict[str, Any]]:
    """The same, each at its own best learning rate, chosen on the first half of the seeds and compared on the other."""
    half = setting.log_losses.shape[2] // 2
    means, others = np.mean(setting.log_losses[:, :, :half], axis=2), slice(half, None)
    best = np.argmin(means[:, :, 0], axis=1).tolist()
    best_rate, best_end = map(int, np.unravel_index(np.argmin(means[-1]), means[-1].shape))
    return [
        {
            **_identity(setting),
            "a": a,
            "learning_rate": setting.learning_rates[best[i]],
            "laq_learning_rate_equal_steps": setting.learning_rates[best[-1]],
            "laq_learning_rate_equal_gradients": setting.learning_rates[best_rate],
            "laq_steps_equal_gradients": ("T", "2T")[best_end],
            "steps": _ratio(setting.difference(i, best[i], (best[-1], 0), others)),
            "gradients": _ratio(setting.difference(i, best[i], (best_rate, best_end), others)),
        }
        for i, a in enumerate(A_VALUES)
    ]


def summary(records: Sequence[Mapping[str, Any]], at_best: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each optimizer and a: in how many settings looking ahead is better, the same, and worse."""
    return [
        {
            "optimizer": optimizer,
            "a": a,
            **{
                f"{name}_{budget}": counts(
                    record[budget] for record in group if record["optimizer"] == optimizer and record["a"] == a
                )
                for name, group in (("every", records), ("best", at_best))
                for budget in ("steps", "gradients")
            },
        }
        for optimizer in OPTIMIZERS
        for a in A_VALUES
    ]


def by_learning_rate(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each optimizer and learning rate: the counts at equal gradients for each a, and the mean flips."""
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["optimizer"], record["learning_rate"]), []).append(record)
    return [
        {
            "optimizer": optimizer,
            "learning_rate": learning_rate,
            **{f"a = {a:g}": counts(record["gradients"] for record in group if record["a"] == a) for a in A_VALUES},
            "laq_flips": float(np.mean([record["laq_flips"] for record in group])),
            "flips": float(np.mean([record["flips"] for record in group if record["a"] == SHOWN_A[0]])),
        }
        for (optimizer, learning_rate), group in groups.items()
    ]


def counts(ratios: Iterable[Mapping[str, Any]]) -> list[int]:
    """How many ratios are better, the same, and worse."""
    verdicts = [ratio["verdict"] for ratio in ratios]
    return [verdicts.count(verdict) for verdict in VERDICTS]


def write(folder: Path, name: str, settings: Sequence[Setting], sizes: Mapping[str, int]) -> None:
    """Writes name.json, name.md and name.png.

    Args:
        folder: Where.
        name: Of the part.
        settings: All settings.
        sizes: What else the JSON should say of the runs.
    """
    records = [record for setting in settings for record in compare(setting)]
    at_best = [record for setting in settings for record in compare_at_best(setting)]
    totals, by_rate = summary(records, at_best), by_learning_rate(records)
    content = {
        **sizes,
        "summary": totals,
        "by_learning_rate": by_rate,
        "best_learning_rates": at_best,
        "records": records,
    }
    tables = [
        markdown(SUMMARY_COLUMNS, totals),
        markdown(LEARNING_RATE_COLUMNS, by_rate),
        markdown(BEST_COLUMNS, [record for record in at_best if record["a"] in SHOWN_A]),
    ]
    write_results(folder, name, "\n".join(tables), content)
    _draw(records, folder / f"{name}.png", ", ".join(f"{value} {key}" for key, value in sizes.items()))


def _draw(records: Sequence[Mapping[str, Any]], path: Path, sizes: str) -> None:
    """A heat map for each optimizer and shown a: a row for each setting, a column for each learning rate."""
    settings = list(dict.fromkeys((record["quantizer"], record["problem"]) for record in records))
    figure = Figure(figsize=(15, 3.4 + 0.6 * len(settings)), layout="constrained")
    figure.suptitle(
        "Loss of looking ahead / loss of LAQ, same η, up to equally many gradients; bold: the interval excludes 1\n"
        f"({sizes}; losses are cut at {WORST:g} units)"
    )
    rates_of = {
        optimizer: sorted({record["learning_rate"] for record in records if record["optimizer"] == optimizer})
        for optimizer in OPTIMIZERS
    }
    panels = figure.subplots(
        len(SHOWN_A), len(OPTIMIZERS), squeeze=False, width_ratios=list(map(len, rates_of.values()))
    )
    for a, row in zip(SHOWN_A, panels, strict=True):
        for optimizer, axes in zip(OPTIMIZERS, row, strict=True):
            cells = {
                (record["quantizer"], record["problem"], record["learning_rate"]): record["gradients"]
                for record in records
                if record["optimizer"] == optimizer and record["a"] == a
            }
            rates = rates_of[optimizer]
            ratios = np.array([[cells[*setting, rate]["ratio"] for rate in rates] for setting in settings])
            image = axes.imshow(np.log10(ratios), aspect="auto", cmap="RdBu_r", vmin=-1, vmax=1)
            for i, setting in enumerate(settings):
                for j, rate in enumerate(rates):
                    cell = cells[*setting, rate]
                    weight = "normal" if cell["verdict"] == "same" else "bold"
                    color = "white" if abs(np.log10(cell["ratio"])) > 0.7 else "black"
                    axes.text(
                        j, i, f"{cell['ratio']:.2g}", ha="center", va="center", fontsize=8, weight=weight, color=color
                    )
            unit = " in 1/L" if optimizer == "gradient steps" else ""
            axes.set(title=f"{optimizer}, a = {a:g}", xlabel=f"η{unit}")
            axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
            labels = [", ".join(setting) for setting in settings] if axes is row[0] else [""] * len(settings)
            axes.set_yticks(range(len(settings)), labels)
    figure.colorbar(image, ax=panels, label="log10 of the ratio, blue is better", shrink=0.8)
    figure.savefig(path, dpi=110)


def _identity(setting: Setting) -> dict[str, str]:
    return {"problem": setting.problem, "quantizer": setting.quantizer, "optimizer": setting.optimizer}


def _ratio(log_difference: Estimate) -> dict[str, Any]:
    """Ratio of losses with its interval, and whether that excludes 1."""
    low, high = log_difference.low, log_difference.high
    verdict = "same"
    if low is not None and high is not None and not low <= 0 <= high:
        verdict = "better" if high < 0 else "worse"
    return {
        "ratio": 10**log_difference.mean,
        "low": None if low is None else 10**low,
        "high": None if high is None else 10**high,
        "verdict": verdict,
    }
