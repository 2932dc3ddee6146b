"""What the devices send each other, read from a compiled program."""

import math
import re

COLLECTIVE = re.compile(
    r"= (?P<result>.*?) (?:all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    r"|ragged-all-to-all)(?:-start)?\((?P<operands>.*?)\)"
)


def largest_collective(compiled):
    """The number of elements of the largest array that a collective of a compiled program takes or returns."""
    sizes = [0]
    for match in COLLECTIVE.finditer(compiled.as_text()):
        for shape in re.findall(r"\w+\[([\d,]*)\]", match["result"] + match["operands"]):
            sizes.append(math.prod(map(int, filter(None, shape.split(",")))))
    return max(sizes)
