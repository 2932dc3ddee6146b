"""Training over several processes: the result is that of one, and a process that dies neither hangs nor loses it."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from jax._src.lib import _jax
from rich.console import Console

from experiments import train
from experiments.configs import JOBS
from experiments.core.records import read_json
from experiments.data import load_dataset
from experiments.distributed.command import DistributedConfig, main
from experiments.distributed.comparison import read_end
from experiments.distributed.placement import make_mesh
from experiments.distributed.programs import ShardedPrograms
from experiments.distributed.workers import WorkerDiedError, run_together

SETTINGS = {"job": "digits", "methods": ("laq",), "epochs": 1, "limit": 40, "batch_size": 8, "width": 0.25}
MOMENTS = {"learning_rate": 0.01, "b1": 0.9, "b2": 0.999}  # those of the command
SPREAD = {"processes": (2,), "params": ("sharded",), "checkpoint_steps": 2, "kill_after": 3}


def command(settings):
    options = []
    for name, value in settings.items():
        options += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else (value,))]
    return [sys.executable, "-m", "experiments", "distributed", *options]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """All trainings of one call, two processes with one killed and resumed among them."""
    if not hasattr(_jax, "make_gloo_tcp_collectives"):
        pytest.skip("this jaxlib has no gloo")
    config = DistributedConfig(**SETTINGS, **SPREAD, output=tmp_path_factory.mktemp("distributed"))
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        command(SETTINGS | SPREAD | {"output": config.output}),
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return config, done.stdout


def last(config, processes, number):
    """State and codes after the last step of a training."""
    training, settings = config.trainings(processes)[number], config.training_config()
    mesh = make_mesh(jax.devices()[:1])
    return read_end(
        training,
        ShardedPrograms(settings, training.row, load_dataset(settings.dataset, settings.limit), mesh, sharded=False),
    )


def test_two_processes_give_the_result_of_one(trained):
    """After five steps codes are equal, params and batch statistics to 1e-4.

    But for the kernel of the first layer, and the statistics of what it gives: binary weights and pixels of few values
    make ties in the max-pooling, and rounding decides which pixel gets the gradient.
    """
    config, _ = trained
    one, two = last(config, 1, 0), last(config, 2, 0)
    jax.tree.map(np.testing.assert_array_equal, two.codes, one.codes)
    got, expected = ((end.state.params, end.state.batch_stats) for end in (two, one))
    for params, batch_stats in (got, expected):
        del params["convolutions"][0]["conv"], batch_stats["convolutions"][0]
    assert len(jax.tree.leaves(got)) == 11 + 6
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-4)


def test_a_process_holds_half_of_the_sharded_state(trained):
    one, _, two, _ = read_json(trained[0].output / "distributed.json")["trainings"]
    assert two["state_bytes_of_a_process"] < 0.51 * one["state_bytes_of_a_process"]


def test_a_killed_process_ends_all_and_the_training_goes_on_exactly(trained):
    config, printed = trained
    assert re.search(
        r"process 1 of 2 was ended by SIGKILL, see .*\.log; all others were ended; they start again", printed
    )
    assert "killed after step 3: goes on after 2 steps" in printed
    whole, resumed = last(config, 2, 0).state, last(config, 2, 1).state
    assert len(jax.tree.leaves(whole)) > 20
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    record = read_json(config.output / "distributed.json")["trainings"][-1]
    assert (record["killed_after"], record["resumed_after"], record["equal_to_uninterrupted"]) == (3, 2, True)


def test_one_process_trains_as_the_other_experiments_do(trained, tmp_path):
    settings = {"methods": ("laq",), "epochs": 1, "limit": 40, "batch_size": 8, "width": 0.25, "seeds": (0,)}
    job = dataclasses.replace(JOBS["digits"], **settings, **MOMENTS, reestimate_batch_stats=0, output=tmp_path)
    train.run_job(job, Console(quiet=True))
    (result,) = tmp_path.glob("*/seed-0/result.json")
    record = read_json(trained[0].output / "distributed.json")["trainings"][0]
    assert record["train_loss"] == pytest.approx(read_json(result)["train_loss"], rel=1e-3)


def test_finished_trainings_are_kept(trained, capsys):
    config, _ = trained
    results = {path: path.stat().st_mtime_ns for path in config.output.glob("*/*/*/result.json")}
    assert len(results) == 4
    main(command(SETTINGS | SPREAD | {"output": config.output})[4:])
    assert capsys.readouterr().out.startswith("| method")
    assert {path: path.stat().st_mtime_ns for path in results} == results


# --- Processes that die, in place of the workers: each executes its task --------------------------------------------

WAITING = "import time; time.sleep(600)"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            r"process 1 of 2 was ended by SIGKILL, see .*1\.log; all others",
        ),
        (
            "import sys; sys.stderr = open(LOG, 'w'); raise ValueError('no data')",
            r"process 1 of 2 failed with 'ValueError: no data', see .*1\.log; all others were ended",
        ),
    ],
)
def test_all_end_with_the_first_that_dies(tmp_path, task, message):
    logs = [tmp_path / "0.log", tmp_path / "1.log"]
    started = time.monotonic()
    with pytest.raises(WorkerDiedError, match=message):
        run_together(exec, [WAITING, task.replace("LOG", repr(str(logs[1])))], logs)
    assert time.monotonic() - started < 60
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processes": 3}, "--processes must be at least 2 and divide the batch size 8, got 3"),
        ({"checkpoint_steps": 0}, "--checkpoint-steps must be at least 1, got 0"),
        ({"kill_after": 2}, "--kill-after must be more than 2, where the first checkpoint is, and less than 5"),
        ({"limit": 4}, "--batch-size must be at most 4, the training images, got 8"),
    ],
)
def test_options_that_do_not_fit_are_named(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as exit_info:
        main(command(SETTINGS | SPREAD | options | {"output": tmp_path})[4:])
    assert exit_info.value.code == 2
    assert re.search(re.escape(message), capsys.readouterr().err)
