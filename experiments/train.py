"""Trains one network with several methods and seeds: `python -m experiments.train [job] [options]`.

Without arguments it trains 1-bit weights on handwritten digits and compares full precision, loss-aware quantization
(LAQ) and one step forward and backtrack. See experiments/README.md, or `--help` for the options.
"""

import sys
from collections.abc import Sequence

from rich.console import Console

from experiments.configs import JOBS
from experiments.core.cli import TRAIN, fail, make_console, parse_options, program
from experiments.core.config import TrainConfig
from experiments.core.evaluation import Evaluator
from experiments.core.losses import LOSSES
from experiments.core.network import abstract_network, make_network
from experiments.core.programs import Programs
from experiments.core.progress import ProgressDisplay
from experiments.core.run import Runner
from experiments.core.run_folder import JobFolder
from experiments.data import Dataset, MissingDataError, load_dataset
from experiments.reporting.report import write_report

DESCRIPTION = "Train one network with several methods and seeds, and compare them."
DEFAULT_JOB = "digits"


def main(arguments: Sequence[str]) -> None:
    """Runs the job of the command line."""
    console = make_console()
    folder = run_job(parse(arguments).effective(), console)
    write_report([folder.path], folder.path, console)


def parse(arguments: Sequence[str]) -> TrainConfig:
    """The configuration that the command line asks for.

    Args:
        arguments: What follows the program name: optionally a job, then options.

    Returns:
        The configuration of the job with the options applied.

    Raises:
        SystemExit: As `parse_options`.
    """
    job, options = DEFAULT_JOB, list(arguments)
    if options and not options[0].startswith("-"):
        job = options.pop(0)
    if job not in JOBS:
        fail(f"unknown job {job!r}: choose one of {', '.join(JOBS)}", code=2)
    return parse_options(
        TrainConfig,
        options,
        TRAIN,
        default=JOBS[job],
        prog=f"{program(TRAIN)} {job}",
        description=f"{DESCRIPTION} Jobs: {', '.join(JOBS)}.",
    )


def run_job(config: TrainConfig, console: Console) -> JobFolder:
    """Trains every method of a job; where it cannot, the program ends with one line on stderr."""
    try:
        dataset = load_dataset(config.dataset, config.limit)
    except MissingDataError as error:
        fail(str(error), code=1)
    if config.batch_size > len(dataset.train):
        fail(f"--batch-size must be at most {len(dataset.train)}, the training images, got {config.batch_size}", code=2)
    try:
        folder = JobFolder(config, dataset.name or config.dataset)
    except OSError as error:
        fail(f"cannot write results to {error.filename}: {error.strerror}", code=2)
    except ValueError as error:
        fail(str(error), code=2)
    try:
        train_all(config, dataset, folder, console)
    except KeyboardInterrupt:
        fail(f"interrupted; the same command with --output {folder.path} goes on", code=130)
    return folder


def train_all(config: TrainConfig, dataset: Dataset, folder: JobFolder, console: Console) -> None:
    """Trains every method with every seed.

    Args:
        config: The job.
        dataset: Its data.
        folder: Where results go; finished runs that it has are not repeated.
        console: Where progress is shown.
    """
    steps_per_epoch = len(dataset.train) // config.batch_size
    rows, loss = config.rows(), LOSSES[config.loss]
    example = abstract_network(config)
    evaluator = Evaluator(example, loss, dataset.prepare)
    console.print(f"{config.job}: results go to {folder.path}", highlight=False, soft_wrap=True)
    with ProgressDisplay(console, len(rows) * len(config.seeds), config.epochs, steps_per_epoch) as progress:
        for row in rows:
            runs = {seed: folder.run(row, seed) for seed in config.seeds}
            todo = [seed for seed, run in runs.items() if run.read_result() is None]
            for _ in range(len(runs) - len(todo)):
                progress.skip_run(row.label)
            if not todo:
                continue
            progress.compile(row.label)
            method = row.build(config.hyperparameters(row, steps_per_epoch))
            steps = row.epochs(config.epochs) * steps_per_epoch
            two_stage = {row.gradient_evaluations(step // steps_per_epoch + 1, step + 1) == 2 for step in range(steps)}
            batch = next(dataset.train.shuffled_batches(config.batch_size, 0, 1))
            programs = Programs(example, loss, dataset, method, two_stage, batch)
            runner = Runner(config, row, method, programs, evaluator, dataset, progress)
            for seed in todo:
                runner.run(make_network(config, seed), seed, runs[seed])


if __name__ == "__main__":
    main(sys.argv[1:])
