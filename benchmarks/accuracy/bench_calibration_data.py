"""What five or fifty real images without labels are worth beside generated ones.

    python -m benchmarks.accuracy.bench_calibration_data RUN --data FOLDER --json FILE

RUN has learned a generator, which all rows share. The real images are drawn from the training
images but for the last 5,000, on which the students are measured.
"""

import argparse
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from zscgan_ext.classifiers.loading import classifier_of
from zscgan_ext.environment import environment
from zscgan_ext.images.datasets import read_idx_folder
from zscgan_ext.measures import agreement, predict, top1
from zscgan_ext.run_folder.files import NoFolder
from zscgan_ext.run_folder.finished_run import read_run_config
from zscgan_ext.stages.calibration_data import mixed
from zscgan_ext.stages.generator_stage import generated_batches
from zscgan_ext.stages.run import RandomStream, new_run
from zscgan_ext.stages.student_stages import BatchesOfSize, calibrated_student, fine_tune
from zscgan_ext.stages.variants import FINE_TUNED
from zscgan_ext.synthesis.generator_file import load_generator
from zscgan_ext.training.execution import choose_execution

HELD_OUT, BATCH = 5000, 250


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run with a generator")
    parser.add_argument("--data", type=Path, required=True, help="idx folder of training images")
    parser.add_argument("--images", type=int, nargs="+", default=[0, 5, 50], metavar="N")
    parser.add_argument("--bits", default="w4a4")
    parser.add_argument("--fine-tuning-steps", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Fine-tune a student with each number of real images, and measure it."""
    options = parse_arguments()
    config = read_run_config(options.run).changed(
        bits=options.bits, fine_tuning_steps=options.fine_tuning_steps, seed=options.seed
    )
    config = replace(config, stop_after=None)
    classifier = classifier_of(config)
    training = read_idx_folder(options.data, "train")
    kept = len(training) - HELD_OUT
    held_out = training.subset(torch.arange(kept, len(training)))
    drawn = torch.randperm(kept, generator=torch.Generator().manual_seed(options.seed))
    cpu = torch.device("cpu")
    measured_on = held_out, classifier.preprocessing, BATCH, cpu
    float_logits = predict(classifier.model, *measured_on)
    rows: list[dict[str, Any]] = []
    for count in options.images:
        run = new_run(config, classifier, NoFolder(), choose_execution(config.execution, cpu))
        generator = load_generator(options.run / "generator.safetensors").generator
        rng = run.rng(RandomStream.GENERATED_IMAGES)
        batches: BatchesOfSize = partial(generated_batches, run, generator, rng)
        if count:
            batches = mixed(run, training.subset(drawn[:count]), batches)
        start = time.perf_counter()
        student = calibrated_student(run, FINE_TUNED, batches(config.generator.batch_size))
        for stage in ("calibrated", "fine_tuned"):
            if stage == "fine_tuned":
                fine_tune(run, FINE_TUNED, student, batches(config.fine_tuning.batch_size))
            logits = predict(student, *measured_on)
            figures = {"top1": top1(logits, held_out.labels)}
            figures["agreement"] = agreement(logits, float_logits)
            rows.append({"images": count, "stage": stage, **figures})
            rows[-1]["seconds"] = time.perf_counter() - start
            print(json.dumps(rows[-1]), flush=True)
        content = {
            "made_with": {**environment(), "date": time.strftime("%Y-%m-%d")},
            "arguments": {name: str(value) for name, value in vars(options).items()},
            "classifier": config.classifier,
            "synthesis_steps": config.generator.steps,
            "float_top1": top1(float_logits, held_out.labels),
            "results": rows,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
