"""Time of projections against size, for each granularity: `python docs/figures/projection_costs.py`."""

import json
from pathlib import Path

from drawing import FOLDER, LATENT, MUTED, QUANTIZED, new_figure, save

RESULTS = FOLDER.parents[1] / "experiments/results/benchmark/scaling.json"
COLORS = {"linear(2)": LATENT, "linear(4)": QUANTIZED}
GRANULARITIES = ("per tensor", "per channel", "blocks of 128")


def main(folder: Path = FOLDER) -> None:
    """Draws the figure into a folder."""
    records = json.loads(RESULTS.read_text(encoding="utf-8"))["records"]
    unit = {record["weights"]: record["seconds"] for record in records if record["program"] == "Adam update"}
    figure, axes = new_figure(9, 3.2, 3)
    for ax, granularity in zip(axes, GRANULARITIES, strict=True):
        for grid, color in COLORS.items():
            of_program = [record for record in records if record["program"] == f"{grid}, {granularity}"]
            ratios = [record["seconds"] / unit[record["weights"]] for record in of_program]
            ax.plot([record["weights"] for record in of_program], ratios, "o-", color=color, label=grid, markersize=4)
        ax.axhline(1, color=MUTED, linewidth=0.8)
        ax.set(title=granularity, xscale="log", xlabel="weights of the tensor", ylim=(0, None))
    axes[0].set_ylabel("donated Adam updates")
    axes[0].legend(frameon=False)
    save(figure, folder / "projection_costs.svg")


if __name__ == "__main__":
    main()
