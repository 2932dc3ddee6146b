"""Files in their runtimes: loaded, run, and what they take of memory; imports no JAX, so that memory is the runtime's.

`python -m experiments.deployment.runtimes FILE INPUTS` prints the bytes by which the peak of memory grows while a file
is loaded and run once with the array in INPUTS, and once more.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np

Run: TypeAlias = Callable[[np.ndarray], np.ndarray]
SUFFIXES = {"onnx": ".onnx", "litert": ".tflite"}


def load(content: bytes, runtime: str, threads: int) -> Run:
    """A file in onnxruntime or LiteRT, with default options but the number of threads."""
    return {"onnx": _onnx, "litert": _litert}[runtime](content, threads)


def _onnx(content: bytes, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, {"input": inputs})[0]


def _litert(content: bytes, threads: int) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(inputs: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(source["index"], inputs)
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])

    return run


def peak_memory(content: bytes, runtime: str, inputs: np.ndarray, folder: Path) -> int:
    """The bytes by which the peak of memory of a new process grows, that loads a file and runs it."""
    file, array = folder / f"model{SUFFIXES[runtime]}", folder / "inputs.npy"
    file.write_bytes(content)
    np.save(array, inputs)
    command = [sys.executable, "-m", __name__, str(file), str(array)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _peak() -> int:
    """The peak of this process so far, as Linux counts it; that of `resource.getrusage` begins with the parent's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def main(file: str, array: str) -> None:
    """Prints the bytes."""
    runtime = next(name for name, suffix in SUFFIXES.items() if file.endswith(suffix))
    inputs = np.load(array)
    if runtime == "onnx":
        import onnxruntime  # noqa: F401 - counted before
    else:
        import ai_edge_litert.interpreter  # noqa: F401 - counted before
    before = _peak()
    run = load(Path(file).read_bytes(), runtime, 1)
    run(inputs)
    run(inputs)
    print(_peak() - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
