"""Tables and the chart of `bench_train_step`."""

import json
from pathlib import Path
from typing import Any

from benchmarks.results_file import replace_measured_table

Row = dict[str, Any]
SUBJECT = ("classifier", "stage", "batch", "device", "precision")
COLORS = {
    "eager": "#762a83",
    "alike": "#9970ab",
    "compiled": "#c2a5cf",
    "native": "#1b7837",
}
TITLES = (
    *SUBJECT,
    *("eager ms", "alike ms", "compiled ms", "native ms"),
    *("eager / native", "alike / native", "compiled / native"),
    *("eager MB", "native MB", "native / eager"),
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
        *(ratio(name, "native", "median_ms") for name in ("eager", "alike", "compiled")),
        *memory,
        ratio("native", "eager", "peak_memory_bytes"),
    ]


def table_of(rows: list[Row]) -> list[list[str]]:
    """Return the titles and the cells of all lines, without columns in which nothing stands."""
    lines = [line_of(subject, group) for subject, group in groups_of(rows).items()]
    kept = [i for i in range(len(TITLES)) if any(line[i] != "-" for line in lines)]
    return [[line[i] for i in kept] for line in (list(TITLES), *lines)]


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
    lines = table_of(rows)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    print("\n".join(matching_costs(rows)))


def draw_chart(rows: list[Row], path: Path) -> None:
    """Draw how many times faster than eager every step is that eager takes too."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import patches, pyplot

    groups = {subject: group for subject, group in groups_of(rows).items() if "eager" in group}
    figure, axes = pyplot.subplots(figsize=(8, 0.24 * len(rows) + 1.2), layout="constrained")
    place, ticks = 0.0, {}
    for (classifier, stage, batch, device, _), group in groups.items():
        start, eager = place, group["eager"]["median_ms"]
        for name in (name for name in COLORS if name in group and name != "eager"):
            value = group[name]["median_ms"]
            axes.barh(place, eager / value, color=COLORS[name])
            text = f" {eager / value:.2f}x, {value:.{0 if value > 99 else 2}f} ms"
            axes.text(eager / value, place, text, va="center", fontsize=7)
            place += 1
        label = f"{classifier} {stage}, batch {batch}\n{device}, eager {eager:.0f} ms"
        ticks[label] = (start + place - 1) / 2
        place += 0.7
    axes.set_yticks(list(ticks.values()), list(ticks), fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.16, y=0.01)
    axes.axvline(1, color="black", linewidth=0.6, zorder=0)
    axes.set_xlabel("times as fast as eager")
    measured = {row["implementation"] for row in rows} - {"eager"}
    drawn = {name: color for name, color in COLORS.items() if name in measured}
    axes.legend([patches.Patch(color=color) for color in drawn.values()], list(drawn))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def markdown(result: dict[str, Any], source: str) -> str:
    """Return the table of a document."""
    made = result["made_with"]
    titles, *cells = table_of(result["rows"])
    machine = made["gpu"] or f"{made['cpu']}, {made['threads']} threads"
    lines = [
        f"{machine}; torch {made['versions']['torch']}; commit {str(made['commit'])[:12]};"
        f" {made['date']}; `{source}`.",
        "",
        "| " + " | ".join(titles) + " |",
        "|" + "---|" * len(SUBJECT) + "--:|" * (len(titles) - len(SUBJECT)),
    ]
    lines += ["| " + " | ".join(line) + " |" for line in cells]
    return "\n".join([*lines, "", *(f"- {text}" for text in matching_costs(result["rows"]))])


def update_documentation(document: Path, source: Path) -> None:
    """Put the table of a JSON file into a document.

    Raises:
        SystemExit: if the document has no place for it.
    """
    replace_measured_table(document, markdown(json.loads(source.read_text()), source.name))
