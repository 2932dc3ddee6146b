"""The picture of the front page, from results that are stored: `python docs/figures/front.py`.

Left: the paper's toy problem, one weight whose loss is |w|^(3/2), from `experiments/results/zigzag/toy.json`. Right:
LeNet5 on MNIST as files for three runtimes, from `experiments/results/files_lenet5/demo.json`.
"""

import json
from pathlib import Path
from typing import Any

from drawing import FOLDER, MUTED, QUANTIZED, TRIAL, new_figure, save
from matplotlib.axes import Axes

RESULTS = FOLDER.parents[1] / "experiments" / "results"
PATHS = {1.0: ("loss-aware quantization", QUANTIZED), 0.9: ("forward-backtrack, a = 0.9", TRIAL)}
MARKERS = {"packed file, JAX": "o", "ONNX, onnxruntime": "s", "LiteRT, ai-edge-litert": "^"}
COLORS = {"full precision": MUTED, "LAQ, binary": "C3", "LAQ, ternary": "C1", "LAQ, linear 4 bits": "C0"}


def read(path: str) -> dict[str, Any]:
    """A results file."""
    return json.loads((RESULTS / path).read_text(encoding="utf-8"))


def draw_paths(ax: Axes) -> None:
    """The weight of the toy problem, step by step."""
    for entry in read("zigzag/toy.json")["paths"]:
        if entry["a"] in PATHS:
            label, color = PATHS[entry["a"]]
            ax.plot(entry["weights"], color=color, marker=".", label=label)
    ax.axhline(0, color=MUTED, linewidth=1, linestyle="--", label="minimum of the loss")
    ax.set(
        title="a weight that zig-zags, and one that does not", xlabel="step", ylabel="weight", xticks=range(0, 20, 5)
    )
    ax.set_ylim(-0.35, 0.55)
    ax.legend(frameon=False, fontsize=8, loc="upper right")


def draw_files(ax: Axes) -> None:
    """Accuracy against bytes, of portable files."""
    for file in read("files_lenet5/demo.json")["files"]:
        if (marker := MARKERS.get(file["runtime"])) is not None:
            ax.plot(file["bytes"] / 1000, file["accuracy"], marker, color=COLORS[file["label"]], markersize=8)
    handles = [ax.plot([], [], "o", color=color, label=label)[0] for label, color in COLORS.items()]
    handles += [ax.plot([], [], marker, color="black", label=name)[0] for name, marker in MARKERS.items()]
    ax.set(xscale="log", title="LeNet5 on MNIST as a file", xlabel="kB", ylabel="test accuracy %")
    ax.set_xticks([200, 500, 1000, 2000, 5000], ["200", "500", "1000", "2000", "5000"])
    ax.minorticks_off()
    ax.legend(handles=handles, frameon=False, fontsize=8, loc="lower right")


def main(folder: Path = FOLDER) -> None:
    """Draws the picture into a folder."""
    figure, (left, right) = new_figure(9.5, 3.4, columns=2)
    draw_paths(left)
    draw_files(right)
    save(figure, folder / "front.svg")


if __name__ == "__main__":
    main()
