"""Measures every op against plain PyTorch, ATen, torch.compile and a copy of the same memory.

    python -m benchmarks.kernels.bench_kernels [--device cpu|cuda] [--json FILE] [--chart FILE]
        [--quick]

Prints a table and draws a bar chart. `versus_copy` is the time over the floor: the fewest bytes
that the op may move, at the bandwidth that a copy has in the same run on the same size.
"""

import argparse
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

if os.environ.setdefault("ZSCGAN_EXT_IMPL", "native") != "native":
    sys.exit(f"ZSCGAN_EXT_IMPL is {os.environ['ZSCGAN_EXT_IMPL']!r}, accepted here is native")

import torch

from benchmarks.kernels.kernel_report import draw_chart, print_table, update_documentation
from benchmarks.kernels.plans import (
    OPS,
    Plan,
    full_plan,
    quick_plan,
    sized_plan,
    without_repetition,
)
from benchmarks.kernels.subject import Subject
from benchmarks.results_file import (
    chart_file,
    earlier_rows,
    made_with,
    measuring_parser,
    write_rows,
)
from benchmarks.timing import Implementation, allocator_in_use, median_milliseconds
from zscgan_ext.ops.implementation import cuda_missing_reason

CHART = "kernels.png"


def copy_implementation(subject: Subject, device: torch.device) -> Implementation:
    """Copy as many elements between rotating buffers."""
    pairs = [
        [torch.ones(subject.elements, dtype=subject.dtype, device=device) for _ in range(2)]
        for _ in subject.buffers
    ]
    return lambda index: lambda: [pairs[index][0].copy_(pairs[index][1])]


def measure_subject(subject: Subject, plan: Plan, samples: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of one subject: every direction by every implementation."""
    device = plan.kind.device
    moved_by_copy = 2 * subject.elements * subject.dtype.itemsize
    copy = copy_implementation(subject, device)
    for direction, floor in subject.bytes.items():
        compared = subject.implementations(direction, plan.names[direction])
        times = median_milliseconds(
            compared | {"copy": copy}, len(subject.buffers), subject.elements, samples, device
        )
        for name, median in times.items():
            moved = moved_by_copy if name == "copy" else floor
            yield {
                "op": subject.op,
                "direction": direction,
                "layout": subject.layout,
                "dtype": str(subject.dtype).removeprefix("torch."),
                "shape": list(subject.shape),
                "device": device.type,
                "implementation": name,
                "median_ms": median,
                "bytes": round(moved),
                "gb_per_s": moved / median / 1e6,
                "versus_copy": median / (times["copy"] * moved / moved_by_copy),
            }


def measure(plans: Sequence[Plan], samples: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of each plan, with a line of progress for each."""
    for number, plan in enumerate(plans, 1):
        torch.compiler.reset()
        subject = plan.make(plan.kind)
        print(f"[{number}/{len(plans)}] {subject.op} {subject.layout}", file=sys.stderr)
        yield list(measure_subject(subject, plan, samples))
        del subject
        gc.collect()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = measuring_parser(__doc__, CHART, 20, "the main cases, in a few minutes")
    parser.add_argument(
        "--elements", type=int, nargs="+", help="only float32 tensors of about these sizes"
    )
    parser.add_argument("--ops", nargs="+", choices=OPS, default=OPS, help="only these")
    return parser.parse_args(arguments)


def plans_for(options: argparse.Namespace, device: torch.device) -> list[Plan]:
    """Choose what to measure."""
    if options.elements:
        plans = sized_plan(device, options.elements)
    else:
        plans = quick_plan(device) if options.quick else full_plan(device)
    return without_repetition(plan for plan in plans if plan.make.__name__ in options.ops)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write the JSON file, draw the chart and print the table."""
    options = parse(arguments)
    if options.update_docs:
        return update_documentation(options.update_docs, earlier_rows(options))
    if options.device == "cuda" and (reason := cuda_missing_reason()):
        sys.exit(f"--device cuda: {reason}, accepted here is cpu")
    device = torch.device(options.device)
    allocator = allocator_in_use()
    torch.manual_seed(0)
    gc.disable()
    rows: list[dict[str, Any]] = []
    made = made_with(device, allocator=allocator, samples=options.samples)
    for measured in measure(plans_for(options, device), options.samples):
        rows += measured
        write_rows(options.json, made, rows)
    gc.enable()
    print_table(rows)
    draw_chart(rows, chart_file(options, CHART))


if __name__ == "__main__":
    main()
