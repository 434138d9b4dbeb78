"""Batch-norm layers that store statistics: finding them, what they compute, what is wrong."""

from collections.abc import Mapping
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zscgan_ext.errors import InputError, some_of


def stores_statistics(module: nn.Module | None) -> TypeGuard[_BatchNorm]:
    """Return True if a module is a batch norm that stores the statistics of its training."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def batch_norm_layers(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch-norm layers that store statistics, in the order of the modules."""
    return [module for module in model.modules() if stores_statistics(module)]


def stored(values: Tensor | None) -> Tensor:
    """Return a layer's stored statistics, which it is known to have."""
    assert values is not None
    return values


def affine(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return what batch norm with stored statistics multiplies with and adds, float64 [C] each."""
    multiplier = (stored(norm.running_var).double() + norm.eps).rsqrt()
    if norm.weight is not None:
        multiplier = multiplier * norm.weight.detach().double()
    offset = -stored(norm.running_mean).double() * multiplier
    return multiplier, offset if norm.bias is None else offset + norm.bias.detach().double()


def check_batch_norm(source: str, model: nn.Module) -> None:
    """Require batch norm, all of it with running statistics, and no variance below zero."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
    variances = {n: m.running_var for n, m in layers.items() if m.running_var is not None}
    if not variances:
        raise InputError(
            "classifier: needs at least one BatchNorm layer with running statistics, found none"
        )
    without = [name for name in layers if name not in variances]
    if without:
        raise InputError(
            f"classifier: {without[0]} is a BatchNorm layer without running statistics: its logits "
            "depend on the other images of a batch, which cannot be quantized"
        )
    for name, variance in variances.items():
        if bool((variance < 0).any()):
            raise InputError(f"weights: {source} has variances below 0 in {name}.running_var")


def zero_variance_warnings(model: nn.Module) -> list[str]:
    """Return a line on the batch norms that store variances of zero or denormals, if any do."""
    smallest = torch.finfo(torch.float32).tiny
    counts = {n: int((v < smallest).sum()) for n, v in running_variances(model).items()}
    found = {name: count for name, count in counts.items() if count}
    if not found:
        return []
    of_all = {name: len(variances) for name, variances in running_variances(model).items()}
    if len(found) == 1:
        ((name, count),) = found.items()
        where = f"batch norm {name} of the classifier has no variance in {count} of {of_all[name]}"
        return [f"{where} channels, which were constant in its training"]
    places = some_of([f"{name} ({count} of {of_all[name]})" for name, count in found.items()])
    return [
        f"{len(found)} batch norms of the classifier have no variance in {sum(found.values())} "
        f"channels, which were constant in its training: {places}"
    ]


def running_variances(model: nn.Module) -> Mapping[str, Tensor]:
    """Return the stored variances [C] of a model's batch norms by the names of the layers."""
    suffix = ".running_var"
    buffers = model.named_buffers()
    return {n.removesuffix(suffix): v for n, v in buffers if n.endswith(suffix)}
