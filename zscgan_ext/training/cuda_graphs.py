"""A training step as a CUDA graph: all its kernels in one launch."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from zscgan_ext.errors import first_line

Step = Callable[..., Tensor]
WARM_UP_STEPS = 3  # taken eagerly, so that libraries choose algorithms and optimizers have state


class Graph(Protocol):
    """What was captured."""

    def replay(self) -> None:
        """Queue all captured work."""


class StreamCapture:
    """Capturing on one CUDA device, which is made current meanwhile: no other one is touched."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        """Run what it encloses on a stream of its own, as steps before a capture have to."""
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream(self.device)
            side = torch.cuda.Stream(self.device)
            side.wait_stream(current)
            with torch.cuda.stream(side):
                yield
            current.wait_stream(side)

    def capture(self, step: Step, inputs: tuple[Tensor, ...]) -> tuple[Graph, Tensor]:
        """Capture one step, which does not run; give its graph and its future result.

        Raises:
            RuntimeError: if the step does what cannot be captured. Random numbers go on as if
                nothing had been tried.
        """
        default_random = torch.cuda.default_generators[self.device.index or 0]
        random_state: Any = default_random.clone_state()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(self.device):
                # Of its own accord torch captures on a stream of the first device it captured on.
                stream = torch.cuda.Stream(self.device)
                with torch.cuda.graph(graph, stream=stream):
                    result = step(*inputs)
        except RuntimeError:
            default_random.graphsafe_set_state(random_state)
            raise
        return graph, result


class GraphedStep:
    """A step that is warmed up, captured and from then on replayed.

    Where capturing fails, one line says why, and the step goes on kernel by kernel. So does a step
    on tensors of other shapes than those of the capture, such as the last batch of a data set.

    Args:
        step: maps tensors to one tensor, without waiting for the device. Of random numbers it may
            take those of torch's default generator only.
        capturing: how to capture.
    """

    def __init__(self, step: Step, capturing: StreamCapture) -> None:
        self.step = step
        self.capturing = capturing
        self.warm_up_steps_left = WARM_UP_STEPS
        self.graph: Graph | None = None
        self.inputs: tuple[Tensor, ...] = ()
        self.result = torch.empty(0)
        self.has_failed = False

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Take one step; the next one overwrites the result."""
        if self.has_failed:
            return self.step(*inputs)
        if self.warm_up_steps_left:
            self.warm_up_steps_left -= 1
            with self.capturing.side_stream():
                return self.step(*inputs)
        if self.graph is None:
            self.capture(inputs)
            if self.graph is None:
                return self.step(*inputs)
        if [own.shape for own in self.inputs] != [given.shape for given in inputs]:
            return self.step(*inputs)
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.graph.replay()
        return self.result

    def capture(self, inputs: tuple[Tensor, ...]) -> None:
        """Capture the step on tensors of its own, or say why that is impossible."""
        self.inputs = tuple(torch.empty_like(tensor) for tensor in inputs)
        try:
            self.graph, self.result = self.capturing.capture(self.step, self.inputs)
        except RuntimeError as error:
            self.has_failed = True
            print(f"no CUDA graph: {first_line(error)}", flush=True)
