"""Proof that an exported ONNX file computes what the student computes.

Integer kernels sum exactly, torch sums in float32. A value that lies within a rounding error of the
middle between two integers can therefore become either, and at few bits such a tie changes logits
visibly. So the proof has two parts. From end to end, both must choose the same class, but for
images on which ties decide: there the student itself chooses another class when the image changes
by less than can be seen. Node by node, with the integers of ONNX Runtime as the input of each next
node, the integers must be equal but for ties, and the logits equal to less than one quantization
step of the last layer, in the scale that the classifier then gives its results.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import torch
from onnx import ModelProto, TensorProto, helper
from torch import Tensor

from zscgan_ext.classifiers.heads import SINGLE_LABEL, Head
from zscgan_ext.errors import InputError
from zscgan_ext.export.node_by_node import (
    BATCHES_BY_NODE,
    allowed_difference,
    compare_with_runtime,
)
from zscgan_ext.export.onnx.graph import QuantizedValue
from zscgan_ext.export.onnx.runtime import OUTPUT, OnnxClassifier
from zscgan_ext.measures import agreement
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier

LEAST_AGREEMENT = 99.5  # percent, of a student that agrees with itself
NUDGE = 1e-6  # relative change of an image that moves ties and nothing else


@dataclass(frozen=True)
class Verification:
    """How near an exported model is to the student, on the images it was tried on."""

    images: int
    agreement: float  # percent of images on which both choose the same class, or of their labels
    own_agreement: float  # the same of the student with itself, on images changed by `NUDGE`
    end_to_end_difference: float  # the largest of a logit
    ties: int  # integers that were rounded to the other side
    logit_difference: float  # the largest where ties are rounded alike
    allowed_difference: float  # one step of the last layer's products, in the logits' scale


@torch.no_grad()
def verify(
    student: QuantizedClassifier,
    model: ModelProto,
    quantized: dict[str, QuantizedValue],
    batches: Sequence[Tensor],
    head: Head = SINGLE_LABEL,
) -> Verification:
    """Compare a student with its ONNX model in ONNX Runtime.

    Args:
        student: calibrated, on the CPU.
        model: the student's ONNX model.
        quantized: for each activation quantizer, in order, where its integers are in the model.
        batches: normalized images [N, C, H, W].
        head: what the logits mean.

    Raises:
        InputError: naming the first node that differs, or if the classes agree on fewer than
            99.5 % of the images, less twice the part on which the student disagrees with itself,
            or a logit differs by more than a quantization step.
    """
    session = OnnxClassifier(model.SerializeToString())
    expected = torch.cat([student(batch) for batch in batches])
    found = torch.cat([session(batch) for batch in batches])
    ties, difference, gain = compare_nodes(student, model, quantized, batches[:BATCHES_BY_NODE])
    result = Verification(
        len(expected),
        agreement(found, expected, head),
        agreement(torch.cat([student(nudged(batch)) for batch in batches]), expected, head),
        float((found - expected).abs().max()),
        ties,
        difference,
        allowed_difference(student, gain, expected),
    )
    least = LEAST_AGREEMENT - 2 * (100 - result.own_agreement)
    if result.agreement < least:
        raise InputError(
            f"export: ONNX Runtime agrees with the student on {result.agreement:.2f} % of "
            f"{result.images} images, expected {least:.2f} % or more; every node agrees by itself, "
            "so these images lie between classes: learn the generator for more steps"
        )
    if not result.logit_difference <= result.allowed_difference:  # also for NaN
        raise InputError(
            f"export: the first node that differs is the last layer, whose logits differ by up to "
            f"{result.logit_difference:.3g}, allowed is {result.allowed_difference:.3g}"
        )
    return result


def nudged(batch: Tensor) -> Tensor:
    """Change images by about a millionth, the same way each time."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(batch.shape, generator=rng)
    return batch * (1 + NUDGE * noise)


def compare_nodes(
    student: QuantizedClassifier,
    model: ModelProto,
    quantized: dict[str, QuantizedValue],
    batches: Sequence[Tensor],
) -> tuple[int, float, float]:
    """Compare node by node, as `compare_with_runtime` does, with ONNX Runtime."""
    names = [value.integers for value in quantized.values()]
    session = OnnxClassifier(with_integers(model, quantized).SerializeToString())

    def compute(images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        *found, logits = map(torch.from_numpy, session.run([*names, OUTPUT], images))
        return dict(zip(quantized, found, strict=True)), logits

    return compare_with_runtime(student, "ONNX Runtime", compute, batches)


def with_integers(model: ModelProto, quantized: dict[str, QuantizedValue]) -> ModelProto:
    """Return a copy of a model whose outputs are logits, and the integers of each quantizer."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for value in quantized.values():
        kind = TensorProto.INT8 if value.signed else TensorProto.UINT8
        probe.graph.output.append(helper.make_tensor_value_info(value.integers, kind, None))
    return probe
