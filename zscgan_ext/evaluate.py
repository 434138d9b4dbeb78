"""Evaluate a run or an exported file: `python -m zscgan_ext.evaluate RUN|FILE --data DATA`."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from zscgan_ext.errors import InputError, one_line
from zscgan_ext.evaluated_classifier import Evaluated, open_evaluated
from zscgan_ext.evaluation import (
    ClassResult,
    agreement,
    expected_calibration_error,
    latencies,
    per_class,
    predict,
    top1,
    top5,
)
from zscgan_ext.images.datasets import Images, check_labels, few_labels_warnings, open_labelled
from zscgan_ext.images.memory_format import to_channels_last
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.program import OneLineParser, program
from zscgan_ext.run_folder.files import json_bytes, write_whole
from zscgan_ext.zoo import bundled_images

BATCH = 250  # images
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Evaluation:
    """What was measured; percentages are of all images."""

    images: int
    top1: float
    top5: float
    calibration_error: float  # expected calibration error, 15 bins, percent
    float_top1: float | None  # of the float classifier; None where it is not at hand
    agreement: float | None  # images that both classifiers put in the same class
    latency_ms: dict[int, float]  # median time of one call by the images in it, milliseconds
    classes: list[ClassResult]  # of those that occur
    class_names: tuple[str, ...]  # of all

    def __str__(self) -> str:
        """Lay out everything as lines."""
        return layout(self)


def open_data(
    data: str | Images | None,
    classifier: str,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
) -> Images:
    """Open labelled images that fit a classifier.

    Args:
        data: their name, or opened ones; None for those that come with a bundled classifier.
        classifier: its name.
        preprocessing: of the classifier.
        class_names: of the classifier.

    Raises:
        InputError: if there are no such images, or they do not fit.
    """
    if data is not None and not isinstance(data, str):
        check_labels(data, len(class_names))
        return data
    name = data or bundled_images(classifier)
    if name is None:
        raise InputError("data: give labelled images, only bundled classifiers have their own")
    return open_labelled(name, "test", preprocessing, len(class_names))


def measure(
    evaluated: Evaluated,
    data: Images,
    batch_size: int = BATCH,
    device: torch.device = CPU,
) -> Evaluation:
    """Measure a classifier on labelled images.

    Args:
        evaluated: its models on `device`.
        data: the images.
        batch_size: images in a batch.
        device: where the models are.

    Raises:
        InputError: if the batch size is below 1, or there are logits of other classes.
    """
    if batch_size < 1:
        raise InputError(f"batch_size: {batch_size}, needed is a number above 0")
    preprocessing, labels = evaluated.preprocessing, data.labels
    logits = predict(evaluated.model, data, preprocessing, batch_size, device)
    check_logits(logits, evaluated)
    float_logits = None
    if evaluated.float_model is not None:
        float_logits = predict(evaluated.float_model, data, preprocessing, batch_size, device)
    return Evaluation(
        images=len(data),
        top1=top1(logits, labels),
        top5=top5(logits, labels),
        calibration_error=expected_calibration_error(logits, labels),
        float_top1=None if float_logits is None else top1(float_logits, labels),
        agreement=None if float_logits is None else agreement(logits, float_logits),
        latency_ms=latency_by_batch(evaluated, data, batch_size, device),
        classes=per_class(logits, labels),
        class_names=evaluated.class_names,
    )


@torch.no_grad()
def latency_by_batch(
    evaluated: Evaluated, data: Images, batch_size: int, device: torch.device
) -> dict[int, float]:
    """Return the median time of one call, milliseconds, for one image and for a batch."""

    def answer(images: Tensor) -> Tensor:
        return evaluated.model(images).cpu()  # waits for the device

    images, _ = next(data.batches(batch_size, evaluated.preprocessing))
    images = to_channels_last(images.to(device))
    batches = {len(batch): batch for batch in (images[:1], images)}
    return {size: latencies([answer], batch)[0] for size, batch in batches.items()}


def layout(evaluation: Evaluation) -> str:
    """Lay out what was measured as text."""
    lines = [
        f"{'images':34} {evaluation.images:10,}",
        f"{'top-1 %':34} {evaluation.top1:10.2f}",
        f"{'top-5 %':34} {evaluation.top5:10.2f}",
        f"{'expected calibration error %':34} {evaluation.calibration_error:10.2f}",
    ]
    if evaluation.float_top1 is not None:
        lines += [
            f"{'top-1 % of the float classifier':34} {evaluation.float_top1:10.2f}",
            f"{'agreement with float %':34} {evaluation.agreement:10.2f}",
        ]
    for size, milliseconds in evaluation.latency_ms.items():
        name = "latency of one image, ms" if size == 1 else f"latency of {size} images, ms"
        lines.append(f"{name:34} {milliseconds:10.3f}")
    table = class_table(evaluation.classes, evaluation.class_names)
    return "\n".join([*lines, "", table])


def as_json(evaluation: Evaluation) -> bytes:
    """Write what was measured as JSON."""
    entries = asdict(evaluation)
    names = entries.pop("class_names")
    for entry in entries["classes"]:
        entry["name"] = names[entry["label"]]
    return json_bytes(entries)


def check_logits(logits: Tensor, evaluated: Evaluated) -> None:
    """Require a finite logit for each class in logits [N, num_classes].

    Raises:
        InputError: telling what was found.
    """
    classes = len(evaluated.class_names)
    if logits.shape[1] != classes:
        raise InputError(f"the classifier gives {logits.shape[1]} logits for {classes} classes")
    if not bool(logits.isfinite().all()):
        raise InputError("the classifier gives NaN or infinite logits, needed are finite ones")


def class_table(rows: Sequence[ClassResult], class_names: Sequence[str]) -> str:
    """Lay out, for each class that occurs: images, recall and precision in percent."""
    names = [one_line(class_names[row.label]) for row in rows]
    width = max(map(len, [*names, "class"]))
    lines = [f"{'class':{width}} {'images':>8} {'recall %':>9} {'precision %':>12}"]
    for name, row in zip(names, rows, strict=True):
        precision = "-" if row.precision is None else f"{row.precision:.2f}"
        lines.append(f"{name:{width}} {row.images:8,} {row.recall:9.2f} {precision:>12}")
    return "\n".join(lines)


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = OneLineParser(
        prog="python -m zscgan_ext.evaluate",
        description="Measure a quantized classifier on labelled images, on the CPU.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "path", metavar="RUN|FILE", type=Path, help="folder of a run, .onnx or .safetensors file"
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="fashion-mnist, a folder of idx files or an ImageFolder tree (default: the bundled "
        "test images for a bundled classifier)",
    )
    parser.add_argument(
        "--classifier",
        metavar="MODULE:FUNCTION",
        help="for a file of a classifier of your own: what builds it",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        default=BATCH,
        help=f"images in a batch, which the second latency is of (default: {BATCH})",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results there too")
    options = parser.parse_args(arguments)
    evaluated = open_evaluated(options.path, options.classifier)
    facts = evaluated.classifier, evaluated.preprocessing, evaluated.class_names
    data = open_data(options.data, *facts)
    evaluation = measure(evaluated, data, options.batch_size)
    for warning in few_labels_warnings(options.data, data, len(evaluated.class_names)):
        print(f"warning: {warning}")
    print(layout(evaluation))
    if options.json is not None:
        write_whole(options.json, as_json(evaluation))
    return 0


if __name__ == "__main__":
    sys.exit(main())
