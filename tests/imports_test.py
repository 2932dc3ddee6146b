"""The directions in which folders may import each other, as pyproject.toml states them, hold."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In a process of its own, because the linter keeps the output of the test that calls it.
LINT = "import sys; sys.path.insert(0, ''); from importlinter.cli import lint_imports; sys.exit(lint_imports({}))"


def lint(folder: Path, arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LINT.format(arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_folders_import_each_other_in_one_direction():
    result = lint(ROOT, "config_filename='pyproject.toml', no_cache=True")
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


def test_an_import_against_the_direction_is_found(tmp_path: Path):
    for folder in ("low", "high"):
        (tmp_path / "house" / folder).mkdir(parents=True)
        (tmp_path / "house" / folder / "__init__.py").touch()
    (tmp_path / "house" / "__init__.py").touch()
    (tmp_path / "house" / "low" / "__init__.py").write_text("import house.high\n", encoding="utf-8")
    (tmp_path / "rules.toml").write_text(
        '[tool.importlinter]\nroot_package = "house"\n[[tool.importlinter.contracts]]\n'
        'name = "one way"\ntype = "layers"\nlayers = ["house.high", "house.low"]\n',
        encoding="utf-8",
    )
    result = lint(tmp_path, "config_filename='rules.toml', no_cache=True")
    assert result.returncode == 1
    assert "house.low is not allowed to import house.high" in result.stdout
