"""Command lines: options are the fields of a dataclass, mistakes give one line on stderr."""

import contextlib
import io
import itertools
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import tyro
from rich.console import Console

TRAIN = "train"
Config = TypeVar("Config")


def parse_options(config: type[Config], options: Sequence[str], command: str, **settings: Any) -> Config:
    """The configuration that options ask for.

    Args:
        config: A dataclass, whose fields are the options.
        options: The command line.
        command: The name of the command.
        **settings: For `tyro.cli`.

    Raises:
        SystemExit: With code 2 after one line on stderr, where an option is wrong; with code 0 after `--help`.
    """
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(config, args=options, **{"prog": program(command)} | settings)
    except SystemExit as exit_:
        if exit_.code:
            fail(first_sentence(errors.getvalue()), code=2, command=command)
        raise


def make_console() -> Console:
    """Where a command shows what it does: the terminal, or lines of 120 characters."""
    return Console(width=None if sys.stdout.isatty() else 120)


def fail(message: str, *, code: int, command: str = TRAIN) -> NoReturn:
    """Ends the program with one line on stderr."""
    print(f"{program(command)}: {message}", file=sys.stderr)
    raise SystemExit(code)


def program(command: str) -> str:
    """How a command is called; the main one has a module of its own."""
    return f"python -m experiments{'.' if command == TRAIN else ' '}{command}"


def first_sentence(box: str) -> str:
    """The message of the box that tyro prints for a bad option: its lines between title and next rule or empty line."""
    lines = [re.sub("[│╭╮╰╯]", "", line).strip() for line in box.splitlines()[1:]]
    after_rule = itertools.dropwhile(_is_rule, lines)
    return re.sub(
        r"^Error parsing \w+: ", "", " ".join(itertools.takewhile(lambda line: not _is_rule(line), after_rule))
    )


def _is_rule(line: str) -> bool:
    return not line.strip("─-")
