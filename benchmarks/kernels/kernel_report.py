"""Tables and the chart of `bench_kernels`."""

import json
import math
from pathlib import Path
from typing import Any

from benchmarks.results_file import replace_measured_table

Row = dict[str, Any]
SUBJECT = ("op", "direction", "layout", "dtype", "shape", "device")
LARGE_BYTES, LARGEST_BYTES = 12e6, 400e6  # moved by an op on one tensor of about 32 MB
SHOWN_LAYOUTS = ("NCHW", "channels_last")
STYLES = {  # color, marker
    "native": ("#1b7837", "o"),
    "torch": ("#2166ac", "v"),
    "compiled": ("#b35806", "D"),
    "reference": ("#762a83", "s"),
}


def subjects(rows: list[Row]) -> list[dict[str, Row]]:
    """Group rows that differ in the implementation alone."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        key = tuple(str(row[name]) for name in SUBJECT)
        groups.setdefault(key, {})[row["implementation"]] = row
    return list(groups.values())


def shape_text(row: Row) -> str:
    """Write a shape as 128x64x28x28."""
    return "x".join(str(size) for size in row["shape"])


def print_table(rows: list[Row]) -> None:
    """Print every row."""
    titles = ("op", "direction", "layout", "dtype", "shape", "implementation")
    lines: list[tuple[str, ...]] = [(*titles, "ms", "GB/s", "x floor")]
    for row in rows:
        cells = [shape_text(row) if title == "shape" else row[title] for title in titles]
        figures = (f"{row['median_ms']:.4f}", f"{row['gb_per_s']:.2f}", f"{row['versus_copy']:.2f}")
        lines.append((*cells, *figures))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))


Panels = dict[tuple[str, str], dict[str, dict[str, Row]]]


def panels_of(rows: list[Row]) -> Panels:
    """Return what the chart shows, by dtype and layout, and in each by op and direction."""
    groups = subjects(rows)
    panels: Panels = {}
    for group in [g for g in groups if is_shown(g["native"]) and len(g) > 2] or groups:
        row = group["native"]
        line = f"{row['op']}, {row['direction']}"
        panels.setdefault((row["dtype"], row["layout"]), {})[line] = group
    return panels


def draw_chart(rows: list[Row], path: Path) -> None:
    """Draw time over the floor, on large tensors where there are any."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import lines, pyplot

    panels = panels_of(rows)
    names = list(dict.fromkeys(line for panel in panels.values() for line in panel))
    columns = min(2, len(panels))
    count = math.ceil(len(panels) / columns)
    figure, grid = pyplot.subplots(
        count, columns, squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    figure.set_size_inches(4 * columns + 2.5, (0.21 * len(names) + 0.5) * count + 0.8)
    for (title, panel), axes in zip(panels.items(), grid.flat, strict=False):
        axes.set_title(", ".join(title), fontsize=9)
        axes.grid(axis="y", linewidth=0.3)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.tick_params(labelsize=7)
        for name, (color, marker) in STYLES.items():
            found = {line: group[name] for line, group in panel.items() if name in group}
            values = [row["versus_copy"] for row in found.values()]
            axes.plot(values, [names.index(line) for line in found], marker, color=color)
    first = grid[0][0]
    first.set_yticks(range(len(names)), names)
    first.invert_yaxis()
    first.set_xscale("log")
    figure.supxlabel("time over the floor: bytes moved at the bandwidth of a copy", fontsize=9)
    handles = [lines.Line2D([], [], color=c, marker=m, ls="") for c, m in STYLES.values()]
    figure.legend(handles, list(STYLES), loc="outside upper right", ncols=len(STYLES), fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def is_shown(row: Row) -> bool:
    """Return True if chart and documents show a row: activations that memory limits."""
    is_large = bool(LARGE_BYTES < row["bytes"] < LARGEST_BYTES)
    return is_large and row["layout"] in SHOWN_LAYOUTS and row["dtype"] != "float16"


def speedup(group: dict[str, Row], name: str) -> str:
    """Return how many times faster the native core is, or a dash where nothing was compared."""
    if name not in group:
        return "-"
    return f"{group[name]['median_ms'] / group['native']['median_ms']:.2f}x"


def markdown(result: dict[str, Any], source: str) -> str:
    """Return the table of a document."""
    made = result["made_with"]
    machine = made["gpu"] or f"{made['cpu']}, {made['threads']} threads"
    lines = [
        f"{machine}; torch {made['versions']['torch']}; commit {str(made['commit'])[:12]};"
        f" {made['date']}; all rows in `{source}`.",
        "",
        "| op | direction | layout | dtype | shape | ms | GB/s | x floor"
        " | vs reference | vs ATen | vs compiled |",
        "|---|---|---|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    groups = subjects(result["rows"])
    for group in [group for group in groups if is_shown(group["native"])] or groups:
        row = group["native"]
        texts = [row["op"], row["direction"], row["layout"], row["dtype"], shape_text(row)]
        digits = max(0, 2 - math.floor(math.log10(row["median_ms"])))
        figures = [f"{row['median_ms']:.{digits}f}", f"{row['gb_per_s']:.1f}"]
        figures.append(f"{row['versus_copy']:.2f}")
        compared = [speedup(group, name) for name in ("reference", "torch", "compiled")]
        lines.append("| " + " | ".join([*texts, *figures, *compared]) + " |")
    return "\n".join(lines)


def update_documentation(document: Path, source: Path) -> None:
    """Put the table of a JSON file into a document.

    Raises:
        SystemExit: if the document has no place for it.
    """
    replace_measured_table(document, markdown(json.loads(source.read_text()), source.name))
