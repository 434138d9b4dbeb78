"""Registering ops with torch: schema, kernels, fake kernels and autograd."""

from collections.abc import Callable, Iterable
from itertools import chain, islice
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zscgan_ext.ops import native, reference
from zscgan_ext.ops.implementation import uses_native

NAMESPACE = "zscgan_ext"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")
OPS = getattr(torch.ops, NAMESPACE)
PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter, type(None)))


def kernels(x: Tensor) -> ModuleType:
    """Return the module whose kernels run on this tensor: `native` or `reference`."""
    return native if uses_native(x) else reference


def is_observed() -> bool:
    """Return True if a compiler, a dispatch mode or a transform needs to see every op.

    The functions are private to torch. Where a version of torch lacks one, every call counts as
    observed: it takes the dispatcher, which is slower and gives the same results.
    """
    try:
        return (
            torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack() > 0
            or torch._C._are_functorch_transforms_active()
            or torch._C._get_tracing_state() is not None
        )
    except AttributeError:
        return True


def needs_gradient(tensors: Iterable[Tensor | None]) -> bool:
    """Return True if a gradient is wanted for one of the tensors."""
    for tensor in tensors:  # faster than `any` of a generator  # noqa: SIM110
        if tensor is not None and tensor.requires_grad:
            return True
    return False


class Op:
    """An op registered with torch.

    torch's dispatcher enters Python once for autograd and once for the kernel: on small tensors
    that costs more than the kernel. A call that nothing observes, on tensors that are no
    subclasses, goes straight to the kernel, or to the autograd function around it.
    """

    def __init__(self, schema: str, kernel: Callable[..., Any]) -> None:
        self.name, _, signature = schema.partition("(")
        arguments, _, results = signature.partition("->")
        self.kernel = kernel
        self.takes_lists = "Tensor[]" in arguments
        self.returns_list = results.strip() == "Tensor[]"
        self.tensor_places = [
            place for place, text in enumerate(arguments.split(", ")) if text.startswith("Tensor")
        ]  # lists of tensors come first
        self.function: type[torch.autograd.Function] | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Run the op on arguments given by position."""
        tensors = [arguments[place] for place in self.tensor_places]
        if self.takes_lists:
            tensors = list(chain.from_iterable(tensors))
        if is_observed() or not PLAIN_TYPES.issuperset(map(type, tensors)):
            return getattr(OPS, self.name)(*arguments)
        if self.function is None or not torch.is_grad_enabled():
            return self.kernel(*arguments)
        if not needs_gradient(tensors):
            return self.kernel(*arguments)
        if not self.takes_lists:
            return self.function.apply(*arguments)
        count = len(self.tensor_places)
        sizes = [len(operand) for operand in arguments[:count]]
        results = self.function.apply(sizes, arguments[count:], *tensors)
        return list(results) if self.returns_list else results


def checked(kernel: Callable[..., Any], check: Callable[..., None]) -> Callable[..., Any]:
    """Return a kernel that looks at its arguments first."""

    def look_and_run(*arguments: Any) -> Any:
        check(*arguments)
        return kernel(*arguments)

    return look_and_run


def define(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    check: Callable[..., None] | None = None,
) -> Op:
    """Register an op with its kernel for the CPU and CUDA and its fake kernel.

    `torch.ops` is open to everybody, and kernels get addresses: `check` is given the op's arguments
    before the kernel there. The functions of this package have checked them already when they call
    the op, and a gradient's arguments come from its forward pass.
    """
    LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    op = Op(schema, kernel)

    for device in ("CPU", "CUDA"):
        LIBRARY.impl(op.name, kernel if check is None else checked(kernel, check), device)
    torch.library.register_fake(f"{NAMESPACE}::{op.name}", fake, lib=LIBRARY)
    return op


def differentiable(
    op: Op,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    results: int | None = None,
) -> None:
    """Give an op its gradient.

    Only so many `results` have one, where given; what comes after them is for the backward pass,
    and a call that nothing observes does not return it.
    """
    torch.library.register_autograd(
        f"{NAMESPACE}::{op.name}", backward, setup_context=setup_context, lib=LIBRARY
    )

    if op.takes_lists:
        forward, direct_backward = function_of_lists(op, setup_context, backward)
    else:
        forward, direct_backward = function_of_tensors(op, setup_context, backward, results)
    once = once_differentiable(direct_backward)
    methods = {"forward": staticmethod(forward), "backward": staticmethod(once)}
    op.function = type(op.name, (torch.autograd.Function,), methods)


Methods = tuple[Callable[..., Any], Callable[..., Any]]  # forward and backward


def function_of_tensors(
    op: Op,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    results: int | None,
) -> Methods:
    """Return the methods of an autograd function that takes an op's own arguments."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        output = op.kernel(*arguments)
        setup_context(ctx, arguments, output)
        return output if results is None else output[:results]

    return forward, backward


def function_of_lists(
    op: Op, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Methods:
    """Return the methods of an autograd function that takes the tensors of all lists in a row.

    Autograd sees the tensors that an autograd function is given, not those in a list.
    """

    def forward(ctx: Any, sizes: list[int], settings: tuple[Any, ...], *tensors: Tensor) -> Any:
        remaining = iter(tensors)
        lists = [list(islice(remaining, size)) for size in sizes]
        arguments = (*lists, *settings)
        output = op.kernel(*arguments)
        setup_context(ctx, arguments, output)
        ctx.list_sizes = sizes
        return tuple(output)

    def flat_backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        results = backward(ctx, list(grads)) if op.returns_list else backward(ctx, *grads)
        lists = zip(results, ctx.list_sizes, strict=False)  # settings follow, without gradients
        parts = ([None] * size if result is None else result for result, size in lists)
        return None, None, *chain.from_iterable(parts)

    return forward, flat_backward
