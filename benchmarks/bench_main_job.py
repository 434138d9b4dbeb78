"""Accuracy of the main job over seeds, widths and schemes, with one generator for each seed.

    python benchmarks/bench_main_job.py --classifier resnet20 --seeds 0 1 2 \
        --jobs w4a4:deploy --extra-jobs w3a3:deploy w8a8:deploy w8a8:paper --json FILE

Every job runs at every seed, the extra jobs at the first one only. All take the defaults of
`python -m zscgan_ext.train` otherwise, and the accuracy of the last step. Test images are looked at
to measure only.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from zscgan_ext.checkpoints import Checkpoints
from zscgan_ext.config import Settings
from zscgan_ext.environment import environment
from zscgan_ext.generator import ConditionalGenerator
from zscgan_ext.results import ROWS, metrics
from zscgan_ext.run import Run, prepare
from zscgan_ext.stages import evaluate, fine_tune_student, learn_generator, quantize
from zscgan_ext.synthesis import noise_batches, synthetic_batches


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classifier", default="resnet20")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", nargs="+", default=["w4a4:deploy"], help="bits:scheme")
    parser.add_argument("--extra-jobs", nargs="*", default=[], help="bits:scheme, first seed only")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    return parser.parse_args()


def run_job(run: Run, generator: ConditionalGenerator) -> dict[str, Any]:
    """Calibrate, fine-tune and evaluate one width and scheme, as the main program does."""
    batch_size = run.settings.batch_size
    shape = run.classifier.preprocessing.shape
    quantize(run, noise_batches(batch_size, shape, run.random(3)), "noise_calibrated")
    batches = synthetic_batches(generator, batch_size, run.random(4))
    student = quantize(run, batches, "generated_calibrated")
    fine_tune_student(run, student, batches, "fine_tuned")
    return metrics(run, sum(run.seconds.values()))


def main() -> None:
    """Run all jobs, print a line for each, and write them down after each."""
    arguments = parse_arguments()
    made_with = {**environment(), "date": time.strftime("%Y-%m-%d"), "arguments": str(arguments)}
    results: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as folder:
            settings = Settings(
                classifier=arguments.classifier, seed=seed, output=Path(folder, "run")
            )
            run = prepare(settings)
            generator = learn_generator(run)
            evaluate(run, run.classifier.model, "float")
            extra = arguments.extra_jobs if seed == arguments.seeds[0] else []
            for job in [*arguments.jobs, *extra]:
                bits, scheme = job.split(":")
                seconds = {**run.seconds, "calibration": 0.0, "fine_tuning": 0.0, "evaluation": 0.0}
                job_settings = replace(settings, bits=bits, scheme=scheme)
                checkpoints = Checkpoints(run.folder.path, None, 1, {})
                job_run = replace(
                    run, settings=job_settings, seconds=seconds, checkpoints=checkpoints
                )
                result = run_job(job_run, generator)
                results.append(result)
                rows = {row: result["top1"][row] for row in ROWS if result["top1"][row] is not None}
                print(arguments.classifier, job, f"seed {seed}", rows, flush=True)
                content = {"made_with": made_with, "results": results}
                arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
