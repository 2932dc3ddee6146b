"""Copies result tables into the documents, so that no number is typed by hand: `python -m experiments readme`.

A table stands between the comments `<!-- table: FILE -->` and `<!-- end of table -->`; it is replaced by the first
table of the Markdown file FILE, whose path starts at the root of the repository, or by table N where the first comment
is `<!-- table: FILE N -->`.
"""

import re
from collections.abc import Sequence

from experiments.core.records import ROOT

READMES = (ROOT / "README.md", ROOT / "docs" / "costs.md", *sorted((ROOT / "docs" / "results").glob("*.md")))
TABLE = re.compile(r"(<!-- table: (\S+)(?: (\d+))? -->\n).*?(<!-- end of table -->)", re.DOTALL)


def fill_tables(text: str) -> str:
    """The text with every marked table as it is in its file now."""

    def fill(match: re.Match[str]) -> str:
        text = (ROOT / match[2]).read_text(encoding="utf-8")
        tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
        return f"{match[1]}\n{tables[int(match[3] or 1) - 1]}\n{match[4]}"

    return TABLE.sub(fill, text)


def main(arguments: Sequence[str]) -> None:
    """Copies the tables."""
    del arguments
    for readme in READMES:
        readme.write_text(fill_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")
