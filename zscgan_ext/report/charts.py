"""Charts as SVG text to stand in a page: its own text colour, no background, no scripts."""

import io
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, MaxNLocator
from torch import Tensor

from zscgan_ext.errors import printable
from zscgan_ext.report.measurements import LayerStatistics, MeasuredTensor

INK = "#010203"  # stands for the text colour of the page
COLOURS = ("#3b82c4", "#e07b39", "#3a9d6e", "#b05cc6", "#c44e52", "#8c8c8c")
GREY = "#8c8c8c"
LARGEST_LINEAR_SPAN = 5  # of curves on a linear axis: the highest value over the lowest
# Shares from 0 to 100 %, thin enough for the text of the page, light or dark, to stay legible.
SHARES = LinearSegmentedColormap.from_list("shares", [f"{COLOURS[0]}00", f"{COLOURS[0]}cc"])
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # names may hold anything
    "svg.hashsalt": "zscgan_ext",
    "font.size": 7,
    "font.family": "sans-serif",
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.color": GREY,
    "lines.linewidth": 1.3,
    "lines.markersize": 3,
    "legend.frameon": False,
    "legend.fontsize": 6.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}
LONGEST_LABEL = 20  # characters
WIDTH, HEIGHT = 4.2, 2.6  # inches: small, so that texts are large where the page scales it


def chart(name: str, draw: Callable[[Figure], Any], height: float = HEIGHT) -> str:
    """Draw a figure and return it as an `svg` element.

    Args:
        name: makes the identifiers in the element its own.
        draw: given the empty figure.
        height: inches.
    """
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A matplotlibrc in the current folder could have TeX run.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        warnings.simplefilter("ignore")  # of labels that do not fit: they are cut then
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    prefix = re.sub(r"\W", "-", name)
    text = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{prefix}-", text)
    # The page gives the size: as wide as its column.
    return re.sub(r'^(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text)


def tick_labels(names: Sequence[str]) -> list[str]:
    """Return names short enough for an axis."""
    return [printable(name)[:LONGEST_LABEL] for name in names]


class LogTickFormatter(LogFormatter):
    """Labels the ticks that matplotlib labels, by numbers: its formulas are not parsed here."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Return the label of a tick, empty for one without."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def label_log_ticks(axis: Axis) -> None:
    """Label the ticks of a logarithmic axis by numbers; to be called once its scale is set."""
    axis.set_major_formatter(LogTickFormatter())
    axis.set_minor_formatter(LogTickFormatter())


def set_scale_of_losses(axes: Axes) -> None:
    """Give an axis a logarithmic scale, where curves span so much that a linear one hides some."""
    low, high = axes.dataLim.intervaly
    if 0 < high / LARGEST_LINEAR_SPAN <= low:
        axes.set_ylim(0, 1.05 * high)
    elif low > 0:
        axes.set_yscale("log")
        label_log_ticks(axes.yaxis)
    elif high > 0:
        axes.set_yscale("symlog", linthresh=high / 100)
        label_log_ticks(axes.yaxis)


def loss_curves(name: str, stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Draw what a training logged over its steps: losses above, percentages below.

    Args:
        name: of the chart, which is its title too.
        stages: entries of `metrics.jsonl` by the name to show.
    """

    def draw(figure: Figure) -> None:
        losses, percentages = figure.subplots(2, 1, sharex=True)
        for stage, entries in stages.items():
            for key in (key for key in entries[0] if key not in ("stage", "step")):
                is_percentage = key in ("teacher_accuracy", "agreement")
                axes = percentages if is_percentage else losses
                label = f"{stage}: {key.replace('_', ' ')}" if len(stages) > 1 else key
                points = [(entry["step"], entry[key]) for entry in entries if key in entry]
                axes.plot(*zip(*points, strict=True), marker="o", label=label.replace("_", " "))
        losses.set_title(name, loc="left")
        set_scale_of_losses(losses)
        percentages.set_ylim(0, 102)
        percentages.set_ylabel("%")
        percentages.set_xlabel("step")
        for axes in (losses, percentages):
            if axes.lines:
                axes.legend(loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0)

    return chart(name, draw, 3.2)


def distances_by_layer(measured: Mapping[str, Sequence[LayerStatistics]], kind: str) -> str:
    """Draw, for each source of images, the distance of every batch-norm layer."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for label, layers in measured.items():
            values = [layer.distance(kind) for layer in layers]
            axes.plot(range(1, len(values) + 1), values, marker="o", label=label)
        axes.set_yscale("log")
        label_log_ticks(axes.yaxis)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("batch-norm layer, from the input to the logits")
        axes.set_title(f"distance to the stored statistics ({kind})", loc="left")
        figure.legend(loc="outside lower center", ncols=len(measured))

    return chart("distances", draw)


def statistics_by_channel(measured: Mapping[str, Sequence[LayerStatistics]]) -> str:
    """Draw every channel's mean and standard deviation against the stored ones."""

    def draw(figure: Figure) -> None:
        means, deviations = figure.subplots(1, 2)
        for label, layers in measured.items():
            for layer in layers:
                colour = COLOURS[list(measured).index(label)]
                spread = (layer.stored_variance + layer.eps).sqrt()
                shown = label if layer is layers[0] else None
                dots = {"s": 1.5, "alpha": 0.5, "linewidths": 0, "rasterized": True}
                means.scatter(
                    *(layer.stored_mean / spread, layer.mean / spread),
                    **{**dots, "color": colour, "label": shown},
                )
                deviations.scatter(
                    *(spread, (layer.variance + layer.eps).sqrt()),
                    **{**dots, "color": colour, "label": shown},
                )
        means.set_title("mean / stored deviation", loc="left")
        deviations.set_title("standard deviation", loc="left")
        deviations.set_xscale("log")
        deviations.set_yscale("log")
        label_log_ticks(deviations.xaxis)
        label_log_ticks(deviations.yaxis)
        means.set_ylabel("measured")
        for axes in (means, deviations):
            axes.axline((1, 1), (2, 2), color=GREY, linewidth=0.8)
            axes.set_xlabel("stored")
        deviations.legend(markerscale=4)

    return chart("channels", draw)


def errors_by_layer(errors: Mapping[str, Sequence[MeasuredTensor]]) -> str:
    """Draw the SQNR of weights and activations in their order, the worst one named."""

    def draw(figure: Figure) -> None:
        for axes, (label, rows) in zip(figure.subplots(2, 1), errors.items(), strict=True):
            values = [row.sqnr if math.isfinite(row.sqnr) else math.nan for row in rows]
            axes.plot(range(1, len(values) + 1), values, marker="o")
            finite = [value for value in values if not math.isnan(value)]
            if finite:
                lowest = values.index(min(finite))
                axes.plot(
                    [lowest + 1], [values[lowest]], marker="o", color=COLOURS[4], markersize=5
                )
                axes.set_ylim(bottom=min(0, min(finite)) - 2)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_title(f"{label}: SQNR, dB", loc="left")

    return chart("errors", draw, 3.2)


def widths_of_layers(widths: Sequence[float], divergences: Mapping[str, Sequence[float]]) -> str:
    """Draw the width of each layer's weights, and below it what each width would lose.

    Args:
        widths: bits, in the order of the layers; NaN for layers in floats.
        divergences: KL divergence of the logits of each layer, by what to call the width; NaN where
            it was not measured.
    """

    def draw(figure: Figure) -> None:
        rows = figure.subplots(2 if divergences else 1, 1, sharex=True, squeeze=False)[:, 0]
        places = range(1, len(widths) + 1)
        rows[0].bar(places, widths, 0.8)
        rows[0].set_ylim(0, 8.5)
        rows[0].set_title("bits of the weights", loc="left")
        for label, values in divergences.items():
            shown = [value if value > 0 else math.nan for value in values]
            rows[1].plot(places, shown, marker="o", label=label)
        if divergences:
            rows[1].set_yscale("log")
            label_log_ticks(rows[1].yaxis)
            rows[1].legend(loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0)
            rows[1].set_title("KL divergence of the logits, this layer alone", loc="left")
        rows[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        rows[-1].set_xlabel("layer, from the input to the logits")

    return chart("widths", draw, 3.2 if divergences else HEIGHT)


def confusion_matrix(counts: Tensor, class_names: Sequence[str]) -> str:
    """Draw how many images each pair of classes has, as the share of the row in percent."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shares = 100 * counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
        axes.imshow(shares.numpy(), cmap=SHARES, vmin=0, vmax=100)
        axes.grid(visible=False)
        places, names = range(len(class_names)), tick_labels(class_names)
        axes.set_xticks(places, names, rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(places, names)
        axes.set_xlabel("class of the quantized classifier")
        axes.set_ylabel("class of the float classifier")
        size = min(6.0, 60 / len(class_names))
        for row, column in (shares >= 0.5).nonzero().tolist():
            share = f"{float(shares[row, column]):.0f}"
            axes.text(column, row, share, ha="center", va="center", fontsize=size)

    return chart("confusion", draw, 3.8)


def confidence_histogram(histograms: Mapping[str, Sequence[float]]) -> str:
    """Draw which share of images has which confidence, for generated and real images."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (label, shares) in enumerate(histograms.items()):
            width = 1 / len(shares)
            bar = width * 0.8 / len(histograms)
            left = [bin * width + 0.1 * width + index * bar for bin in range(len(shares))]
            axes.bar(left, shares, bar, align="edge", label=label)
        axes.set_xlabel("the classifier's confidence")
        axes.set_ylabel("images, %")
        axes.set_ylim(0, 102)
        axes.legend()

    return chart("confidence", draw)


def bars_by_class(
    name: str, title: str, values: Mapping[str, Mapping[int, float]], class_names: Sequence[str]
) -> str:
    """Draw one bar for each class and source of images.

    Args:
        name: of the chart.
        title: what is shown, with its unit.
        values: by source and label.
        class_names: of all classes.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        labels = sorted({label for each in values.values() for label in each})
        height = 0.8 / max(1, len(values))
        for index, (source, by_label) in enumerate(values.items()):
            places = [labels.index(label) + index * height - 0.4 for label in by_label]
            axes.barh(places, list(by_label.values()), height, align="edge", label=source)
        axes.set_yticks(range(len(labels)), tick_labels([class_names[i] for i in labels]))
        axes.invert_yaxis()
        axes.set_xlim(0, 1.05 * max(max(each.values()) for each in values.values()) or 1)
        axes.set_title(title, loc="left")
        figure.legend(loc="outside lower center", ncols=len(values))  # bars reach everywhere

    return chart(name, draw, max(HEIGHT, 0.9 + 0.17 * len(next(iter(values.values()), ()))))


def stage_times(seconds: Mapping[str, float]) -> str:
    """Draw the seconds of each stage as one bar each."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names = [name.replace("_", " ") for name in seconds]
        bars = axes.barh(names, list(seconds.values()), 0.6)
        axes.bar_label(bars, fmt="%.1f s", padding=3)
        axes.margins(x=0.15)
        axes.invert_yaxis()
        axes.set_xlabel("seconds")

    return chart("seconds", draw, 0.6 + 0.3 * len(seconds))
