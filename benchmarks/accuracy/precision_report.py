"""Top-1 in bfloat16 beside float32, from JSON files of `bench_accuracy`, as Markdown tables.

python -m benchmarks.accuracy.precision_report --json FLOAT32.json BFLOAT16.json ...
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.accuracy.accuracy_cells import BITS
from benchmarks.accuracy.accuracy_results import read_file
from zscgan_ext.errors import InputError
from zscgan_ext.stages.variants import FINE_TUNED

PRECISIONS = ("float32", "bfloat16")
Cell = tuple[str, str, str]  # classifier, scheme, width
Figures = dict[tuple[str, Cell], dict[int, float]]  # of a precision and a cell, by seed


def figures_of(files: Sequence[Path]) -> Figures:
    """Read the fine-tuned rows of files.

    Raises:
        InputError: if a file is no result of `bench_accuracy`.
    """
    found: Figures = {}
    for file in files:
        content = read_file(file)
        precision = content["settings"]["precision"]
        for row in content["rows"]:
            if row["row"] == FINE_TUNED.key:
                cell = row["classifier"], row["scheme"], row["bits"]
                found.setdefault((precision, cell), {})[row["seed"]] = row["top1"]
    return found


def with_spread(values: Sequence[float], sign: str = "") -> str:
    """Return mean and standard deviation, and the number of values where it is not three."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    count = "" if len(values) == 3 else f" ({len(values)})"
    return f"{statistics.mean(values):{sign}.2f}{spread}{count}"


def table(figures: Figures) -> str:
    """Return a line for each classifier, scheme and width; differences are those of equal seeds."""
    cells = list(dict.fromkeys(cell for _, cell in figures))
    cells.sort(key=lambda cell: (cell[0], cell[1], BITS.index(cell[2])))
    lines = ["| classifier | scheme | width | float32 | bfloat16 | difference |"]
    lines.append("|---|---|---|--:|--:|--:|")
    for cell in cells:
        wide, narrow = (figures.get((precision, cell), {}) for precision in PRECISIONS)
        columns = [with_spread(list(values.values())) for values in (wide, narrow)]
        columns.append(with_spread([narrow[s] - wide[s] for s in narrow if s in wide], "+"))
        lines.append(f"| {cell[0]} | {cell[1]} | {cell[2].upper()} | {' | '.join(columns)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, nargs="+", required=True, metavar="FILE")
    try:
        print(table(figures_of(parser.parse_args(arguments).json)))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
