"""Measures a step of generator learning and of fine-tuning, as plain torch and as the trainer.

    python -m benchmarks.training.bench_train_step [--device cpu|cuda] [--json FILE]
        [--chart FILE] [--quick]

`eager` is plain torch (`benchmarks/baselines/plain_training.py`) as it comes: float32, contiguous
memory. `alike` is the same in the precision and memory format of the trainer, and `compiled` that
under torch.compile. `native` is what `python -m zscgan_ext.train` does. The stage `teacher` is the
frozen classifier, forward and backward to the images, without matching batch-norm statistics;
`teacher_matched` is the same with it. Each implementation has a process of its own, and the
processes take turns step by step.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.results_file import (
    chart_file,
    earlier_rows,
    made_with,
    measuring_parser,
    write_rows,
)
from benchmarks.training.train_step_report import draw_chart, print_table, update_documentation
from benchmarks.training.training_subjects import IMPLEMENTATIONS, Subject
from zscgan_ext.config.configs import FineTuningConfig, GeneratorConfig
from zscgan_ext.stages.precision_choice import multiplies_bfloat16

CHART = "train_step.png"
CLASSIFIERS = ("resnet20", "resnet18", "resnet50", "mobilenet_v2")
BATCHES = {"cpu": (16,), "cuda": (16, 128)}
COMPILED_ON_CPU = ("resnet20",)  # compiling the others for a CPU takes minutes
STEPS_OF_A_SAMPLE = {"cpu": 1, "cuda": 20}
STAGES = ("generator_step", "fine_tuning_step", "teacher")
# What takes turns: a training stage by all implementations, and the teacher's passes.
TEACHER_PASSES = (("teacher", "eager"), ("teacher", "native"), ("teacher_matched", "native"))
WORKER = "benchmarks.training.train_step_worker"


class Worker:
    """The process that takes the steps of one subject."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.process = subprocess.Popen(
            [sys.executable, "-m", WORKER, json.dumps(asdict(subject))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> str:
        """Wait for a line from the process.

        Raises:
            SystemExit: if it has ended instead.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.subject}: exit code {self.process.wait()}")
        return line.strip()

    def milliseconds(self, steps: int) -> float:
        """Return the mean time of some steps."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        return float(self.answer())

    def peak_memory(self) -> int:
        """Let the process end; return the most bytes it held."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return int(self.answer())

    def end(self) -> None:
        """End the process whatever it does."""
        self.process.kill()
        with self.process:  # waits, and closes the pipes
            pass


def measure(subjects: Sequence[Subject], samples: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each subject, measured in turns."""
    workers = [Worker(subject) for subject in subjects]
    try:
        for worker in workers:
            worker.answer()
        times: list[list[float]] = [[] for _ in workers]
        for _ in range(samples):
            for worker, values in zip(workers, times, strict=True):
                values.append(worker.milliseconds(STEPS_OF_A_SAMPLE[worker.subject.device]))
        for worker, values in zip(workers, times, strict=True):
            median = statistics.median(values)
            peak = worker.peak_memory()
            yield {**asdict(worker.subject), "median_ms": median, "peak_memory_bytes": peak}
    finally:
        for worker in workers:
            worker.end()


def implementations_for(classifier: str, options: argparse.Namespace) -> tuple[str, ...]:
    """Return what a training stage of a classifier is measured as, where nothing was said."""
    if options.quick:
        return ("eager", "native")
    if options.device == "cuda" or classifier in COMPILED_ON_CPU:
        return IMPLEMENTATIONS
    return ("eager", "alike", "native")


def batches_for(classifier: str, stage: str, options: argparse.Namespace) -> tuple[int, ...]:
    """Return how many images a step is measured with: of small images what the trainer takes."""
    if options.batch:
        return (options.batch,)
    if classifier != "resnet20":
        return BATCHES[options.device]
    is_fine_tuning = stage == "fine_tuning_step"
    return ((FineTuningConfig() if is_fine_tuning else GeneratorConfig()).batch_size,)


def groups(options: argparse.Namespace) -> Iterator[list[Subject]]:
    """Yield what is measured in turns."""
    for classifier in options.classifiers:
        names = options.implementations or implementations_for(classifier, options)
        for stage in options.stages:
            pairs = TEACHER_PASSES if stage == "teacher" else [(stage, name) for name in names]
            for batch in batches_for(classifier, stage, options):
                yield [
                    Subject(classifier, own_stage, name, batch, options.device, options.precision)
                    for own_stage, name in pairs
                ]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = measuring_parser(__doc__, CHART, 7, "resnet20 only, nothing compiled")
    parser.add_argument("--classifiers", nargs="+", choices=CLASSIFIERS, default=CLASSIFIERS)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument(
        "--implementations", nargs="+", choices=IMPLEMENTATIONS, help="of the training stages"
    )
    parser.add_argument("--batch", type=int, help="images, instead of the usual number")
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16"),
        help="of all but `eager`; default: bfloat16 where the device multiplies it",
    )
    options = parser.parse_args(arguments)
    if options.precision is None:
        is_narrow = options.device == "cuda" or multiplies_bfloat16()
        options.precision = "bfloat16" if is_narrow else "float32"
    if options.quick:
        options.classifiers = CLASSIFIERS[:1]
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the JSON file, draw the chart and print the table."""
    options = parse(arguments)
    if options.update_docs:
        return update_documentation(options.update_docs, earlier_rows(options))
    rows: list[dict[str, Any]] = []
    made = made_with(torch.device(options.device), samples=options.samples)
    planned = list(groups(options))
    for number, subjects in enumerate(planned, 1):
        first = subjects[0]
        print(f"[{number}/{len(planned)}] {first.classifier} {first.stage}", file=sys.stderr)
        rows += measure(subjects, options.samples)
        write_rows(options.json, made, rows)
    print_table(rows)
    draw_chart(rows, chart_file(options, CHART))


if __name__ == "__main__":
    main()
