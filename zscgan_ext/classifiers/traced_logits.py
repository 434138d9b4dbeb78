"""A model as a graph that gives logits, and what these mean."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from zscgan_ext.classifiers.heads import HEADS, MULTI_LABEL, SINGLE_LABEL, Head
from zscgan_ext.classifiers.outputs import TwoLogits
from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.errors import InputError

AUTO = "auto"


@dataclass(frozen=True)
class TracedLogits:
    """The graph of a classifier, and its head."""

    graph: fx.GraphModule  # [N, C, H, W] to logits [N, num_classes]
    head: Head


def traced_logits(
    name: str, model: nn.Module, image_shape: tuple[int, int, int], head: str
) -> TracedLogits:
    """Trace a model, take off a sigmoid at its end, and tell what its logits mean.

    A sigmoid of several outputs gives each a probability of its own, which is what labels have that
    apply or not; that of one output is the probability of the second of two classes.

    Args:
        name: of the model, for messages.
        model: what `with_logits` gave, in evaluation mode.
        image_shape: (C, H, W) of its input.
        head: `single-label`, `multi-label`, or `auto` for what a sigmoid at the end says.

    Raises:
        InputError: if it cannot be traced, or has one logit and is to be of several labels.
    """
    is_of_two_classes = isinstance(model, TwoLogits)
    if is_of_two_classes and head == MULTI_LABEL.name:
        raise InputError(
            f"head: expected single-label for the one logit of {name}, which is taken as two "
            "classes, got multi-label"
        )
    graph = trace(model, image_shape)
    sigmoid = None
    if is_of_two_classes or head != SINGLE_LABEL.name:
        sigmoid = last_sigmoid(graph, is_of_two_classes)
    if head == AUTO:
        is_of_labels = sigmoid is not None and not is_of_two_classes
        head = MULTI_LABEL.name if is_of_labels else SINGLE_LABEL.name
    if sigmoid is not None:
        sigmoid.replace_all_uses_with(sigmoid.all_input_nodes[0])
        graph.graph.erase_node(sigmoid)
        graph.recompile()
    return TracedLogits(graph, HEADS[head])


def last_sigmoid(graph: fx.GraphModule, is_of_two_classes: bool) -> fx.Node | None:
    """Return the sigmoid that a graph ends in, whatever shape its result is given behind it.

    Args:
        graph: in normal form.
        is_of_two_classes: whether the graph ends in that of `TwoLogits`, behind the one logit.
    """
    (output,) = graph.graph.find_nodes(op="output")
    node: Any = output.args[0]
    if is_of_two_classes and node.target is torch.cat:
        _, node = node.args[0]  # a zero, and the logit
    while node.target is torch.reshape:
        node = node.args[0]
    return node if node.target is torch.sigmoid else None
