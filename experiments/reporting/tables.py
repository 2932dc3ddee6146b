"""Records as Markdown tables."""

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from rich import box
from rich.console import Console
from rich.table import Table

Columns: TypeAlias = Mapping[str, tuple[str, Callable[[Any], str]]]


def spread(numbers: str) -> Callable[[Mapping[str, float | None]], str]:
    """From mean and standard deviation to text; `numbers` is the format of both.

    Example:
        >>> spread(".1f")({"mean": 2.0, "deviation": 0.25}), spread(".1f")({"mean": 2.0, "deviation": None})
        ('2.0 ± 0.2', '2.0')
    """

    def text(value: Mapping[str, float | None]) -> str:
        mean, deviation = value["mean"], value["deviation"]
        return f"{mean:{numbers}}" + ("" if deviation is None else f" ± {deviation:{numbers}}")

    return text


def interval(numbers: str, factor: float = 1) -> Callable[[Mapping[str, Any]], str]:
    """From an estimate and its confidence interval to text; `numbers` is the format of all three.

    Example:
        >>> interval(".0f", factor=100)({"mean": 0.5, "low": 0.25, "high": 0.75})
        '+50 [+25, +75]'
    """

    def text(value: Mapping[str, Any]) -> str:
        mean, low, high = (None if value[key] is None else factor * value[key] for key in ("mean", "low", "high"))
        ends = "" if low is None else f" [{low:+{numbers}}, {high:+{numbers}}]"
        return f"{mean:+{numbers}}{ends}"

    return text


def markdown(columns: Columns, records: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a row for each record.

    Args:
        columns: From the key of a record to the heading and to the text of a value; None gives an empty cell.
        records: The rows.

    Example:
        >>> print(markdown({"name": ("network", str), "loss": ("loss", "{:.2f}".format)}, [{"name": "a", "loss": 0.5}]))
        | network | loss |
        |---------|------|
        | a       | 0.50 |
        <BLANKLINE>
    """
    table = Table(box=box.MARKDOWN)
    for number, (heading, _) in enumerate(columns.values()):
        table.add_column(heading, justify="left" if number == 0 else "right", no_wrap=True)
    for record in records:
        table.add_row(*("" if record.get(key) is None else text(record[key]) for key, (_, text) in columns.items()))
    console = Console(file=io.StringIO(), width=400)
    with console.capture() as capture:
        console.print(table, crop=False, highlight=False, markup=False)
    return "\n".join(line.rstrip() for line in capture.get().strip().splitlines()) + "\n"
