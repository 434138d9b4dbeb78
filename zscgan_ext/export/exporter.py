"""Exporting: files to deploy, compared with the student before they are written, and measured."""

import copy
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.classifiers.trials import random_images
from zscgan_ext.config.configs import RunConfig, check_input
from zscgan_ext.environment import environment
from zscgan_ext.errors import InputError
from zscgan_ext.export.onnx.runtime import OnnxClassifier, require_packages
from zscgan_ext.export.quantized_file import load_quantized, quantized_file
from zscgan_ext.images.memory_format import lay_out, to_channels_last
from zscgan_ext.measures import latencies
from zscgan_ext.ops.implementation import require_implementation
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import folded
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.run_folder.files import EXPORT, EXPORTED, only_writer, write_own
from zscgan_ext.run_folder.finished_run import RANDOM_IMAGES, open_run, require_finished
from zscgan_ext.run_folder.made_with import (
    DIGESTS,
    STUDENT_DIGEST,
    digest_of_bytes,
    digest_of_tensors,
)
from zscgan_ext.run_folder.records import read_export
from zscgan_ext.run_folder.whole_file import json_bytes, one_line_errors, write_whole

if TYPE_CHECKING:
    from onnx import ModelProto

    from zscgan_ext.export.onnx.graph import QuantizedValue

BATCH, BATCHES = 32, 16  # of generated images, that student and files are compared on
CHECKED_IMAGES = 4  # random ones, that a student is exported with before it learns


@dataclass(frozen=True)
class FileForm:
    """What files are for, and what ONNX files take; None where the run or student says it."""

    target: str | None = None  # runtime that is to execute them
    input: str | None = None  # float32, uint8 or uint8-nchw
    resize_input: bool | None = None  # whether pictures may have any size


DEFAULT_FORM = FileForm()


def export_run(
    folder: Path,
    formats: Sequence[str] | None,
    classifier: str | None = None,
    form: FileForm = DEFAULT_FORM,
) -> dict[str, Any]:
    """Export the student of a finished run into the folder of the run.

    Args:
        folder: of the run.
        formats: `onnx`, `pt2`, `safetensors`; None for safetensors and the one of the target.
        classifier: as `open_run` takes it.
        form: of the files.

    Returns:
        what `export` returns.

    Raises:
        InputError: if the run cannot be read or exported, or a file differs from the student.
    """
    require_packages(formats or ())
    require_implementation()
    require_finished(folder)
    with only_writer(folder):  # or the files could be of a run that is replaced meanwhile
        run = open_run(folder, classifier)
        form = form_of(run.config, form)
        check_form(run.student, form)
        images = run.comparison_images(BATCH, BATCHES)
        if formats is None:
            formats = ("pt2" if form.target == "pt2e" else "onnx", "safetensors")
        return export(run.classifier, run.student, images, folder, formats, form)


def form_of(config: RunConfig, given: FileForm = DEFAULT_FORM) -> FileForm:
    """Return the form of a run's files: what was given, else what its configuration says."""
    resizes = config.resize_input if given.resize_input is None else given.resize_input
    target, input_form = given.target or config.quantization.target, given.input or config.input
    return FileForm(target, input_form, resizes)


def export_copy(
    classifier: Classifier,
    student: QuantizedClassifier,
    folder: Path,
    formats: Sequence[str],
    form: FileForm,
) -> dict[str, Any]:
    """Export a student of a run that goes on, compared with its files on a few random images.

    Args:
        classifier: the float classifier that the student was made from; left as it is.
        student: calibrated; left as it is.
        folder: as `export` takes it.
        formats: `onnx`, `pt2`, `safetensors`.
        form: of the files.

    Returns:
        what `export` returns.

    Raises:
        InputError: as `export`.
    """
    classifier, student = copy.deepcopy((classifier, student))
    lay_out(classifier.model.to("cpu"), torch.channels_last)
    lay_out(student.to("cpu").requires_grad_(False), torch.channels_last)
    shape = classifier.preprocessing.shape
    images = to_channels_last(random_images(RANDOM_IMAGES, shape, torch.zeros(())))
    return export(classifier, student, [images], folder, formats, form)


def export(
    classifier: Classifier,
    student: QuantizedClassifier,
    images: Iterable[Tensor],
    folder: Path,
    formats: Sequence[str],
    form: FileForm = DEFAULT_FORM,
) -> dict[str, Any]:
    """Write a student as `model.onnx`, `model.safetensors`, and what was measured of them.

    Args:
        classifier: the float classifier that the student was made from, on the CPU.
        student: calibrated, on the CPU.
        images: batches of normalized images [N, C, H, W], to compare the files with the student.
        folder: for the files.
        formats: `onnx`, `pt2`, `safetensors`.
        form: of the files; for the runtime that the student was quantized for, and of normalized
            images, where it does not say.

    Returns:
        what `export.json` holds: bytes, agreement, differences, latencies, versions.

    Raises:
        InputError: if packages are missing, a node cannot be exported, or a file differs from the
            student; that file, and those after it, are not written then.
    """
    require_packages(formats)
    check_form(student, form)
    images = list(images)
    of_student = digest_of_tensors(student.state_dict())
    report: dict[str, Any] = {
        "target": form.target or target_of(student),
        "input": form.input or "float32",
        "bytes": {},
        STUDENT_DIGEST: of_student,
        DIGESTS: earlier_digests(folder, of_student),
        "threads": torch.get_num_threads(),
        **environment(),
    }
    for name in formats:
        if name == "onnx":
            data, report["onnx"] = onnx_file(classifier, student, images, form)
            report["bytes"]["float_onnx"] = report["onnx"].pop("float_bytes")
        elif name == "pt2":
            from zscgan_ext.export.pt2e import pt2e_file  # imports torch.export's tools

            data, report["pt2"] = pt2e_file(classifier, student, images)
        else:
            data = safetensors_file(classifier, student, images[0])
        write_own(folder, EXPORTED[name], data)
        report["bytes"][name] = len(data)
        report[DIGESTS][name] = digest_of_bytes(data)
    write_own(folder, EXPORT, json_bytes(report))
    return report


def earlier_digests(folder: Path, of_student: str) -> dict[str, str]:
    """Return the digests of files of the same student that were exported before."""
    with suppress(InputError):  # of something else, which is kept or replaced where it is written
        earlier = read_export(folder)
        if earlier is not None and earlier.get(STUDENT_DIGEST) == of_student:
            return dict(earlier.get(DIGESTS, {}))
    return {}


def target_of(student: QuantizedClassifier) -> str:
    """Return the runtime that a student was quantized for, as far as it shows."""
    return "tensorrt" if student.scheme.symmetric_activations else "onnxruntime"


def check_form(student: QuantizedClassifier, form: FileForm) -> None:
    """Require a student that a runtime can execute, and pixels where they are to be resized.

    Raises:
        InputError: saying how to get one.
    """
    check_input(form.input or "float32", bool(form.resize_input))
    if form.target == "tensorrt" and not student.scheme.symmetric_activations:
        raise InputError(
            "target: tensorrt needs activations with the zero point 0, and those of this "
            f"classifier have others (scheme {student.scheme.name}); quantize it with --target "
            "tensorrt"
        )


@torch.no_grad()
def check_exports(
    classifier: Classifier, student: QuantizedClassifier, formats: Sequence[str]
) -> None:
    """Require, before anything is learned, that a student can be exported.

    It is written and run with ranges from random images.

    Args:
        classifier: the float classifier that the student was made from, on the CPU.
        student: just converted, on the CPU; its ranges are changed.
        formats: `onnx`, `pt2`, `safetensors`.

    Raises:
        InputError: if packages are missing, a node cannot be exported, or computes something else
            in a file.
    """
    require_packages(formats)
    if not formats:
        return
    batch = random_images(CHECKED_IMAGES, classifier.preprocessing.shape, torch.zeros(()))
    batch = to_channels_last(batch)
    lay_out(student, torch.channels_last)
    calibrate(student, iter([(batch, torch.zeros(len(batch)))]), 1)
    if "safetensors" in formats:
        safetensors_file(classifier, student, batch)
    if "pt2" in formats:
        from zscgan_ext.export.pt2e import pt2e_file

        pt2e_file(classifier, student, [batch])
    if "onnx" in formats:
        from zscgan_ext.export.onnx.model import float_model
        from zscgan_ext.export.onnx.verification import compare_nodes

        model, quantized = model_for(target_of(student), student, classifier)
        compare_nodes(student, model, quantized, [batch])
        float_graph = folded(classifier.model, classifier.preprocessing.shape)
        OnnxClassifier(float_model(float_graph, classifier).SerializeToString())(batch)


@torch.no_grad()
def safetensors_file(classifier: Classifier, student: QuantizedClassifier, images: Tensor) -> bytes:
    """Pack a student, and require that what is read back gives the very same logits."""
    data = quantized_file(student, classifier)
    with one_line_errors(Path(EXPORTED["safetensors"])), TemporaryDirectory() as folder:
        file = Path(folder, "exported.safetensors")
        write_whole(file, data)
        loaded = load_quantized(file, classifier.model)
    difference = (student(images) - loaded(images)).abs().max()
    if difference != 0:
        raise InputError(
            "export: the safetensors file gives other logits than the student, they differ by up "
            f"to {float(difference):.3g}"
        )
    return data


def model_for(
    target: str, student: QuantizedClassifier, classifier: Classifier
) -> tuple["ModelProto", dict[str, "QuantizedValue"]]:
    """Return what `quantized_model` does, in a form that a runtime executes.

    Raises:
        InputError: if a node cannot be exported, or TensorRT would not execute the model.
    """
    from zscgan_ext.export.onnx.model import quantized_model
    from zscgan_ext.export.onnx.tensorrt import check_tensorrt

    model, quantized = quantized_model(student, classifier)
    if target == "tensorrt":
        check_tensorrt(model)
    return model, quantized


def onnx_file(
    classifier: Classifier, student: QuantizedClassifier, images: Sequence[Tensor], form: FileForm
) -> tuple[bytes, dict[str, Any]]:
    """Write a student as ONNX, prove it, and measure it beside the float classifier."""
    # These import onnx, which a run without ONNX files does not need.
    from zscgan_ext.export.onnx.model import float_model
    from zscgan_ext.export.onnx.pixel_input import takes_pixels, verify_pixels
    from zscgan_ext.export.onnx.verification import verify

    model, quantized = model_for(form.target or target_of(student), student, classifier)
    verification = verify(student, model, quantized, images, classifier.head)
    float_graph = folded(classifier.model, classifier.preprocessing.shape).cpu()
    float_data = float_model(float_graph, classifier).SerializeToString()
    data: bytes = model.SerializeToString()
    sessions = [OnnxClassifier(float_data), OnnxClassifier(data)]
    if form.input in ("uint8", "uint8-nchw"):
        resizes, preprocessing = bool(form.resize_input), classifier.preprocessing
        taking = takes_pixels(model, preprocessing, form.input, resizes)
        verify_pixels(taking, model, preprocessing, form.input)
        data = taking.SerializeToString()
    float_latency, latency = latencies(sessions, images[0][:1])
    return data, {
        **asdict(verification),
        "latency_ms": {"float": float_latency, "quantized": latency},
        "float_bytes": len(float_data),
    }


def summary(report: dict[str, Any]) -> str:
    """Lay out a report as lines."""
    sizes = report["bytes"]
    lines = [f"{EXPORTED[name]}: {sizes[name]:,} bytes" for name in EXPORTED if name in sizes]
    if "onnx" in report:
        measured, of_float = report["onnx"], sizes["onnx"] / sizes["float_onnx"]
        milliseconds = measured["latency_ms"]
        lines += [
            f"float ONNX file: {sizes['float_onnx']:,} bytes; the quantized one is "
            f"{of_float:.3f} of it",
            f"ONNX Runtime agrees with the student on {measured['agreement']:.2f} % of "
            f"{measured['images']} images, the student with itself on "
            f"{measured['own_agreement']:.2f} %",
            f"largest difference of a logit: {measured['logit_difference']:.2g} where ties are "
            f"rounded alike (allowed {measured['allowed_difference']:.2g}), "
            f"{measured['end_to_end_difference']:.2g} from end to end",
            f"ONNX Runtime, one image, {report['threads']} thread(s): "
            f"float {milliseconds['float']:.3f} ms, quantized {milliseconds['quantized']:.3f} ms",
        ]
    if "pt2" in report:
        lines += [
            f"the program agrees with the student on {report['pt2']['agreement']:.2f} % of "
            f"{report['pt2']['images']} images"
        ]
    return "\n".join(lines)
