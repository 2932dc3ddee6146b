"""The notebooks run from top to bottom, and are kept without outputs."""

import importlib.util
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "experiments" / "notebooks").glob("*.ipynb"))


def shorten(code):
    """Makes the trainings of the comparison short: whether it runs does not depend on how long."""
    (cell,) = [cell for cell in code if "output=folder)" in cell.source]
    cell.source = cell.source.replace("output=folder)", "epochs=2, seeds=(0, 1), output=folder)")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# Jupyter's own: zmq without a selector event loop, and platform folders.
@pytest.mark.filterwarnings("default")
def test_a_notebook_runs_and_is_stripped(path: Path, monkeypatch: pytest.MonkeyPatch):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    if path.stem == "comparison":
        shorten(code)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(ROOT))
    images = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert images


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["comparison", "quickstart"]


ADDRESS = "https://example.com/fobt"
COMMANDS = {
    "quickstart": [f'pip install -q "fobt[experiments,export] @ git+{ADDRESS}"'],
    "comparison": [f"git clone -q --depth 1 {ADDRESS} fobt_checkout", 'pip install -q "./fobt_checkout[experiments]"'],
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_installs_what_cannot_be_imported(path: Path, monkeypatch: pytest.MonkeyPatch):
    commands = []
    shell = InteractiveShell()
    shell.register_magic_function(lambda line: commands.append(f"pip {line}"), magic_name="pip")
    monkeypatch.setattr(shell, "system", lambda line: commands.append(shell.var_expand(line)))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    cell = next(cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    with pytest.raises(AssertionError, match="set REPOSITORY to the address"):
        shell.run_cell(cell.source).raise_error()
    assert commands == []
    shell.run_cell(cell.source.replace('REPOSITORY = ""', f'REPOSITORY = "{ADDRESS}"')).raise_error()
    assert commands == COMMANDS[path.stem]
