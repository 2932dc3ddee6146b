"""Packed files that no writer made: with another description, other arrays, and the digest that belongs to them."""

import json

import numpy as np
import safetensors.numpy

from fobt._src.packed.content import DTYPES, file_digest


def parts(content):
    """What is stored of the description of a file, and its arrays."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    arrays = {
        name: np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
        for name, tensor in safetensors.deserialize(content)
    }
    return json.loads(header["__metadata__"]["fobt"]), arrays


def made_up(stored, arrays):
    """The file with these parts, whose digest is right."""
    made = safetensors.numpy.save(arrays, {"fobt": json.dumps({"digest": "0" * 64} | stored)})
    return made.replace(b"0" * 64, file_digest(made, "0" * 64).encode(), 1)


def setting(*keys_and_value):
    """A change of a description and arrays: the value at these keys of the description."""
    *keys, last, value = keys_and_value

    def change(description, arrays):
        place = description
        for key in keys:
            place = place[key]
        place[last] = value

    return change
