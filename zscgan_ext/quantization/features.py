"""Feature maps of the student beside those of the teacher, one pair for each quantizer.

The logits alone tell a student little about its layers, and what they tell depends on the images. A
layer's own output constrains it everywhere: generated images then teach almost what real ones do.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from zscgan_ext import ops, processes
from zscgan_ext.classifiers.graph import module_of
from zscgan_ext.quantization.quantizers import ActivationQuantizer


def quantized_names(student: fx.GraphModule, teacher: fx.GraphModule) -> list[str]:
    """Name the float nodes whose results a student quantizes and its teacher has as well.

    Without images.
    """
    shared = {node.name for node in teacher.graph.nodes if node.op != "placeholder"}
    return [name for name in quantizers_by_name(student) if name in shared]


def quantizers_by_name(student: fx.GraphModule) -> dict[str, str]:
    """Return the names of a student's quantizer nodes by that of the float node before each."""
    nodes = [
        n for n in student.graph.nodes if isinstance(module_of(student, n), ActivationQuantizer)
    ]
    return {str(node.target).rpartition(".")[2]: node.name for node in nodes}


def with_outputs(graph: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """Return a graph on the same modules that gives (logits, [results of these nodes])."""
    extended = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    nodes = {node.name: node for node in extended.graph.nodes}
    output = next(node for node in extended.graph.nodes if node.op == "output")
    output.args = ((output.args[0], [nodes[name] for name in names]),)
    extended.graph.lint()
    extended.recompile()
    return extended


def pair_features(
    student: fx.GraphModule, teacher: fx.GraphModule, wanted: bool
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Return both graphs with the feature maps they share as a second result, in one order.

    Args:
        student: a graph with activation quantizers.
        teacher: the graph of the float classifier it was made of.
        wanted: False for lists without feature maps.
    """
    names = quantized_names(student, teacher) if wanted else []
    quantizers = quantizers_by_name(student)
    return with_outputs(student, [quantizers[name] for name in names]), with_outputs(teacher, names)


def mean_square(x: Tensor) -> Tensor:
    """Return the mean square of [N, C, ...], a scalar, in one pass over memory."""
    zeros = torch.zeros(x.shape[1], device=x.device)
    mean, variance = ops.batch_norm_statistics(x, zeros)  # [C] each
    return (variance + mean.square()).mean()


# Feature maps whose mean square is below this part of the largest are rounding errors beside it.
NO_POWER = torch.finfo(torch.float32).eps ** 2


def feature_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the squared error of feature maps relative to the teacher's, averaged over layers.

    A layer whose output is zero, such as a branch that training has switched off, tells nothing of
    how large an error is, and counts as none.

    Args:
        student: feature maps [N, C, ...].
        teacher: the same of the teacher, without gradient.
    """
    powers = processes.averaged(torch.stack([mean_square(theirs) for theirs in teacher]))
    smallest = (NO_POWER * powers.max()).clamp(min=torch.finfo(powers.dtype).tiny)
    distances = []
    for ours, theirs, power in zip(student, teacher, powers, strict=True):
        distance = mean_square(ours - theirs) / power.clamp(min=smallest)
        distances.append(torch.where(power > smallest, distance, 0))
    return torch.stack(distances).mean()
