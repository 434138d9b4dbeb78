"""The frozen teacher: a classifier that also tells how far its batch statistics are off.

A trained batch-norm layer stores the mean and variance that real images gave its input. Images
whose statistics are close to the stored ones resemble what the classifier was trained on.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zscgan_ext import ops
from zscgan_ext.errors import InputError


def batch_norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch-norm layers that store statistics, in the order of the modules."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


class FrozenTeacher(nn.Module):
    """A classifier in evaluation mode whose batch-norm inputs are measured on the way.

    Args:
        model: the classifier; its parameters are frozen here.
        distance: one of `ops.DISTANCES`.

    Raises:
        InputError: if the classifier stores no batch-norm statistics.
    """

    def __init__(self, model: nn.Module, distance: str) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.distance = distance
        self.layers = batch_norm_layers(model)
        if not self.layers:
            raise InputError("classifier: holds no batch norm with running statistics to match")
        self.measured: dict[_BatchNorm, tuple[Tensor, Tensor]] = {}
        self.hooks = [layer.register_forward_pre_hook(self.measure) for layer in self.layers]

    def remove_hooks(self) -> None:
        """Leave the classifier as it was."""
        for hook in self.hooks:
            hook.remove()

    def measure(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep mean and variance of a batch-norm layer's input while gradients are wanted."""
        if torch.is_grad_enabled() and inputs[0].requires_grad:
            assert isinstance(layer, _BatchNorm)
            assert layer.running_mean is not None
            self.measured[layer] = ops.batch_norm_statistics(inputs[0], layer.running_mean)

    def forward(self, images: Tensor) -> Tensor:
        """Map images [N, C, H, W] to logits [N, num_classes]."""
        logits: Tensor = self.model(images)
        return logits

    def match(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N, num_classes] and the distance of the batch statistics, a scalar."""
        self.measured.clear()
        logits = self.model(images)
        layers = list(self.measured)
        means, variances = zip(*self.measured.values(), strict=True)
        distance = ops.batch_norm_distance(
            means,
            variances,
            [stored(layer.running_mean) for layer in layers],
            [stored(layer.running_var) for layer in layers],
            [layer.eps for layer in layers],
            self.distance,
        )
        self.measured.clear()
        return logits, distance


def stored(values: Tensor | None) -> Tensor:
    """Return a layer's stored statistics, which it is known to have."""
    assert values is not None
    return values
