"""The subject of a measurement: one op on one kind of tensor, and its implementations."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from benchmarks.timing import Implementation, buffer_count

Function = Callable[[list[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Kind:
    """The tensor that an op is measured on."""

    layout: str  # NCHW, channels_last, weights, or NCHW per tensor: one scale in all
    dtype: torch.dtype
    elements: int
    device: torch.device

    @property
    def axis(self) -> int | None:
        """The dimension with one scale per index."""
        return {"weights": 0, "NCHW per tensor": None}.get(self.layout, 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """A shape of about `elements` elements."""
        large = self.elements > 2**16
        if self.layout == "weights":
            kernel, inputs = (3, 512) if large else (4, 64)
            inputs = min(inputs, max(1, math.isqrt(self.elements // kernel**2)))
            return max(1, self.elements // (inputs * kernel**2)), inputs, kernel, kernel
        channels, size = (64, 28) if large else (min(64, max(1, self.elements // 64)), 8)
        return max(1, self.elements // (channels * size * size)), channels, size, size

    def tensor(self) -> Tensor:
        """Draw normally distributed values."""
        x = torch.randn(self.shape, device=self.device).to(self.dtype)
        return x.to(memory_format=torch.channels_last) if self.layout == "channels_last" else x


@dataclass
class Subject:
    """An op on rotating buffers of one kind; every function takes one buffer."""

    op: str
    layout: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    functions: dict[str, Function]
    buffers: list[list[Tensor]]
    bytes: dict[str, float]  # the fewest that each direction may move
    parameters: list[Tensor] = field(default_factory=list)  # shared by all buffers, with gradients

    @property
    def elements(self) -> int:
        """Elements of one buffer."""
        return sum(x.numel() for x in self.buffers[0])

    @cached_property
    def gradients(self) -> list[list[Tensor]]:
        """Draw the incoming gradients of each buffer, in the layout of the results."""
        with torch.no_grad():
            results = self.functions["native"](self.buffers[0])
        first = [torch.randn_like(result) for result in results]
        return [[gradient.clone() for gradient in first] for _ in self.buffers]

    def implementations(self, direction: str, names: Sequence[str]) -> dict[str, Implementation]:
        """Return the ones of these names that the op has, for a direction."""
        present = {name: self.functions[name] for name in names if name in self.functions}
        if direction == "forward":
            return {name: self.forward(function) for name, function in present.items()}
        make = self.backward if direction == "backward" else self.forward_and_backward
        return {name: make(function) for name, function in present.items()}

    def forward(self, function: Function) -> Implementation:
        """Time the forward pass, including what it saves for the backward pass."""
        return lambda index: lambda: function(self.buffers[index])

    def backward(self, function: Function) -> Implementation:
        """Time the backward pass of a forward pass that went before."""

        def prepare(index: int) -> Callable[[], Sequence[Tensor]]:
            results = function(self.buffers[index])
            wanted = [*self.buffers[index], *self.parameters]
            return lambda: torch.autograd.grad(results, wanted, self.gradients[index])

        return prepare

    def forward_and_backward(self, function: Function) -> Implementation:
        """Time both passes."""

        def call(index: int) -> Sequence[Tensor]:
            wanted = [*self.buffers[index], *self.parameters]
            return torch.autograd.grad(function(self.buffers[index]), wanted, self.gradients[index])

        return lambda index: lambda: call(index)


def inputs(kind: Kind) -> list[list[Tensor]]:
    """Draw the rotating buffers of one tensor each, with gradients."""
    first = kind.tensor()
    count = buffer_count(first.numel() * first.element_size())
    return [[first.clone().requires_grad_()] for _ in range(count)]
