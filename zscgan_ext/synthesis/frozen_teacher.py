"""The frozen teacher: a classifier that also tells how far its batch statistics are off.

A trained batch-norm layer stores the mean and variance that real images gave its input. Images
whose statistics are close to the stored ones resemble what the classifier was trained on.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zscgan_ext import distributed, ops
from zscgan_ext.classifiers.batch_norm import batch_norm_layers, stored
from zscgan_ext.errors import InputError
from zscgan_ext.ops.implementation import uses_native
from zscgan_ext.synthesis.matched_batch_norm import matched_graph
from zscgan_ext.synthesis.penultimate_features import PenultimateFeatures


class Match(NamedTuple):
    """What a classifier says of images."""

    logits: Tensor  # [N, num_classes]
    distance: Tensor  # of the batch statistics, a scalar
    features: Tensor  # [N, F], penultimate


class FrozenTeacher(nn.Module):
    """A classifier in evaluation mode whose batch-norm inputs are measured on the way.

    In the graph of a traced classifier, batch norm, activation and measuring are one op each; in
    any other, hooks measure, with the same results.

    Args:
        model: the classifier; its parameters are frozen here.
        distance: one of `ops.DISTANCES`.
        fuse: whether to rewrite the graph; None for where the native core is in use, because plain
            torch gains nothing by it.

    Raises:
        InputError: if the classifier stores no batch-norm statistics.
    """

    def __init__(self, model: nn.Module, distance: str, fuse: bool | None = None) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.distance = distance
        layers = batch_norm_layers(model)
        if not layers:
            raise InputError("classifier: holds no batch norm with running statistics to match")
        self.measured: list[tuple[_BatchNorm, Tensor, Tensor]] = []
        if fuse is None:
            fuse = uses_native(stored(layers[0].running_mean))
        self.graph = matched_graph(model, self.keep) if fuse else None
        hooked = layers if self.graph is None else []
        self.hooks = [layer.register_forward_pre_hook(self.measure) for layer in hooked]
        self.features = PenultimateFeatures(self.model if self.graph is None else self.graph)

    def remove_hooks(self) -> None:
        """Leave the classifier as it was."""
        self.features.remove_hooks()
        for hook in self.hooks:
            hook.remove()

    def keep(self, layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
        """Keep the statistics of a batch-norm layer's input, [C] each."""
        self.measured.append((layer, mean, variance))

    def measure(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Measure a batch-norm layer's input while gradients are wanted."""
        if torch.is_grad_enabled() and inputs[0].requires_grad:
            assert isinstance(layer, _BatchNorm)
            self.keep(layer, *ops.batch_norm_statistics(inputs[0], stored(layer.running_mean)))

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to logits [N, num_classes]."""
        logits: Tensor = self.model(images)
        return logits

    def forward_with_batch_norm_loss(self, images: Tensor) -> Match:
        """Run the classifier on images [N, C, H, W] whose gradients are wanted.

        The statistics are those of the images of all processes.
        """
        self.measured.clear()
        logits = self.model(images) if self.graph is None else self.graph(images)
        layers, own_means, own_variances = zip(*self.measured, strict=True)
        self.measured.clear()
        running_means = [stored(layer.running_mean) for layer in layers]
        means, variances, _ = distributed.combined_statistics(
            own_means, own_variances, running_means, len(images)
        )
        distance = ops.batch_norm_distance(
            means,
            variances,
            running_means,
            [stored(layer.running_var) for layer in layers],
            [layer.eps for layer in layers],
            self.distance,
        )
        return Match(logits, distance, self.features.take(logits))
