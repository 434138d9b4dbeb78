"""From a float classifier to a quantized one, through its graph."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from zscgan_ext.classifiers.graph import device_of, module_of
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.classifiers.proof import Truth, require_near
from zscgan_ext.classifiers.tracing import copied, trace
from zscgan_ext.config.configs import QuantizationConfig
from zscgan_ext.config.values import LayerBits
from zscgan_ext.errors import InputError
from zscgan_ext.quantization.batch_norm_folding import fold_batch_norm
from zscgan_ext.quantization.layer_widths import given_layer_bits, layer_names
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.quantizer_placement import insert_activation_quantizers
from zscgan_ext.quantization.quantizers import (
    QUANTIZED_LAYERS,
    QuantizedLayer,
    TransposedConvolution,
)
from zscgan_ext.quantization.scheme import Scheme, scheme_of


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

    def remade(exact: fx.GraphModule) -> QuantizedClassifier:
        return with_quantizers(exact, scheme, image_shape)

    # Both compute in floats, as nothing is quantized yet.
    require_near(truth, student.graph, "converting it", lambda exact: remade(exact).graph)
    require_near(truth, student.fused, "converting it", lambda exact: remade(exact).fused)
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


def student_of(
    config: QuantizationConfig,
    classifier: Classifier,
    chosen: Mapping[str, LayerBits] | None = None,
) -> QuantizedClassifier:
    """Convert a classifier to the scheme of a configuration, on its own device.

    Args:
        config: of the quantization.
        classifier: to convert.
        chosen: widths of the layers that a budget decided about, by their names in the graph;
            without them those layers have about as many bits as the average is to have.

    Raises:
        InputError: if the classifier cannot be converted, or a pattern matches no layer.
    """
    image_shape = classifier.preprocessing.shape
    graph = trace(classifier.model, image_shape)
    given = given_layer_bits(config, layer_names(graph))
    scheme = scheme_of(config, {**(chosen or {}), **given})
    return convert(graph, scheme, image_shape)


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
    """Wrap the convolutions and linear layers that are quantized.

    Returns:
        The nodes of the first and the last of all of them.
    """
    nodes = [n for n in graph.graph.nodes if isinstance(module_of(graph, n), QUANTIZED_LAYERS)]
    if not nodes:
        raise InputError("classifier: holds no convolution or linear layer to quantize")
    ends = (nodes[0], nodes[-1])
    targets = {str(node.target) for node in nodes}
    unknown = [name for name in scheme.layers if name not in targets]
    if unknown:
        raise InputError(f"layer_bits: the classifier has no layer {unknown[0]!r} to quantize")
    if all(scheme.is_float(target) for target in targets):
        raise InputError("keep_float: matches all layers, expected one at least to quantize")
    untie_weights(graph, nodes)
    for node in nodes:
        layer = module_of(graph, node)
        if len(node.args) > 1 or node.kwargs:
            raise InputError(
                f"classifier: {node.target} is called with more than its input, which cannot be "
                "quantized; give the layer what it needs when it is built"
            )
        target = str(node.target)
        # A shared module is wrapped already.
        if isinstance(layer, QUANTIZED_LAYERS) and not scheme.is_float(target):
            if isinstance(layer, nn.ConvTranspose2d):
                layer = TransposedConvolution(layer)
            quant_range = scheme.weight_range(target, is_first_or_last=node in ends)
            wrapped = QuantizedLayer(layer, quant_range, scheme.symmetric_weights)
            graph.set_submodule(target, wrapped)
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
