"""Packed files that are damaged or made up: `python -m experiments hostile_files --output FOLDER`.

Files are changed at random, most of them with a digest that is right again, and read in a process whose memory is
limited: each is an error or an intact file, in little time. Then a process that writes over a file is killed at random
moments: what is there is always the old file or the new one.
"""

import dataclasses
import hashlib
import json
import multiprocessing
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

import fobt
from experiments.core.cli import make_console, parse_options
from experiments.core.config import require
from experiments.core.records import write_results
from experiments.reporting.tables import Columns, markdown
from fobt._src.packed.compressed import compress, decompress

MEMORY = 64 * 2**20  # bytes that reading a file of a few kilobytes may take
SECONDS = 2.0  # and seconds
_NUMBERS = (-1, 0, 1, 7, 2**31, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, 1.5, True)
_VALUES: tuple[Any, ...] = (
    *_NUMBERS,
    None,
    "",
    "..",
    "\ud800",
    "é" * 50,
    [],
    {},
    [[]],
    [2**62, 2**62],
    [0, 2**63],
    "0" * 64,
)
_DIGEST = re.compile(rb"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HostileConfig:
    """Read damaged packed files, and interrupt writing."""

    files: int = 100_000
    """Damaged files that are read."""
    kills: int = 100
    """Processes that are killed while they write."""
    output: Path | None = None
    """Folder for hostile_files.md and hostile_files.json."""

    def __post_init__(self) -> None:
        require(self.files >= 0, "files", "at least 0", self.files)
        require(self.kills >= 0, "kills", "at least 0", self.kills)


def main(arguments: Sequence[str]) -> None:
    """Reads, kills, prints and writes; ends with code 1 where a file was no error and not intact either."""
    config = parse_options(HostileConfig, arguments, "hostile_files")
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own, whose memory is limited and which may die.
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            found = pool.apply(read_damaged, (config.files, Path(folder)))
        found += [kill_while_writing(config.kills, Path(folder))]
    table = markdown(COLUMNS, found)
    make_console().out(table, highlight=False)
    if config.output is not None:
        write_results(config.output, "hostile_files", table, {"seconds": SECONDS, "memory": MEMORY, "found": found})
    if any(record["wrong"] for record in found):
        raise SystemExit(1)


COLUMNS: Columns = {
    "change": ("change", str),
    "files": ("files", "{:,}".format),
    "errors": ("errors", "{:,}".format),
    "intact": ("read", "{:,}".format),
    "wrong": ("wrong", "{:,}".format),
    "slowest": ("slowest, ms", "{:.1f}".format),
}


def flipped(content: bytes, draw: random.Random) -> bytes:
    """One to eight flipped bits, anywhere or among the data."""
    changed, begin = bytearray(content), draw.choice([0, 8 + int.from_bytes(content[:8], "little")])
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(begin, len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes:
    """The end cut off, a piece missing or twice, or bytes added."""
    begin, end = sorted(draw.choices(range(len(content) + 1), k=2))
    more = draw.randbytes(draw.randint(1, 64))
    return draw.choice(
        [content[:begin], content[:begin] + content[end:], content[:end] + content[begin:], content + more]
    )


def other_length(content: bytes, draw: random.Random) -> bytes:
    """Another length of the header."""
    length = draw.choice([number for number in _NUMBERS if isinstance(number, int) and 0 <= number < 2**64])
    return int(length).to_bytes(8, "little") + content[8:]


def other_value(content: bytes, draw: random.Random) -> bytes:
    """Another value somewhere in the header of safetensors."""
    return _joined(json.dumps(_changed(_header(content), draw)).encode(), content)


def other_description(content: bytes, draw: random.Random) -> bytes:
    """Another value in what fobt says of the arrays: in its compressed description, or beside it."""
    header = _header(content)
    stored = json.loads(header["__metadata__"]["fobt"])
    if draw.random() < 0.8:
        description = _changed(json.loads(decompress(stored["description"])), draw)
        stored["description"] = compress(json.dumps(description))
    else:
        stored = _changed(stored, draw)
    return _joined(json.dumps({**header, "__metadata__": {"fobt": json.dumps(stored)}}).encode(), content)


def twice(content: bytes, draw: random.Random) -> bytes:
    """A key of the header twice."""
    header = _header(content)
    name, value = draw.choice(list(header.items()))
    text = json.dumps(header)[:-1] + f", {json.dumps(name)}: {json.dumps(_changed(value, draw))}}}"
    return _joined(text.encode(), content)


def nested(content: bytes, draw: random.Random) -> bytes:
    """Deep nesting in the place of a value."""
    depth, mark = draw.choice([10, 65, 1_000, 50_000]), "a place"
    open_, close = draw.choice([("[", "]"), ('{"list":[', "]}"), ('{"a":', "}")])
    inside = open_ * depth + "null" + close * draw.choice([depth, 0])

    def change(header: Any) -> Any:
        names = [name for name in header if name != "__metadata__"]
        if draw.random() < 0.5 or not header.get("__metadata__"):
            return header | {draw.choice(names): mark}
        key = draw.choice(list(header["__metadata__"]))
        return header | {"__metadata__": header["__metadata__"] | {key: inside}}

    text = json.dumps(change(_header(content))).replace(json.dumps(mark), inside)
    return _joined(text.encode(), content)


CHANGES: Mapping[str, Callable[[bytes, random.Random], bytes]] = MappingProxyType(
    {
        "flipped bits": flipped,
        "cut or longer": cut,
        "another length of the header": other_length,
        "another value in the header": other_value,
        "another value in the description": other_description,
        "a key twice": twice,
        "deep nesting": nested,
    }
)


def sealed(content: bytes) -> bytes:
    """The file with a digest that is right again, where it has one."""
    found = _DIGEST.search(content)
    if found is None:
        return content
    zeros = content.replace(found[0], b"0" * 64, 1)
    return zeros.replace(b"0" * 64, hashlib.sha256(zeros).hexdigest().encode(), 1)


def read_damaged(files: int, folder: Path) -> list[dict[str, Any]]:
    """What became of the files of each change."""
    draw, path = random.Random(0), folder / "damaged.safetensors"
    originals = [saved(folder / "original.safetensors", tree) for tree in trees()]
    records: dict[str, dict[str, Any]] = {
        name: {"change": name, **dict.fromkeys(("files", "errors", "intact", "wrong"), 0)} for name in CHANGES
    }
    slowest = dict.fromkeys(CHANGES, 0.0)
    _limit_memory()
    for _ in range(files):
        name, change = draw.choice(list(CHANGES.items()))
        content = change(draw.choice(originals), draw)
        path.write_bytes(sealed(content) if draw.random() < 0.8 else content)
        start = time.perf_counter()
        try:
            fobt.packed.load_packed(path).weights()
            outcome = "intact"
        except ValueError:
            outcome = "errors"
        except Exception:  # whatever else is a fault, of which all are counted
            outcome = "wrong"
        seconds = time.perf_counter() - start
        slowest[name] = max(slowest[name], seconds)
        outcome = "wrong" if seconds > SECONDS else outcome
        records[name]["files"] += 1
        records[name][outcome] += 1
    return [{**record, "slowest": 1e3 * slowest[name]} for name, record in records.items()]


def trees() -> list[Any]:
    """Small trees with leaves of every kind."""
    kernel = jax.random.normal(jax.random.key(0), (6, 10))
    quantized = {
        "binary": fobt.binary()(kernel),
        "ternary": fobt.ternary(granularity=fobt.per_channel())(kernel),
        "linear": [fobt.linear(3, granularity=fobt.per_block(4))(kernel), None],
        "bias": np.arange(3.0),
    }
    return [quantized, {"kernel": fobt.logarithmic(3)(kernel)}, (np.zeros((0, 3), np.int8), {"a": np.float16(1)})]


def saved(path: Path, tree: Any) -> bytes:
    """The content of a packed file."""
    fobt.packed.save_packed(path, tree, metadata={"a": "b"})
    return path.read_bytes()


def kill_while_writing(kills: int, folder: Path) -> dict[str, Any]:
    """What is found of a file after processes that write over it were killed."""
    draw, path = random.Random(1), folder / "written.safetensors"
    contents = {seed: saved(path, _tree_of(seed)) for seed in (0, 1)}
    record: dict[str, Any] = {
        "change": "killed while it is written",
        "files": kills,
        "errors": 0,
        "intact": 0,
        "wrong": 0,
    }
    code = f"from {__name__} import write_for_ever; write_for_ever({str(path)!r})"
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.read(1)  # it has begun
        time.sleep(draw.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        record["intact" if path.read_bytes() in contents.values() else "wrong"] += 1
    return record


def write_for_ever(path: str) -> None:
    """Writes one of two files over the other, again and again."""
    trees = [_tree_of(seed) for seed in (0, 1)]
    print("begun", flush=True)
    while True:
        for tree in trees:
            fobt.packed.save_packed(path, tree, metadata={"a": "b"})


def _tree_of(seed: int) -> Any:
    return {"kernel": fobt.binary()(jax.random.normal(jax.random.key(seed), (512, 512)))}


def _limit_memory() -> None:
    """Little more address space than the process has now."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmSize:")]
    limit = int(line.split()[1]) * 1024 + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _header(content: bytes) -> dict[str, Any]:
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def _joined(header: bytes, content: bytes) -> bytes:
    """A file with another header."""
    rest = content[8 + int.from_bytes(content[:8], "little") :]
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + rest


def _changed(value: Any, draw: random.Random) -> Any:
    """A value in which another one is somewhere; strings of JSON are changed inside."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        return {**value, key: _changed(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        place = draw.randrange(len(value))
        return [*value[:place], _changed(value[place], draw), *value[place + 1 :]]
    if isinstance(value, str) and value.startswith("{") and draw.random() < 0.95:
        return json.dumps(_changed(json.loads(value), draw), separators=(",", ":"))
    return draw.choice(_VALUES)
