"""Signals, closed outputs, deleted folders, clocks and edited settings: no run is lost by them."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import OWN, PYTHONPATH, TINY, results_of

from zscgan_ext.config.values import Interval
from zscgan_ext.export.__main__ import main as export
from zscgan_ext.measures import latencies
from zscgan_ext.program import interruptible_import
from zscgan_ext.run_folder.checkpoint_file import checkpoint_files, read_checkpoint
from zscgan_ext.run_folder.checkpoints import Checkpoints
from zscgan_ext.stages.monitor import Progress
from zscgan_ext.train import main
from zscgan_ext.training.stop_signals import StopSignals

TRAIN = [sys.executable, "-m", "zscgan_ext.train"]
ENDLESS = [*TINY, "--synthesis-steps=1000000"]
THREADS = str(torch.get_num_threads())
ENVIRONMENT = {**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": THREADS}


def steps_of(folder: Path) -> list[int]:
    return [read_checkpoint(file)["steps"] for file in checkpoint_files(folder / "checkpoints")]


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a run gives that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert main([*TINY, f"--output={folder}"]) == 0
    return results_of(folder)


# ---- signals -------------------------------------------------------------------------------------


def test_the_end_of_a_terminal_writes_a_checkpoint(tmp_path):
    """SIGHUP comes twice, and neither output takes anything any more."""
    terminal, other_end = pty.openpty()
    # The tests themselves may run under nohup, whose programs ignore the signal.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    process = subprocess.Popen(
        [*TRAIN, *ENDLESS, f"--output={tmp_path}"],
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    signal.signal(signal.SIGHUP, before)
    try:
        os.close(other_end)
        log = tmp_path / "metrics.jsonl"
        wait_for(lambda: log.exists() and log.read_text())
        os.close(terminal)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGHUP)
        assert process.wait(120) == 128 + signal.SIGHUP
    finally:
        process.kill()  # one that did not end would go on for hours
        process.wait()
    (steps,) = steps_of(tmp_path)
    assert steps > 0


def test_a_second_signal_of_the_same_terminal_does_not_exit():
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
    assert signals.received == signal.SIGTERM


def test_under_nohup_the_end_of_the_terminal_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
        assert not signals.received
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- outputs -------------------------------------------------------------------------------------

SHELL = {
    "| head": "{train} | head -n 1",
    "both | head": "{train} 2>&1 | head -n 1",
    ">&-": "{train} >&-",
    "2>&-": "{train} 2>&-",
    "all closed": "{train} <&- >&- 2>&-",
    "full": "{train} > /dev/full",
}


@pytest.mark.parametrize("line", SHELL.values(), ids=SHELL)
def test_a_run_goes_on_without_its_outputs(tmp_path, undisturbed, line):
    train = " ".join([*TRAIN, *TINY, "--output=run"])
    command = "set -o pipefail; " + line.format(train=train)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = results_of(tmp_path / "run")
    assert [name for name, value in undisturbed.items() if found[name] != value] == []
    reason = "No space left on device; the run goes on without it"
    expected = f"warning: standard output: {reason}\n" if "full" in line else ""
    assert done.stderr == expected


def test_what_a_program_measured_is_written_before_it_is_printed(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    images = tmp_path / "images"
    program = [sys.executable, "-m", "zscgan_ext.evaluate", str(tmp_path / "m.onnx")]
    make_tree = "import hostile_files as m, sys, pathlib; f = pathlib.Path(sys.argv[1]); "
    make_tree += "m.onnx_model()(f / 'm.onnx'); m.tree_with(m.data(m.picture()))(f / 'images')"
    subprocess.run([sys.executable, "-c", make_tree, str(tmp_path)], env=ENVIRONMENT, check=True)
    done = subprocess.run(
        [*program, f"--data={images}", f"--json={tmp_path / 'x.json'}"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    os.close(writer)
    ended = "error: standard output: the program that reads it has ended, what was left to print"
    assert (done.returncode, done.stderr) == (2, f"{ended} is lost\n")
    assert json.loads((tmp_path / "x.json").read_text())["images"] > 0


def test_help_into_a_closed_pipe_ends_quietly():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "zscgan_ext.info", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("swallows", [True, False])
def test_an_interrupt_that_an_import_loses_ends_the_command(swallows):
    """As importing torch loses one that comes while it looks for NumPy."""
    # Where tests run in the background, the signal is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), interruptible_import():  # noqa: PT012
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:
                if not swallows:
                    raise ImportError("is damaged") from None
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_errors_of_an_import_are_raised():
    with pytest.raises(ImportError, match="is damaged"), interruptible_import():
        raise ImportError("is damaged")


# ---- folders, clocks, settings -------------------------------------------------------------------


def at_step(monkeypatch, step: int, act) -> None:
    """Do something after a step of a run."""
    count_step = Checkpoints.count_step

    def counted(self):
        count_step(self)
        if self.steps == step:
            act()

    monkeypatch.setattr(Checkpoints, "count_step", counted)


@pytest.mark.parametrize("change", ["deleted", "moved"])
def test_a_run_whose_folder_goes_away_says_so(tmp_path, monkeypatch, capsys, undisturbed, change):
    run, away = tmp_path / "run", tmp_path / "away"
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: run.rename(away))
        assert main([*TINY, "--checkpoint-every=2", f"--output={run}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: output: {run} or its run-files.txt was deleted, moved or repl")
    assert not run.exists()
    if change == "moved":
        assert main([OWN, f"--resume={away}"]) == 0
        assert results_of(away) == undisturbed


def test_a_deleted_current_folder_is_named(tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    command = "cd gone && rmdir ../gone && exec " + " ".join([*TRAIN, *TINY])
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line == "error: the current folder was deleted; change to one that exists"


class Clock:
    """A clock that is set back by a day after some looks at it."""

    def __init__(self, looks: int) -> None:
        self.looks, self.time = looks, 1e6

    def __call__(self) -> float:
        self.looks -= 1
        self.time += 0.01 if self.looks else -86400
        return self.time


def test_a_clock_that_is_set_back_costs_no_checkpoint(tmp_path, monkeypatch, capsys):
    checkpoints = Checkpoints(tmp_path, Interval(None, 60), 2, {})
    now = iter([checkpoints.time_of_last - 86400, *[checkpoints.time_of_last - 86400 + 61] * 2])
    monkeypatch.setattr("zscgan_ext.run_folder.checkpoints.time.monotonic", lambda: next(now))
    assert checkpoints.is_due()
    assert "the clock was set back; a checkpoint is written now" in capsys.readouterr().out
    assert checkpoints.is_due()


def test_a_clock_that_is_set_back_or_stands_still_ends_nothing(monkeypatch, capsys):
    monkeypatch.setattr("zscgan_ext.measures.time.perf_counter", Clock(25))
    began = time.monotonic()
    latencies([lambda x: x], torch.zeros(1), seconds=5)
    assert time.monotonic() - began < 4
    monkeypatch.setattr("zscgan_ext.stages.monitor.time.perf_counter", lambda: 7.0)
    with Progress("synthesis", 4, 1) as progress:
        assert progress.wants(1)
        progress.update(1, {"loss": 0.5})
    assert capsys.readouterr().out.startswith("synthesis 1/4  loss 0.5")


@pytest.mark.parametrize("change", ["edited", "deleted"])
def test_settings_that_change_while_a_run_goes_on_are_told(tmp_path, monkeypatch, capsys, change):
    run = tmp_path / "run"
    config, exported = run / "config.yaml", run / "model.safetensors"
    before = []

    def act():
        assert exported.exists()  # of the instant student
        before.append(config.read_text())
        if change == "edited":
            config.write_text(before[0].replace("w4a4", "w8a8"))
        else:
            config.unlink()

    at_step(monkeypatch, 3, act)
    arguments = ["--export=safetensors", "--report", f"--output={run}"]
    assert main([*TINY, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: config: {config} was changed or deleted while the run went on")
    assert f"python -m zscgan_ext.export {run}" in line
    assert (run / "metrics.json").exists()
    assert not (run / "report.html").exists()
    assert not exported.exists()
    config.write_text(before[0])
    assert export([str(run), OWN, "--formats=safetensors"]) == 0
    assert exported.exists()


def test_settings_edited_before_a_run_is_resumed_are_told(tmp_path, capsys):
    run = tmp_path / "run"
    assert main([*TINY, "--checkpoint-every=3", "--stop-after=synthesis", f"--output={run}"]) == 0
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("latent_dim: 8", "latent_dim: 9"))
    capsys.readouterr()
    assert main([OWN, f"--resume={run}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: latent_dim: expected 8, as the checkpoint to resume has, got 9; "
    )
    assert "in config.yaml or the arguments, or start a new run with another --output" in line
