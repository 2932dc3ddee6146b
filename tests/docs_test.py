"""The documentation without building it: every public name has a page, figures can be drawn, the version is one."""

import importlib
import importlib.metadata
import re
from pathlib import Path
from types import ModuleType

import pytest

import fobt

DOCS = Path(__file__).parent.parent / "docs"
FIGURES = sorted(path.stem for path in (DOCS / "figures").glob("*.svg"))


def names_of_page(page):
    """The names in the `autosummary` lists of a page."""
    blocks = re.findall(r"\.\. autosummary::\n   :toctree: generated\n\n((?:   \w+\n)+)", page)
    return [name for block in blocks for name in block.split()]


def names_of_module(module):
    """The public names of a module, without the namespaces below it."""
    return sorted(name for name in module.__all__ if not isinstance(getattr(module, name), ModuleType))


@pytest.mark.parametrize(
    "namespace", ["fobt", "fobt.oscillations", "fobt.packed", "fobt.export", "fobt.nnx", "fobt.linen"]
)
def test_every_public_name_has_a_page(namespace):
    page = (DOCS / "api" / f"{namespace.rpartition('.')[2]}.md").read_text(encoding="utf-8")
    assert f".. currentmodule:: {namespace}\n" in page
    assert sorted(names_of_page(page)) == names_of_module(importlib.import_module(namespace))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_can_be_drawn_again(name, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(DOCS / "figures")
    importlib.import_module(name).main(tmp_path)
    assert (tmp_path / f"{name}.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_every_figure_is_shown():
    scripts = {path.stem for path in (DOCS / "figures").glob("*.py")} - {"drawing"}
    shown = {
        name
        for page in (*DOCS.glob("*.md"), *DOCS.glob("concepts/*.md"), *DOCS.glob("results/*.md"))
        for name in re.findall(r"\{figure\} (?:\.\./)?figures/(\w+)\.svg", page.read_text(encoding="utf-8"))
    }
    assert set(FIGURES) == scripts == shown


def test_every_page_is_in_a_table_of_contents():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    pages = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.glob("[!_]*/*.md")}
    linked = set(re.findall(r"^[\w/]+$", index, re.MULTILINE))
    for folder in ("api", "results"):
        listed = re.findall(r"^\w+$", (DOCS / folder / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
        linked |= {f"{folder}/{name}" for name in listed}
    assert pages <= linked


def test_version():
    assert fobt.__version__ in (DOCS.parent / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {fobt.__version__}\n" in (DOCS.parent / "CHANGELOG.md").read_text(encoding="utf-8")
