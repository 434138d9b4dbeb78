"""Top-1 of all ways to quantize, over classifiers, schemes, widths and seeds.

    python -m benchmarks.accuracy.bench_accuracy --json benchmarks/results/accuracy.json

Rows are written as they are measured; the same command goes on where an interrupted one ended.
Several processes can share the work, each with its own --classifiers, --seeds or --rows and its
own --json file; `accuracy_report.py` joins the files. Each classifier and seed has one generator,
kept in a folder beside the JSON file, for all widths and schemes. Settings are those of
`python -m zscgan_ext.train` with the same preset, but for those given here; accuracy is that
after the last step.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy.accuracy_cells import (
    BITS,
    CLASSIFIERS,
    QUANTIZED,
    SCHEMES,
    SEEDS,
    VARIANTS,
    Cell,
    ordered_cells,
)
from benchmarks.accuracy.accuracy_report import write_report
from benchmarks.accuracy.accuracy_results import Results, discard_old_generators, shared_settings
from benchmarks.accuracy.accuracy_rows import (
    GeneratorSource,
    cached_generator,
    measure_rows,
    prepare_run,
)
from zscgan_ext.config.configs import WITH_GENERATOR, RunConfig
from zscgan_ext.environment import environment
from zscgan_ext.errors import InputError
from zscgan_ext.measures import agreement, top1
from zscgan_ext.run_folder.made_with import WITHOUT_EFFECT
from zscgan_ext.stages.run import Run
from zscgan_ext.stages.student_stages import evaluate
from zscgan_ext.stages.variants import FLOAT

# Settings that differ from cell to cell, or say nothing about what is measured.
NOT_SHARED = {"classifier", "scheme", "bits", "seed", "stop_after", *WITHOUT_EFFECT}
GIVEN = (
    *("synthesis_steps", "fine_tuning_steps", "batch_size", "fine_tuning_batch_size"),
    *("calibration_batches", "latent_dim"),
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classifiers", nargs="+", default=CLASSIFIERS, choices=CLASSIFIERS)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES, choices=SCHEMES)
    parser.add_argument("--bits", nargs="+", default=BITS, metavar="wNaN")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, metavar="N")
    parser.add_argument("--rows", nargs="+", default=tuple(VARIANTS), choices=VARIANTS)
    parser.add_argument("--only-first", type=int, metavar="N", help="cells; the order is fixed")
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="measure on the last twelfth of the training images, not on the test images",
    )
    parser.add_argument("--data", default="fashion-mnist", help="or a folder of idx files")
    parser.add_argument("--preset", default="default", choices=WITH_GENERATOR)
    for name in GIVEN:
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, metavar="N", help="default: the preset's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int, metavar="N", help="of torch on the CPU")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="to write")
    return parser.parse_args(arguments)


class Benchmark:
    """Measures cells, and keeps what those of a classifier and seed share.

    Args:
        options: of the command line.
        config: of all cells.
        results: what was measured.
    """

    def __init__(self, options: argparse.Namespace, config: RunConfig, results: Results) -> None:
        self.options = options
        self.config = config
        self.results = results
        self.folder = options.json.with_suffix("")
        self.shared: dict[tuple[str, int], tuple[Run, GeneratorSource]] = {}

    def shared_by(self, cell: Cell) -> tuple[Run, GeneratorSource]:
        """Return the run of a cell's classifier and seed, and what learns its generator."""
        key = (cell.classifier, cell.seed)
        if key not in self.shared:
            output = self.folder / f"{cell.classifier}-seed{cell.seed}"
            config = replace(self.config, classifier=cell.classifier, seed=cell.seed, output=output)
            run = prepare_run(config, self.options.data, self.options.held_out)
            evaluate(run, FLOAT, run.classifier.model)
            file = output.with_suffix(".safetensors")
            generator = cache(partial(cached_generator, run, file))
            self.shared[key] = (run, generator)
        return self.shared[key]

    def measure(self, cell: Cell) -> None:
        """Measure the rows of a cell that are not there yet."""
        wanted = {row for row in self.options.rows if not self.results.has(cell, row)}
        if not wanted:
            return
        run, generator = self.shared_by(cell)
        float_logits = run.results.logits[FLOAT.key]
        run = run.with_options(scheme=cell.scheme, bits=cell.bits)
        run.results.logits[FLOAT.key] = float_logits
        if FLOAT.key in wanted:
            self.add(cell, FLOAT.key, run, 0.0)
        start = time.perf_counter()
        for row in measure_rows(run, generator, wanted & set(QUANTIZED)):
            self.add(cell, row, run, time.perf_counter() - start)
            start = time.perf_counter()

    def add(self, cell: Cell, row: str, run: Run, seconds: float) -> None:
        """Count what a row has right; print it and write it down."""
        assert run.evaluation is not None
        logits = run.results.logits[row]
        figures: dict[str, Any] = {
            "top1": top1(logits, run.evaluation.labels),
            "agreement": agreement(logits, run.results.logits[FLOAT.key]),
            "seconds": round(seconds, 1),
        }
        self.results.add(cell, row, figures)
        name = f"{cell.classifier} {cell.scheme} {cell.bits} seed {cell.seed}"
        print(
            f"{time.strftime('%H:%M')} {name}: {VARIANTS[row].label}: {figures['top1']:.2f}",
            flush=True,
        )


def run(options: argparse.Namespace) -> None:
    """Measure all cells.

    Raises:
        InputError: if a setting, the data or the JSON file does not fit.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    given = {name: getattr(options, name) for name in GIVEN if getattr(options, name) is not None}
    names = {name: getattr(options, name) for name in ("preset", "device", "precision")}
    config = RunConfig.of_options(names | given)
    cells = ordered_cells(
        tuple(options.classifiers),
        tuple(options.schemes),
        tuple(options.bits),
        tuple(options.seeds),
    )[: options.only_first]
    for cell in cells:
        config.changed(bits=cell.bits, seed=cell.seed)
    measured_on = "held-out training images" if options.held_out else "test images"
    shared = shared_settings(config, NOT_SHARED, data=options.data, measured_on=measured_on)
    made_with = {
        **environment(),
        "threads": torch.get_num_threads(),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
    }
    discard_old_generators(options.json)
    benchmark = Benchmark(options, config, Results(options.json, shared, made_with))
    for cell in cells:
        benchmark.measure(cell)
    write_report([options.json], options.json.with_suffix(".md"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the report; return the exit code."""
    try:
        run(parse(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
