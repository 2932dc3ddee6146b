"""From finished runs to the table: one row per method, means over seeds."""

import io
import statistics
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from experiments.config import TrainConfig

HEADINGS = ("seeds", "test accuracy %", "train loss", "gradients", "seconds", "bits/weight")


def summarize(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per method, in the order in which the methods ran.

    Args:
        runs: Results of finished runs.

    Returns:
        For each method its label, the number of seeds, mean and standard deviation of the test accuracy (n - 1 in the
        denominator, None with one seed) and the means of the other results.
    """
    rows = []
    for label in dict.fromkeys(run["label"] for run in runs):
        of_method = [run for run in runs if run["label"] == label]
        accuracies = [run["test_accuracy"] for run in of_method]
        row = {
            "method": of_method[0]["method"],
            "label": label,
            "seeds": len(of_method),
            "test_accuracy_mean": statistics.fmean(accuracies),
            "test_accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        }
        for key in ("train_loss", "gradient_evaluations", "seconds", "bits_per_weight"):
            row[key] = statistics.fmean(run[key] for run in of_method)
        rows.append(row)
    return rows


def make_table(rows: list[dict[str, Any]]) -> Table:
    """The rows as a table that prints as Markdown."""
    table = Table(box=box.MARKDOWN)
    table.add_column("method", overflow="fold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        spread = "" if row["test_accuracy_std"] is None else f" ± {100 * row['test_accuracy_std']:.2f}"
        table.add_row(
            row["label"],
            str(row["seeds"]),
            f"{100 * row['test_accuracy_mean']:.2f}{spread}",
            f"{row['train_loss']:.2g}",
            f"{row['gradient_evaluations']:,.0f}",
            f"{row['seconds']:.1f}",
            f"{row['bits_per_weight']:.3f}",
        )
    return table


def describe(config: TrainConfig) -> str:
    """What the numbers of the table are, in a few sentences."""
    seeds = ", ".join(map(str, config.seeds))
    return (
        f"Job {config.job}: {config.epochs} epochs, batch size {config.batch_size}, {config.schedule} schedule from "
        f"learning rate {config.initial_learning_rate():g}, a = {config.a:g}, seeds {seeds}. Test accuracy: at the "
        "epoch with the best validation accuracy, mean ± standard deviation over seeds. Train loss: squared hinge loss "
        "over the training images after the last epoch. Both are at the quantized weights, with running batch "
        "statistics. Gradients: gradient evaluations of one run; a two-stage step takes two. Seconds: of training "
        "steps, without compilation and evaluation. Bits/weight: scales included."
    )


def to_markdown(config: TrainConfig, rows: list[dict[str, Any]]) -> str:
    """The table with its description, as a Markdown document."""
    return f"{markdown(make_table(rows))}\n\n{describe(config)}\n"


def markdown(table: Table) -> str:
    """A table that prints as Markdown, without the space that a console fills up."""
    console = Console(file=io.StringIO(), width=200)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().strip().splitlines())
