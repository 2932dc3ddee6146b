"""The command line of the experiments: `python -m experiments COMMAND [options]`."""

import importlib
import sys
from collections.abc import Sequence

# The module of each command, imported only when it is called, and what it does.
COMMANDS = {
    "train": ("train", "train one network with several methods and seeds, and compare them"),
    "report": ("reporting.report", "tables and plots from run folders"),
    "readme": ("reporting.readme", "copy tables of results into the READMEs"),
    "ablation": ("studies.ablation", "the method over a grid of periods and backtracking coefficients"),
    "comparison": ("studies.comparison", "every method with its own settings, at equal gradients and at equal time"),
    "zigzag": ("studies.zigzag.command", "zig-zags: figures, tables, theory"),
    "post_training": ("studies.post_training", "quantization after training: LAPQ, projections, rounding"),
    "language": ("studies.language.command", "a small language model in few bits, on real text"),
    "fine_tuning": ("studies.fine_tuning", "float32 weights quantized after training, then trained at 1 to 4 bits"),
    "benchmark": ("costs.benchmark", "what projections, steps and packed weights cost"),
    "distributed": ("distributed.command", "training over several processes"),
    "export": ("deployment.export", "write the network of a run as ONNX, LiteRT or packed file, and verify it"),
    "language_export": ("deployment.language", "write a language model as ONNX or LiteRT, with a cache, and verify it"),
    "gguf_export": ("deployment.gguf", "write a language model as a GGUF file for llama.cpp"),
    "demo": ("deployment.demo", "from training to small files, side by side"),
    "deployment": ("deployment.deployment", "what exported files cost in their runtimes"),
    "hostile_files": ("deployment.hostile_files", "read damaged packed files, and interrupt writing"),
    "read_packed": ("deployment.read_packed", "read a packed file in plain Python"),
}


def main(arguments: Sequence[str]) -> None:
    """Calls a command, or lists them."""
    name, *options = arguments or ["--help"]
    if name in COMMANDS:
        importlib.import_module(f"experiments.{COMMANDS[name][0]}").main(options)
    elif name in ("-h", "--help"):
        print("usage: python -m experiments COMMAND [options]\n\ncommands, each with --help:")
        print("\n".join(f"  {command:17}{purpose}" for command, (_, purpose) in COMMANDS.items()))
    else:
        print(f"python -m experiments: unknown command {name!r}: choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        raise SystemExit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
