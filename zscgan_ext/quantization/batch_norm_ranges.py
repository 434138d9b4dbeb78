"""Ranges of activations from batch norm, without any image or beside those of images.

A batch-norm layer with weight gamma and bias beta gives each channel the mean beta and the standard
deviation gamma. Ranges follow from the two once a distribution is assumed: DFQ (Nagel et al., 2019)
takes the normal one, and SQuant (Guo et al., 2022) has its activation ranges from batch norm, too.
Here it is the logistic distribution, whose tails are heavier: trained classifiers have such tails,
and with normal ones they lost 0.4 points of accuracy at 8 bits.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zscgan_ext.classifiers.graph import device_of, module_of
from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.quantization.activation_ranges import (
    choose_range,
    take_narrower_range,
    update_range,
)
from zscgan_ext.quantization.quantized_classifier import (
    QuantizedClassifier,
    round_biases_to_int32,
)
from zscgan_ext.quantization.quantizers import QUANTIZED_LAYERS, ActivationQuantizer

DRAWS = 256  # of each channel
VALUES = 2**16  # of a tensor, at most, that its range is chosen by


class BatchNormActivationSampler(fx.Interpreter):
    """A classifier run with draws in place of the result of every batch norm.

    Each channel of a result is logistic with mean beta and standard deviation gamma, one draw for
    each image. Activation functions, sums, concatenations and pooling are computed from the draws,
    as if what they join were independent. So a sum has the mean and variance of both parts, and
    pooled features, whose draws are the same at each place, have the range of what is pooled. What
    does not follow a batch norm comes from the images.

    Args:
        graph: of the float classifier, in evaluation mode.
        quantizers: by the name of the node whose result they quantize.
        rng: draws; on the device of the classifier.
        choose: gives a quantizer a range from values [N].
        only_drawn: whether quantizers of what follows no batch norm keep the range they have.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        quantizers: dict[str, ActivationQuantizer],
        rng: torch.Generator,
        choose: Callable[[ActivationQuantizer, Tensor], None],
        only_drawn: bool,
    ) -> None:
        super().__init__(graph)
        self.graph_module = graph
        self.quantizers = quantizers
        self.rng = rng
        self.choose = choose
        self.only_drawn = only_drawn
        self.drawn: set[fx.Node] = set()  # batch norms, and all that follows them

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node, and choose the range of its quantizer, if it has one."""
        result = super().run_node(n)
        name = n.name
        norm = module_of(self.graph_module, n)
        if isinstance(norm, _BatchNorm) or not self.drawn.isdisjoint(n.all_input_nodes):
            self.drawn.add(n)
        if isinstance(norm, _BatchNorm):
            result = self.draw(norm, result)
            source = n.all_input_nodes[0]
            if name not in self.quantizers and self.is_folded(source):
                name = source.name
        is_wanted = n in self.drawn or not self.only_drawn
        has_range = n.op != "placeholder" and not self.is_folded(n)
        if is_wanted and has_range and name in self.quantizers:
            flat = result.flatten()
            shape = (min(VALUES, flat.numel()),)
            index = torch.randint(flat.numel(), shape, generator=self.rng, device=flat.device)
            self.choose(self.quantizers[name], flat[index])
        return result

    def is_folded(self, layer: fx.Node) -> bool:
        """Return True if a layer's quantizer sees the result of the batch norm behind the layer."""
        modules = [module_of(self.graph_module, node) for node in (layer, *layer.users)]
        is_alone = len(modules) == 2 and isinstance(modules[1], _BatchNorm)
        return is_alone and isinstance(modules[0], QUANTIZED_LAYERS)

    def draw(self, norm: _BatchNorm, like: Tensor) -> Tensor:
        """Draw a batch norm's result [N, C, ...], the same at each place of a map."""
        places = [1] * (like.dim() - 2)
        shape = (*like.shape[:2], *places)
        uniform = torch.rand(shape, generator=self.rng, device=like.device)
        draws = torch.logit(uniform, eps=1e-6) * math.sqrt(3) / math.pi  # of variance 1
        if norm.weight is not None:
            draws = draws * norm.weight.view(-1, *places)
        if norm.bias is not None:
            draws = draws + norm.bias.view(-1, *places)
        return torch.empty_like(like).copy_(draws)


@torch.no_grad()
def set_ranges_from_batch_norm(
    student: QuantizedClassifier, model: nn.Module, images: Tensor, only_narrower: bool
) -> None:
    """Give every activation that follows a batch norm the range of its statistics.

    All others keep theirs. The draws are the same in every run.

    Args:
        student: changed in place.
        model: the float classifier that it was converted from, in evaluation mode.
        images: [N, C, H, W], which what joins drawn activations comes from.
        only_narrower: whether ranges that are as narrow stay.

    Raises:
        InputError: if the classifier cannot be traced.
    """
    rng = torch.Generator(images.device).manual_seed(0)
    choose = take_narrower_range if only_narrower else choose_range
    repeated = images[torch.arange(DRAWS, device=images.device) % len(images)]
    quantizers = student.named_activation_quantizers()
    graph = trace(model, student.image_shape)
    BatchNormActivationSampler(graph, quantizers, rng, choose, only_drawn=True).run(repeated)


@torch.no_grad()
def calibrate_from_batch_norm(
    student: QuantizedClassifier,
    model: nn.Module,
    preprocessing: Preprocessing,
    rng: torch.Generator,
) -> None:
    """Set every activation's scale and zero point from the batch norm of the float classifier.

    The input ranges over what pixels can be. What follows no batch norm has its range from standard
    normal noise as the input. As after `calibrate`, activations are then quantized, and biases are
    such as integer kernels add. With `round_weights` this quantizes without any image, which
    no run does: `benchmarks/accuracy/bench_accuracy.py` compares with it.

    Args:
        student: changed in place.
        model: the float classifier that it was converted from, in evaluation mode.
        preprocessing: of the classifier.
        rng: draws; on the device of the classifier.

    Raises:
        InputError: if the classifier cannot be traced.
    """
    quantizers = student.named_activation_quantizers()
    graph = trace(model, preprocessing.shape)
    device = device_of(graph)
    ends = preprocessing.black_and_white(device)
    for node in graph.graph.nodes:
        if node.op == "placeholder" and node.name in quantizers:
            update_range(quantizers[node.name], ends, 1)
    noise = torch.randn((DRAWS, *preprocessing.shape), generator=rng, device=device)
    BatchNormActivationSampler(graph, quantizers, rng, choose_range, only_drawn=False).run(noise)
    student.quantize_activations()
    round_biases_to_int32(student)
