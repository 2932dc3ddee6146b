"""The documentation site: `python -m sphinx -W docs docs/_build/html`, with the extra `docs`."""

import re
from typing import Any

import fobt

project = "fobt"
author = "The fobt authors"
project_copyright = author
version = release = fobt.__version__

extensions = [
    "myst_nb",
    "sphinx_design",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "figures"]

html_theme = "sphinx_book_theme"
html_title = "fobt"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"home_page_in_toc": True, "navbar_persistent": []}

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 2  # links to a section of another page

# Code cells run when the site is built, and again only where a page has changed. An error in one ends the build.
nb_execution_mode = "cache"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300

# Docstrings put names of Python between single backticks: links where they are public, code elsewhere.
default_role = "py:obj"
autodoc_typehints = "none"  # arguments are described in words, with their ranges
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False


def as_restructured_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Changes docstrings where reStructuredText would read them otherwise than a person does."""
    text = "\n".join(lines)
    # An indented block after a colon is code, unless it is a list, a doctest or a section.
    text = re.sub(r"(?<![:\n]):(\n\n( *)  +)(?![ \-*>\d])", r"::\1", text)
    # What is returned is a sentence, also where it has a colon.
    text = re.sub(r"^Returns:$", ":returns:", text, flags=re.MULTILINE)
    lines[:] = text.split("\n")


def skip_field_of_named_tuple(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what NamedTuple says of its fields; the docstring of the class says more."""
    return True if str(member.__doc__).startswith("Alias for field number") else None


def setup(app: Any) -> None:
    """Connects the two functions; that of docstrings comes before the one of napoleon."""
    app.connect("autodoc-process-docstring", as_restructured_text, priority=400)
    app.connect("autodoc-skip-member", skip_field_of_named_tuple)
