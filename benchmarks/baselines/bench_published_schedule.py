"""How long a published schedule takes, extrapolated from a short stretch of it.

    python -m benchmarks.baselines.bench_published_schedule [--device cuda] [--json FILE] [--quick]

GDFQ (Xu et al., 2020) quantizes ImageNet classifiers in 80,000 iterations of batch 16, which is
1.28 million images for the generator and as many for the quantized classifier. Here each stage of
the main program runs for a few steps on such a classifier; the time of a step after the first ones,
times the steps of the schedule, is the time that the schedule would take. Weights decide nothing
about speed: without a checkpoint they are random.
"""

import argparse
import datetime
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from zscgan_ext.classifiers.loading import Classifier, load_classifier
from zscgan_ext.config.configs import RunConfig
from zscgan_ext.config.values import resolve_device
from zscgan_ext.environment import environment
from zscgan_ext.errors import InputError
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import student_of
from zscgan_ext.quantization.fine_tuning import StudentTrainer
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher
from zscgan_ext.synthesis.generator import generator_of
from zscgan_ext.synthesis.generator_training import GeneratorTrainer, synthetic_batches
from zscgan_ext.training.execution import PRECISIONS, choose_execution
from zscgan_ext.training.trainer import Trainer

SCHEDULE_IMAGES = 80_000 * 16
CLASSIFIERS = ("resnet18", "resnet50", "mobilenet_v2")  # of torchvision
LATENT_DIM = 100


class Stretch:
    """The steps of a stage that are timed: all after the first `warm_up`."""

    def __init__(self, device: torch.device, warm_up: int) -> None:
        self.device = device
        self.warm_up = warm_up
        self.marks: list[tuple[int, float]] = []  # steps done, and when

    def mark(self, step: int) -> None:
        """Take the time after a step."""
        if step >= self.warm_up:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.marks.append((step, time.perf_counter()))

    def milliseconds_per_step(self) -> float:
        """Return the mean time of a step between the first and the last mark."""
        (first, start), (last, end) = self.marks[0], self.marks[-1]
        return 1e3 * (end - start) / (last - first)


def rng(device: torch.device) -> torch.Generator:
    """Return random numbers that are the same for every measurement."""
    return torch.Generator(device).manual_seed(0)


def trainers(
    classifier: Classifier, config: RunConfig, device: torch.device
) -> Iterator[tuple[str, Trainer]]:
    """Yield the stages of the main command by name, each with what takes its steps."""
    execution = choose_execution(config.execution, device)
    execution.apply()
    model = classifier.model.to(device).to(memory_format=torch.channels_last)
    generator = generator_of(config.generator, classifier)
    generator.to(device).to(memory_format=torch.channels_last)
    teacher = FrozenTeacher(model, config.generator.distance)
    yield (
        "generator",
        GeneratorTrainer(generator, teacher, config.generator, execution, rng(device)),
    )
    teacher.remove_hooks()
    student = student_of(config.quantization, classifier)
    student.to(memory_format=torch.channels_last)
    batches = synthetic_batches(generator, config.generator.batch_size, rng(device))
    calibrate(student, batches, config.quantization.calibration_batches)
    yield "fine-tuning", StudentTrainer(student, model, batches, config.fine_tuning, execution)


def measure(
    classifier: Classifier, config: RunConfig, device: torch.device, warm_up: int
) -> Iterator[dict[str, Any]]:
    """Yield what each stage takes."""
    batch_size = config.generator.batch_size
    for stage, trainer in trainers(classifier, config, device):
        stretch = Stretch(device, warm_up)
        for step in range(1, trainer.steps + 1):
            trainer.step(trainer.sample())
            if step in (warm_up, trainer.steps):  # no other step is waited for
                stretch.mark(step)
        milliseconds = stretch.milliseconds_per_step()
        yield {
            "classifier": classifier.name,
            "image_size": classifier.preprocessing.image_size,
            "batch_size": batch_size,
            "precision": config.execution.precision,
            "stage": stage,
            "measured_steps": stretch.marks[-1][0] - stretch.marks[0][0],
            "milliseconds_per_step": milliseconds,
            "images_per_second": 1e3 * batch_size / milliseconds,
            "extrapolated_minutes": SCHEDULE_IMAGES / batch_size * milliseconds / 6e4,
        }


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--classifiers", nargs="+", default=CLASSIFIERS, metavar="NAME")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="checkpoint of mobilenet_v2; default: random"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=(16, 128), metavar="N")
    parser.add_argument("--image-size", type=int, default=224, metavar="PIXELS")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    parser.add_argument("--steps", type=int, default=30, help="measured; default: %(default)s")
    parser.add_argument("--warm-up", type=int, default=10, help="steps before; default: 10")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the rows")
    parser.add_argument(
        "--quick", action="store_true", help="one classifier on a few small images: only a trial"
    )
    options = parser.parse_args(arguments)
    if min(options.steps, options.warm_up, *options.batch_sizes) < 1:
        parser.error("--steps, --warm-up and --batch-sizes: needed are numbers above 0")
    if options.quick:
        options.classifiers, options.batch_sizes = options.classifiers[:1], (2,)
        options.image_size, options.steps, options.warm_up = 32, 2, 1
    return options


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print every row."""
    print(
        f"{'classifier':14} {'batch':>5} {'stage':12} {'ms/step':>9} {'images/s':>9} {'minutes':>9}"
    )
    for row in rows:
        print(
            f"{row['classifier']:14} {row['batch_size']:5} {row['stage']:12}"
            f" {row['milliseconds_per_step']:9.2f} {row['images_per_second']:9.1f}"
            f" {row['extrapolated_minutes']:9.1f}"
        )
    print(f"minutes: {SCHEDULE_IMAGES:,} images of the stage, extrapolated from the measured steps")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all classifiers and batch sizes.

    Raises:
        InputError: if a classifier, its weights or the device does not fit.
    """
    device = resolve_device(options.device)
    steps = options.warm_up + options.steps
    config = RunConfig().changed(
        latent_dim=LATENT_DIM,
        precision=options.precision,
        calibration_batches=1,
        synthesis_steps=steps,
        fine_tuning_steps=steps,
    )
    rows: list[dict[str, Any]] = []
    for name in options.classifiers:
        weights = options.weights if name == "mobilenet_v2" else None
        for batch_size in options.batch_sizes:
            torch.manual_seed(0)
            loaded = load_classifier(
                f"torchvision.models:{name}", weights, None, options.image_size
            )
            classifier = replace(loaded, name=name)
            sized = config.changed(batch_size=batch_size)
            for row in measure(classifier, sized, device, options.warm_up):
                print(f"{name} batch {batch_size}: {row['stage']} measured", file=sys.stderr)
                rows.append(row)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the JSON file; return the exit code."""
    options = parse(arguments)
    try:
        rows = run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_table(rows)
    if options.json:
        device = resolve_device(options.device)
        made_with = {
            **environment(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "threads": torch.get_num_threads(),
            "command": shlex.join(["python", *sys.orig_argv[1:]]),
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"made_with": made_with, "schedule_images": SCHEDULE_IMAGES, "rows": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
