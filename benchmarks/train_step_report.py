"""Tables and the chart of `bench_train_step.py`."""

import json
from pathlib import Path
from typing import Any

from measured_table import replace_measured_table

Row = dict[str, Any]
SUBJECT = ("classifier", "stage", "batch", "device")
COLORS = {
    "eager": "#762a83",
    "compiled": "#9970ab",
    "reference": "#c2a5cf",
    "native": "#1b7837",
}
TITLES = (
    *("classifier", "stage", "batch", "device"),
    *("eager ms", "compiled ms", "reference ms", "native ms"),
    *("eager / native", "reference / native", "eager MB", "native MB", "native / eager"),
)


def groups_of(rows: list[Row]) -> dict[tuple[Any, ...], dict[str, Row]]:
    """Group rows that differ in the implementation alone."""
    groups: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in SUBJECT)
        groups.setdefault(key, {})[row["implementation"]] = row
    return groups


def line_of(subject: tuple[Any, ...], group: dict[str, Row]) -> list[str]:
    """Return the cells of one line; a dash where nothing was measured."""
    # A GPU takes milliseconds where a CPU takes seconds.
    digits = 2 if subject[SUBJECT.index("device")] == "cuda" else 0

    def figure(name: str, key: str, unit: float, digits: int) -> str:
        return f"{group[name][key] / unit:.{digits}f}" if name in group else "-"

    def ratio(over: str, under: str, key: str) -> str:
        if over not in group or under not in group:
            return "-"
        return f"{group[over][key] / group[under][key]:.2f}x"

    times = [figure(name, "median_ms", 1, digits) for name in COLORS]
    memory = [figure(name, "peak_memory_bytes", 1e6, 0) for name in ("eager", "native")]
    return [
        *map(str, subject),
        *times,
        ratio("eager", "native", "median_ms"),
        ratio("reference", "native", "median_ms"),
        *memory,
        ratio("native", "eager", "peak_memory_bytes"),
    ]


def lines_of(rows: list[Row]) -> list[list[str]]:
    """Return the cells of all lines."""
    return [line_of(subject, group) for subject, group in groups_of(rows).items()]


def matching_costs(rows: list[Row]) -> list[str]:
    """Say, for each classifier, what matching costs beside the same passes without it."""
    native = {subject: group.get("native") for subject, group in groups_of(rows).items()}
    texts = []
    for (classifier, stage, *rest), row in native.items():
        plain = native.get((classifier, "teacher", *rest))
        if stage == "teacher_matched" and row and plain:
            ratio = row["median_ms"] / plain["median_ms"]
            texts.append(f"{classifier} {rest[0]} {rest[1]}: teacher_matched / teacher {ratio:.2f}")
    return texts


def print_table(rows: list[Row]) -> None:
    """Print the implementations side by side."""
    lines = [list(TITLES), *lines_of(rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(TITLES))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    print("\n".join(matching_costs(rows)))


def draw_chart(rows: list[Row], path: Path) -> None:
    """Draw the time of every step."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches, pyplot

    height = 0.25 * len(rows) + 1.5
    figure, axes = pyplot.subplots(figsize=(9, height), layout="constrained")
    place, ticks = 0.0, []
    for (classifier, stage, batch, device), group in groups_of(rows).items():
        start = place
        for name, color in COLORS.items():
            if name in group:
                value = group[name]["median_ms"]
                axes.barh(place, value, color=color)
                axes.text(value, place, f" {value:.0f}", va="center", fontsize=7)
                place += 1
        label = f"{classifier} {stage}\nbatch {batch}, {device}"
        ticks.append(((start + place - 1) / 2, label))
        place += 1
    axes.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.1, y=0.01)
    axes.set_xlabel("milliseconds of one step")
    measured = {row["implementation"] for row in rows}
    drawn = {name: color for name, color in COLORS.items() if name in measured}
    axes.legend([patches.Patch(color=color) for color in drawn.values()], list(drawn))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def markdown(result: dict[str, Any], source: str) -> str:
    """Return the table of a document."""
    made = result["made_with"]
    machine = made["gpu"] or f"{made['cpu']}, {made['threads']} threads"
    lines = [
        f"{machine}; torch {made['versions']['torch']}; commit {str(made['commit'])[:12]};"
        f" {made['date']}; `{source}`.",
        "",
        "| " + " | ".join(TITLES) + " |",
        "|" + "---|" * len(SUBJECT) + "--:|" * (len(TITLES) - len(SUBJECT)),
    ]
    lines += ["| " + " | ".join(line) + " |" for line in lines_of(result["rows"])]
    return "\n".join([*lines, "", *(f"- {text}" for text in matching_costs(result["rows"]))])


def update_documentation(document: Path, source: Path) -> None:
    """Put the table of a JSON file into a document.

    Raises:
        SystemExit: if the document has no place for it.
    """
    replace_measured_table(document, markdown(json.loads(source.read_text()), source.name))
