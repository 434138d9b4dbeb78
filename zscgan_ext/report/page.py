"""One page about a run, measured from its folder, that needs no network and no other file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup
from torch import Tensor

from zscgan_ext.classifiers.heads import MULTI_LABEL, Head
from zscgan_ext.classifiers.labelled_images import open_labelled_for
from zscgan_ext.config.command_line import CONFIG, read_config
from zscgan_ext.errors import InputError, printable
from zscgan_ext.images.datasets import Images
from zscgan_ext.images.digest import digest_of_images
from zscgan_ext.images.memory_format import to_channels_last
from zscgan_ext.ops.implementation import require_implementation
from zscgan_ext.quantization.layer_widths import widths_described
from zscgan_ext.report import charts
from zscgan_ext.report.measurements import (
    LayerStatistics,
    MeasuredTensor,
    activation_errors,
    confusion,
    layer_statistics,
    most_frequent_changes,
    weight_errors,
    worst,
)
from zscgan_ext.report.pictures import ClassPictures, pictures_by_class
from zscgan_ext.run_folder.files import EXPORT, METRICS, PREDICTIONS, REPORT, only_writer, write_own
from zscgan_ext.run_folder.finished_run import FinishedRun, open_run, require_finished
from zscgan_ext.run_folder.made_with import (
    IMAGES_OF,
    MADE_WITH,
    STUDENT_DIGEST,
    check_file,
    check_same_run,
    digest,
    digest_of_tensors,
    is_other,
)
from zscgan_ext.run_folder.records import (
    ACCURACY_NAMES,
    accuracy_in,
    read_export,
    read_log,
    read_metrics,
    read_predictions,
    result_in,
)
from zscgan_ext.stages.run import TIMED
from zscgan_ext.stages.variants import FINE_TUNED, FLOAT, VARIANTS, Variant, result_of
from zscgan_ext.synthesis.generator import default_random_seeded
from zscgan_ext.zoo import bundled_images

MEASURED_PIXELS = 128 * 64**2  # for batch-norm statistics and activations
MOST_IMAGES, FEWEST_IMAGES = 128, 32  # that these may be
COMPARED_BATCHES = 8  # of as many, where no labelled images were predicted
WORST = 6
MOST_CHANGES = 8
LARGEST_MATRIX = 12  # classes
COMMIT_DIGITS = 12
CPU = torch.device("cpu")
TEMPLATES = Path(__file__).parent


@dataclass(frozen=True)
class SummaryRow:
    """One row of the run's table."""

    name: str
    accuracy: float  # top-1 or, of several labels, mean average precision, percent
    agreement: float
    is_float: bool
    is_result: bool  # whether it is of the student that the run wrote


@dataclass(frozen=True)
class Content:
    """Everything the page shows."""

    metrics: Mapping[str, Any]
    export: Mapping[str, Any] | None
    accuracy_name: str
    answers_name: str  # what is decided of an image, and may be the same as by float
    summary: list[SummaryRow]
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    initial_ranges: str  # empty where they were set
    choice: str  # which student the run wrote, and why; empty where there was only one
    layer_bits: Mapping[str, Mapping[str, Any]]  # empty where all layers have the usual width
    charts: Mapping[str, str]  # svg elements
    classes: list[ClassPictures]
    weights: list[MeasuredTensor]
    activations: list[MeasuredTensor]
    worst: list[MeasuredTensor]
    has_generator: bool
    measured_on: str  # images that activations were measured on; empty for none
    compared_on: str  # images that both classifiers were compared on; empty for none
    changes: list[tuple[str, str, int]]
    changed_percent: float
    notes: list[str]


def write_report(folder: Path, classifier: str | None = None) -> Path:
    """Write `report.html` into the folder of a finished run; return its path.

    Args:
        folder: of the run.
        classifier: as `open_run` takes it.

    Raises:
        InputError: if the run cannot be read, or the file not be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["decibels"] = decibels
    template = environment.get_template("page.html.jinja")
    require_implementation()
    require_finished(folder)
    with only_writer(folder):  # or the page could be of a run that is replaced meanwhile
        page = template.render(content=collect(folder, classifier))
        return write_own(folder, REPORT, page.encode(errors="backslashreplace"))


def escaped(value: Any) -> Any:
    """Escape what is not printable in text, such as marks that reorder a line; markup stays."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return printable(value) if is_text else value


def collect(folder: Path, classifier: str | None = None) -> Content:
    """Read the folder of a run that went to its end, and measure what its files do not hold.

    Args:
        folder: of the run.
        classifier: as `open_run` takes it.

    Raises:
        InputError: if a file is missing or cannot be read.
    """
    run = open_run(folder, classifier)
    result, has_generator = result_of(run.config), run.config.learns_generator
    metrics = read_metrics(folder, run.classifier.num_classes, result.key)
    if run.made_with is not None:
        check_same_run(folder / METRICS, metrics.get(MADE_WITH), digest(run.made_with))
    result = VARIANTS.get(result_in(metrics, result.key), result)
    export = read_export(folder)
    if export is not None:
        student = digest_of_tensors(run.student.state_dict())
        check_same_run(folder / EXPORT, student, export.get(STUDENT_DIGEST))
    data, notes = evaluation_images(run)
    images, measured_on = measured_images(run, data)
    weights = weight_errors(run.student)
    activations = [] if images is None else activation_errors(run.student, images)
    before, after, compared_on = compared_classes(run, result)
    names, head = run.classifier.class_names, run.classifier.head
    drawn = {
        "errors": charts.errors_by_layer({"weights": weights, "activations": activations}),
        "seconds": charts.stage_times(in_order(metrics["seconds"])),
    }
    if has_generator and images is not None:
        drawn |= learning_charts(read_log(folder))
        drawn |= batch_norm_charts(run, images, data)
        drawn |= diversity_charts(metrics.get("diversity") or {}, names)
    if compared_on and len(names) <= LARGEST_MATRIX and head is not MULTI_LABEL:
        drawn["confusion"] = charts.confusion_matrix(confusion(before, after, len(names)), names)
    layer_bits = metrics.get("layer_bits", {}) if run.student.scheme.layers else {}
    if layer_bits:
        drawn["widths"] = widths_chart(layer_bits)
    rng = torch.Generator().manual_seed(run.config.seed)
    return Content(
        metrics=metrics,
        export=export,
        accuracy_name=ACCURACY_NAMES[accuracy_in(metrics)],
        answers_name="labels" if head is MULTI_LABEL else "class",
        summary=summary_rows(metrics, result),
        settings={name: as_text(value) for name, value in read_config(folder / CONFIG).items()},
        environment=environment_of(metrics),
        initial_ranges=shown_ranges(metrics.get("initial_ranges", {}).get(FINE_TUNED.key)),
        choice=shown_choice(metrics.get("choice") or None),
        layer_bits=layer_bits,
        charts=drawn,
        classes=pictures_by_class(run.classifier, run.generator(), rng) if has_generator else [],
        weights=weights,
        activations=activations,
        worst=worst([*weights, *activations], WORST),
        has_generator=has_generator,
        measured_on=measured_on,
        compared_on=compared_on,
        changes=named_changes(before, after, names, head),
        changed_percent=100 * float((before != after).sum()) / max(1, before.numel()),
        notes=notes,
    )


def measured_images(run: FinishedRun, data: Images | None) -> tuple[Tensor | None, str]:
    """Return images [N, C, H, W] to measure activations on, and what they are.

    They are the generator's; of a run without one some of the evaluation images, if there are any.
    """
    count = images_at_once(run)
    if run.config.learns_generator:
        return run.generated_images(count, 1)[0], "generated images"
    if data is None:
        return None, ""
    return some_images(run, data, count), "evaluation images"


def some_images(run: FinishedRun, data: Images, count: int) -> Tensor:
    """Return images from all over the data, [N, C, H, W], N at most `count`."""
    index = torch.linspace(0, len(data) - 1, min(len(data), count)).long()
    images, _ = next(data.subset(index).batches(len(index), run.classifier.preprocessing))
    return to_channels_last(images)


def images_at_once(run: FinishedRun) -> int:
    """Return how many images to measure at once: the fewer, the larger they are."""
    pixels = run.classifier.preprocessing.pixels
    return max(FEWEST_IMAGES, min(MOST_IMAGES, MEASURED_PIXELS // pixels))


def summary_rows(metrics: dict[str, Any], result: Variant) -> list[SummaryRow]:
    """Return the variants that the run measured."""
    accuracy = metrics[accuracy_in(metrics)]
    return [
        SummaryRow(
            variant.label,
            accuracy[key],
            metrics["agreement"][key],
            variant == FLOAT,
            variant == result,
        )
        for key, variant in VARIANTS.items()
        if accuracy.get(key) is not None
    ]


def shown_choice(choice: Mapping[str, Any] | None) -> str:
    """Say which student was chosen, and the divergences that chose it."""
    if choice is None:
        return ""
    labels = {key: VARIANTS[key].label if key in VARIANTS else key for key in choice["divergence"]}
    named = {labels[key]: value for key, value in choice["divergence"].items()}
    return shown_ranges({"chosen": labels.get(choice["chosen"], ""), "divergence": named})


def shown_ranges(chosen: Mapping[str, Any] | None) -> str:
    """Say what was chosen, such as ranges, and the divergences that chose it."""
    if chosen is None:
        return ""
    shown = ", ".join(f"{name} {value:.3g}" for name, value in chosen["divergence"].items())
    return f"{chosen['chosen']} (divergence of the logits: {shown})"


def widths_chart(layers: Mapping[str, Mapping[str, Any]]) -> str:
    """Draw the widths of layers, and where they were measured, what other widths would lose."""
    widths = [bits.weights or math.nan for bits in widths_described(layers).values()]
    measured = [each.get("divergence", {}) for each in layers.values()]
    divergences = {
        f"{width} bits": [each.get(width, math.nan) for each in measured]
        for width in sorted(set().union(*measured))
    }
    return charts.widths_of_layers(widths, divergences)


def environment_of(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the run ran on: what is neither a result nor a setting."""
    names = ("device", "cpu", "torch", "torchvision", "python", "zscgan_ext")
    entries = {name: metrics[name] for name in names if metrics.get(name)}
    if metrics.get("commit"):
        entries["commit"] = metrics["commit"][:COMMIT_DIGITS]
    execution = {name: as_text(value) for name, value in metrics["execution"].items()}
    megabytes = metrics["peak_memory_bytes"] / 1e6
    memory = {"peak memory": f"{megabytes:,.0f} MB"} if megabytes else {}
    return {**entries, **execution, **memory}


def in_order(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of each stage in the order of the stages, then all others."""
    return {name: seconds[name] for name in (*TIMED, *seconds) if name in seconds}


def as_text(value: Any) -> str:
    """Write one setting as the page shows it."""
    if isinstance(value, tuple | list):
        return " ".join(str(item) for item in value)
    return "none" if value is None else str(value)


def evaluation_images(run: FinishedRun) -> tuple[Images | None, list[str]]:
    """Open the images that the run was evaluated on; else say why there are none."""
    name = run.config.evaluation_data
    if name is None and run.classifier.head is not MULTI_LABEL:
        name = bundled_images(run.config.classifier)
    if name is None:
        return None, ["No real images were given: nothing here is compared with them."]
    try:
        classifier = run.classifier
        facts = classifier.preprocessing, classifier.class_names
        data = open_labelled_for(classifier.head, name, "test", *facts)
    except InputError as error:
        return None, [f"The evaluation images are gone: {error}."]
    images_of = IMAGES_OF.format("evaluation_data")
    if is_other(run.made_with or {}, images_of, digest_of_images(data)):
        return None, [f"The evaluation images in {name} are others than those of the run."]
    return data, []


def learning_charts(log: list[dict[str, Any]]) -> dict[str, str]:
    """Draw the losses of generator learning, and of all fine-tunings together."""
    stages: dict[str, list[dict[str, Any]]] = {}
    for entry in log:
        stages.setdefault(entry["stage"], []).append(entry)
    drawn = {}
    if "synthesis" in stages:
        entries = stages.pop("synthesis")
        drawn["synthesis"] = charts.loss_curves("generator learning", {"generator": entries})
    if stages:
        labels = {variant.training_stage: variant.label for variant in VARIANTS.values()}
        names = {stage: labels.get(stage, stage) for stage in stages}
        shown_stages = {names[stage]: entries for stage, entries in stages.items()}
        drawn["fine_tuning"] = charts.loss_curves("fine-tuning", shown_stages)
    return drawn


@torch.no_grad()
def batch_norm_charts(run: FinishedRun, images: Tensor, data: Images | None) -> dict[str, str]:
    """Draw how well batch-norm statistics match before and after learning, and real images'."""
    rng = torch.Generator().manual_seed(run.config.seed)
    untrained = run.new_generator().train()
    with default_random_seeded(CPU, run.config.seed):
        before = to_channels_last(untrained(*untrained.random_inputs(len(images), rng)))
    sources = {"untrained generator": before, "trained generator": images}
    if data is not None:
        sources["real images"] = some_images(run, data, len(images))
    measured: dict[str, list[LayerStatistics]] = {
        name: layer_statistics(run.classifier.model, batch) for name, batch in sources.items()
    }
    generators = {name: measured[name] for name in ("untrained generator", "trained generator")}
    return {
        "distances": charts.distances_by_layer(measured, run.config.generator.distance),
        "channels": charts.statistics_by_channel(generators),
    }


def diversity_charts(diversity: Mapping[str, Any], class_names: tuple[str, ...]) -> dict[str, str]:
    """Draw confidence, spread and duplicates of generated and, where measured, real images."""
    sources = {name: entries for name, entries in diversity.items() if entries}
    if not sources:
        return {}

    def by_class(key: str) -> dict[str, dict[int, float]]:
        return {
            name: dict(zip(entries["classes"], entries[key], strict=True))
            for name, entries in sources.items()
        }

    histograms = {name: entries["confidence_histogram"] for name, entries in sources.items()}
    spread = "spread within the class / spread between classes"
    duplicates = "near-duplicates, % of the images of a class"
    return {
        "confidence": charts.confidence_histogram(histograms),
        "spread": charts.bars_by_class("spread", spread, by_class("spread"), class_names),
        "duplicates": charts.bars_by_class(
            "duplicates", duplicates, by_class("near_duplicates"), class_names
        ),
    }


def compared_classes(run: FinishedRun, result: Variant) -> tuple[Tensor, Tensor, str]:
    """Return the classes that the float classifier and the student choose for some images.

    Returns:
        int64 [N] of either, of several labels [N, num_classes], and the name of the images, which
        is empty if there are none.
    """
    head, classes = run.classifier.head, run.classifier.num_classes
    predictions = read_predictions(run.folder, classes, result.key, head)
    if predictions is not None:
        check_file(run.folder / PREDICTIONS, run.made_with)
        return *predictions, f"the {len(predictions[0]):,} evaluation images"
    if not run.config.learns_generator:
        none = torch.zeros(0, dtype=torch.int64)
        return none, none, ""
    pairs = [
        (head.chosen(run.classifier.model(images)), head.chosen(run.student(images)))
        for images in run.generated_images(images_at_once(run), COMPARED_BATCHES)
    ]
    before, after = (torch.cat(classes) for classes in zip(*pairs, strict=True))
    return before, after, f"{len(before):,} generated images"


def named_changes(
    before: Tensor, after: Tensor, names: tuple[str, ...], head: Head
) -> list[tuple[str, str, int]]:
    """Return what the student answers differently: before, after, and on how many images.

    Of several labels each one changes by itself, to applying or to not applying.
    """
    if head is not MULTI_LABEL:
        return [
            (names[change.float_class], names[change.quantized_class], change.images)
            for change in most_frequent_changes(before, after, MOST_CHANGES)
        ]
    added, removed = ((after > before).sum(0).tolist(), (after < before).sum(0).tolist())
    changes = [
        *((f"not {name}", name, count) for name, count in zip(names, added, strict=True)),
        *((name, f"not {name}", count) for name, count in zip(names, removed, strict=True)),
    ]
    frequent = sorted(changes, key=lambda change: -change[2])[:MOST_CHANGES]
    return [change for change in frequent if change[2]]


def decibels(value: float) -> str:
    """Write a ratio in decibels."""
    return "exact" if math.isinf(value) else f"{value:.1f} dB"
