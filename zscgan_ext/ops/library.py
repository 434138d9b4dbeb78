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
PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def kernels(x: Tensor) -> ModuleType:
    """Return the module whose kernels run on this tensor: `native` or `reference`."""
    return native if uses_native(x) else reference


def is_observed() -> bool:
    """Tell whether a compiler, a dispatch mode or a transform needs to see every op."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
    )


class Op:
    """An op registered with torch.

    torch's dispatcher enters Python once for autograd and once for the kernel: on small tensors
    that costs more than the kernel. A call that nothing observes, on tensors that are no
    subclasses, goes straight to the kernel, or to the autograd function around it.
    """

    def __init__(self, schema: str, kernel: Callable[..., Any]) -> None:
        self.name, _, arguments = schema.partition("(")
        self.kernel = kernel
        self.takes_lists = "Tensor[]" in arguments  # autograd functions do not
        parameters = arguments.partition(") ->")[0].split(", ")
        self.tensor_places = [i for i, text in enumerate(parameters) if text.startswith("Tensor")]
        self.function: type[torch.autograd.Function] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Run the op on arguments given by position."""
        if self.takes_lists or is_observed():
            return getattr(OPS, self.name)(*arguments)
        needs_gradient = False
        for tensor in map(arguments.__getitem__, self.tensor_places):
            if tensor is None:
                continue
            if type(tensor) not in PLAIN_TYPES:
                return getattr(OPS, self.name)(*arguments)
            needs_gradient = needs_gradient or tensor.requires_grad
        if needs_gradient and self.function is not None and torch.is_grad_enabled():
            return self.function.apply(*arguments)
        return self.kernel(*arguments)


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Op:
    """Register an op with its kernel for the CPU and CUDA and its fake kernel."""
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    op = Op(schema, kernel)
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(op.name, kernel, device)
    torch.library.register_fake(f"{NAMESPACE}::{op.name}", fake, lib=LIBRARY)
    return op


def differentiable(
    op: Op, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> None:
    """Give an op its gradient."""
    torch.library.register_autograd(
        f"{NAMESPACE}::{op.name}", backward, setup_context=setup_context, lib=LIBRARY
    )

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = op.kernel(*arguments)
        setup_context(ctx, arguments, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    op.function = type(op.name, (torch.autograd.Function,), methods)
