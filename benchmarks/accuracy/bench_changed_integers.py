"""How many integers of the weights fine-tuning changes, and what that is worth.

    python -m benchmarks.accuracy.bench_changed_integers RUN ... --data FOLDER --json FILE

Each RUN has learned a generator; its classifier and seed are those of the row. Top-1 is that on the
last 5,000 training images, and with `--test` on the test images too.
"""

import argparse
import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.results_file import made_with, write_rows
from zscgan_ext.classifiers.loading import Classifier, classifier_of
from zscgan_ext.config.configs import FineTuningConfig
from zscgan_ext.export.integers import integer_weight
from zscgan_ext.images.datasets import Images, read_idx_folder
from zscgan_ext.measures import predict, top1
from zscgan_ext.quantization import fine_tuning
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.run_folder.files import NoFolder
from zscgan_ext.run_folder.finished_run import read_run_config
from zscgan_ext.stages.generator_stage import generated_batches
from zscgan_ext.stages.run import RandomStream, Run, new_run
from zscgan_ext.stages.student_stages import calibrated_student, fine_tune
from zscgan_ext.stages.variants import FINE_TUNED
from zscgan_ext.synthesis.generator_file import load_generator
from zscgan_ext.training.execution import choose_execution
from zscgan_ext.training.trainer import ParameterGroup

HELD_OUT, BATCH = 5000, 250
CPU = torch.device("cpu")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="with a generator")
    parser.add_argument("--data", type=Path, required=True, help="idx folder")
    parser.add_argument("--bits", nargs="+", default=["w2a2"])
    parser.add_argument("--schemes", nargs="+", default=["deploy"])
    parser.add_argument("--fine-tuning-steps", type=int, default=400, metavar="N")
    parser.add_argument("--precision", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument(
        "--steps-of-weights",
        type=float,
        default=fine_tuning.STEPS_OF_WEIGHTS,
        metavar="N",
        help="how fast weights learn, as in fine_tuning.py; 0: at the rate of all else",
    )
    parser.add_argument("--test", action="store_true", help="measure on the test images too")
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Fine-tune a student for each run, scheme and width, and measure it."""
    options = parse_arguments()
    fine_tuning.STEPS_OF_WEIGHTS = options.steps_of_weights
    if options.steps_of_weights == 0:
        fine_tuning.parameter_groups = one_group
    training = read_idx_folder(options.data, "train")
    images = {"held_out": training.subset(torch.arange(len(training) - HELD_OUT, len(training)))}
    if options.test:
        images["test"] = read_idx_folder(options.data, "test")
    rows: list[dict[str, Any]] = []
    for folder, scheme, bits in itertools.product(options.runs, options.schemes, options.bits):
        given = read_run_config(folder).changed(
            scheme=scheme,
            bits=bits,
            fine_tuning_steps=options.fine_tuning_steps,
            precision=options.precision,
        )
        config = replace(given, stop_after=None)
        row = {"classifier": config.classifier, "scheme": scheme, "bits": bits, "seed": config.seed}
        classifier = classifier_of(config)
        run = new_run(config, classifier, NoFolder(), choose_execution(config.execution, CPU))
        row |= measured(run, classifier, folder, images)
        print(json.dumps(row), flush=True)
        rows.append(row)
        settings = {"steps_of_weights": options.steps_of_weights}
        write_rows(options.json, made_with(CPU, **settings), rows)


def one_group(student: QuantizedClassifier, config: FineTuningConfig) -> list[ParameterGroup]:
    """Return all that learns, at one rate."""
    rate = config.learning_rate / student.scheme.steps
    return [ParameterGroup(list(student.parameters()), rate)]


def measured(
    run: Run, classifier: Classifier, folder: Path, images: Mapping[str, Images]
) -> dict[str, Any]:
    """Calibrate and fine-tune a student; return its figures before and after."""
    torch.manual_seed(run.config.seed)
    generator = load_generator(folder / "generator.safetensors").generator
    rng = run.rng(RandomStream.GENERATED_IMAGES)
    batches = partial(generated_batches, run, generator, rng)
    student = calibrated_student(run, FINE_TUNED, batches(run.config.generator.batch_size))
    calibrated, before = accuracies(student, classifier, images), integers(student)
    fine_tune(run, FINE_TUNED, student, batches(run.config.fine_tuning.batch_size))
    return {
        "calibrated": calibrated,
        "fine_tuned": accuracies(student, classifier, images),
        "changed_percent": changed(before, integers(student)),
    }


def accuracies(
    student: QuantizedClassifier, classifier: Classifier, images: Mapping[str, Images]
) -> dict[str, float]:
    """Return top-1 in percent on each set of images."""
    found = {}
    for name, own in images.items():
        logits = predict(student, own, classifier.preprocessing, BATCH, CPU)
        found[name] = round(top1(logits, own.labels), 2)
    return found


def integers(student: QuantizedClassifier) -> dict[str, Tensor]:
    """Return the integers of each layer's weight."""
    return {name: integer_weight(layer).integers for name, layer in student.named_layers().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, float]:
    """Return how many of 100 integers of each layer are others than before."""
    return {
        name: round(100 * float((after[name] != own).float().mean()), 2)
        for name, own in before.items()
    }


if __name__ == "__main__":
    main()
