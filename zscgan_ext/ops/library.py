"""Registering ops with torch: schema, kernels, fake kernels and autograd."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.ops import native, reference
from zscgan_ext.ops.implementation import uses_native

NAMESPACE = "zscgan_ext"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
OPS = getattr(torch.ops, NAMESPACE)


def kernels(x: Tensor) -> ModuleType:
    """Return the module whose kernels run on this tensor: `native` or `reference`."""
    return native if uses_native(x) else reference


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register an op with its kernel for the CPU and CUDA and its fake kernel."""
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    name = schema.split("(")[0]
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, device)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)


def differentiable(
    name: str, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> None:
    """Give an op its gradient."""
    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=LIBRARY
    )
