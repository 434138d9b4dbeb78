"""Distillation of feature maps: the student's beside the teacher's, a pair for each quantizer.

Logits constrain the layers of a student little, and how much depends on the images. A layer's own
output constrains it everywhere: generated images then teach almost as much as real ones do.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from zscgan_ext import distributed, ops
from zscgan_ext.classifiers.graph import module_of
from zscgan_ext.quantization.quantized_classifier import BoundGraph, QuantizedClassifier
from zscgan_ext.quantization.quantizers import ActivationQuantizer


def pair_features(
    student: QuantizedClassifier, teacher: fx.GraphModule, wanted: bool
) -> tuple[BoundGraph, BoundGraph]:
    """Return both graphs with the feature maps they share as a second result, in one order.

    Args:
        student: whose quantizers give its feature maps.
        teacher: the graph of the float classifier it was made of.
        wanted: False for lists without feature maps.
    """
    # A quantizer is called by the name of the float node before it.
    quantizers = {
        str(node.target).rpartition(".")[2]: node.name
        for node in student.fused.graph.nodes
        if isinstance(module_of(student.graph, node), ActivationQuantizer)
    }
    shared = {node.name for node in teacher.graph.nodes if node.op != "placeholder"}
    names = [name for name in quantizers if name in shared] if wanted else []
    return (
        with_outputs(student.graph, student.fused.graph, [quantizers[name] for name in names]),
        with_outputs(teacher, teacher.graph, names),
    )


def with_outputs(owner: fx.GraphModule, graph: fx.Graph, names: Sequence[str]) -> BoundGraph:
    """Return a graph on the same modules that gives (logits, [results of these nodes])."""
    extended = copy.deepcopy(graph)
    nodes = {node.name: node for node in extended.nodes}
    output = next(node for node in extended.nodes if node.op == "output")
    output.args = ((output.args[0], [nodes[name] for name in names]),)
    extended.lint()
    return BoundGraph(owner, extended)


def mean_square(x: Tensor) -> Tensor:
    """Return the mean square of [N, C, ...], a scalar, in one pass over memory."""
    zeros = torch.zeros(x.shape[1], device=x.device)
    mean, variance = ops.batch_norm_statistics(x, zeros)  # [C] each
    return (variance + mean.square()).mean()


# Feature maps whose mean square is below this part of the largest are rounding errors beside it.
NO_POWER = torch.finfo(torch.float32).eps ** 2


def feature_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Return the squared error of feature maps relative to the teacher's, averaged over layers.

    A layer whose output is zero, such as a branch that training has switched off, gives no measure
    of how large an error is, and counts as none.

    Args:
        student: feature maps [N, C, ...].
        teacher: the same of the teacher, without gradient.
    """
    powers = distributed.all_reduce_mean(torch.stack([mean_square(theirs) for theirs in teacher]))
    smallest = (NO_POWER * powers.max()).clamp(min=torch.finfo(powers.dtype).tiny)
    distances = []
    for ours, theirs, power in zip(student, teacher, powers, strict=True):
        distance = mean_square(ours - theirs) / power.clamp(min=smallest)
        distances.append(torch.where(power > smallest, distance, 0))
    return torch.stack(distances).mean()
