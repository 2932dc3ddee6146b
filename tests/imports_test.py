"""The directions in which folders may import each other, as pyproject.toml states them, hold."""

from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]


def test_folders_import_each_other_in_one_direction(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    status = lint_imports(config_filename="pyproject.toml", no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_an_import_against_the_direction_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert lint_imports(config_filename="rules.toml", no_cache=True) == 1
