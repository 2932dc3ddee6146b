"""A run that is ended at any moment goes on, and ends with exactly the weights of an uninterrupted one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from experiments import train
from experiments.core.progress import ProgressDisplay

STEPS = 2 * (256 // 4)  # two epochs


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory: pytest.TempPathFactory):
    """A run that goes on compiles the same programs again."""
    folder = str(tmp_path_factory.mktemp("compiled"))
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder  # for processes that a test starts
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1)
    jax.config.update("jax_compilation_cache_dir", None)
    del os.environ["JAX_COMPILATION_CACHE_DIR"], os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"]


def final_arrays(run: Path, steps: int) -> list:
    """The arrays of the checkpoint after the last step."""
    checkpointer = ocp.StandardCheckpointer()
    arrays = checkpointer.restore((run / "checkpoints" / str(steps) / "arrays").absolute())
    checkpointer.close()
    return jax.tree.leaves(arrays)


def outcome(run: Path, steps: int) -> tuple:
    """All that a run leaves behind, times aside."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records.append(json.loads((run / "result.json").read_text()))
    for record in records:
        del record["seconds"]
    return records, final_arrays(run, steps)


def assert_same_outcome(run: Path, expected: Path, steps: int) -> None:
    records, arrays = outcome(run, steps)
    expected_records, expected_arrays = outcome(expected, steps)
    assert records == expected_records
    assert len(arrays) == len(expected_arrays) > 10
    for array, expected_array in zip(arrays, expected_arrays, strict=True):
        np.testing.assert_array_equal(array, expected_array)


@pytest.mark.usefixtures("random_datasets")
@pytest.mark.parametrize("method", ["laq_freezing", "binary_connect_stochastic"])
def test_runs_ended_at_several_points_go_on_exactly(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    options = f"digits --methods {method} --seeds 3 --epochs 2 --batch-size 4 --width 0.25 --limit 256"

    def start(name: str) -> None:
        train.main([*options.split(), "--checkpoint-seconds", "0", "--output", str(tmp_path / name)])

    start("whole")
    (whole,) = (tmp_path / "whole").glob("*/seed-3")
    advance, finish_epoch = ProgressDisplay.advance, ProgressDisplay.finish_epoch
    # Looks at the loss, before which there is a checkpoint only at the next one: in the first epoch before any
    # checkpoint and after one, after its evaluation, and in the second epoch.
    for ended_at in ("advance 1", "advance 3", "finish_epoch 1", "advance 2"):
        kind, number = ended_at.split()
        calls = 0

        def ended(self: ProgressDisplay, *arguments, kind: str = kind, number: str = number) -> None:
            nonlocal calls
            calls += 1
            if calls == int(number):
                raise KeyboardInterrupt
            (advance if kind == "advance" else finish_epoch)(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(ProgressDisplay, kind, ended)
            with pytest.raises(SystemExit) as exit_info:
                start("ended")
        assert exit_info.value.code == 130
        assert "goes on" in capsys.readouterr().err
    start("ended")
    assert "goes on after" in capsys.readouterr().out
    (ended_run,) = (tmp_path / "ended").glob("*/seed-3")
    assert_same_outcome(ended_run, whole, STEPS)
    # Finished runs are kept as they are.
    before = (ended_run / "result.json").stat().st_mtime_ns
    start("ended")
    assert (ended_run / "result.json").stat().st_mtime_ns == before


def test_a_killed_process_goes_on_exactly(tmp_path: Path):
    command = [sys.executable, "-m", "experiments.train", "digits_mlp", "--methods", "forward_backtrack"]
    command += ["--every", "2", "--epochs", "2", "--limit", "256", "--batch-size", "4", "--width", "0.25"]
    command += ["--seeds", "0", "--checkpoint-seconds", "0", "--output"]
    environment = os.environ | {"XLA_FLAGS": ""}

    def start(name: str) -> subprocess.Popen:
        root = Path(__file__).parents[2]
        return subprocess.Popen([*command, str(tmp_path / name)], cwd=root, env=environment, stdout=subprocess.DEVNULL)

    def run(name: str) -> Path:
        return tmp_path / name / "forward_backtrack-binary-a0.6-every_2_steps" / "seed-0"

    def latest(name: str) -> int:
        names = [path.name for path in (run(name) / "checkpoints").glob("*")]
        return max((int(name) for name in names if name.isdigit()), default=0)

    process = start("killed")
    while latest("killed") < 70 and process.poll() is None:  # in the second epoch
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run("killed") / "result.json").exists()
    assert start("killed").wait() == start("whole").wait() == 0
    assert_same_outcome(run("killed"), run("whole"), STEPS)
