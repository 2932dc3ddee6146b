"""State dicts of Flax for the library's dataclasses, without an import of Flax."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any, TypeVar

Node = TypeVar("Node", bound="FlaxSerializable")


class FlaxSerializable:
    """A dataclass that `flax.serialization` takes apart: its arrays are stored, static fields are those of the target.

    Flax knows classes by their entry in its registry. A class enters it when an instance is made while Flax is
    imported: what is restored needs a target, and what went through `jax.jit` or `jax.tree.map` was made anew.
    """

    def __post_init__(self) -> None:
        serialization = sys.modules.get("flax.serialization")
        if serialization is not None and not serialization.is_serializable(type(self)):
            serialization.register_serialization_state(type(self), _to_state_dict, _from_state_dict)


def _to_state_dict(node: FlaxSerializable) -> dict[str, Any]:
    from flax.serialization import to_state_dict

    return {name: to_state_dict(getattr(node, name)) for name in _stored_fields(node)}


def _from_state_dict(target: Node, state: dict[str, Any]) -> Node:
    from flax.serialization import current_path, from_state_dict

    names = _stored_fields(target)
    if set(state) != set(names):
        raise ValueError(
            f"the state of a {type(target).__name__} must have the fields {names}, got {list(state)} at path "
            f"{current_path()}."
        )
    restored = {name: from_state_dict(getattr(target, name), state[name], name=name) for name in names}
    return dataclasses.replace(target, **restored)  # type: ignore[type-var]


def _stored_fields(node: FlaxSerializable) -> list[str]:
    return [field.name for field in dataclasses.fields(node) if not field.metadata.get("static")]  # type: ignore[arg-type]
