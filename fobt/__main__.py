"""The size of packed files: `python -m fobt FILE ...`. It needs no JAX."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fobt._src.packed.size_report import size_report


def main(arguments: Sequence[str]) -> int:
    """Prints a table for each file; returns 2 where one cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m fobt", description="Bytes and bits per weight of files that fobt.packed.save_packed wrote."
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    for path in parser.parse_args(arguments).files:
        try:
            print(f"{path}\n{size_report(path)}")
        except (OSError, ValueError, ModuleNotFoundError) as error:
            print(f"python -m fobt: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
