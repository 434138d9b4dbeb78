"""Batch-norm statistics of images beside those that a classifier stores, layer by layer."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zscgan_ext import ops
from zscgan_ext.classifiers.batch_norm import stored, stores_statistics


@dataclass(frozen=True)
class LayerStatistics:
    """The statistics of one batch-norm layer's input, [C] each."""

    layer: str
    mean: Tensor
    variance: Tensor
    stored_mean: Tensor
    stored_variance: Tensor
    eps: float

    def distance(self, kind: str) -> float:
        """Return one of `ops.DISTANCES` between the statistics and the stored ones."""
        return float(
            ops.batch_norm_distance(
                [self.mean],
                [self.variance],
                [self.stored_mean],
                [self.stored_variance],
                [self.eps],
                kind,
            )
        )


@torch.no_grad()
def layer_statistics(model: nn.Module, images: Tensor) -> list[LayerStatistics]:
    """Measure the input of every batch-norm layer, in the order of the forward pass.

    Args:
        model: in evaluation mode.
        images: normalized [N, C, H, W].
    """
    measured: list[LayerStatistics] = []

    def watch(name: str, layer: _BatchNorm) -> Any:
        def measure(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            mean, variance = ops.batch_norm_statistics(inputs[0], stored(layer.running_mean))
            stored_values = stored(layer.running_mean), stored(layer.running_var)
            measured.append(LayerStatistics(name, mean, variance, *stored_values, layer.eps))

        return layer.register_forward_pre_hook(measure)

    hooks = [
        watch(name, module) for name, module in model.named_modules() if stores_statistics(module)
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return measured
