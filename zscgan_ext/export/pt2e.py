"""A quantized classifier as a program of `torch.export` with quantized_decomposed operators (PT2E).

That is the form that torch.compile's x86 backend, ExecuTorch and others lower to integer kernels.
Torch executes it as it is, too.
"""

import copy
import io
import json
from collections.abc import Sequence
from typing import Any

import torch

# Registers torch.ops.quantized_decomposed, which is otherwise loaded with the quantization tools.
import torch.ao.quantization.fx._decomposed
from torch import Tensor, fx, nn
from torch.nn import functional as F

from zscgan_ext.classifiers.exported_program import export_program, quiet_export
from zscgan_ext.classifiers.graph import calls, module_of, only_user
from zscgan_ext.classifiers.heads import SINGLE_LABEL, Head
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.errors import InputError, first_line
from zscgan_ext.export.integers import integer_weight
from zscgan_ext.export.node_by_node import (
    BATCHES_BY_NODE,
    allowed_difference,
    compare_with_runtime,
)
from zscgan_ext.measures import agreement
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.quantizer_placement import ACTIVATION_QUANTIZERS
from zscgan_ext.quantization.quantizers import ActivationQuantizer, QuantizedLayer

METADATA = "zscgan_ext"  # the name of the file in the archive
ROUNDING = 1e-6  # relative, of float32
OPERATORS = torch.ops.quantized_decomposed


def kind_of(signed: bool) -> torch.dtype:
    """Return the type that integers are stored in."""
    return torch.int8 if signed else torch.uint8


class QuantizeDequantize(nn.Module):
    """An activation quantizer as the two operators that lowering looks for."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        scale, zero_point = quantizer.qparams()
        integers = quantizer.quant_range
        self.qparams = (float(scale.item()), int(zero_point.item()))
        self.bounds = (integers.quant_min, integers.quant_max, kind_of(integers.signed))

    def forward(self, x: Tensor) -> Tensor:
        """Round a tensor to the quantizer's integers."""
        integers = OPERATORS.quantize_per_tensor.default(x, *self.qparams, *self.bounds)
        result: Tensor = OPERATORS.dequantize_per_tensor.default(
            integers, *self.qparams, *self.bounds
        )
        return result


class DequantizedLayer(nn.Module):
    """A layer that holds the integers of its weight."""

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        weight = integer_weight(layer)
        kind = kind_of(weight.range.signed)
        self.bounds = (weight.range.quant_min, weight.range.quant_max, kind)
        self.register_buffer("integers", weight.integers.to(kind))
        self.register_buffer("scale", weight.scale)
        self.register_buffer("zero_point", weight.zero_point.long())
        self.layer = copy.deepcopy(layer.layer)
        del self.layer.weight

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer with its weight in floats."""
        weight: Tensor = OPERATORS.dequantize_per_channel.default(
            self.integers, self.scale, self.zero_point, 0, *self.bounds
        )
        if isinstance(self.layer, nn.Linear):
            return nn.functional.linear(x, weight, self.layer.bias)
        result: Tensor = self.layer._conv_forward(x, weight, self.layer.bias)
        return result


def decomposed(student: QuantizedClassifier) -> fx.GraphModule:
    """Return a copy of a student's graph, with plain operators in the place of its quantizers."""
    with quiet_export():
        graph = copy.deepcopy(student.graph)
    for name, module in list(graph.named_modules()):
        if isinstance(module, ActivationQuantizer):
            graph.set_submodule(name, QuantizeDequantize(module))
        elif isinstance(module, QuantizedLayer):
            graph.set_submodule(name, DequantizedLayer(module))
    prepare_for_lowering(graph)
    return graph.eval().requires_grad_(False)


def prepare_for_lowering(graph: fx.GraphModule) -> None:
    """Give a graph the form whose patterns compilers know; the results keep their bits.

    They fuse a convolution with ReLU and a quantizer, but not with ReLU6, whose upper bound a
    quantizer has too; and a linear layer only with the dequantization right before it.
    """
    for node in list(graph.graph.nodes):
        quantizer = only_user(node)
        if calls(node, F.relu6) and bounds_at(module_of(graph, quantizer), 6):
            node.target, node.kwargs = F.relu, {}
        if (
            isinstance(module_of(graph, node), QuantizeDequantize)
            and (reshaped := only_user(node)) is not None
            and calls(reshaped, torch.reshape)
            and (layer := only_user(reshaped)) is not None
            and isinstance(module_of(graph, layer), DequantizedLayer)
        ):
            reshaped.replace_input_with(node, node.args[0])
            layer.replace_input_with(reshaped, node)
            node.replace_input_with(node.args[0], reshaped)
            reshaped.append(node)
    graph.graph.lint()
    graph.recompile()


def bounds_at(quantizer: nn.Module | None, value: float) -> bool:
    """Return True for a quantizer that gives its largest integer for this value and all above."""
    if not isinstance(quantizer, QuantizeDequantize):
        return False
    (scale, zero_point), (_, largest, _) = quantizer.qparams, quantizer.bounds
    return value > (largest - zero_point - 0.5) * scale * (1 + ROUNDING)


def description(classifier: Classifier) -> dict[str, Any]:
    """Return what a program needs to prepare images and to name classes."""
    return {
        "classifier": classifier.name,
        "class_names": list(classifier.class_names),
        "head": classifier.head.name,
        **classifier.preprocessing.metadata(),
    }


class IntegersKept(fx.Interpreter):
    """Runs a program, and keeps what its activations are rounded to, in order."""

    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__(program)
        self.integers: list[Tensor] = []

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function."""
        result = super().call_function(target, args, kwargs)
        if target is OPERATORS.quantize_per_tensor.default:
            self.integers.append(result)
        return result


@torch.no_grad()
def pt2e_file(
    classifier: Classifier, student: QuantizedClassifier, batches: Sequence[Tensor]
) -> tuple[bytes, dict[str, Any]]:
    """Write a student as a program, read it back, and prove it.

    Args:
        classifier: that it is of.
        student: calibrated, on the CPU.
        batches: normalized images, [N, C, H, W].

    Returns:
        the file, and what was measured.

    Raises:
        InputError: if torch cannot export the student, or the program computes something else.
    """
    buffer = io.BytesIO()
    try:
        program = export_program(decomposed(student), classifier.preprocessing.shape)
        with quiet_export():
            files = {METADATA: json.dumps(description(classifier))}
            torch.export.save(program, buffer, extra_files=files)
            buffer.seek(0)
            loaded = torch.export.load(buffer).module()
    except Exception as error:  # torch.export raises nearly anything
        reason = first_line(error)
        raise InputError(f"export: torch.export cannot write the student ({reason})") from error
    return buffer.getvalue(), verify_program(student, loaded, batches, classifier.head)


def verify_program(
    student: QuantizedClassifier,
    program: nn.Module,
    batches: Sequence[Tensor],
    head: Head = SINGLE_LABEL,
) -> dict[str, Any]:
    """Require that each node of a program computes what the student does.

    Raises:
        InputError: naming the first node that differs.
    """
    assert isinstance(program, fx.GraphModule)
    found, expected = (torch.cat([m(images) for images in batches]) for m in (program, student))
    names = [f"{ACTIVATION_QUANTIZERS}.{name}" for name in student.named_activation_quantizers()]

    def compute(images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        kept = IntegersKept(program)
        logits = kept.run(images)
        return dict(zip(names, kept.integers, strict=True)), logits

    ties, difference, gain = compare_with_runtime(
        student, "the program", compute, batches[:BATCHES_BY_NODE]
    )
    allowed = allowed_difference(student, gain, expected)
    if not bool(found.isfinite().all()) or not difference <= allowed:
        raise InputError(
            f"export: the program's logits differ from the student's by up to {difference:.3g} "
            f"where ties are rounded alike, allowed is {allowed:.3g}"
        )
    return {
        "images": len(found),
        "agreement": agreement(found, expected, head),
        "end_to_end_difference": float((found - expected).abs().max()),
        "ties": ties,
        "logit_difference": difference,
        "allowed_difference": allowed,
    }
