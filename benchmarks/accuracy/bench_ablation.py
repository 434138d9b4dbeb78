"""What each part of the recipe is worth, on held-out training images.

    python -m benchmarks.accuracy.bench_ablation --json FILE

Each variation changes settings of `python -m zscgan_ext.train`, and everything else stays as it
is, with the same seeds. Accuracy is top-1 after the last step on the training images 55,000 to
60,000 of Fashion-MNIST; test images are not read. The file is written after each measurement, and
the same command goes on where an interrupted one ended, with the generators in the folder beside.
"""

import argparse
import json
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.accuracy_results import (
    discard_old_generators,
    require_same_settings,
    shared_settings,
)
from benchmarks.accuracy.accuracy_rows import (
    GeneratorSource,
    cached_generator,
    prepare_run,
    seeded_generator,
)
from zscgan_ext.config.configs import WITH_GENERATOR, RunConfig
from zscgan_ext.environment import environment
from zscgan_ext.errors import InputError
from zscgan_ext.measures import top1
from zscgan_ext.run_folder.made_with import WITHOUT_EFFECT
from zscgan_ext.run_folder.whole_file import write_whole
from zscgan_ext.stages.generator_stage import generated_batches
from zscgan_ext.stages.run import RandomStream, Run
from zscgan_ext.stages.student_stages import fine_tuned_student
from zscgan_ext.stages.variants import FINE_TUNED

STUDENT_VARIATIONS: dict[str, dict[str, Any]] = {
    "the recipe": {},
    "weights start rounded to nearest": {"rounding": "nearest"},
    "initial ranges narrower": {"ranges": "narrower"},
    "initial ranges from generated images": {"ranges": "images"},
    "initial ranges from batch norm": {"ranges": "batch_norm"},
    "no feature maps": {"feature_weight": 0.0},
    "feature maps only, no logits": {"distillation_weight": 0.0},
    "labels as well": {"label_weight": 1.0},
    "learning rate twice as high": {"fine_tuning_learning_rate": 1e-3},
    "learning rate half as high": {"fine_tuning_learning_rate": 2.5e-4},
    "temperature 1": {"temperature": 1.0},
    "batches of 128, with as many images": {"fine_tuning_batch_size": 128},
}
GENERATOR_VARIATIONS: dict[str, dict[str, Any]] = {
    "batch-norm weight 1": {"batch_norm_weight": 1.0},
    "batch-norm weight 100": {"batch_norm_weight": 100.0},
    "batch-norm distance of GDFQ (mse)": {"distance": "mse"},
    "no cross entropy": {"cross_entropy_weight": 0.0},
    "a tenth of cross entropy's weight": {"cross_entropy_weight": 0.1},
    "no distance between images of a class": {"diversity_weight": 0.0},
    "ten times that distance's weight": {"diversity_weight": 1.0},
    "a tenth of the generator's learning rate": {"synthesis_learning_rate": 1e-3},
    "a third of the generator's steps": {},
}
# Settings in which rows differ, or that say nothing about what is measured.
OWN = {"bits", "seed", "stop_after", *WITHOUT_EFFECT}
VARIATIONS = (*STUDENT_VARIATIONS, *GENERATOR_VARIATIONS)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classifier", default="resnet20")
    parser.add_argument("--scheme", default="paper", choices=["paper", "deploy"])
    parser.add_argument("--bits", nargs="+", default=["w2a2"], metavar="wNaN")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--preset", default="default", choices=WITH_GENERATOR)
    parser.add_argument("--synthesis-steps", type=int, metavar="N")
    parser.add_argument("--fine-tuning-steps", type=int, metavar="N")
    parser.add_argument("--variations", nargs="+", default=VARIATIONS, choices=VARIATIONS)
    parser.add_argument("--data", default="fashion-mnist", help="or a folder of idx files")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch on the CPU")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="to write")
    return parser.parse_args()


def steps_of_as_many_images(run: Run, changed: Run) -> int:
    """Return the fine-tuning steps in which a changed run sees the images of another."""
    images = run.config.fine_tuning.steps * run.config.fine_tuning.batch_size
    return max(1, images // changed.config.fine_tuning.batch_size)


class Ablation:
    """The measurements of one file.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        given = {"synthesis_steps", "fine_tuning_steps"}
        steps = {name: getattr(options, name) for name in given if getattr(options, name)}
        names = {name: getattr(options, name) for name in ("classifier", "scheme", "preset")}
        self.config = RunConfig.of_options(names | steps)
        self.generators = options.json.with_suffix("")  # a folder beside the file
        command = shlex.join(["python", *sys.orig_argv[1:]])
        date = time.strftime("%Y-%m-%d")
        shared = shared_settings(self.config, OWN, data=options.data)
        self.content: dict[str, Any] = {"settings": shared, "made_with": [], "rows": []}
        discard_old_generators(options.json)
        if options.json.exists():
            self.content = json.loads(options.json.read_text())
            require_same_settings(options.json, self.content.get("settings", {}), shared)
        self.content["made_with"].append({**environment(), "date": date, "command": command})

    def has(self, variation: str, bits: str, seed: int) -> bool:
        """Return True if a figure was measured."""
        wanted = [variation, bits, seed]
        return any([row[k] for k in ("variation", "bits", "seed")] == wanted for row in self.rows)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """All figures."""
        return list(self.content["rows"])

    def measure(
        self, run: Run, generator: GeneratorSource, variation: str, changes: dict[str, Any]
    ) -> None:
        """Calibrate and fine-tune a student of each width, and write its accuracy down."""
        for bits in self.options.bits:
            seed = run.config.seed
            if self.has(variation, bits, seed):
                continue
            learned = generator()
            torch.manual_seed(seed)
            changed = run.with_options(bits=bits, **changes)
            changed = changed.with_options(fine_tuning_steps=steps_of_as_many_images(run, changed))
            rng = changed.rng(RandomStream.GENERATED_IMAGES)
            batches = partial(generated_batches, changed, learned, rng)
            fine_tuned_student(changed, FINE_TUNED, batches)
            assert run.evaluation is not None
            accuracy = {
                row: top1(logits, run.evaluation.labels)
                for row, logits in changed.results.logits.items()
            }
            row = {"variation": variation, "bits": bits, "seed": seed, **accuracy}
            self.content["rows"].append(row)
            write_whole(self.options.json, (json.dumps(self.content, indent=1) + "\n").encode())
            print(json.dumps(row), flush=True)

    def run(self, folder: Path) -> None:
        """Measure every variation with every seed."""
        for seed in self.options.seeds:
            config = replace(self.config, seed=seed, output=folder / f"seed{seed}")
            run = prepare_run(config, self.options.data, held_out=True)
            file = self.generators / f"seed{seed}.safetensors"
            generator = cache(partial(cached_generator, run, file))
            fewer = {"synthesis_steps": max(1, config.generator.steps // 3)}
            for variation in self.options.variations:
                if variation in STUDENT_VARIATIONS:
                    self.measure(run, generator, variation, STUDENT_VARIATIONS[variation])
                else:
                    changed = run.with_options(**(GENERATOR_VARIATIONS[variation] or fewer))
                    self.measure(run, cache(partial(seeded_generator, changed)), variation, {})


def table(rows: list[dict[str, Any]]) -> str:
    """Lay out mean and standard deviation over the seeds as a Markdown table."""
    widths = list(dict.fromkeys(row["bits"] for row in rows))
    lines = ["| | " + " | ".join(width.upper() for width in widths) + " |"]
    lines.append("|---|" + "--:|" * len(widths))
    for variation in dict.fromkeys(row["variation"] for row in rows):
        cells = []
        for bits in widths:
            found = [
                row["fine_tuned"]
                for row in rows
                if (row["variation"], row["bits"]) == (variation, bits)
            ]
            spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
            cells.append(f"{statistics.mean(found):.1f}{spread}" if found else "")
        lines.append(f"| {variation} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the table."""
    options = parse_arguments()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        ablation = Ablation(options)
    except InputError as error:
        sys.exit(f"error: {error}")
    with tempfile.TemporaryDirectory() as folder:
        ablation.run(Path(folder))
    print(table(ablation.rows))


if __name__ == "__main__":
    main()
