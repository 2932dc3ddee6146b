"""The one command: its list, its mistakes, and what it imports."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import COMMANDS, main

# Packages that one command needs and that are slow to import.
HEAVY = ("qwix", "tensorboardX", "onnx", "onnxruntime", "ai_edge_litert", "litert_converter")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_commands_are_listed(arguments: list, capsys: pytest.CaptureFixture[str]):
    main(arguments)
    printed = capsys.readouterr().out
    assert all(f"  {command} " in printed for command in COMMANDS)


def test_an_unknown_command_gives_one_line_and_code_2(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["retrain"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m experiments: unknown command 'retrain': choose one of train, report")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in ("readme", "read_packed")])
def test_every_command_has_help_and_names_a_wrong_option(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "usage: python -m experiments" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([command, "--no-such-option"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"python -m experiments{'.' if command == 'train' else ' '}{command}: ")


def test_a_setting_out_of_range_gives_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        main(["zigzag", "toy", "--draws", "1", "--output", str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "python -m experiments zigzag: --draws must be at least 4, got 1"


def test_no_command_imports_what_another_one_needs():
    modules = [f"experiments.{module}" for module, _ in COMMANDS.values()]
    assert all(callable(importlib.import_module(module).main) for module in modules)
    code = f"import sys, {', '.join(modules)}; print([name for name in {HEAVY} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
