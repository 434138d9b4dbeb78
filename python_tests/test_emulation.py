"""The GPU that csrc/emulation plays: what it does to kernels, and that it refuses what a GPU does.

That it finds missing barriers and fences is shown by `benchmarks/checks/emulation_proof.py`,
which takes them away.
"""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from kernel_results import all_results, make_inputs, statistics_results
from tensors import same_bits, sample
from torch.overrides import TorchFunctionMode

from zscgan_ext.ops import implementation, reference
from zscgan_ext.ops.native import calls

pytestmark = pytest.mark.emulation
SHAPE = (4, 16, 48, 48)  # large enough that blocks share every reduction


@pytest.fixture
def gpu():
    """Return the emulated GPU, whose first device is current again afterwards."""
    gpu = implementation.EMULATED.emulation
    yield gpu
    gpu.set_device(0)


def test_the_cuda_kernels_are_taken(gpu):
    before = gpu.counts()["launches"]
    all_results(make_inputs(SHAPE, 1))
    assert gpu.counts()["launches"] >= before + 50
    assert implementation.uses_native(torch.empty(1))
    assert not implementation.uses_native(torch.empty(1, dtype=torch.float64))  # as on a GPU


def test_blocks_run_side_by_side_and_see_stores_late(gpu):
    before = gpu.counts()
    statistics_results(make_inputs(SHAPE, 1))
    after = gpu.counts()
    assert after["handovers"] - before["handovers"] > 10
    assert after["hidden_stores"] - before["hidden_stores"] > 100


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_no_schedule_changes_a_bit(gpu, layout):
    inputs = make_inputs(SHAPE, 1, layout)
    expected = all_results(inputs)
    for seed in range(5):
        gpu.set_seed(seed)
        for name, values in all_results(inputs).items():
            assert same_bits(values, expected[name]), name


# ---- devices ------------------------------------------------------------------------------------


def arguments_of_statistics(x):
    """Return what `batch_norm_statistics` takes before the place, and its results."""
    vectors = torch.zeros(x.shape[1]), torch.empty(x.shape[1]), torch.empty(x.shape[1])
    sizes = (x.shape[0], x.shape[1], x[0, 0].numel())
    return (0, sizes, x.data_ptr(), *(v.data_ptr() for v in vectors)), vectors


@pytest.fixture
def torch_of_two_gpus(gpu, monkeypatch):
    """Let torch.cuda answer as with the two emulated devices; give the stream of each."""
    streams = [gpu.make_stream(index) for index in range(2)]

    @contextlib.contextmanager
    def device(index):
        before, used = gpu.current_device(), gpu.device_uses()
        gpu.set_device(index)
        yield
        # As torch does it: a device that nothing has used is put back without starting it.
        if used[before] > 0:
            gpu.set_device(before)

    def current_stream(device):
        return SimpleNamespace(cuda_stream=streams[device.index])

    monkeypatch.setattr(torch.cuda, "current_device", gpu.current_device)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(calls, "core", implementation.EMULATED)
    return streams


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("current", [0, 1])
@pytest.mark.usefixtures("torch_of_two_gpus")
def test_only_the_device_of_the_tensor_is_touched(gpu, index, current):
    x = sample(4, 16, 48, 48)
    arguments, (_, mean, variance) = arguments_of_statistics(x)
    scratch = torch.empty(implementation.EMULATED.cuda.reduction_workspace(arguments[1]) // 4)
    on_device = SimpleNamespace(is_cpu=False, device=torch.device("cuda", index))
    gpu.set_device(current)
    before = gpu.device_uses()
    module, where = calls.place(on_device, scratch)
    module.batch_norm_statistics(*arguments, where)
    uses = [now - then for now, then in zip(gpu.device_uses(), before, strict=True)]
    assert gpu.current_device() == current
    assert uses[index] > 0
    # Another current device is made current again afterwards, and nothing else.
    assert uses[1 - index] == (0 if index == current else 1)
    expected = torch.var_mean(x, (0, 2, 3), correction=0)
    torch.testing.assert_close((variance, mean), expected)


def test_a_launch_on_another_device_than_the_current_one_is_refused():
    arguments, _ = arguments_of_statistics(sample(2, 3, 4))
    before = implementation.EMULATED.emulation.device_uses()
    with pytest.raises(ValueError, match="device: not the current one"):
        implementation.EMULATED.cuda.batch_norm_statistics(*arguments, (1, 0, 0))
    assert implementation.EMULATED.emulation.device_uses() == before


def test_a_stream_of_another_device_is_refused(gpu):
    arguments, _ = arguments_of_statistics(sample(2, 3, 4))
    with pytest.raises(RuntimeError, match="CUDA: invalid resource handle"):
        implementation.EMULATED.cuda.batch_norm_statistics(*arguments, (0, gpu.make_stream(1), 0))


# ---- torch's own arithmetic on a GPU ------------------------------------------------------------


class DivisionOfGPUs(TorchFunctionMode):
    """Divides by a number through its inverse, as torch's kernels for GPUs do."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Replace x / number by x * (1 / number)."""
        divisions = (torch.Tensor.__truediv__, torch.Tensor.div, torch.div, torch.true_divide)
        if function in divisions and isinstance(args[1], int | float):
            x, number = args
            return x * (torch.ones((), dtype=x.dtype) / torch.tensor(number, dtype=x.dtype))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bounds", [(0, 255), (-8, 7), (0, 9)])
def test_the_reference_of_observe_has_the_same_bits_on_a_gpu(symmetric, bounds):
    x, states = sample(64, 7), []
    for mode in (contextlib.nullcontext(), DivisionOfGPUs()):
        state = [torch.full((64,), value) for value in (torch.inf, -torch.inf, 0.0, 0.0)]
        with mode:
            reference.update_min_max(x, *state, 0.1, *bounds, symmetric, 0)
        states.append(state)
    assert all(same_bits(*values) for values in zip(*states, strict=True))


def test_divisions_of_gpus_differ():
    x = sample(1000)
    with DivisionOfGPUs():
        assert not same_bits(x / 255, torch.true_divide(x, torch.full((), 255.0)))
