"""Copies result tables into the documents, so that no number is typed by hand: `python -m experiments readme`.

A table stands between the comments `<!-- table: FILE -->` and `<!-- end of table -->`; it is replaced by the first
table of the Markdown file FILE, whose path starts at the root of the repository, or by table N where the first comment
is `<!-- table: FILE N -->`. `columns: A; B` and then `rows: A; B` behind that choose columns by their titles and rows
by their first cells.
"""

import re
from collections.abc import Sequence

from experiments.core.records import ROOT

DOCS = ROOT / "docs"
READMES = (
    ROOT / "README.md",
    DOCS / "costs.md",
    DOCS / "how_to" / "fine_tuning.md",
    *sorted((DOCS / "results").glob("*.md")),
)
TABLE = re.compile(
    r"(<!-- table: (\S+)(?: (\d+))?(?: columns: (.*?))?(?: rows: (.*?))? -->\n).*?(<!-- end of table -->)", re.DOTALL
)


def fill_tables(text: str) -> str:
    """The text with every marked table as it is in its file now."""

    def fill(match: re.Match[str]) -> str:
        start, file, number, columns, rows, end = match.groups()
        tables = re.findall(r"(?:^\|.*\n)+", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
        return f"{start}\n{_chosen(tables[int(number or 1) - 1], columns, rows)}\n{end}"

    return TABLE.sub(fill, text)


def _chosen(table: str, columns: str | None, rows: str | None) -> str:
    """Some columns and rows of a table; the header and the line below it stay."""
    cells = [line.strip("|").split("|") for line in table.splitlines()]
    titles = [cell.strip() for cell in cells[0]]
    if columns is not None:
        places = [titles.index(title) for title in columns.split("; ")]
        cells = [[line[place] for place in places] for line in cells]
    if rows is not None:
        by_name = {line[0].strip(): line for line in cells[2:]}
        cells = [*cells[:2], *(by_name[name] for name in rows.split("; "))]
    return "".join(f"|{'|'.join(line)}|\n" for line in cells)


def main(arguments: Sequence[str]) -> None:
    """Copies the tables."""
    del arguments
    for readme in READMES:
        readme.write_text(fill_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")
