"""The activations that kernels apply, and where they stop the gradient."""

import torch
from torch import Tensor


def activate(values: Tensor, activation: str) -> Tensor:
    """Apply `none`, `relu` or `relu6`."""
    if activation == "none":
        return values
    return values.relu() if activation == "relu" else values.clamp(0, 6)


def blocks_gradient(values: Tensor, activation: str) -> Tensor:
    """Tell where the gradient of an activation is zero, from its input or its result."""
    if activation == "none":
        return torch.zeros_like(values, dtype=torch.bool)
    return values <= 0 if activation == "relu" else (values <= 0) | (values >= 6)
