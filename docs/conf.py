"""The documentation site: `python -m sphinx -W docs docs/_build`, with the extra `docs`."""

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
suppress_warnings = ["autosummary.import_cycle"]

html_theme = "sphinx_book_theme"
html_title = "fobt"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_theme_options = {"show_navbar_depth": 1, "home_page_in_toc": True}

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Code cells run when the site is built, and again only where a page has changed. An error in one ends the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_in_temp = True

# Docstrings put names of Python between single backticks: links where they are public, code elsewhere.
default_role = "py:obj"
autosummary_imported_members = True
autodoc_typehints = "none"  # arguments are described in words, with their ranges
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False


def skip_fields_of_named_tuples(app, what, name, member, skip, options):  # noqa: D103 - the signature is Sphinx's
    return skip or str(getattr(member, "__doc__", "")).startswith("Alias for field number")


def setup(app):  # noqa: D103
    app.connect("autodoc-skip-member", skip_fields_of_named_tuples)
