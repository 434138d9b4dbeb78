"""Evaluate a run or an exported file: `python -m zscgan_ext.evaluate RUN|FILE --data DATA`."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zscgan_ext.command_line import CONFIG
from zscgan_ext.datasets import Images, check_labels, open_images
from zscgan_ext.errors import InputError
from zscgan_ext.evaluation import (
    agreement,
    expected_calibration_error,
    per_class,
    predict,
    top1,
    top5,
)
from zscgan_ext.export.quantized_file import load_quantized
from zscgan_ext.export.runtime import OnnxClassifier, latencies, require_onnx
from zscgan_ext.finished_run import load_float_classifier, open_run, read_settings
from zscgan_ext.preprocessing import Preprocessing
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS

BATCH = 250  # images


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated: a quantized classifier and, where it is at hand, the float one."""

    model: Callable[[Tensor], Tensor]  # [N, C, H, W] to logits [N, num_classes]
    float_model: Callable[[Tensor], Tensor] | None
    classifier: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...]


def open_evaluated(path: Path, classifier: str | None) -> Evaluated:
    """Open a run's folder, an ONNX file or a safetensors file.

    Args:
        path: the folder or the file.
        classifier: for a safetensors file of a classifier that is not bundled: its name.

    Raises:
        InputError: if it is something else or cannot be read.
    """
    if path.is_dir():
        run = open_run(path)
        facts = run.classifier.name, run.classifier.preprocessing, run.classifier.class_names
        return Evaluated(run.student, run.classifier.model, *facts)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder, needed is a run or an exported file")
    if path.suffix == ".onnx":
        require_onnx()
        model = OnnxClassifier(path)
        name, preprocessing, class_names = described(path, model.metadata())
        return Evaluated(model, float_model_of(path, name), name, preprocessing, class_names)
    if path.suffix == ".safetensors":
        loaded = load_quantized(path, classifier)
        name = loaded.classifier
        facts = name, loaded.preprocessing, loaded.class_names
        return Evaluated(loaded, float_model_of(path, name), *facts)
    raise InputError(f"{path}: accepted are the folder of a run, .onnx and .safetensors files")


def described(file: Path, metadata: dict[str, str]) -> tuple[str, Preprocessing, tuple[str, ...]]:
    """Return what an ONNX file's metadata say: classifier, preprocessing, class names."""
    try:
        mean, std = (tuple(map(float, json.loads(metadata[key]))) for key in ("mean", "std"))
        size, names = json.loads(metadata["image_size"]), json.loads(metadata["class_names"])
        preprocessing = Preprocessing(len(mean), int(size), mean, std)
        return metadata["classifier"], preprocessing, tuple(map(str, names))
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{file}: its metadata lack what export writes (classifier, image_size, mean, std, "
            "class_names)"
        ) from None


def float_model_of(file: Path, classifier: str) -> Callable[[Tensor], Tensor] | None:
    """Load the float classifier of the run in whose folder an exported file lies, if it does."""
    if not (file.parent / CONFIG).is_file():
        return None
    settings = read_settings(file.parent)
    return load_float_classifier(settings).model if settings.classifier == classifier else None


def evaluate(evaluated: Evaluated, data: Images) -> str:
    """Measure on labelled images; return a report as text."""
    preprocessing, cpu = evaluated.preprocessing, torch.device("cpu")
    logits = predict(evaluated.model, data, preprocessing, BATCH, cpu)
    labels = data.labels
    lines = [
        f"{'images':34} {len(data):10,}",
        f"{'top-1 %':34} {top1(logits, labels):10.2f}",
        f"{'top-5 %':34} {top5(logits, labels):10.2f}",
        f"{'expected calibration error %':34} {expected_calibration_error(logits, labels):10.2f}",
    ]
    if evaluated.float_model is not None:
        float_logits = predict(evaluated.float_model, data, preprocessing, BATCH, cpu)
        lines += [
            f"{'top-1 % of the float classifier':34} {top1(float_logits, labels):10.2f}",
            f"{'agreement with float %':34} {agreement(logits, float_logits):10.2f}",
        ]
    image, _ = next(data.batches(1, preprocessing))
    with torch.no_grad():
        (latency,) = latencies([evaluated.model], image)
    lines.append(f"{'latency of one image, ms':34} {latency:10.3f}")
    return "\n".join([*lines, "", class_table(logits, labels, evaluated.class_names)])


def class_table(logits: Tensor, labels: Tensor, class_names: Sequence[str]) -> str:
    """Lay out, for each class that occurs: images, recall and precision in percent."""
    rows = per_class(logits, labels)
    names = [class_names[row.label] if class_names else str(row.label) for row in rows]
    width = max(map(len, [*names, "class"]))
    lines = [f"{'class':{width}} {'images':>8} {'recall %':>9} {'precision %':>12}"]
    for name, row in zip(names, rows, strict=True):
        precision = "-" if row.precision is None else f"{row.precision:.2f}"
        lines.append(f"{name:{width}} {row.images:8,} {row.recall:9.2f} {precision:>12}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(
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
        help="for a .safetensors file of a classifier of your own: what builds it",
    )
    options = parser.parse_args(arguments)
    try:
        evaluated = open_evaluated(options.path, options.classifier)
        bundled = evaluated.classifier in BUNDLED_CLASSIFIERS
        name = options.data or ("fashion-mnist" if bundled else None)
        if name is None:
            raise InputError("data: give labelled images, only bundled classifiers have their own")
        data = open_images(name, "test", evaluated.preprocessing)
        check_labels(data, len(evaluated.class_names))
        print(evaluate(evaluated, data))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
