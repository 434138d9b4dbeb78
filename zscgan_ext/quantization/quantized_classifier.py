"""The quantized classifier, and the graph with fewer passes over memory that it executes."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn

from zscgan_ext import ops
from zscgan_ext.classifiers.graph import activation_of, module_of, only_user
from zscgan_ext.quantization.quantizer_placement import ACTIVATION_QUANTIZERS, source_of_values
from zscgan_ext.quantization.quantizers import ActivationQuantizer, QuantizedLayer
from zscgan_ext.quantization.scheme import Scheme

Quantize = Callable[[ActivationQuantizer, Tensor], Tensor]


class BoundGraph:
    """A graph that is executed on the modules of a graph module, which alone registers them.

    Args:
        owner: has all modules and tensors that the graph names.
        graph: in place of the owner's own.
    """

    def __init__(self, owner: fx.GraphModule, graph: fx.Graph) -> None:
        self.owner = owner
        self.graph = graph
        self.code = type(fx.GraphModule(owner, graph)).forward
        graph.owning_module = owner

    def __call__(self, *inputs: Tensor) -> Any:
        """Execute the graph."""
        return self.code(self.owner, *inputs)


class QuantizedClassifier(nn.Module):
    """A classifier whose weights and activations pass quantizers.

    Args:
        graph: the traced classifier with quantizers.
        scheme: where they stand.
        image_shape: [C, H, W].

    Attributes:
        graph: the same.
        fused: what is executed of it, with fewer nodes and the same results.
        layers: the quantized layers, in the order of the modules.
        activation_quantizers: in the same order.
    """

    def __init__(
        self, graph: fx.GraphModule, scheme: Scheme, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.graph = graph
        self.scheme = scheme
        self.image_shape = image_shape
        self.fused = BoundGraph(graph, fuse_into_quantizers(graph))
        self.layers = list(self.named_layers().values())
        self.activation_quantizers = list(self.named_activation_quantizers().values())

    def named_activation_quantizers(self) -> dict[str, ActivationQuantizer]:
        """Return the activation quantizers by the names of the nodes whose results they take."""
        named = self.graph.get_submodule(ACTIVATION_QUANTIZERS).named_children()
        return {name: module for name, module in named if isinstance(module, ActivationQuantizer)}

    def named_layers(self) -> dict[str, QuantizedLayer]:
        """Return the quantized layers by their names, in the order of the modules."""
        named = self.graph.named_modules()
        return {name: module for name, module in named if isinstance(module, QuantizedLayer)}

    def quantize_activations(self, enabled: bool = True) -> None:
        """Let activation quantizers quantize from now on, or pass tensors on."""
        for quantizer in self.activation_quantizers:
            quantizer.enabled = enabled

    def quantized_weights(self) -> AbstractContextManager[None]:
        """Let layers compute with quantized weights for a while, in one thread at a time.

        Weights are quantized once, on entry. Zero points of asymmetric ones stay with the layers.
        """
        return QuantizedWeights(self)

    def quantize_weights(self) -> list[Tensor]:
        """Quantize the weights of all layers; those with learned scales by a single kernel."""
        if not self.scheme.symmetric_weights:
            return [layer.quantize_by_min_max() for layer in self.layers]
        weights = [layer.layer.weight for layer in self.layers]
        sizes = [weight.shape[0] for weight in weights]
        scales = torch.cat([layer.log_scale for layer in self.layers]).exp().split(sizes)
        return ops.lsq_fake_quantize_foreach(
            weights,
            scales,
            [layer.zero_point for layer in self.layers],
            [layer.quant_range.quant_min for layer in self.layers],
            [layer.quant_range.quant_max for layer in self.layers],
            [
                (weight.numel() // weight.shape[0] * layer.quant_range.quant_max) ** -0.5
                for weight, layer in zip(weights, self.layers, strict=True)
            ],
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to logits [N, num_classes]."""
        with self.quantized_weights():
            if len(images) == 0:  # which not every operator takes
                one: Tensor = self.fused(images.new_zeros(1, *images.shape[1:]))
                return one[:0]
            logits: Tensor = self.fused(images)
        return logits

    def forward_with(self, quantize: Quantize, images: Tensor) -> Tensor:
        """Run with a function in the place of the activation quantizers.

        Args:
            quantize: is handed each quantizer and what it would round, in the order of execution;
                what it returns goes on in the place of the result.
            images: [N, C, H, W].
        """
        with self.quantized_weights():
            logits: Tensor = QuantizerSubstitute(self.fused, quantize).run(images)
        return logits


class QuantizerSubstitute(fx.Interpreter):
    """Executes a graph with a function in the place of the activation quantizers."""

    def __init__(self, bound: BoundGraph, quantize: Quantize) -> None:
        super().__init__(bound.owner, graph=bound.graph)
        self.extra_traceback = False  # which would make several lines of an error
        self.quantize = quantize

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module, or the function if it is a quantizer."""
        module = self.fetch_attr(target)
        if isinstance(module, ActivationQuantizer):
            return self.quantize(module, module.before_rounding(*args, **kwargs))
        return module(*args, **kwargs)


class QuantizedWeights(AbstractContextManager[None]):
    """See `QuantizedClassifier.quantized_weights`; a class, which every torch.compile can trace."""

    def __init__(self, student: QuantizedClassifier) -> None:
        self.student = student

    def __enter__(self) -> None:
        """Quantize the weights."""
        student = self.student
        self.before = [layer.quantized_weight for layer in student.layers]
        for layer, weight in zip(student.layers, student.quantize_weights(), strict=True):
            layer.quantized_weight = weight

    def __exit__(self, *_: object) -> None:
        """Release them, and the graph of their gradients, for those of an enclosing context."""
        for layer, weight in zip(self.student.layers, self.before, strict=True):
            layer.quantized_weight = weight


# ---- fusion -------------------------------------------------------------------------------------


def fuse_into_quantizers(graph: fx.GraphModule) -> fx.Graph:
    """Let quantizers apply the ReLU or ReLU6 before them, and add a convolution's bias before that.

    Args:
        graph: a classifier with quantizers, which is left as it is.

    Returns:
        Another graph with the same results on the same modules.
    """
    fused = copy.deepcopy(graph.graph)
    for node in list(fused.nodes):
        if isinstance(module_of(graph, node), ActivationQuantizer):
            fuse_activation(graph, fused, node)
    fused.lint()
    return fused


def fuse_activation(owner: fx.GraphModule, graph: fx.Graph, quantizer: fx.Node) -> None:
    """Take out the activation before a quantizer if nobody else sees it or its input."""
    node = quantizer.all_input_nodes[0]
    activation = activation_of(node)
    if activation == "none" or only_user(node) is None:
        return
    source = node.all_input_nodes[0]
    if only_user(source) is None:
        return
    quantizer.replace_input_with(node, source)
    quantizer.kwargs = {"activation": activation}
    graph.erase_node(node)
    layer = module_of(owner, source)
    if not isinstance(layer, QuantizedLayer) or not isinstance(layer.layer, nn.Conv2d):
        return
    if layer.layer.bias is None:
        return
    with graph.inserting_before(quantizer):
        bias = graph.get_attr(f"{source.target}.layer.bias")
    source.kwargs = {"defer_bias": True}
    quantizer.kwargs = {**quantizer.kwargs, "bias": bias}


# ---- biases -------------------------------------------------------------------------------------


@torch.no_grad()
def round_biases_to_int32(student: QuantizedClassifier) -> None:
    """Round biases, in place, to multiples of input scale times weight scale.

    An integer kernel, which adds them as int32, can add no other. At 4 bits these multiples are
    coarse enough to move the integers of a later layer. Biases of asymmetric weights, and of layers
    whose input is not quantized, stay as they are: no integer kernel takes those layers.

    Args:
        student: calibrated.
    """
    for node in student.graph.graph.nodes:
        layer = module_of(student.graph, node)
        if not isinstance(layer, QuantizedLayer) or not layer.symmetric:
            continue
        quantizer = input_quantizer(student.graph, node)
        bias = layer.layer.bias
        if quantizer is None or bias is None:
            continue
        step = layer.qparams().scale.double() * quantizer.qparams().scale.double()  # [O]
        bias.copy_(torch.round(bias / step) * step)


def input_quantizer(graph: fx.GraphModule, node: fx.Node) -> ActivationQuantizer | None:
    """Return the quantizer whose integers the input of a node holds, if it holds any."""
    module = module_of(graph, source_of_values(node.args[0]))
    return module if isinstance(module, ActivationQuantizer) else None
