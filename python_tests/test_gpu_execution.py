"""How kernels are run changes no bit: repeated, in CUDA graphs, on several streams and devices."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from kernel_results import all_results, make_inputs
from networks import RGB8, normal_batches, small_residual
from tensors import DEVICES, dtype_name, same_bits

from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import convert
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher

SHAPE = (4, 16, 48, 48)  # large enough that blocks share every reduction
RUNS = {"cpu": 3, "cuda": 100}


def new_stream(device):
    """Return a context in which kernels go to a stream of their own, where there are streams."""
    on_cpu = device == "cpu"
    return contextlib.nullcontext() if on_cpu else torch.cuda.stream(torch.cuda.Stream())


def synchronize(device):
    """Wait for all streams, where there are any."""
    if device != "cpu":
        torch.cuda.synchronize()


def replayable(function, device):
    """Run a function once; return its results and what computes them again in place.

    On a GPU that is a captured graph, on the CPU the function itself.
    """
    if device == "cpu":
        found = function()

        def replay():
            for name, values in function().items():
                found[name].copy_(values)

        return found, replay
    with new_stream(device):
        for _ in range(2):
            function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = function()
    return found, graph.replay


def assert_same_bits(found, expected):
    """Compare results by name."""
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert same_bits(values, expected[name]), name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_every_run_gives_the_same_bits(device, layout, dtype):
    inputs = make_inputs(SHAPE, 1, layout, dtype, device)
    expected = all_results(inputs)
    for _ in range(RUNS[device]):
        assert_same_bits(all_results(inputs), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_freed_memory_may_hold_anything(device):
    inputs = make_inputs(SHAPE, 1, device=device)
    expected = all_results(inputs)
    for value in (0, 1, 255):
        # What the allocator hands out next, to results and to workspaces.
        litter = [torch.full((2**k,), value, dtype=torch.uint8, device=device) for k in range(25)]
        del litter
        assert_same_bits(all_results(inputs), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_kernels_replay_in_a_graph(device, layout):
    inputs = make_inputs(SHAPE, 1, layout, device=device)
    found, replay = replayable(lambda: all_results(inputs), device)
    for seed in (10, 20, 30):
        fresh = make_inputs(SHAPE, 1, layout, device=device, seed=seed)
        for static, values in zip(inputs.tensors(), fresh.tensors(), strict=True):
            static.copy_(values)
        replay()
        assert_same_bits(found, all_results(fresh))


@pytest.mark.parametrize("device", DEVICES)
def test_graphs_and_plain_calls_run_side_by_side(device):
    cases = [make_inputs(SHAPE, 1, device=device, seed=10 * k) for k in range(3)]
    expected = [all_results(inputs) for inputs in cases]
    # The second graph is captured on the stream of the first and must not need its memory.
    graphs = [replayable(lambda i=inputs: all_results(i), device) for inputs in cases[:2]]
    graphs[1][1]()
    assert_same_bits(graphs[1][0], expected[1])
    for _ in range(10):
        for _, replay in graphs:
            with new_stream(device):
                replay()
        with new_stream(device):
            plain = all_results(cases[2])
        synchronize(device)
        for found, wanted in zip([*(g[0] for g in graphs), plain], expected, strict=True):
            assert_same_bits(found, wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_a_graph_outlives_larger_calls(device):
    inputs = make_inputs((2, 16, 48, 48), 1, device=device)
    expected = all_results(inputs)
    found, replay = replayable(lambda: all_results(inputs), device)
    others = []
    for size in (1, 4, 16):
        other = make_inputs((size, 24, 64, 64), 1, device=device, seed=size)
        others.append((other, all_results(other)))
        replay()
        assert_same_bits(found, expected)
    for other, results in others:
        assert_same_bits(all_results(other), results)


@pytest.mark.parametrize("device", DEVICES)
def test_threads_with_streams_of_their_own(device):
    cases = [make_inputs(SHAPE, 1, device=device, seed=10 * k) for k in range(4)]
    expected = [all_results(inputs) for inputs in cases]
    synchronize(device)

    def repeat(index):
        with new_stream(device):
            for _ in range(5):
                assert_same_bits(all_results(cases[index]), expected[index])

    with ThreadPoolExecutor(len(cases)) as pool:
        list(pool.map(repeat, range(len(cases))))


@pytest.mark.parametrize("device", DEVICES)
def test_threads_that_share_a_stream(device):
    cases = [make_inputs(SHAPE, 1, device=device, seed=10 * k) for k in range(4)]
    expected = [all_results(inputs) for inputs in cases]

    def repeat(index):
        for _ in range(5):
            assert_same_bits(all_results(cases[index]), expected[index])

    with ThreadPoolExecutor(len(cases)) as pool:
        list(pool.map(repeat, range(len(cases))))


@pytest.mark.cuda(emulated=False)
def test_a_device_that_is_not_the_current_one():
    device = torch.device("cuda", torch.cuda.device_count() - 1)  # the first, where it is alone
    inputs = make_inputs(SHAPE, 1, device=device)
    expected = all_results(make_inputs(SHAPE, 1, device="cuda"))
    before = torch.cuda.current_device()
    found = all_results(inputs)
    assert torch.cuda.current_device() == before
    assert all(values.device == device for values in found.values())
    for name, values in found.items():
        assert same_bits(values.cpu(), expected[name].cpu()), name


def matching_step(device, images):
    """Return a step of generator learning: the teacher's loss and its gradient by the images."""
    teacher = FrozenTeacher(trace(small_residual().to(device), RGB8.shape), "gaussian_kl")
    labels = torch.arange(len(images), device=device) % 5

    def step():
        x = images.detach().requires_grad_()
        logits, distance, _ = teacher.forward_with_batch_norm_loss(x)
        loss = F.cross_entropy(logits, labels) + distance
        return {"loss": loss.detach(), "images": torch.autograd.grad(loss, x)[0]}

    return step


def student_step(device, images):
    """Return a step of fine-tuning: the gradients of weights, biases and learned scales."""
    student = convert(small_residual(), Scheme("deploy", 8, 8), RGB8.shape).to(device)
    batches = ((x.to(device), labels) for x, labels in normal_batches(2, 8, *RGB8.shape))
    calibrate(student, batches, 2)
    student.requires_grad_()
    names, parameters = zip(*student.named_parameters(), strict=True)

    def step():
        loss = student(images).square().mean()
        gradients = torch.autograd.grad(loss, parameters)
        return {"loss": loss.detach(), **dict(zip(names, gradients, strict=True))}

    return step


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make_step", [matching_step, student_step])
def test_training_steps_replay_in_a_graph(device, make_step):
    first, *others = (x.to(device) for x, _ in normal_batches(3, 8, *RGB8.shape))
    images = first.clone()
    step = make_step(device, images)
    found, replay = replayable(step, device)
    for x in others:
        images.copy_(x)
        replay()
        # The library may choose another algorithm for a convolution in a graph.
        torch.testing.assert_close(found, step(), rtol=1e-3, atol=1e-5)
