"""Evaluating a run or an exported file on labelled images, beside the float classifier."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from zscgan_ext.classifiers.heads import HEADS, MULTI_LABEL, SINGLE_LABEL, Head
from zscgan_ext.classifiers.labelled_images import open_labelled_for
from zscgan_ext.classifiers.loading import classifier_of
from zscgan_ext.config.command_line import CONFIG
from zscgan_ext.config.values import EVALUATION_BATCH
from zscgan_ext.errors import InputError, one_line
from zscgan_ext.export.onnx.runtime import OnnxClassifier, require_onnx
from zscgan_ext.export.quantized_file import LONGEST_NAME, MOST_CLASSES, load_quantized
from zscgan_ext.images.datasets import Images, check_labels
from zscgan_ext.images.limits import size_check
from zscgan_ext.images.preprocessing import Preprocessing, preprocessing_from
from zscgan_ext.json_values import Check, list_of, number, parse_json, text
from zscgan_ext.measures import (
    ClassResult,
    LabelResult,
    agreement,
    expected_calibration_error,
    latencies,
    mean_average_precision,
    per_class,
    per_label,
    percentage,
    predict_together,
    top1,
    top5,
)
from zscgan_ext.run_folder.files import STUDENT
from zscgan_ext.run_folder.finished_run import checked_made_with, open_run, read_run_config
from zscgan_ext.run_folder.made_with import check_exported, digest_of_student
from zscgan_ext.run_folder.records import read_export
from zscgan_ext.run_folder.whole_file import json_bytes
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS, open_bundled

CPU = torch.device("cpu")
# What the metadata of an ONNX file are, each as JSON.
METADATA: dict[str, Check] = {
    "image_size": size_check(),
    "mean": list_of(number()),
    "std": list_of(number(0)),
    "class_names": list_of(text(longest=LONGEST_NAME), most=MOST_CLASSES),
}
# Numbers in a batch whose size nobody said: a small file can ask for images of any size.
MOST_IN_A_BATCH = EVALUATION_BATCH * 3 * 224 * 224


@dataclass(frozen=True)
class EvaluationTarget:
    """What is evaluated: a quantized classifier and, where it is at hand, the float one."""

    model: Callable[[Tensor], Tensor]  # [N, C, H, W] to logits [N, num_classes]
    float_model: Callable[[Tensor], Tensor] | None
    classifier: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    head: Head = SINGLE_LABEL

    @property
    def models(self) -> list[Callable[[Tensor], Tensor]]:
        """The models that are at hand, the quantized one first."""
        return [each for each in (self.model, self.float_model) if each is not None]


def open_target(path: Path, classifier: str | None) -> EvaluationTarget:
    """Open a run's folder, an ONNX file or a safetensors file.

    Args:
        path: the folder or the file.
        classifier: for a run or a file of a classifier that is of no library: its name.

    Raises:
        InputError: if it is something else or cannot be read.
    """
    if os.path.isdir(path):  # Path raises where a name is too long
        run = open_run(path, classifier)
        float_one = run.classifier
        return EvaluationTarget(
            run.student,
            float_one.model,
            float_one.name,
            float_one.preprocessing,
            float_one.class_names,
            float_one.head,
        )
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file or folder, expected a run or an exported file")
    if path.suffix == ".onnx":
        require_onnx()
        model = OnnxClassifier(path)
        target = described(path, model)
        float_model = float_model_of(path, target.classifier, classifier, target.preprocessing)
        if model.takes_pixels:
            target = replace(target, model=of_normalized_images(model, target.preprocessing))
        return replace(target, float_model=float_model)
    if path.suffix == ".safetensors":
        loaded = load_quantized(path, classifier)
        name = loaded.classifier
        float_model = float_model_of(path, name, classifier, loaded.preprocessing)
        facts = loaded.preprocessing, loaded.class_names, loaded.head
        return EvaluationTarget(loaded, float_model, name, *facts)
    raise InputError(f"{path}: accepted are the folder of a run, .onnx and .safetensors files")


def of_normalized_images(
    model: OnnxClassifier, preprocessing: Preprocessing
) -> Callable[[Tensor], Tensor]:
    """Return a file of pixels as a function of the images that were normalized from them."""
    from zscgan_ext.export.onnx.pixel_input import pixels_of  # imports onnx

    form = model.metadata().get("input", "uint8")
    return lambda images: model(pixels_of(images, preprocessing, form))


def described(file: Path, model: OnnxClassifier) -> EvaluationTarget:
    """Return an ONNX file as its metadata describe it, without the float classifier."""
    metadata = model.metadata()
    try:
        values = {key: parse_json(metadata[key], check) for key, check in METADATA.items()}
        preprocessing = preprocessing_from(values | {"channels": len(values["mean"])})
        head = HEADS[metadata.get("head", SINGLE_LABEL.name)]
        names = tuple(values["class_names"])
        return EvaluationTarget(model, None, metadata["classifier"], preprocessing, names, head)
    except Exception:  # what is missing, too large, or something else
        raise InputError(
            f"{file}: its metadata lack what export writes (classifier, image_size, mean, std, "
            "class_names)"
        ) from None


def float_model_of(
    file: Path, classifier: str, trusted: str | None, preprocessing: Preprocessing
) -> Callable[[Tensor], Tensor] | None:
    """Load the float classifier of the run in whose folder an exported file lies, if it does.

    Args:
        file: that lies there.
        classifier: that the file names.
        trusted: a `module:function` whose code the user has run; a file cannot decide that.
        preprocessing: that the file names.

    Raises:
        InputError: if the run was changed, or is another than that of the file.
    """
    if classifier not in (*BUNDLED_CLASSIFIERS, trusted):
        return None
    if not os.path.isfile(file.parent / CONFIG):
        return None
    config = read_run_config(file.parent)
    if config.classifier != classifier:
        return None
    loaded = classifier_of(config, file.parent / CONFIG)
    has_student = os.path.isfile(file.parent / STUDENT)
    if has_student:
        checked_made_with(file.parent, config, loaded)
    if loaded.preprocessing.metadata() != preprocessing.metadata():
        raise InputError(
            f"{file}: takes other images than the classifier of the run in whose folder it lies; "
            "move a file of another run elsewhere"
        )
    if has_student:
        check_exported(file, digest_of_student(file.parent), read_export(file.parent))
    return loaded.model


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
        lines = [
            f"{'images':34} {self.images:10,}",
            f"{'top-1 %':34} {self.top1:10.2f}",
            f"{'top-5 %':34} {self.top5:10.2f}",
            f"{'expected calibration error %':34} {self.calibration_error:10.2f}",
        ]
        if self.float_top1 is not None:
            lines += [
                f"{'top-1 % of the float classifier':34} {self.float_top1:10.2f}",
                f"{'agreement with float %':34} {self.agreement:10.2f}",
            ]
        lines += latency_lines(self.latency_ms)
        table = class_table(self.classes, self.class_names)
        return "\n".join([*lines, "", table])


@dataclass(frozen=True)
class MultiLabelEvaluation:
    """What was measured where several labels may apply to an image, in percent."""

    images: int
    mean_average_precision: float | None  # over labels that occur; None if none does
    label_accuracy: float  # labels of all images that are decided right
    float_mean_average_precision: float | None  # None also where the classifier is not at hand
    agreement: float | None  # labels of all images that both classifiers decide alike
    latency_ms: dict[int, float]  # as of `Evaluation`
    classes: list[LabelResult]  # of the labels that occur
    class_names: tuple[str, ...]  # of all labels

    def __str__(self) -> str:
        """Lay out everything as lines."""
        values = {
            "mean average precision %": self.mean_average_precision,
            "labels decided right %": self.label_accuracy,
            "mean average precision % of float": self.float_mean_average_precision,
            "agreement with float %": self.agreement,
        }
        lines = [f"{'images':34} {self.images:10,}"]
        lines += [f"{name:34} {value:10.2f}" for name, value in values.items() if value is not None]
        lines += latency_lines(self.latency_ms)
        return "\n".join([*lines, "", label_table(self.classes, self.class_names)])


def latency_lines(latency_ms: dict[int, float]) -> list[str]:
    """Lay out latencies, milliseconds by the images in a call."""
    names = {size: "one image" if size == 1 else f"{size} images" for size in latency_ms}
    return [
        f"{f'latency of {names[size]}, ms':34} {milliseconds:10.3f}"
        for size, milliseconds in latency_ms.items()
    ]


def class_table(rows: Sequence[ClassResult], class_names: Sequence[str]) -> str:
    """Lay out, for each class that occurs: images, recall and precision in percent."""
    names = [one_line(class_names[row.label]) for row in rows]
    width = max(map(len, [*names, "class"]))
    lines = [f"{'class':{width}} {'images':>8} {'recall %':>9} {'precision %':>12}"]
    for name, row in zip(names, rows, strict=True):
        precision = "-" if row.precision is None else f"{row.precision:.2f}"
        lines.append(f"{name:{width}} {row.images:8,} {row.recall:9.2f} {precision:>12}")
    return "\n".join(lines)


def label_table(rows: Sequence[LabelResult], class_names: Sequence[str]) -> str:
    """Lay out, for each label that occurs: images, average precision, recall and precision."""
    names = [one_line(class_names[row.label]) for row in rows]
    width = max(map(len, [*names, "label"]))
    heading = f"{'average precision %':>20} {'recall %':>9} {'precision %':>12}"
    lines = [f"{'label':{width}} {'images':>8} {heading}"]
    for name, row in zip(names, rows, strict=True):
        precision = "-" if row.precision is None else f"{row.precision:.2f}"
        values = f"{row.average_precision:20.2f} {row.recall:9.2f} {precision:>12}"
        lines.append(f"{name:{width}} {row.images:8,} {values}")
    return "\n".join(lines)


def as_json(evaluation: Evaluation | MultiLabelEvaluation) -> bytes:
    """Write what was measured as JSON."""
    entries = asdict(evaluation)
    names = entries.pop("class_names")
    for entry in entries["classes"]:
        entry["name"] = names[entry["label"]]
    return json_bytes(entries)


def open_data(
    data: str | Images | None,
    classifier: str,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    head: Head = SINGLE_LABEL,
) -> Images:
    """Open labelled images that fit a classifier.

    Args:
        data: their name, or opened ones; None for those that come with a bundled classifier.
        classifier: its name.
        preprocessing: of the classifier.
        class_names: of the classifier.
        head: of the classifier.

    Raises:
        InputError: if there are no such images, or they do not fit.
    """
    if data is not None and not isinstance(data, str):
        check_labels(data, len(class_names))
        return data
    if data is not None:
        return open_labelled_for(head, data, "test", preprocessing, class_names)
    bundled = None
    if head is not MULTI_LABEL:
        bundled = open_bundled(classifier, preprocessing, len(class_names))
    if bundled is None:
        raise InputError("data: give labelled images, only bundled classifiers have their own")
    return bundled


def measure(
    target: EvaluationTarget,
    data: Images,
    batch_size: int = EVALUATION_BATCH,
    device: torch.device = CPU,
) -> Evaluation | MultiLabelEvaluation:
    """Measure a classifier on labelled images.

    Args:
        target: its models on `device`.
        data: the images.
        batch_size: images in a batch.
        device: where the models are.

    Raises:
        InputError: if the batch size is below 1, or there are logits of other classes.
    """
    check_batch_size(batch_size)
    preprocessing, labels = target.preprocessing, data.labels
    found, first = predict_together(target.models, data, preprocessing, batch_size, device)
    logits, float_logits = found[0], found[1] if len(found) > 1 else None
    check_logits(logits, target)
    latency_ms = latency_by_batch(target, first)
    if target.head is MULTI_LABEL:
        return multi_label_evaluation(target, logits, float_logits, labels, latency_ms)
    return Evaluation(
        images=len(data),
        top1=top1(logits, labels),
        top5=top5(logits, labels),
        calibration_error=expected_calibration_error(logits, labels),
        float_top1=None if float_logits is None else top1(float_logits, labels),
        agreement=None if float_logits is None else agreement(logits, float_logits),
        latency_ms=latency_ms,
        classes=per_class(logits, labels),
        class_names=target.class_names,
    )


def multi_label_evaluation(
    target: EvaluationTarget,
    logits: Tensor,
    float_logits: Tensor | None,
    labels: Tensor,
    latency_ms: dict[int, float],
) -> MultiLabelEvaluation:
    """Return what logits [N, num_classes] tell of images whose labels have the same shape."""
    of_float = None if float_logits is None else mean_average_precision(float_logits, labels)
    return MultiLabelEvaluation(
        images=len(labels),
        mean_average_precision=mean_average_precision(logits, labels),
        label_accuracy=percentage(target.head.chosen(logits) == labels),
        float_mean_average_precision=of_float,
        agreement=None if float_logits is None else agreement(logits, float_logits, target.head),
        latency_ms=latency_ms,
        classes=per_label(logits, labels),
        class_names=target.class_names,
    )


def usual_batch_size(preprocessing: Preprocessing) -> int:
    """Return how many images to take at once where nobody said it: the fewer, the larger."""
    return max(1, min(EVALUATION_BATCH, MOST_IN_A_BATCH // math.prod(preprocessing.shape)))


def check_batch_size(batch_size: object) -> None:
    """Require a number of images.

    Raises:
        InputError: if it is none, or below 1.
    """
    if not isinstance(batch_size, int) or isinstance(batch_size, bool):
        raise InputError(f"batch_size: expected a whole number, got {batch_size!r}")
    if batch_size < 1:
        raise InputError(f"batch_size: expected a number above 0, got {batch_size}")


@torch.no_grad()
def latency_by_batch(target: EvaluationTarget, images: Tensor) -> dict[int, float]:
    """Return the median time of one call, milliseconds, for one image and for a batch."""

    def answer(images: Tensor) -> Tensor:
        return target.model(images).cpu()  # synchronizes

    batches = {len(batch): batch for batch in (images[:1], images)}
    return {size: latencies([answer], batch)[0] for size, batch in batches.items()}


def check_logits(logits: Tensor, target: EvaluationTarget) -> None:
    """Require a finite logit for each class in logits [N, num_classes].

    Raises:
        InputError: saying what was found.
    """
    classes = len(target.class_names)
    if logits.shape[1] != classes:
        raise InputError(f"the classifier gives {logits.shape[1]} logits for {classes} classes")
    if not bool(logits.isfinite().all()):
        raise InputError("the classifier gives NaN or infinite logits, expected finite ones")
