"""The processes: started together, connected by `jax.distributed`, and ended together."""

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import jax
from rich.console import Console

from experiments.core.progress import ProgressDisplay
from experiments.data import load_dataset
from experiments.distributed.placement import make_mesh, shard_batches
from experiments.distributed.programs import ShardedPrograms
from experiments.distributed.training import Training, train

# In seconds; until they are all there, without a sign of life of one, and until all are gone.
START_TIMEOUT, HEARTBEAT_TIMEOUT, END_TIMEOUT = 120, 60, 60


class WorkerDiedError(Exception):
    """A process ended before its work was done; the message is one line."""


@dataclass(frozen=True)
class Task:
    """What one of several processes is to do.

    Attributes:
        process: Its number, from 0.
        processes: How many there are.
        port: Where the first one is to be found.
        log: The file for what libraries print.
        trainings: The trainings, in this order; all of the same job.
    """

    process: int
    processes: int
    port: int
    log: Path
    trainings: Sequence[Training]


def run(trainings: Sequence[Training], folder: Path) -> None:
    """Trains with several processes on this machine.

    Args:
        trainings: What to train, all of the same job and with the same number of processes.
        folder: Gets their logs.

    Raises:
        WorkerDiedError: One of them ended early; so did then all others.
    """
    port, processes = free_port(), trainings[0].processes
    tasks = [
        Task(number, processes, port, folder / f"process-{number}-of-{processes}.log", trainings)
        for number in range(processes)
    ]
    run_together(work, tasks, [task.log for task in tasks])


def run_together(target: Callable[[Task], None], tasks: Sequence[Task], logs: Sequence[Path]) -> None:
    """Calls `target(task)` in a process for each task, and waits for all."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    workers = [context.Process(target=target, args=(task,)) for task in tasks]
    try:
        # Ctrl-C reaches all processes: only this one, which then ends the others, is to hear it.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for worker in workers:
            worker.start()
        signal.signal(signal.SIGINT, handler)
        running = list(workers)
        while running:
            ready = multiprocessing.connection.wait([worker.sentinel for worker in running])
            ended = [worker for worker in running if worker.sentinel in ready]
            for worker in ended:
                worker.join()  # sentinels are ready a little before exit codes are there
            running = [worker for worker in running if worker not in ended]
            failed = [worker for worker in ended if worker.exitcode != 0]
            if failed:
                # The others lose their connection and fail too: a signal, which is negative, is nearer to the cause.
                first = min(failed, key=lambda worker: worker.exitcode or 0)
                number = workers.index(first)
                raise WorkerDiedError(
                    f"process {number} of {len(workers)} {_cause(first.exitcode or 0, logs[number])}; "
                    "all others were ended"
                )
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.kill()  # checkpoints are complete or not there
        for worker in workers:
            if worker.pid is not None:
                worker.join()


def work(task: Task) -> None:
    """What a process does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _redirected(task.log) as stdout:
        _connect(task)
        config, mesh = task.trainings[0].config, make_mesh(jax.devices())
        data = load_dataset(config.dataset, config.limit)
        console = Console(file=stdout, width=None if stdout.isatty() else 120, quiet=task.process > 0)
        make_programs = functools.cache(
            lambda row, params: ShardedPrograms(config, row, data, mesh, sharded=params == "sharded")
        )
        for training in task.trainings:
            programs = make_programs(training.row, training.params)
            dataset = shard_batches(data, mesh, reverse=training.reversed_rows)
            with ProgressDisplay(console, 1, config.epochs, len(data.train) // config.batch_size) as progress:
                train(training, programs, dataset, progress)
        jax.distributed.shutdown()


def free_port() -> int:
    """A port of this machine that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _connect(task: Task) -> None:
    """Makes the devices of all processes one: a CPU with its share of the cores in each."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
    os.environ["NPROC"] = str(max(1, (os.cpu_count() or 1) // task.processes))  # threads of XLA
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    address = f"127.0.0.1:{task.port}"
    jax.distributed.initialize(
        address,
        task.processes,
        task.process,
        coordinator_bind_address=address,
        initialization_timeout=START_TIMEOUT,
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        shutdown_timeout_seconds=END_TIMEOUT,
    )


@contextlib.contextmanager
def _redirected(log: Path) -> Iterator[IO[str]]:
    """Sends what this process prints, C++ libraries included, to a file; gives the standard output as it was."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stdout, log.open("w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout.flush()
        yield stdout


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _cause(exitcode: int, log: Path) -> str:
    if exitcode < 0:
        return f"was ended by {signal.Signals(-exitcode).name}, see {log}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"failed with {last!r}, see {log}"
