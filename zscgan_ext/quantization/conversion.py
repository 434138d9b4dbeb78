"""From a float classifier to a quantized one, through its graph."""

import copy
import math
import operator
from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from zscgan_ext import ops
from zscgan_ext.classifiers.graph import calls, device_of, module_of
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.classifiers.proof import Truth, require_near
from zscgan_ext.classifiers.tracing import copied, trace
from zscgan_ext.errors import InputError
from zscgan_ext.quantization.batch_norm_folding import fold_batch_norm
from zscgan_ext.quantization.float_operands import float_operands
from zscgan_ext.quantization.fusion import fuse
from zscgan_ext.quantization.quantizers import ActivationMode, ActivationQuantizer, QuantizedLayer
from zscgan_ext.quantization.scheme import Scheme, scheme_of
from zscgan_ext.quantization.transposed_convolution import TransposedConvolution
from zscgan_ext.settings.config import Settings

# Part of the operation before them, whose result is not quantized then.
ACTIVATIONS: tuple[Any, ...] = (
    *(F.relu, F.relu6, F.hardtanh, F.hardswish, F.hardsigmoid, F.silu, F.gelu, F.mish),
    *(F.leaky_relu, F.elu, F.celu, F.selu, F.softplus, F.softsign, F.logsigmoid),
    *(torch.sigmoid, torch.tanh, torch.clamp, F.threshold),
    *(F.hardshrink, F.softshrink, F.tanhshrink),
)
RECTIFIERS: tuple[Any, ...] = (F.relu, F.relu6)
# Nodes whose results lie on the grid of their input.
GRID_KEEPING: tuple[Any, ...] = (
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.amax, torch.amin, operator.getitem),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
    *(F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, torch.reshape, torch.permute),
    *(torch.split, torch.unbind, torch.broadcast_to, torch.tile, torch.repeat_interleave),
    *(torch.roll, torch.flip, torch.index_select, torch.topk, torch.sort, F.unfold),
    torch.Tensor.unfold,
)
ACTIVATION_QUANTIZERS = "activation_quantizers"  # the submodule that holds them
QUANTIZED_LAYERS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class QuantizedClassifier(nn.Module):
    """A classifier whose weights and activations pass quantizers.

    `scheme` tells where; `graph` is the traced classifier, which is executed with fewer nodes.
    One thread at a time may call it: its layers hold the quantized weights meanwhile.
    """

    def __init__(
        self, graph: fx.GraphModule, scheme: Scheme, image_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.graph = graph
        self.scheme = scheme
        self.image_shape = image_shape  # [C, H, W]
        # In a tuple, so that its modules, those of `graph`, are not registered twice.
        self.fused_graph = (fuse(graph),)
        modules = list(graph.modules())
        self.layers = [module for module in modules if isinstance(module, QuantizedLayer)]
        self.activation_quantizers = [
            module for module in modules if isinstance(module, ActivationQuantizer)
        ]

    def _apply(self, fn: Any, recurse: bool = True) -> "QuantizedClassifier":
        """Move to another device or dtype, which replaces the buffers of the graph."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.fused_graph = (fuse(self.graph),)
        return self

    def named_activation_quantizers(self) -> dict[str, ActivationQuantizer]:
        """Return the activation quantizers by the names of the nodes whose results they take."""
        named = self.graph.get_submodule(ACTIVATION_QUANTIZERS).named_children()
        return {name: module for name, module in named if isinstance(module, ActivationQuantizer)}

    def named_layers(self) -> dict[str, QuantizedLayer]:
        """Return the quantized layers by their names, in the order of the modules."""
        named = self.graph.named_modules()
        return {name: module for name, module in named if isinstance(module, QuantizedLayer)}

    def set_activation_mode(self, mode: ActivationMode) -> None:
        """Tell all activation quantizers to observe, to quantize or to pass tensors on."""
        for quantizer in self.activation_quantizers:
            quantizer.mode = mode

    def quantize_weights(self) -> None:
        """Quantize the weights of all layers; those with learned scales in one launch."""
        if not self.scheme.symmetric_weights:
            for layer in self.layers:
                layer.quantized_weight = layer.quantize_by_range()
            return
        weights = [layer.layer.weight for layer in self.layers]
        sizes = [weight.shape[0] for weight in weights]
        scales = torch.cat([layer.log_scale for layer in self.layers]).exp().split(sizes)
        quantized = ops.lsq_fake_quantize_foreach(
            weights,
            scales,
            [layer.zero_point for layer in self.layers],
            [layer.integers.quant_min for layer in self.layers],
            [layer.integers.quant_max for layer in self.layers],
            [
                (weight.numel() // weight.shape[0] * layer.integers.quant_max) ** -0.5
                for weight, layer in zip(weights, self.layers, strict=True)
            ],
        )
        for layer, weight in zip(self.layers, quantized, strict=True):
            layer.quantized_weight = weight

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to logits [N, num_classes]."""
        if len(images) == 0:  # which not every operator takes
            one: Tensor = self.execute(self.fused_graph[0], images.new_zeros(1, *images.shape[1:]))
            return one[:0]
        logits: Tensor = self.execute(self.fused_graph[0], images)
        return logits

    def execute(self, graph: fx.GraphModule, images: Tensor) -> Any:
        """Run a graph on the modules of this classifier, its weights quantized."""
        self.quantize_weights()
        results = graph(images)
        self.release_weights()
        return results

    def float_forms(self) -> list[Callable[[Tensor], Tensor]]:
        """Return what the graph, and the one that is executed, compute without quantization."""
        return [partial(self.in_floats, graph) for graph in (self.graph, self.fused_graph[0])]

    def in_floats(self, graph: fx.GraphModule, images: Tensor) -> Tensor:
        """Run a graph on the modules of this classifier with its weights as they are."""
        for layer in self.layers:
            layer.quantized_weight = layer.layer.weight.detach()
        logits: Tensor = graph(images)
        self.release_weights()
        return logits

    def release_weights(self) -> None:
        """Keep quantized weights, and the graph of their gradients, no longer."""
        for layer in self.layers:
            layer.quantized_weight = None


def convert(
    model: nn.Module, scheme: Scheme, image_shape: tuple[int, int, int]
) -> QuantizedClassifier:
    """Copy a classifier and put quantizers into the copy.

    Args:
        model: a float classifier in evaluation mode.
        scheme: where quantizers stand and what they are.
        image_shape: (C, H, W) of its input.

    Returns:
        The quantized classifier, its activation quantizers off.

    Raises:
        InputError: if the classifier cannot be traced or has no layer to quantize.
    """
    graph = shaped_graph(model, image_shape)
    if scheme.folds_batch_norm:
        graph = proven_folded(graph, image_shape)
    truth = Truth(copied(graph), image_shape)
    student = with_quantizers(graph, scheme, image_shape)

    def remade(exact: fx.GraphModule, form: int) -> Callable[[Tensor], Tensor]:
        return with_quantizers(exact, scheme, image_shape).float_forms()[form]

    for form, answers in enumerate(student.float_forms()):
        require_near(truth, answers, "converting it", partial(remade, form=form))
    return student


def with_quantizers(
    graph: fx.GraphModule, scheme: Scheme, image_shape: tuple[int, int, int]
) -> QuantizedClassifier:
    """Put quantizers into a graph, in place, and return the classifier that it is then."""
    ends = quantize_layers(graph, scheme)
    insert_activation_quantizers(graph, scheme, ends)
    graph.recompile()
    return QuantizedClassifier(graph.requires_grad_(True), scheme, image_shape).eval()


def proven_folded(graph: fx.GraphModule, image_shape: tuple[int, int, int]) -> fx.GraphModule:
    """Fold batch norms of a graph, in place, and prove that it computes the same."""

    def fold(graph: fx.GraphModule) -> fx.GraphModule:
        fold_batch_norm(graph)
        return graph

    truth = Truth(copied(graph), image_shape)
    require_near(truth, fold(graph), "folding its batch norms", fold)
    return graph


def student_of(settings: Settings, classifier: Classifier) -> QuantizedClassifier:
    """Convert a classifier to the scheme that settings ask for, on its own device.

    Raises:
        InputError: if the classifier cannot be converted.
    """
    return convert(classifier.model, scheme_of(settings), classifier.preprocessing.shape)


def shaped_graph(model: nn.Module, image_shape: tuple[int, int, int]) -> fx.GraphModule:
    """Trace a copy of a classifier, and note the shape of every result for two images.

    Raises:
        InputError: if the classifier cannot be traced.
    """
    graph = copy.deepcopy(trace(model, image_shape))
    ShapeProp(graph).propagate(torch.zeros(2, *image_shape, device=device_of(graph)))
    return graph


def folded(model: nn.Module, image_shape: tuple[int, int, int]) -> fx.GraphModule:
    """Return a frozen copy of a float classifier with as many batch norms folded as possible.

    They are those that `convert` folds where the scheme folds any.

    Raises:
        InputError: if the classifier cannot be traced.
    """
    graph = proven_folded(shaped_graph(model, image_shape), image_shape)
    graph.eval().requires_grad_(False)
    return graph


def quantize_layers(graph: fx.GraphModule, scheme: Scheme) -> tuple[fx.Node, fx.Node]:
    """Wrap every convolution and linear layer; return the nodes of the first and the last."""
    nodes = [n for n in graph.graph.nodes if isinstance(module_of(graph, n), QUANTIZED_LAYERS)]
    if not nodes:
        raise InputError("classifier: holds no convolution or linear layer to quantize")
    ends = (nodes[0], nodes[-1])
    untie_weights(graph, nodes)
    for node in nodes:
        layer = module_of(graph, node)
        if len(node.args) > 1 or node.kwargs:
            raise InputError(
                f"classifier: {node.target} is called with more than its input, which cannot be "
                "quantized; give the layer what it needs when it is built"
            )
        if isinstance(layer, QUANTIZED_LAYERS):  # a shared module is wrapped already
            if isinstance(layer, nn.ConvTranspose2d):
                layer = TransposedConvolution(layer)
            integers = scheme.weight_range(at_an_end=node in ends)
            wrapped = QuantizedLayer(layer, integers, scheme.symmetric_weights)
            graph.set_submodule(str(node.target), wrapped)
    return ends


def untie_weights(graph: fx.GraphModule, nodes: Sequence[fx.Node]) -> None:
    """Give layers that share a weight one each, since their scales differ.

    Args:
        graph: changed in place.
        nodes: that call layers; the calls of one layer keep its weight.
    """
    owners: dict[int, str] = {}
    for node in nodes:
        layer, target = module_of(graph, node), str(node.target)
        assert layer is not None
        tied = any(owners.setdefault(id(p), target) != target for p in layer.parameters())
        if tied:
            graph.set_submodule(target, copy.deepcopy(layer))


def insert_activation_quantizers(
    graph: fx.GraphModule, scheme: Scheme, ends: tuple[fx.Node, fx.Node]
) -> None:
    """Put a quantizer behind every node whose result the scheme quantizes."""
    quantizers = nn.ModuleDict()
    graph.add_submodule(ACTIVATION_QUANTIZERS, quantizers)
    first, last = ends
    read_by_ends = {*computed_before(first), source_of_values(last.args[0])}
    layers = [n for n in graph.graph.nodes if isinstance(module_of(graph, n), QuantizedLayer)]
    before_layers = set().union(*map(computed_before, layers))
    floats = float_operands(graph)
    for node in list(graph.graph.nodes):
        # What no layer reads any more are logits, whatever the classifier makes of them.
        wanted = node in before_layers and node not in floats
        if not wanted or not is_quantized(graph, node, scheme, floats):
            continue
        integers = scheme.activation_range(at_an_end=node in read_by_ends)
        quantizers[node.name] = ActivationQuantizer(integers)
        with graph.graph.inserting_after(node):
            inserted = graph.graph.call_module(f"{ACTIVATION_QUANTIZERS}.{node.name}", (node,))
            inserted.meta = dict(node.meta)
        node.replace_all_uses_with(inserted, lambda user, new=inserted: user is not new)
    quantizers.to(device_of(graph))


def computed_before(node: fx.Node) -> set[fx.Node]:
    """Return the nodes that a node's inputs are computed from."""
    found: set[fx.Node] = set()
    waiting = list(node.all_input_nodes)
    while waiting:
        source = waiting.pop()
        if source not in found:
            found.add(source)
            waiting += source.all_input_nodes
    return found


def source_of_values(node: Any) -> Any:
    """Follow a node back to the one that computed its values."""
    while keeps_grid(node):
        node = node.args[0]
    return node


def keeps_grid(node: Any) -> bool:
    """Return True if the values of a node's result are some of its input's, or zero."""
    if calls(node, F.interpolate):
        return bool(node.kwargs.get("mode", "nearest") == "nearest")
    if calls(node, F.pad):
        # Minus infinity is padded before maxima, which it never is.
        return node.kwargs.get("value") in (None, 0, -math.inf)
    if calls(node, operator.getitem) and not gives_a_tensor(node.args[0]):
        return keeps_grid(node.args[0])
    return calls(node, *GRID_KEEPING)


def gives_a_tensor(node: Any) -> bool:
    """Return True if a node gives one tensor of real numbers."""
    meta = node.meta.get("tensor_meta") if isinstance(node, fx.Node) else None
    return isinstance(meta, TensorMetadata) and meta.dtype.is_floating_point


def is_quantized(
    graph: fx.GraphModule, node: fx.Node, scheme: Scheme, floats: Set[fx.Node]
) -> bool:
    """Return True if the scheme quantizes a node's result."""
    if node.op == "output" or not gives_a_tensor(node):
        return False
    if not scheme.quantizes_every_activation:
        return calls(node, *RECTIFIERS)
    if keeps_grid(node) or node.op == "get_attr":
        return False
    return not all(is_activation(graph, user) and user not in floats for user in node.users)


def is_activation(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return True if a node is an activation function, part of the operation before it."""
    return calls(node, *ACTIVATIONS) or isinstance(module_of(graph, node), nn.PReLU)
