"""What a job shows while it runs: two bars on a terminal, otherwise a line per finished run and a few between."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

SILENCE = 20.0  # longest time without a line, in seconds, where there is no terminal


class ProgressDisplay:
    """Bars for the current run and for the whole job, with loss, accuracy and time left.

    Args:
        console: Where to show it.
        runs: Runs of the job.
        epochs: Epochs of a run.
        steps_per_epoch: Steps of an epoch.
    """

    def __init__(self, console: Console, runs: int, epochs: int, steps_per_epoch: int):
        self._console = console
        self._runs = runs
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._steps_per_run = epochs * steps_per_epoch
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TaskProgressColumn(),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._run = self._progress.add_task("", total=epochs * steps_per_epoch, status="")
        self._job = self._progress.add_task("all runs", total=runs * epochs * steps_per_epoch, status="")
        self._started = 0
        self._label = ""
        self._accuracy = "-"
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def compile(self, label: str) -> None:
        """The programs of a method are compiled."""
        self._progress.update(self._job, status=f"{label}, compiling")

    def start_run(self, label: str, epochs: int, steps_taken: int) -> None:
        """A run begins, or goes on after some steps."""
        self._started += 1
        self._label, self._accuracy, self._epochs = label, "-", epochs
        self._progress.reset(
            self._run,
            description=f"run {self._started} of {self._runs}",
            status="",
            total=epochs * self._steps_per_epoch,
            completed=steps_taken,
        )
        self._progress.update(self._job, status=label)
        self._progress.advance(self._job, steps_taken)
        if steps_taken:
            self._line(f"{label}: goes on after {steps_taken} steps")

    def skip_run(self, label: str) -> None:
        """A run was finished before."""
        self._started += 1
        self._progress.update(self._job, status=label)
        self._progress.advance(self._job, self._steps_per_run)

    def advance(self, steps: int, loss: float) -> None:
        """Steps were taken; `loss` is the mean minibatch loss of this epoch so far."""
        self._progress.advance(self._job, steps)
        self._progress.advance(self._run, steps)
        self._progress.update(self._run, status=f"loss {loss:.4f}, validation {self._accuracy}")

    def finish_epoch(self, epoch: int, loss: float, accuracy: float) -> None:
        """An epoch ended with this training loss and validation accuracy."""
        self._accuracy = f"{100 * accuracy:.2f} %"
        if not self._console.is_terminal and time.monotonic() - self._last_line > SILENCE:
            self._line(f"{self._label}: epoch {epoch}/{self._epochs}, loss {loss:.4f}, validation {self._accuracy}")

    def finish_run(self, result: str) -> None:
        """A run ended."""
        self._line(f"{self._label}: {result}")

    def _line(self, text: str) -> None:
        self._console.print(text, highlight=False, soft_wrap=True)
        self._last_line = time.monotonic()
