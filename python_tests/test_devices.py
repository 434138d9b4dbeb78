"""A run on one of several GPUs touches no other: torch.cuda is played, and its uses counted."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from zscgan_ext import distributed
from zscgan_ext.training.cuda_graphs import StreamCapture


class PlayedCuda:
    """Two devices as torch.cuda shows them: whose turn it is, and how often each was used."""

    def __init__(self, monkeypatch):
        self.current = 0
        self.uses = [0, 0]
        self.streams = [self.make_stream(torch.device("cuda", index)) for index in range(2)]
        random = SimpleNamespace(clone_state=lambda: None, graphsafe_set_state=lambda _: None)
        self.uses = [0, 0]
        names = ("device", "stream", "graph", "current_stream", "set_device")
        for name in names:
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "Stream", self.make_stream)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
        monkeypatch.setattr(torch.cuda, "default_generators", [random, random])

    def set_device(self, device):
        """Make a device current, which starts it."""
        self.current = device if isinstance(device, int) else device.index
        self.uses[self.current] += 1

    @contextmanager
    def device(self, device):
        """Put back what was current without starting it, as torch does here."""
        before = self.current
        self.set_device(device)
        yield
        if self.uses[before]:
            self.set_device(before)

    def make_stream(self, device=None):
        """Make a stream on a device, the current one if none is named."""
        index = self.current if device is None else device.index
        self.uses[index] += 1
        return SimpleNamespace(index=index, wait_stream=lambda other: self.use(index, other))

    def use(self, *places):
        """Count uses of streams' devices."""
        for place in places:
            self.uses[place if isinstance(place, int) else place.index] += 1

    def current_stream(self, device=None):
        """Return the stream of a device, the current one if none is named."""
        return self.streams[self.current if device is None else device.index]

    @contextmanager
    def stream(self, stream):
        """Choose a stream and its device; afterwards the former stream and its device."""
        before = self.current_stream()
        self.set_device(stream.index)
        yield
        self.set_device(before.index)

    @contextmanager
    def graph(self, graph, stream=None):
        """Wait for the current device, and capture on the stream."""
        self.use(self.current)
        stream = stream or self.make_stream()
        assert stream.index == self.current
        with self.stream(stream):
            yield


@pytest.fixture
def cuda(monkeypatch):
    """Play two devices, the first of which is current and unused."""
    return PlayedCuda(monkeypatch)


def device_of(index):
    """Name a device as torch.device("cuda", index) does on a machine with GPUs."""
    return torch.device("cuda", index)


@pytest.mark.parametrize("index", [0, 1])
def test_capturing_uses_its_own_device_alone(cuda, index):
    capturing = StreamCapture(device_of(index))
    seen = []
    with capturing.side_stream():
        seen.append(cuda.current)
    capturing.capture(lambda: seen.append(cuda.current), ())
    assert seen == [index, index]
    assert cuda.uses[index] > 0
    assert cuda.uses[1 - index] == 0


def test_a_capture_that_fails_leaves_the_other_device_alone(cuda):
    def step():
        raise RuntimeError("cannot be captured")

    with pytest.raises(RuntimeError, match="cannot be captured"):
        StreamCapture(device_of(1)).capture(step, ())
    assert cuda.uses[0] == 0


def test_the_device_of_a_run_is_the_current_one(cuda):
    distributed.join(device_of(1))
    assert cuda.current == 1
    assert cuda.uses == [0, 1]
    distributed.join(torch.device("cpu"))
    assert cuda.current == 1
