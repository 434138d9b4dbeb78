"""What is done around the steps of a stage: progress, log, checkpoints, profiling, watching."""

import json
import signal
import sys
import time

import pytest
import torch
from networks import small_gray
from small_training import Follower, take_step, targets
from torch import nn

from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.config.configs import RunConfig
from zscgan_ext.config.values import Interval
from zscgan_ext.run_folder.checkpoint_file import (
    checkpoint_files,
    newest_checkpoint,
    read_checkpoint,
)
from zscgan_ext.run_folder.checkpoints import Checkpoints
from zscgan_ext.run_folder.files import LOG, RunFolder
from zscgan_ext.run_folder.profiling import StepProfiler
from zscgan_ext.stages.monitor import Progress, StageMonitor
from zscgan_ext.stages.run import new_run
from zscgan_ext.training.execution import choose_execution
from zscgan_ext.training.finite_numbers import NonFiniteError
from zscgan_ext.training.stop_signals import StoppedError


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves."""
    seconds = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])
    return seconds


@pytest.mark.parametrize(
    ("steps", "interval", "due"),
    [(10, 4, {1, 4, 8, 10}), (3, 50, {1, 3}), (4, 2, {1, 2, 4}), (1, 1, {1})],
)
def test_first_last_and_every_interval_are_logged(steps, interval, due):
    progress = Progress("synthesis", steps, interval)
    assert {step for step in range(1, steps + 1) if progress.is_due(step)} == due


def test_lines_give_values_rate_and_remaining_time(capsys, clock):
    with Progress("synthesis", 10, 4) as progress:
        for step in range(1, 11):
            clock[0] += 0.5
            progress.update(step, {"loss": 1 / step, "teacher accuracy": 12.345678})
    output = capsys.readouterr()
    assert output.out.splitlines() == [
        "synthesis 1/10  loss 1  teacher accuracy 12.35  2.0 steps/s  4 s left",
        "synthesis 4/10  loss 0.25  teacher accuracy 12.35  2.0 steps/s  3 s left",
        "synthesis 8/10  loss 0.125  teacher accuracy 12.35  2.0 steps/s  1 s left",
        "synthesis 10/10  loss 0.1  teacher accuracy 12.35  2.0 steps/s  0 s left",
    ]
    assert output.err == ""


def test_a_terminal_gets_a_bar_and_no_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress("fine-tuning", 3, 1) as progress:
        for step in (1, 2, 3):
            progress.update(step, {"loss": 0.5})
    output = capsys.readouterr()
    assert output.out == ""
    last = output.err.rstrip().split("\r")[-1]
    assert last.startswith("fine-tuning: 100%")
    assert "3/3" in last
    assert "loss=0.5" in last


def test_a_bar_asks_for_values_now_and_then(monkeypatch, clock):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    wanted = []
    with Progress("synthesis", 1000, 1000) as progress:
        for step in range(1, 101):
            clock[0] += 0.01
            if progress.wants(step):
                wanted.append(step)
                progress.update(step, {"loss": 0.5})
                assert progress.bar.n == step
    assert wanted[0] == 1
    assert 4 <= len(wanted) <= 6


def test_without_a_bar_only_the_log_asks_for_values(clock):
    progress = Progress("synthesis", 100, 40)
    for step in range(1, 101):
        clock[0] += 1
        assert progress.wants(step) == progress.is_due(step)


def test_the_bar_is_closed_when_a_stage_fails(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress("synthesis", 3, 1)
    with pytest.raises(KeyboardInterrupt), progress:
        raise KeyboardInterrupt
    assert progress.bar.disable  # tqdm's sign of a closed bar


# ---- all of it around a stage --------------------------------------------------------------------


class Stage:
    """A stage of some steps in a run with a folder of its own, which may be resumed.

    Args:
        path: of the run's folder.
        given: what the trainer follows, one for each step.
        every: between two checkpoints.
        log_interval: steps between two entries in the log, and between two looks at all numbers.
        resumes: whether from the newest checkpoint in the folder.
        profiles: whether some steps.
    """

    def __init__(self, path, given=None, every=None, log_interval=2, resumes=False, profiles=False):
        given = targets() if given is None else given
        device = torch.device("cpu")
        config = RunConfig().changed(device="cpu", log_interval=log_interval)
        loaded = newest_checkpoint(path) if resumes else None
        folder = RunFolder(path, resume=resumes)
        checkpoints = Checkpoints(path, every, 9, {"seed": "0"}, loaded, folder)
        self.run = new_run(
            config,
            load_classifier(small_gray(), image_size=28),
            folder,
            choose_execution(config.execution, device),
            checkpoints,
            profiler=StepProfiler(device) if profiles else None,
        )
        if resumes:
            folder.write_text(LOG, "")
        checkpoints.hold("results", self.run.results, gives_copies=True)
        self.trainer = Follower(given, len(given))
        checkpoints.hold("weight", nn.ParameterList([self.trainer.weight]))
        self.path, self.taken, self.values = path, [], []

    def take_steps(self, act=lambda step: None, upstream=()):
        """Take all steps that are left; do something before the monitor sees each."""
        stage = StageMonitor(
            self.run, "follower", self.trainer, seconds="synthesis", upstream=upstream
        )
        with self.run.checkpoints.signals, stage as monitor:
            for step in monitor.steps():
                for before in upstream:
                    take_step(before)
                values = take_step(self.trainer)
                self.taken.append(step)
                self.values.append(values.tolist())
                act(step)
                monitor.after_step(step, values)

    def log(self):
        return [json.loads(line) for line in (self.path / LOG).read_text().splitlines()]

    def checkpoints(self):
        return [read_checkpoint(file) for file in checkpoint_files(self.path / "checkpoints")]


@pytest.fixture
def alone():
    """Where the trainer is after each of its steps, without a monitor."""
    trainer, weights = Follower(targets()), [torch.tensor([0.5, -1.0])]
    for _ in range(8):
        take_step(trainer)
        weights.append(trainer.weight.detach().clone())
    return weights


def test_due_steps_are_logged_and_shown_and_all_are_taken(tmp_path, capsys, alone):
    stage = Stage(tmp_path / "run", log_interval=3)
    stage.take_steps()
    assert stage.taken == list(range(1, 9))
    due = [1, 3, 6, 8]
    assert [entry["step"] for entry in stage.log()] == due
    for entry in stage.log():
        loss, first = stage.values[entry["step"] - 1]
        assert entry == {"stage": "follower", "step": entry["step"], "loss": loss, "first": first}
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("follower ")]
    assert [int(line.split()[1].split("/")[0]) for line in lines] == due
    assert f"  loss {stage.values[2][0]:.4g}  " in lines[1]
    assert not any("first" in line for line in lines)  # is logged, and not shown
    assert torch.equal(stage.trainer.weight, alone[8])


@pytest.mark.parametrize("log_interval", [1, 100])
def test_what_is_done_around_steps_changes_nothing_that_is_learned(tmp_path, alone, log_interval):
    stage = Stage(tmp_path / "run", None, Interval(1), log_interval, profiles=True)
    stage.take_steps()
    assert torch.equal(stage.trainer.weight, alone[8])


def test_checkpoints_come_at_their_interval_and_hold_the_step_before_them(tmp_path, alone):
    stage = Stage(tmp_path / "run", every=Interval(3))
    stage.take_steps()
    assert [state["steps"] for state in stage.checkpoints()] == [3, 6]
    for state in stage.checkpoints():
        assert state["finished"] == []
        assert state["held"]["follower/training"]["steps_taken"] == state["steps"]
        assert torch.equal(state["held"]["weight"]["0"], alone[state["steps"]])
    # What belonged to the stage is held no longer, what began before it is.
    assert stage.run.checkpoints.is_finished("follower")
    assert stage.run.checkpoints.held.keys() == {"results", "weight"}
    assert stage.run.checkpoints.before_write is None


def test_a_signal_stops_after_the_step_and_a_resumed_stage_takes_the_others(tmp_path, alone):
    stage = Stage(tmp_path / "run", log_interval=3)
    with pytest.raises(StoppedError) as stopped:
        stage.take_steps(lambda step: step == 5 and signal.raise_signal(signal.SIGTERM))
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    (state,) = stage.checkpoints()
    assert state["steps"] == stage.taken[-1] == 5
    assert state["finished"] == []
    stage.run.folder.close()
    resumed = Stage(tmp_path / "run", log_interval=3, resumes=True)
    resumed.take_steps()
    assert resumed.taken == [6, 7, 8]
    assert [entry["step"] for entry in resumed.log()] == [1, 3, 6, 8]
    assert torch.equal(resumed.trainer.weight, alone[8])
    assert (
        resumed.run.results.seconds["synthesis"] > state["held"]["results"]["seconds"]["synthesis"]
    )


@pytest.mark.parametrize(
    ("every", "log_interval", "looked_at"),
    [(None, 2, 4), (Interval(3), 100, 3), (None, 100, 0)],
    ids=["with the log", "before a checkpoint", "at the end"],
)
def test_a_number_that_is_not_finite_is_found_and_undone(
    tmp_path, alone, every, log_interval, looked_at
):
    given = targets()
    given[4, 1] = torch.nan
    stage = Stage(tmp_path / "run", given, every, log_interval)
    with pytest.raises(NonFiniteError, match=r"^follower: step 5: the input is not finite; "):
        stage.take_steps()
    # What is written last is from the last look that found nothing.
    state = stage.checkpoints()[-1]
    assert state["steps"] == state["held"]["follower/training"]["steps_taken"] == looked_at
    assert torch.equal(state["held"]["weight"]["0"], alone[looked_at])
    assert torch.equal(stage.trainer.weight, alone[looked_at])
    assert not stage.run.checkpoints.is_finished("follower")
    for entry in state["held"]["results"]["log"].splitlines():
        assert json.loads(entry)["step"] <= max(looked_at, 1)


def test_trainers_before_the_last_are_watched_too(tmp_path):
    stage, given = Stage(tmp_path / "run"), targets()
    given[2] = torch.inf
    upstream = stage.run.checkpoints.hold("upstream", Follower(given))
    stage.run.checkpoints.hold("upstream weight", nn.ParameterList([upstream.weight]))
    with pytest.raises(NonFiniteError, match=r"^follower: step 3: the input is not"):
        stage.take_steps(upstream=(upstream,))
    assert upstream.steps_taken == stage.trainer.steps_taken == 2


def test_some_steps_are_profiled(tmp_path):
    stage = Stage(tmp_path / "run", profiles=True)
    stage.take_steps()
    (table,) = stage.run.profiler.tables
    assert table.startswith("follower, 3 steps\n")
    assert "Optimizer.step#Adam.step" in table
    steps = [e for e in stage.run.profiler.trace["traceEvents"] if "Adam.step" in e.get("name", "")]
    assert len({event["ts"] for event in steps if event["ph"] == "X"}) == 3


def test_the_time_of_a_stage_is_added(tmp_path, monkeypatch):
    stage = Stage(tmp_path / "run")
    seconds = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: seconds[0])

    def pass_time(step):
        seconds[0] += 2
        so_far = stage.run.results.state_dict()["seconds"]
        assert so_far["synthesis"] == 2 * step

    stage.take_steps(pass_time)
    assert stage.run.results.seconds["synthesis"] == 16
    assert stage.run.results.seconds["fine_tuning"] == 0


def test_a_stage_without_steps_is_finished(tmp_path):
    stage = Stage(tmp_path / "run", targets()[:0], profiles=True)
    stage.take_steps()
    assert stage.taken == []
    assert stage.run.checkpoints.is_finished("follower")
    assert torch.equal(stage.trainer.weight, torch.tensor([0.5, -1.0]))
