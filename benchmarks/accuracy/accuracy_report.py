"""Table and chart of `bench_accuracy`, from one or several of its JSON files.

    python -m benchmarks.accuracy.accuracy_report --json A.json B.json --output accuracy.md

The chart is written beside the table, as a PNG file.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy.accuracy_cells import BITS, QUANTIZED, VARIANTS
from benchmarks.accuracy.accuracy_results import Row, merged
from zscgan_ext.errors import InputError
from zscgan_ext.run_folder.whole_file import write_whole
from zscgan_ext.stages.variants import FLOAT

GENERATED, REAL = "fine_tuned", "real_fine_tuned"
# Rows that the chart shows: color, marker, line. The table has all.
STYLES = {
    "noise_nearest": ("#999999", "v", ":"),
    "gdfq": ("#2166ac", "^", "--"),
    "squant": ("#b35806", "D", "--"),
    "fine_tuned": ("#1b7837", "o", "-"),
    "real_fine_tuned": ("#762a83", "o", "-"),
}
LINEAR_UP_TO = 0.3  # points lost; the axis is logarithmic from here on
# Of figures that were measured with other settings than the file's; the last for all that is left.
MARKS = "°†‡§¶‖"


def other_settings(row: Row) -> str:
    """Return the settings of a row that differ from the file's, as options."""
    settings = row.get("other_settings", {})
    return ", ".join(f"`--{name.replace('_', '-')} {value}`" for name, value in settings.items())


class Figures:
    """Top-1 of all rows, by classifier, scheme, width and row: one for each seed."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self.classifiers = list(dict.fromkeys(row["classifier"] for row in rows))
        quantized = [row for row in rows if row["row"] != FLOAT.key]
        self.schemes = list(dict.fromkeys(row["scheme"] for row in quantized))
        present = dict.fromkeys(row["bits"] for row in quantized)
        self.bits = [*(b for b in BITS if b in present), *(b for b in present if b not in BITS)]
        self.seeds = sorted({row["seed"] for row in quantized})
        others = dict.fromkeys(filter(None, map(other_settings, rows)))
        self.marks = {text: MARKS[min(i, len(MARKS) - 1)] for i, text in enumerate(others)}

    def rows_of(self, classifier: str, scheme: str, bits: str, name: str) -> list[Row]:
        """Return the rows of a cell, one for each seed."""
        key = (classifier, scheme, bits, name)
        kept = ("classifier", "scheme", "bits", "row")
        return [row for row in self.rows if tuple(row[part] for part in kept) == key]

    def top1(self, classifier: str, scheme: str, bits: str, name: str) -> dict[int, float]:
        """Return top-1 by seed."""
        return {row["seed"]: row["top1"] for row in self.rows_of(classifier, scheme, bits, name)}

    def mark(self, classifier: str, scheme: str, bits: str, name: str) -> str:
        """Return the marks of a cell that was measured with other settings than the file's."""
        texts = map(other_settings, self.rows_of(classifier, scheme, bits, name))
        return "".join(dict.fromkeys(self.marks[text] for text in texts if text))

    def gaps(self, classifier: str, scheme: str, bits: str) -> dict[int, float]:
        """Return by seed how far generated images are above real ones, both fine-tuned."""
        generated = self.top1(classifier, scheme, bits, GENERATED)
        real = self.top1(classifier, scheme, bits, REAL)
        return {seed: generated[seed] - real[seed] for seed in generated if seed in real}

    def of_float(self, classifier: str) -> float | None:
        """Return the float classifier's top-1."""
        found = [
            r["top1"] for r in self.rows if (r["classifier"], r["row"]) == (classifier, FLOAT.key)
        ]
        return found[0] if found else None

    def cell(self, values: dict[int, float], sign: str = "") -> str:
        """Return mean and standard deviation; with the number of seeds where some lack."""
        if not values:
            return "-"
        text = f"{statistics.mean(values.values()):{sign}.2f}"
        if len(values) > 1:
            text += f" ± {statistics.stdev(values.values()):.2f}"
        return text if len(values) == len(self.seeds) else f"{text} ({len(values)})"


def table(figures: Figures, classifier: str, scheme: str) -> list[str]:
    """Return the lines of the table of one classifier and scheme."""
    lines = [
        "| | " + " | ".join(bits.upper() for bits in figures.bits) + " |",
        "|---|" + "--:|" * len(figures.bits),
    ]
    for name in QUANTIZED:
        values = [figures.top1(classifier, scheme, bits, name) for bits in figures.bits]
        if any(values):
            marks = [figures.mark(classifier, scheme, bits, name) for bits in figures.bits]
            cells = [figures.cell(value) + mark for value, mark in zip(values, marks, strict=True)]
            lines.append(f"| {VARIANTS[name].label} | " + " | ".join(cells) + " |")
    gaps = [figures.gaps(classifier, scheme, bits) for bits in figures.bits]
    if any(gaps):
        cells = [figures.cell(gap, "+") for gap in gaps]
        lines.append("| generated less real, both fine-tuned | " + " | ".join(cells) + " |")
    return lines


def markdown(content: dict[str, Any], sources: Sequence[Path], chart: str) -> str:
    """Return the whole document."""
    figures = Figures(content["rows"])
    settings = content["settings"]
    machines = dict.fromkeys(
        f"{made['cpu']}, {made['threads']} threads, torch {made['torch']}"
        for made in content["made_with"]
    )
    commits = dict.fromkeys(str(made["commit"])[:12] for made in content["made_with"])
    seeds = ", ".join(map(str, figures.seeds))
    lines = [
        "# Accuracy",
        "",
        f"Top-1 in percent on the {settings['measured_on']} of {settings['data']}, after the last"
        f" step: mean ± standard deviation over seeds {seeds}, with their number in brackets where"
        " some are missing. What each row is stands in"
        " [docs/research/accuracy.md](../../docs/research/accuracy.md).",
        "",
        f"{settings['synthesis_steps']} steps of generator learning and"
        f" {settings['fine_tuning_steps']} of fine-tuning, batches of {settings['batch_size']}"
        f" and {settings['fine_tuning_batch_size']}."
        f" Made by `bench_accuracy`, in {', '.join(f'`{s.name}`' for s in sources)}."
        f" {'; '.join(machines)}; commit {', '.join(commits)}.",
        "",
    ]
    for text, mark in figures.marks.items():
        lines += [f"{mark} measured with {text}.", ""]
    lines.append(f"![top-1 over widths]({chart})")
    for classifier in figures.classifiers:
        for scheme in figures.schemes:
            accuracy = figures.of_float(classifier)
            named = "" if accuracy is None else f", float {accuracy:.2f}"
            lines += ["", f"## {classifier}, scheme {scheme}{named}", ""]
            lines += table(figures, classifier, scheme)
    return "\n".join(lines) + "\n"


def draw_chart(content: dict[str, Any], path: Path) -> None:
    """Draw the points of top-1 lost over the widths, a panel for each classifier and scheme."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = Figures(content["rows"])
    shape = (max(1, len(figures.classifiers)), max(1, len(figures.schemes)))
    size = (4.6 * shape[1], 3.4 * shape[0] + 0.7)
    figure, panels = pyplot.subplots(
        *shape, figsize=size, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    lines: dict[str, Any] = {}
    for classifier, row in zip(figures.classifiers, panels, strict=False):
        row[0].set_ylabel("points of top-1 lost")
        for scheme, axes in zip(figures.schemes, row, strict=False):
            axes.set_title(f"{classifier}, {scheme}", fontsize=10)
            lines |= draw_losses(axes, figures, classifier, scheme)
    axes = panels[0][0]
    axes.set_yscale("symlog", linthresh=LINEAR_UP_TO)
    ticks = [0, 0.1, 0.3, 1, 3, 10, 30, 90]
    axes.set_yticks(ticks, map(str, ticks))
    axes.set_ylim(ticks[-1], -0.15)  # nothing lost is at the top
    axes.set_xticks(range(len(figures.bits)), [bits.upper() for bits in figures.bits])
    labels = [VARIANTS[name].label for name in lines]
    title = "bars: lowest and highest of the seeds"
    figure.legend(
        lines.values(), labels, title=title, loc="outside lower center", ncols=2, fontsize=8
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draw_losses(axes: Any, figures: Figures, classifier: str, scheme: str) -> dict[str, Any]:
    """Draw the rows of one panel; return their lines by name."""
    lines: dict[str, Any] = {}
    accuracy = figures.of_float(classifier)
    axes.grid(axis="y", linewidth=0.4)
    if accuracy is None:
        return lines
    for name, (color, marker, style) in STYLES.items():
        seeds = [figures.top1(classifier, scheme, bits, name).values() for bits in figures.bits]
        lost = {i: [accuracy - value for value in s] for i, s in enumerate(seeds) if s}
        means = [statistics.mean(values) for values in lost.values()]
        spread = [
            [mean - min(values) for mean, values in zip(means, lost.values(), strict=True)],
            [max(values) - mean for mean, values in zip(means, lost.values(), strict=True)],
        ]
        look = {"color": color, "marker": marker, "linestyle": style, "markersize": 4}
        if lost:
            lines[name] = axes.errorbar(list(lost), means, spread, capsize=2, **look)
    return lines


def write_report(files: Sequence[Path], output: Path) -> None:
    """Write the table, and the chart beside it.

    Raises:
        InputError: if the files do not belong together.
    """
    content = merged(files)
    chart = output.with_suffix(".png")
    draw_chart(content, chart)
    write_whole(output, markdown(content, files, chart.name).encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Join the files and write the report; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help=".md to write")
    options = parser.parse_args(arguments)
    try:
        write_report(options.json, options.output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
