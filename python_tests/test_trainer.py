"""Trainers: what a step is made of and waits for, how it is graphed and compiled."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from networks import RGB8, normal_batches
from small_training import (
    CPU,
    SMALL,
    STAGES,
    Follower,
    SeenOps,
    new_trainer,
    take_step,
    targets,
)
from torch import nn

from zscgan_ext.training import trainer as trainer_module
from zscgan_ext.training.cuda_graphs import WARM_UP_STEPS, GraphedStep
from zscgan_ext.training.execution import choose_execution
from zscgan_ext.training.trainer import ParameterGroup, Trainer


def adam(start, gradient, steps, rate=0.1):
    """Where Adam's formulas lead, in float64, at a rate that falls along a cosine."""
    weight = torch.tensor(start, dtype=torch.float64)
    mean, square = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for step in range(1, steps + 1):
        now = rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
        slope = gradient(step, weight)
        mean, square = 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
        unbiased = (square / (1 - 0.999**step)).sqrt() + 1e-8
        weight = weight - now * mean / (1 - 0.9**step) / unbiased
        yield weight


# ---- sample, loss, step --------------------------------------------------------------------------


def test_steps_follow_the_formulas_of_adam_and_measure_what_was_before():
    trainer, given = Follower(targets()), targets().double()
    path = adam([0.5, -1.0], lambda step, weight: 2 * (weight - given[step - 1]), 8)
    before = torch.tensor([0.5, -1.0], dtype=torch.float64)
    for step, expected in enumerate(path, 1):
        values = take_step(trainer)
        loss = (before - given[step - 1]).square().sum()
        torch.testing.assert_close(values, torch.stack([loss, before[0]]).float())
        torch.testing.assert_close(trainer.weight.detach(), expected.float())
        assert trainer.steps_taken == step
        before = expected


@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_learns_nothing_and_a_step_does(stage):
    trainer = new_trainer(stage)
    batch = trainer.sample()
    before = [parameter.detach().clone() for parameter in trainer.parameters()]
    loss, values = trainer.loss(*batch)
    assert loss.shape == ()
    assert values.shape == (len(trainer.metrics),)
    assert trainer.metrics[0] == "loss"
    assert values[0] == loss
    assert not values.requires_grad
    assert all(map(torch.equal, trainer.parameters(), before))
    assert trainer.steps_taken == 0
    trainer.step(batch)
    assert not all(map(torch.equal, trainer.parameters(), before))
    assert trainer.steps_taken == 1


@pytest.mark.parametrize("stage", STAGES)
def test_samples_are_of_equal_shapes_and_differ(stage):
    trainer = new_trainer(stage)
    first, second = trainer.sample(), trainer.sample()
    assert [x.shape for x in first] == [x.shape for x in second]
    assert not any(map(torch.equal, first[:1], second[:1]))
    assert trainer.steps_taken == 0


def test_a_loss_that_was_not_finite_once_is_not_forgotten():
    given = targets(4)
    given[1] = torch.inf
    trainer, untouched = Follower(given), Follower(targets(4))
    take_step(trainer)
    assert trainer.is_finite()
    state = copy.deepcopy(trainer.state_dict()), trainer.weight.detach().clone()
    take_step(trainer)
    assert not trainer.is_finite()
    with torch.no_grad():  # all is finite again but the memory of that loss
        trainer.weight.copy_(state[1])
        for own in trainer.optimizer.state.values():
            own["exp_avg"].zero_()
            own["exp_avg_sq"].zero_()
    take_step(trainer)
    assert trainer.weight.isfinite().all()
    assert not trainer.is_finite()
    trainer.load_state_dict(state[0])
    assert trainer.is_finite()
    take_step(untouched)
    assert untouched.is_finite()


def test_a_state_resumes_bit_for_bit():
    given = targets()
    whole, first, second = (Follower(given) for _ in range(3))
    for _ in range(3):
        take_step(first)
    second.weight.data.copy_(first.weight)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    measured = [take_step(whole).clone() for _ in range(8)]
    assert second.steps_taken == 3
    assert all(torch.equal(take_step(second), expected) for expected in measured[3:])
    assert torch.equal(second.weight, whole.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps_taken": 9}, "9 of 8 steps were taken"),
        ({"steps_taken": -1}, "-1 of 8 steps were taken"),
        ({"learning_rates": [0.1, 0.2]}, "argument 3 is longer"),
        (
            {"optimizer": {"0": dict.fromkeys(("exp_avg", "exp_avg_sq"), torch.zeros(3))}},
            r"not of a parameter \[2\]",
        ),
    ],
)
def test_a_state_of_another_trainer_is_refused(change, message):
    trainer = Follower(targets())
    take_step(trainer)
    state = copy.deepcopy(trainer.state_dict())
    for own in change.get("optimizer", {}).values():
        own["step"] = torch.tensor(1.0)
    with pytest.raises(ValueError, match=message):
        trainer.load_state_dict(state | change)


def test_what_runs_eagerly_neither_replays_nor_compiles():
    trainer = Follower(targets(), execution=SMALL.changed(compile=True).execution)
    trainer.graph = GraphedStep(pytest.fail, FakeCapturing())
    trainer.run_eagerly()
    values = take_step(trainer)
    assert torch.equal(values, take_step(Follower(targets())))
    assert trainer.compiled_loss is None


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_waits_for_nothing(stage):
    trainer = new_trainer(stage)
    take_step(trainer)
    with SeenOps() as seen:
        values = take_step(trainer)
    assert any("convolution" in name for name in seen.names)
    # What a tensor's .item(), .tolist(), bool() or float() would run.
    assert "aten::_local_scalar_dense" not in seen.names
    with SeenOps() as seen:
        values[0].item()
    assert "aten::_local_scalar_dense" in seen.names


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_captured_takes_no_numbers_from_the_host(stage):
    trainer = new_trainer(stage)
    take_step(trainer)
    batch = trainer.sample()
    with SeenOps() as seen:
        trainer.learn(*batch)
    assert any("convolution" in name for name in seen.names)
    # What torch.tensor() and .new_tensor() run: on a GPU they copy, which no graph can hold.
    assert "aten::lift_fresh" not in seen.names
    with SeenOps() as seen:
        batch[0].new_tensor(1.0)
    assert "aten::lift_fresh" in seen.names


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_are_freed_after_a_step(stage):
    trainer = new_trainer(stage)
    take_step(trainer)
    assert all(p.grad is None for group in trainer.optimizer.param_groups for p in group["params"])


def test_the_rate_falls_along_a_cosine():
    trainer = new_trainer("generator")
    rates = []
    for _ in range(SMALL.generator.steps):
        take_step(trainer)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    halves = [0.5 * (1 + torch.tensor(torch.pi * step / 8).cos().item()) for step in range(1, 9)]
    expected = [SMALL.generator.learning_rate * half for half in halves]
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
    plain = new_trainer("student-deploy")
    expected = [take_step(plain).tolist() for _ in range(WARM_UP_STEPS + 3)]
    failing = new_trainer("student-deploy")

    def leave_gradients(step, inputs):
        for group in failing.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, 1e9)
        raise RuntimeError("failed after the backward pass")

    capturing = FakeCapturing()
    capturing.capture = leave_gradients
    failing.graph = GraphedStep(failing.learn, capturing)
    assert [take_step(failing).tolist() for _ in expected] == expected


@pytest.mark.parametrize("stage", STAGES)
def test_a_graphed_training_learns_the_same(stage):
    plain = new_trainer(stage)
    expected = [take_step(plain).sum().item() for _ in range(WARM_UP_STEPS + 3)]
    graphed = new_trainer(stage)
    graphed.graph = GraphedStep(lambda *batch: graphed.learn(*batch).sum(), FakeCapturing())
    assert [take_step(graphed).item() for _ in expected] == expected


def test_a_captured_optimizer_reads_its_rate_from_a_tensor():
    execution = replace(choose_execution(SMALL.execution, CPU), cuda_graphs=True)

    class Line(Trainer):
        def sample(self):
            return (torch.ones(2),)

        def loss(self, *batch: torch.Tensor):
            loss = (self.weight * batch[0]).sum()
            return loss, loss.detach()

    Line.weight = nn.Parameter(torch.zeros(2))
    # Only CUDA has capturable optimizers and streams; here their place is taken.
    with pytest.MonkeyPatch.context() as patch:
        adam = torch.optim.Adam
        patch.setattr(torch.optim, "Adam", lambda *a, capturable, **k: adam(*a, **k))
        patch.setattr(trainer_module, "StreamCapture", lambda device: FakeCapturing())
        trainer = Line([ParameterGroup([Line.weight], 0.1)], (0.9, 0.999), 8, execution)
    rate = trainer.optimizer.param_groups[0]["lr"]
    assert isinstance(rate, torch.Tensor)
    for _ in range(WARM_UP_STEPS + 2):
        before = Line.weight.detach().clone()
        now = rate.item()
        take_step(trainer)
        # A constant gradient: Adam moves by the rate of the moment.
        torch.testing.assert_close(before - Line.weight.detach(), torch.full((2,), now))
    assert trainer.optimizer.param_groups[0]["lr"] is rate


@pytest.mark.cuda(emulated=False)
@pytest.mark.parametrize("stage", STAGES)
def test_graphs_on_a_gpu_learn_as_single_kernels_do(stage, capsys):
    device = torch.device("cuda", 0)
    losses = {}
    for choice in ("on", "off"):
        config = SMALL.changed(precision="float32", cuda_graphs=choice)
        trainer = new_trainer(stage, config, device)
        losses[choice] = [take_step(trainer)[0].item() for _ in range(8)]
        assert (trainer.graph is not None) == (choice == "on")
        assert trainer.graph is None or trainer.graph.graph is not None
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
        trainer = new_trainer("student-deploy", SMALL.changed(compile=is_compiled))
        trainer.batches = cycle(batches)
        losses.append([take_step(trainer)[0].item() for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert compiled == ["loss"]


def test_where_compiling_fails_one_line_says_why_and_steps_go_on(monkeypatch, capsys):
    def refuse(function):
        def fail(*inputs: torch.Tensor):
            raise RuntimeError("no compiler here\nand more")

        return fail

    monkeypatch.setattr(torch, "compile", refuse)
    losses = []
    for is_compiled in (True, False):
        trainer = new_trainer("generator", SMALL.changed(compile=is_compiled))
        losses.append([take_step(trainer)[0].item() for _ in range(3)])
    assert losses[0] == losses[1]
    assert capsys.readouterr().out == "not compiled: no compiler here\n"
