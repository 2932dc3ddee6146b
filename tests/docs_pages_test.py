"""The code in the pages of the documentation runs, page by page."""

import importlib.util
import re
from pathlib import Path

import jax.numpy as jnp
import pytest

DOCS = Path(__file__).parent.parent / "docs"


def code_of(page):
    """The code cells and Python blocks of a page as one program, each line at its number in the page."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * text.count("\n")
    for block in re.finditer(r"^```(?:\{code-cell\}|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        first = text[: block.start(1)].count("\n")
        code = block[1].splitlines()
        lines[first : first + len(code)] = code
    return compile("\n".join(lines), str(page), "exec")


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts and code_of(page).co_names]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_a_page_runs(page, tmp_path, monkeypatch):
    code = code_of(page)
    if page.stem == "litert" and importlib.util.find_spec("litert_converter") is None:
        pytest.skip("needs pip install --no-deps litert-converter")
    monkeypatch.chdir(tmp_path)
    # The front page is the only one that leaves its loss and its data to the reader.
    batches = [(jnp.ones((4, 2)), jnp.ones((4, 1)))]
    given = {
        "batches": batches,
        "loss_fn": lambda weights, x, y: jnp.mean((x @ weights - y) ** 2),
        "params": jnp.array([[0.5], [-1.0]]),
    }
    exec(code, given if page == DOCS / "index.md" else {})


def test_pages_have_code():
    names = {page.stem for page in PAGES}
    assert {"index", "start", "optax", "flax_nnx", "flax_linen", "sharding", "checkpoints", "onnx", "litert"} <= names
