"""How a leaf of a tree is named in files, graphs, states and messages. JAX is not imported."""

from __future__ import annotations

from collections.abc import Iterable


def written_path(steps: Iterable[str | int]) -> str:
    """The keys from the root to a leaf, as a JSON pointer (RFC 6901) without its first slash.

    It is unique in its tree whatever the keys are: in a key, ~ is written ~0 and / is written ~1.

    Example:
      >>> written_path(["a/b", 0]), written_path(["a", "b", 0])
      ('a~1b/0', 'a/b/0')
    """
    return "/".join(str(step).replace("~", "~0").replace("/", "~1") for step in steps)
