"""Steps of training as objects: what they wait for, how they are graphed, compiled and reported."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from networks import RGB8, normal_batches
from small_training import CPU, SMALL, STAGES, SeenOps, new_training
from torch import nn
from zscgan_ext.training.steps import Training

from zscgan_ext.training import steps as training_module
from zscgan_ext.training.cuda_graphs import WARM_UP_STEPS, GraphedStep
from zscgan_ext.training.execution import choose_execution


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_waits_for_nothing(stage):
    training = new_training(stage)
    training.advance()
    with SeenOps() as seen:
        values = training.advance()
    assert any("convolution" in name for name in seen.names)
    # What a tensor's .item(), .tolist(), bool() or float() would run.
    assert "aten::_local_scalar_dense" not in seen.names
    with SeenOps() as seen:
        values[0].item()
    assert "aten::_local_scalar_dense" in seen.names


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_captured_takes_no_numbers_from_the_host(stage):
    training = new_training(stage)
    training.advance()
    inputs = training.inputs()
    with SeenOps() as seen:
        training.take(*inputs)
    assert any("convolution" in name for name in seen.names)
    # What torch.tensor() and .new_tensor() run: on a GPU they copy, which no graph can hold.
    assert "aten::lift_fresh" not in seen.names
    with SeenOps() as seen:
        inputs[0].new_tensor(1.0)
    assert "aten::lift_fresh" in seen.names


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_freed_after_a_step(stage):
    training = new_training(stage)
    training.advance()
    assert all(p.grad is None for group in training.optimizer.param_groups for p in group["params"])


def test_only_due_steps_are_reported_and_all_are_taken():
    training = new_training("generator")
    reported, taken = [], []
    training.run(
        6,
        lambda step, values: reported.append((step, len(values))),
        is_due=lambda step: step in (1, 4),
        after_step=lambda: taken.append(1),
    )
    assert reported == [(1, 5), (4, 5)]
    assert len(taken) == 6


def test_what_is_reported_does_not_change_what_is_learned():
    every, few = {}, {}
    new_training("generator").run(5, every.__setitem__)
    new_training("generator").run(5, few.__setitem__, is_due=lambda step: step == 5)
    assert few == {5: every[5]}


def test_the_rate_falls_along_a_cosine():
    training = new_training("generator")
    rates = []
    for _ in range(SMALL.synthesis_steps):
        training.advance()
        rates.append(training.optimizer.param_groups[0]["lr"])
    halves = [0.5 * (1 + torch.tensor(torch.pi * step / 8).cos().item()) for step in range(1, 9)]
    expected = [SMALL.synthesis_learning_rate * half for half in halves]
    assert rates == pytest.approx(expected, abs=1e-9)


# ---- CUDA graphs ---------------------------------------------------------------------------------


class FakeGraph:
    """Runs what was captured anew at each replay, on the tensors of the capture."""

    def __init__(self, step, inputs):
        self.step, self.inputs, self.replays = step, inputs, 0
        self.result = torch.zeros(())

    def replay(self):
        self.replays += 1
        self.result.copy_(self.step(*self.inputs))


class FakeCapturing:
    """What capturing on a GPU does, on a CPU; or a failure of it."""

    def __init__(self, failure=None):
        self.failure, self.warmed_up, self.graphs = failure, 0, []

    @contextmanager
    def side_stream(self) -> Iterator[None]:
        self.warmed_up += 1
        yield

    def capture(self, step, inputs):
        if self.failure is not None:
            raise self.failure
        self.graphs.append(FakeGraph(step, inputs))
        return self.graphs[-1], self.graphs[-1].result


def test_a_graph_is_captured_once_after_warming_up_and_then_replayed():
    seen = []

    def step(x):
        seen.append(x)
        return x.sum()

    capturing = FakeCapturing()
    graphed = GraphedStep(step, capturing)
    given = [torch.full((3,), float(number)) for number in range(WARM_UP_STEPS + 4)]
    assert [graphed(x).item() for x in given] == [3.0 * number for number in range(len(given))]
    assert capturing.warmed_up == WARM_UP_STEPS
    (graph,) = capturing.graphs
    assert graph.replays == 4
    # Warm-up steps see what is given, replays the graph's own tensors, and none is left out.
    assert all(x is y for x, y in zip(seen, given[:WARM_UP_STEPS], strict=False))
    assert len({id(x) for x in seen[WARM_UP_STEPS:]}) == 1
    assert len(seen) == len(given)


def test_steps_on_other_shapes_than_the_captured_are_taken_as_they_are():
    capturing = FakeCapturing()
    graphed = GraphedStep(torch.sum, capturing)
    sizes = [4] * (WARM_UP_STEPS + 1) + [1, 4, 3, 4]  # a batch of one would broadcast
    results = [graphed(torch.full((size,), float(i))).item() for i, size in enumerate(sizes)]
    assert results == [size * i for i, size in enumerate(sizes)]
    (graph,) = capturing.graphs
    assert graph.replays == 3


def test_where_capturing_fails_one_line_says_why_and_steps_go_on(capsys):
    capturing = FakeCapturing(RuntimeError("operation not permitted\nwhen stream is capturing"))
    graphed = GraphedStep(lambda x: x + 1, capturing)
    values = [graphed(torch.tensor(float(number))).item() for number in range(8)]
    assert values == [number + 1.0 for number in range(8)]
    assert capsys.readouterr().out == "no CUDA graph: operation not permitted\n"


def test_gradients_of_a_failed_capture_are_forgotten():
    plain = new_training("student-deploy")
    expected = [plain.advance().tolist() for _ in range(WARM_UP_STEPS + 3)]
    failing = new_training("student-deploy")

    def leave_gradients(step, inputs):
        for group in failing.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, 1e9)
        raise RuntimeError("failed after the backward pass")

    capturing = FakeCapturing()
    capturing.capture = leave_gradients
    failing.taken = GraphedStep(failing.take, capturing)
    assert [failing.advance().tolist() for _ in expected] == expected


@pytest.mark.parametrize("stage", STAGES)
def test_a_graphed_training_learns_the_same(stage):
    plain = new_training(stage)
    expected = [plain.advance().sum().item() for _ in range(WARM_UP_STEPS + 3)]
    graphed = new_training(stage)
    graphed.taken = GraphedStep(lambda *inputs: graphed.take(*inputs).sum(), FakeCapturing())
    assert [graphed.advance().item() for _ in expected] == expected


def test_a_captured_optimizer_reads_its_rate_from_a_tensor():
    execution = replace(choose_execution(SMALL, CPU), cuda_graphs=True)

    class Line(Training):
        def inputs(self):
            return (torch.ones(2),)

        def measure(self, *inputs: torch.Tensor):
            loss = (self.weight * inputs[0]).sum()
            return loss, loss.detach()

    Line.weight = nn.Parameter(torch.zeros(2))
    # Only CUDA has capturable optimizers and streams; here their place is taken.
    with pytest.MonkeyPatch.context() as patch:
        adam = torch.optim.Adam
        patch.setattr(torch.optim, "Adam", lambda *a, capturable, **k: adam(*a, **k))
        patch.setattr(training_module, "StreamCapture", lambda device: FakeCapturing())
        training = Line([Line.weight], 0.1, (0.9, 0.999), 8, execution)
    rate = training.optimizer.param_groups[0]["lr"]
    assert isinstance(rate, torch.Tensor)
    for _ in range(WARM_UP_STEPS + 2):
        before = Line.weight.detach().clone()
        now = rate.item()
        training.advance()
        # A constant gradient: Adam moves by the rate of the moment.
        torch.testing.assert_close(before - Line.weight.detach(), torch.full((2,), now))
    assert training.optimizer.param_groups[0]["lr"] is rate


@pytest.mark.cuda(emulated=False)
@pytest.mark.parametrize("stage", STAGES)
def test_graphs_on_a_gpu_learn_as_single_kernels_do(stage, capsys):
    device = torch.device("cuda", 0)
    losses = {}
    for choice in ("on", "off"):
        settings = replace(SMALL, precision="float32", cuda_graphs=choice)
        training = new_training(stage, settings, device)
        losses[choice] = [training.advance()[0].item() for _ in range(8)]
        graph = getattr(training.taken, "graph", None)
        assert (graph is not None) == (choice == "on")
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-3)
    assert "no CUDA graph" not in capsys.readouterr().out


@pytest.mark.cuda(emulated=False)
def test_a_step_that_waits_falls_back_on_a_gpu(capsys):
    from zscgan_ext.training.cuda_graphs import StreamCapture

    device = torch.device("cuda", 0)
    weight = torch.zeros(2, device=device)

    def step(x):
        noise = torch.randn_like(x)
        return weight.add_(x).sum().cpu().to(device) + 0 * noise.sum()

    graphed = GraphedStep(step, StreamCapture(device))
    values = [graphed(torch.ones(2, device=device)).item() for _ in range(6)]
    assert values == [2.0 * (number + 1) for number in range(6)]
    assert capsys.readouterr().out.startswith("no CUDA graph: ")


# ---- torch.compile -------------------------------------------------------------------------------


def test_a_compiled_training_learns_the_same(monkeypatch):
    compiled = []

    def compile_without_inductor(function):
        compiled.append(function.__name__)
        return compile_with(function, backend="eager")

    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", compile_without_inductor)
    batches = list(normal_batches(3, 8, *RGB8.shape))
    losses = []
    for is_compiled in (False, True):
        training = new_training("student-deploy", replace(SMALL, compile=is_compiled))
        training.batches = cycle(batches)
        losses.append([training.advance()[0].item() for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert compiled == ["measure"]


def test_where_compiling_fails_one_line_says_why_and_steps_go_on(monkeypatch, capsys):
    def refuse(function):
        def fail(*inputs: torch.Tensor):
            raise RuntimeError("no compiler here\nand more")

        return fail

    monkeypatch.setattr(torch, "compile", refuse)
    losses = []
    for is_compiled in (True, False):
        training = new_training("generator", replace(SMALL, compile=is_compiled))
        losses.append([training.advance()[0].item() for _ in range(3)])
    assert losses[0] == losses[1]
    assert capsys.readouterr().out == "not compiled: no compiler here\n"
