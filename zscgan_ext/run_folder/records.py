"""What a run wrote about itself, read back: metrics, log, export, predictions, checked by type.

The folder may come from somebody else, so that any of these files may hold anything.
"""

from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from zscgan_ext.classifiers.heads import HEADS, MULTI_LABEL, SINGLE_LABEL, Head
from zscgan_ext.errors import InputError, first_line
from zscgan_ext.json_values import (
    Check,
    MismatchError,
    integer,
    list_of,
    mapping_of,
    mismatch,
    nullable,
    number,
    one_of,
    read_json,
    read_json_lines,
    record,
    text,
)
from zscgan_ext.regular_file import read_regular_file
from zscgan_ext.run_folder.files import EXPORT, LAYER_BITS, LOG, METRICS, PREDICTIONS
from zscgan_ext.run_folder.made_with import DIGESTS, MADE_WITH, STUDENT_DIGEST

LARGEST = 1e300  # of what is drawn
# What is said for the entries of `metrics.json` that hold how good a classifier is.
ACCURACY_NAMES = {"top1": "top-1", "mean_average_precision": "mAP"}
MOST_STAGES, MOST_VALUES = 32, 16  # in the log
MOST_LINES = 1 << 13  # of the log that are read: more than a chart shows
# Of what a page shows or draws, row by row: rows of one kind, layers, warnings.
MOST_ROWS, MOST_LAYERS, MOST_WARNINGS = 64, 1 << 12, 1 << 10
HISTOGRAM_BINS = 10
NAME = r"[\w -]{1,64}"
LARGEST_LOSS = 1e30
FLOAT, INSTANT, FINE_TUNED = "float", "instant", "fine_tuned"

name = text(NAME, expected="a name of letters, digits and underscores")
short = text(longest=1000)
percent = number(0, 100)
at_least_zero = number(0, LARGEST)


def scalar(value: Any) -> Any:
    """Take text, a number, a boolean or None."""
    if value is None or isinstance(value, bool):
        return value
    return short(value) if isinstance(value, str) else number()(value)


diversity = record(
    {
        "images": integer(0),
        "classes": list_of(integer(0)),
        "spread": list_of(at_least_zero),
        "near_duplicates": list_of(percent),
        "confidence_histogram": list_of(percent, HISTOGRAM_BINS),
        "mean_confidence": percent,
        "mean_entropy": at_least_zero,
    },
    strict=False,
)
bits = integer(2, 8)
version = nullable(short)
divergences = mapping_of(number(), name, MOST_ROWS)
RANGES_CHECK: Check = mapping_of(
    record({"chosen": name, "divergence": divergences}, strict=False), name, MOST_ROWS
)
CHOICE_CHECK: Check = record(
    {"chosen": one_of(INSTANT, FINE_TUNED), "divergence": divergences}, strict=False
)
width = text(r"w[2-8](a[2-8])?|float", expected="bits like w4, w4a8 or float")
LAYER_BITS_CHECK: Check = mapping_of(
    record(
        {"bits": width, "weights": integer(0)},
        {"divergence": mapping_of(number(-LARGEST, LARGEST), text("[2-8]"))},
        strict=False,
    ),
    short,
    MOST_LAYERS,
)
METRICS_CHECK: Check = record(
    {
        "classifier": short,
        "bits": record({"weights": nullable(bits), "activations": bits}, strict=False),
        "scheme": one_of("deploy", "paper"),
        "seed": integer(0),
        "device": short,
        "execution": mapping_of(scalar, name, MOST_ROWS),
        "top1": mapping_of(nullable(percent), name, MOST_ROWS),
        "agreement": mapping_of(nullable(percent), name, MOST_ROWS),
        "diversity": mapping_of(nullable(diversity), one_of("generated", "real")),
        "seconds": mapping_of(at_least_zero, name, MOST_ROWS),
        "peak_memory_bytes": integer(0),
    },
    {
        "initial_ranges": RANGES_CHECK,
        "first_ranges": RANGES_CHECK,
        "layer_bits": LAYER_BITS_CHECK,
        "choice": lambda value: {} if value == {} else CHOICE_CHECK(value),
        "head": one_of(*HEADS),
        "mean_average_precision": mapping_of(nullable(percent), name, MOST_ROWS),
        "average_weight_bits": nullable(number(2, 8)),
        "warnings": list_of(text(), most=MOST_WARNINGS),
        MADE_WITH: nullable(short),
        **dict.fromkeys(("zscgan_ext", "torch", "torchvision", "python", "cpu", "commit"), version),
    },
    strict=False,
)
milliseconds = record({"float": at_least_zero, "quantized": at_least_zero}, strict=False)
EXPORT_CHECK: Check = record(
    {"bytes": mapping_of(integer(0), name, MOST_ROWS)},
    {
        STUDENT_DIGEST: short,
        DIGESTS: mapping_of(short, name, MOST_ROWS),
        "onnx": nullable(record({"latency_ms": milliseconds}, strict=False)),
    },
    strict=False,
)


def read_metrics(folder: Path, num_classes: int, result: str = FINE_TUNED) -> dict[str, Any]:
    """Read `metrics.json` of a run.

    Args:
        folder: of the run.
        num_classes: of its classifier.
        result: the row of the student that the run wrote, if it tells none.

    Raises:
        InputError: if it is missing, or is not what a run of so many classes writes.
    """

    def check(value: Any) -> Any:
        metrics = METRICS_CHECK(value)
        name = accuracy_in(metrics)
        metrics.setdefault(name, {})
        check_rows(name, metrics, result_in(metrics, result))
        if "total" not in metrics["seconds"]:
            raise MismatchError("lacks total", ("seconds",))
        for source, facts in metrics["diversity"].items():
            if facts is not None:
                check_classes(facts, num_classes, source)
        return metrics

    metrics: dict[str, Any] = read_json(folder / METRICS, check)
    if "first_ranges" in metrics:  # as it was called in earlier versions
        metrics.setdefault("initial_ranges", metrics.pop("first_ranges"))
    return metrics


def result_in(metrics: dict[str, Any], otherwise: str) -> str:
    """Return the row of the student that a run wrote."""
    return str(metrics.get("choice", {}).get("chosen", otherwise))


def accuracy_in(metrics: dict[str, Any]) -> str:
    """Return the entry that holds how good a classifier is: where several labels apply another."""
    is_multi_label = metrics.get("head") == MULTI_LABEL.name
    return "mean_average_precision" if is_multi_label else "top1"


def check_rows(name: str, metrics: dict[str, Any], result: str) -> None:
    """Require that the float classifier and the student were both measured, or neither.

    Args:
        name: of the entry of `metrics` with their accuracy.
        metrics: what was measured.
        result: the row of the student.
    """
    accuracy = metrics[name]
    for row in (FLOAT, result):
        if row not in accuracy:
            raise MismatchError(f"lacks {row}", (name,))
    if (accuracy[FLOAT] is None) != (accuracy[result] is None):
        raise MismatchError(f"has only one of {FLOAT} and {result}", (name,))
    for row, value in accuracy.items():
        if value is not None and metrics["agreement"].get(row) is None:
            raise MismatchError(f"lacks {row}", ("agreement",))


def check_classes(facts: dict[str, Any], num_classes: int, source: str) -> None:
    """Require two values for each of some classes that there are."""
    classes = facts["classes"]
    place = ("diversity", source)
    if not classes or len(set(classes)) < len(classes) or max(classes) >= num_classes:
        raise MismatchError(f"has other classes than the {num_classes} that there are", place)
    if not len(classes) == len(facts["spread"]) == len(facts["near_duplicates"]):
        raise MismatchError("has other numbers of classes and of values", place)


def log_entry(value: Any) -> Any:
    """Take a line of the log: a stage, a step, and what was measured at it."""
    loss = number(-LARGEST_LOSS, LARGEST_LOSS)
    entry = mapping_of(lambda each: each, name)(value)
    if len(entry) > MOST_VALUES:
        raise mismatch(value, f"a mapping of at most {MOST_VALUES}")
    others = dict.fromkeys(entry.keys() - {"stage", "step"}, loss)
    return record({"stage": name, "step": integer(0), **others})(value)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's log; of a long one, some from all over it.

    Raises:
        InputError: if it is missing, or is not what a run writes.
    """
    entries: list[dict[str, Any]] = read_json_lines(folder / LOG, log_entry, MOST_LINES)
    stages = {entry["stage"] for entry in entries}
    if len(stages) > MOST_STAGES:
        raise InputError(f"{folder / LOG}: has {len(stages)} stages, a run has a few")
    return entries


def read_export(folder: Path) -> dict[str, Any] | None:
    """Read `export.json` of a run, None for a run that was not exported.

    Raises:
        InputError: if it is not what export writes.
    """
    file = folder / EXPORT
    export: dict[str, Any] | None = read_json(file, EXPORT_CHECK) if exists(file) else None
    return export


def read_layer_bits(folder: Path) -> dict[str, Any]:
    """Read the widths of layers that a run chose.

    Raises:
        InputError: if there are none, or they are not what a run writes.
    """
    check = record({"layers": LAYER_BITS_CHECK}, strict=False)
    layers: dict[str, Any] = read_json(folder / LAYER_BITS, check)["layers"]
    return layers


def read_predictions(
    folder: Path, num_classes: int, result: str = FINE_TUNED, head: Head = SINGLE_LABEL
) -> tuple[Tensor, Tensor] | None:
    """Read the classes that the float classifier and the student chose for each image.

    Args:
        folder: of the run.
        num_classes: of its classifier.
        result: the row of the student that the run wrote.
        head: of its classifier.

    Returns:
        int64 [N] of either, of several labels [N, num_classes]; None for a run without evaluation
        images.

    Raises:
        InputError: if they are not what a run of so many classes writes.
    """
    file = folder / PREDICTIONS
    if not exists(file):
        return None
    try:
        tensors = safetensors.torch.load(read_regular_file(file))
        read = chosen_labels if head is MULTI_LABEL else chosen
        before, after = (read(tensors, row, num_classes) for row in (FLOAT, result))
        if len(before) != len(after):
            raise ValueError(f"classes of {len(before)} and of {len(after)} images")
    except Exception as error:  # a damaged file raises nearly anything
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{file}: cannot be read as predictions ({reason})") from None
    return before, after


def chosen(tensors: dict[str, Tensor], row: str, num_classes: int) -> Tensor:
    """Return the classes of one row, int64 [N].

    Raises:
        ValueError: if they are no classes.
    """
    classes = tensors.get(row)
    if classes is None or classes.dim() != 1 or not len(classes):
        raise ValueError(f"lacks a class for each image in {row}")
    classes = as_integers(classes, row)
    if not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
        raise ValueError(f"{row} has classes beyond the {num_classes} that there are")
    return classes


def chosen_labels(tensors: dict[str, Tensor], row: str, num_classes: int) -> Tensor:
    """Return the labels of one row, int64 [N, num_classes] of 0 and 1.

    Raises:
        ValueError: if they are something else.
    """
    labels = tensors.get(row)
    if labels is None or labels.dim() != 2 or not len(labels) or labels.shape[1] != num_classes:
        raise ValueError(f"lacks {num_classes} labels for each image in {row}")
    labels = as_integers(labels, row)
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError(f"{row} has labels other than 0 and 1")
    return labels


def as_integers(values: Tensor, row: str) -> Tensor:
    """Return signed integers as int64.

    Raises:
        ValueError: if they are something else.
    """
    if values.is_floating_point() or values.is_complex() or values.dtype.is_signed is False:
        raise ValueError(f"{row} is of {values.dtype}")
    return values.long()


def exists(file: Path) -> bool:
    """Return True if something stands under a name, be it a link that leads nowhere."""
    return file.exists() or file.is_symlink()
