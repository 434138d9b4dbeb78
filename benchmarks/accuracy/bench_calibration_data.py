"""What five or fifty real images without labels are worth beside generated ones.

    python -m benchmarks.accuracy.bench_calibration_data RUN --data FOLDER --json FILE

RUN has learned a generator, which all rows share. The real images are drawn from the training
images but for the last 5,000, on which the students are measured.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.results_file import made_with
from zscgan_ext.classifiers.loading import classifier_of
from zscgan_ext.images.datasets import Images, read_idx_folder
from zscgan_ext.measures import agreement, predict, top1
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.run_folder.files import NoFolder
from zscgan_ext.run_folder.finished_run import read_run_config
from zscgan_ext.stages.calibration_data import mixed
from zscgan_ext.stages.generator_stage import generated_batches
from zscgan_ext.stages.run import RandomStream, Run, new_run
from zscgan_ext.stages.student_stages import BatchesOfSize, calibrated_student, fine_tune
from zscgan_ext.stages.variants import FINE_TUNED
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.synthesis.generator_file import load_generator
from zscgan_ext.training.execution import choose_execution

HELD_OUT, BATCH = 5000, 250
CPU = torch.device("cpu")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run with a generator")
    parser.add_argument("--data", type=Path, required=True, help="idx folder of training images")
    parser.add_argument("--images", type=int, nargs="+", default=[0, 5, 50], metavar="N")
    parser.add_argument("--bits", nargs="+", default=["w4a4", "w8a8"])
    parser.add_argument("--fine-tuning-steps", type=int, default=200, metavar="N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Fine-tune a student for each seed, width and number of real images, and measure it."""
    options = parse_arguments()
    given = read_run_config(options.run).changed(fine_tuning_steps=options.fine_tuning_steps)
    given = replace(given, stop_after=None)
    classifier = classifier_of(given)
    training = read_idx_folder(options.data, "train")
    held_out = training.subset(torch.arange(len(training) - HELD_OUT, len(training)))
    float_logits = predict(classifier.model, held_out, classifier.preprocessing, BATCH, CPU)
    content: dict[str, Any] = {
        "made_with": made_with(CPU),
        "classifier": given.classifier,
        "synthesis_steps": given.generator.steps,
        "float_top1": top1(float_logits, held_out.labels),
        "results": [],
    }
    cells = itertools.product(options.seeds, options.bits, options.images)
    for seed, bits, count in cells:
        config = given.changed(bits=bits, seed=seed)
        run = new_run(config, classifier, NoFolder(), choose_execution(config.execution, CPU))
        generator = load_generator(options.run / "generator.safetensors").generator
        batches = batches_with(run, generator, training, count)
        for stage, student in students(run, batches):
            logits = predict(student, held_out, classifier.preprocessing, BATCH, CPU)
            row = {
                **{"seed": seed, "bits": bits, "images": count, "stage": stage},
                "top1": top1(logits, held_out.labels),
                "agreement": agreement(logits, float_logits),
            }
            print(json.dumps(row), flush=True)
            content["results"].append(row)
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def batches_with(
    run: Run, generator: ConditionalGenerator, training: Images, count: int
) -> BatchesOfSize:
    """Return what gives generated batches, in which a number of real images is mixed.

    They are drawn by the run's seed, those of a smaller number from those of a larger one.
    """
    rng = run.rng(RandomStream.GENERATED_IMAGES)
    batches: BatchesOfSize = partial(generated_batches, run, generator, rng)
    drawing = torch.Generator().manual_seed(run.config.seed)
    drawn = torch.randperm(len(training) - HELD_OUT, generator=drawing)
    return mixed(run, training.subset(drawn[:count]), batches) if count else batches


def students(run: Run, batches: BatchesOfSize) -> Iterator[tuple[str, QuantizedClassifier]]:
    """Yield the name of each stage, and the student after it."""
    student = calibrated_student(run, FINE_TUNED, batches(run.config.generator.batch_size))
    yield "calibrated", student
    fine_tune(run, FINE_TUNED, student, batches(run.config.fine_tuning.batch_size))
    yield "fine_tuned", student


if __name__ == "__main__":
    main()
