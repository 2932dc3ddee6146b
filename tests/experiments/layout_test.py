"""The folders of the experiments import each other in one direction."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "experiments"
# Each folder may import those of the lines above its own, and itself.
FLOORS = (
    {"data", "models", "methods"},
    {"core"},
    {"configs"},
    {"reporting"},
    {"train", "distributed", "costs"},
    {"studies", "deployment"},
)
FLOOR_OF = {folder: floor for floor, folders in enumerate(FLOORS) for folder in folders}


def imported(path: Path) -> set[str]:
    """The folders of the experiments that a file imports, inside of functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "experiments":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("experiments."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("experiments.")}
    return names


@pytest.mark.parametrize("folder", FLOOR_OF)
def test_a_folder_imports_only_those_below_it(folder: str):
    files = [ROOT / "train.py"] if folder == "train" else sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        for other in imported(path) - {folder}:
            assert FLOOR_OF[other] < FLOOR_OF[folder], f"{path} imports {other}"


def test_every_folder_with_code_has_a_floor():
    folders = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*.py")}
    assert folders == FLOOR_OF.keys() - {"train"}
