"""Runs that are stopped are resumed as if nothing had happened."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import networks
import pytest
import torch
from runs import OWN, PYTHONPATH, TINY, results_of, write_fashion_mnist

from zscgan_ext.errors import InputError
from zscgan_ext.run_folder import whole_file
from zscgan_ext.run_folder.checkpoint_file import (
    LAYOUT,
    checkpoint_files,
    read_checkpoint,
    write_checkpoint,
)
from zscgan_ext.run_folder.checkpoints import Checkpoints
from zscgan_ext.stages import student_stages
from zscgan_ext.train import main

VARIANTS = {
    "deploy": (),
    "paper": ("--scheme=paper",),
    "contiguous": ("--memory-format=contiguous",),
    "bfloat16": ("--precision=bfloat16",),
    "alternating": ["--training=alternating"],
}
STEPS = 6 + 4 + 4
AS_IT_HAS = "as the checkpoint to resume has"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Arguments that name test and training images."""
    folder = write_fashion_mnist(tmp_path_factory.mktemp("data"), count=20)
    write_fashion_mnist(folder, "train", count=20)
    return [f"--evaluation-data={folder}", f"--reference-data={folder}"]


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """Gives the results of a run that nothing stopped, for a variant."""
    known = {}

    def results(variant):
        if variant not in known:
            folder = tmp_path_factory.mktemp(variant)
            assert main([*TINY, *data, *VARIANTS[variant], f"--output={folder}"]) == 0
            known[variant] = results_of(folder)
        return known[variant]

    return results


@pytest.fixture(autouse=True)
def foreground():
    """Let Ctrl-C reach the tests, which programs in the background of a shell ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stop_after(monkeypatch, step, number=signal.SIGTERM):
    """Let a signal come after a step of all stages."""
    count_step = Checkpoints.count_step

    def stopped(self):
        count_step(self)
        if self.steps == step:
            signal.raise_signal(number)

    monkeypatch.setattr(Checkpoints, "count_step", stopped)


def run_until(monkeypatch, folder, arguments, step, number=signal.SIGTERM):
    """Run until a signal stops the run; return the exit code."""
    with monkeypatch.context() as patch:
        stop_after(patch, step, number)
        return main([*arguments, f"--output={folder}"])


@pytest.mark.parametrize(
    ("variant", "step"),
    [("deploy", step) for step in (1, 4, 6, 8, 10, 13)]
    + [
        (variant, step)
        for variant in ("paper", "contiguous", "bfloat16", "alternating")
        for step in (4, 9)
    ],
)
def test_a_run_is_resumed_bit_for_bit(
    monkeypatch, tmp_path, data, uninterrupted, variant, step, capsys
):
    arguments = [*TINY, *data, *VARIANTS[variant]]
    assert run_until(monkeypatch, tmp_path, arguments, step) == 143
    resumes = f"--resume {tmp_path} {OWN.replace('=', ' ')} resumes it"
    assert capsys.readouterr().err == f"stopped by SIGTERM; {resumes}\n"
    assert not (tmp_path / "metrics.json").exists()
    assert main([OWN, f"--resume={tmp_path}"]) == 0
    assert f"after step {step} of all stages" in capsys.readouterr().out
    assert results_of(tmp_path) == uninterrupted(variant)


@pytest.mark.parametrize(
    ("module", "function", "call"),
    [
        *[("stages.student_stages", "calibrate", call) for call in (1, 2, 3)],
        *[("stages.student_stages", "choose_initial_ranges", call) for call in (1, 2)],
        *[("stages.student_stages", "predict", call) for call in (1, 3)],
        ("whole_run", "export_student", 1),
    ],
)
def test_a_signal_between_steps_loses_nothing(
    monkeypatch, tmp_path, data, uninterrupted, module, function, call
):
    name = f"zscgan_ext.{module}.{function}"
    calls = []
    with monkeypatch.context() as patch:
        original = getattr(sys.modules[f"zscgan_ext.{module}"], function)

        def stopped(*arguments: object, **keywords: object):
            calls.append(1)
            result = original(*arguments, **keywords)
            if len(calls) == call:
                torch.randn(3)  # as if in the middle of drawing
                signal.raise_signal(signal.SIGINT)
            return result

        patch.setattr(name, stopped)
        assert main([*TINY, *data, f"--output={tmp_path}"]) == 130
    assert main([OWN, f"--resume={tmp_path}"]) == 0
    assert results_of(tmp_path) == uninterrupted("deploy")


@pytest.mark.parametrize(
    ("function", "call", "steps"), [("calibrate", 2, [6]), ("predict", 6, [10])]
)
def test_an_error_between_steps_loses_nothing(
    monkeypatch, tmp_path, data, uninterrupted, capsys, function, call, steps
):
    """As when images are gone for a while."""
    name = f"zscgan_ext.stages.student_stages.{function}"
    calls = []
    with monkeypatch.context() as patch:
        original = getattr(student_stages, function)

        def failing(*arguments: object, **keywords: object):
            calls.append(1)
            if len(calls) == call:
                torch.randn(3)
                raise InputError("cat.png: cannot be read")
            return original(*arguments, **keywords)

        patch.setattr(name, failing)
        assert main([*TINY, *data, f"--output={tmp_path}"]) == 2
    assert capsys.readouterr().err == "error: cat.png: cannot be read\n"
    assert positions(tmp_path) == steps
    assert main([OWN, f"--resume={tmp_path}"]) == 0
    assert results_of(tmp_path) == uninterrupted("deploy")


def test_stopped_at_every_other_step(monkeypatch, tmp_path, data, uninterrupted):
    arguments = [*TINY, *data, f"--output={tmp_path}"]
    for step in range(2, STEPS, 2):
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            assert main(arguments) == 143
        arguments = [OWN, f"--resume={tmp_path}"]
    assert main(arguments) == 0
    assert results_of(tmp_path) == uninterrupted("deploy")
    assert len(checkpoint_files(tmp_path / "checkpoints")) == 2


# ---- when they are written -----------------------------------------------------------------------


def positions(folder: Path) -> list[int]:
    return [read_checkpoint(file)["steps"] for file in checkpoint_files(folder / "checkpoints")]


def test_checkpoints_come_every_so_many_steps_and_change_nothing(tmp_path, data, uninterrupted):
    options = ["--checkpoint-every=3", "--keep-checkpoints=9"]
    assert main([*TINY, *data, *options, f"--output={tmp_path}"]) == 0
    assert positions(tmp_path) == [3, 6, 9, 12]
    assert results_of(tmp_path) == uninterrupted("deploy")


@pytest.mark.parametrize(("interval", "count"), [("5min", 2), ("10min", 1), ("none", 0)])
def test_checkpoints_come_every_so_many_minutes(tmp_path, monkeypatch, data, interval, count):
    clock = iter(range(0, 10**6, 60))  # a minute passes whenever somebody looks
    monkeypatch.setattr("zscgan_ext.run_folder.checkpoints.time.monotonic", lambda: next(clock))
    options = ["--stop-after=synthesis", f"--checkpoint-every={interval}"]
    assert main([*TINY, *data, *options, "--synthesis-steps=12", f"--output={tmp_path}"]) == 0
    assert len(positions(tmp_path)) == count


def test_the_last_ones_are_kept(tmp_path, data):
    options = ["--checkpoint-every=2", "--keep-checkpoints=3"]
    assert main([*TINY, *data, *options, f"--output={tmp_path}"]) == 0
    assert positions(tmp_path) == [10, 12, 14]


def test_overwriting_a_run_deletes_its_checkpoints(tmp_path, data):
    arguments = [*TINY, *data, "--stop-after=synthesis", f"--output={tmp_path}"]
    assert main([*arguments, "--checkpoint-every=2"]) == 0
    assert positions(tmp_path)
    assert main([*arguments, "--overwrite"]) == 0
    assert not positions(tmp_path)


# ---- what is damaged, missing, or does not fit ---------------------------------------------------


@pytest.fixture
def stopped(monkeypatch, tmp_path, data):
    """The folder of a run with two checkpoints, stopped after step 8."""
    folder = tmp_path / "run"
    arguments = [*TINY, *data, "--checkpoint-every=5"]
    assert run_until(monkeypatch, folder, arguments, 8) == 143
    assert positions(folder) == [5, 8]
    return folder


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_the_one_before_a_damaged_checkpoint_is_used(stopped, uninterrupted, capsys, damage):
    newest = checkpoint_files(stopped / "checkpoints")[-1]
    damage(newest)
    capsys.readouterr()
    assert main([OWN, f"--resume={stopped}"]) == 0
    output = capsys.readouterr()
    assert output.err == (
        f"checkpoint: {newest} is truncated or corrupt, its checksum does not match; "
        "the one before it is used\n"
    )
    assert "after step 5 of all stages" in output.out
    assert results_of(stopped) == uninterrupted("deploy")


def test_without_a_whole_checkpoint_one_line_says_so(stopped, capsys):
    for file in checkpoint_files(stopped / "checkpoints"):
        file.write_bytes(b"")
    assert main([OWN, f"--resume={stopped}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == f"error: resume: expected a whole checkpoint in {stopped}, all are damaged"
    assert len(lines) == 3


def test_without_a_checkpoint_a_run_starts_from_the_beginning(stopped, uninterrupted, capsys):
    for file in checkpoint_files(stopped / "checkpoints"):
        file.unlink()
    assert main([OWN, f"--resume={stopped}"]) == 0
    assert "the run starts from the beginning" in capsys.readouterr().out
    assert results_of(stopped) == uninterrupted("deploy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits=w8a8"], "bits: expected w4a4, as the checkpoint to resume has, got w8a8"),
        (
            ["--synthesis-steps=7"],
            "synthesis_steps: expected 6, as the checkpoint to resume has, got 7",
        ),
        (["--mean=0.4"], r"mean: expected \(0.5,\), as the checkpoint to resume has, got \(0.4,\)"),
        (["--output=elsewhere"], r"output: expected \S*/run, which --resume names, got elsewhere"),
    ],
)
def test_settings_that_do_not_fit_give_one_line(stopped, capsys, arguments, message):
    assert main([OWN, f"--resume={stopped}", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(f"error: {message}", line)
    assert positions(stopped) == [5, 8]


def test_other_weights_do_not_fit(stopped, capsys, monkeypatch):
    original = networks.small_gray

    def other(num_classes=10):
        model = original(num_classes)
        model[0].weight.mul_(1.5)
        return model

    monkeypatch.setattr(networks, "small_gray", other)
    assert main([OWN, f"--resume={stopped}"]) == 2
    assert capsys.readouterr().err.startswith("error: weights of the classifier: ")


def training_of(state):
    return state["held"]["fine_tuned/training"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.clear(), "expected a whole checkpoint"),
        (lambda s: s.pop("facts"), "expected a whole checkpoint"),
        (lambda s: s["rngs_of_all"].clear(), "expected a whole checkpoint"),
        (lambda s: s["held"]["generator"].pop("linear.weight"), "does not fit generator"),
        (lambda s: s["held"]["results"].update(seconds=7), "does not fit results"),
        (
            lambda s: s["held"]["results"]["logits"].update(magic=torch.zeros(20, 10)),
            "does not fit results (expected logits of float, instant, noise_calibrated, ",
        ),
        (lambda s: training_of(s).update(steps_taken=99), "fine_tuned/training (99 of 4 steps"),
        (
            lambda s: training_of(s)["optimizer"]["0"].update(exp_avg=torch.zeros(2)),
            "the optimizer's state is not of a parameter",
        ),
        (
            lambda s: s["rngs_of_all"][0]["default_rng"].update(cpu=torch.zeros(9)),
            "does not fit torch's random numbers",
        ),
        (lambda s: s["facts"].pop("mirror"), "without the setting mirror, wrote the checkpoint"),
    ],
)
def test_a_checkpoint_of_something_else_gives_one_line(stopped, capsys, change, message):
    older, newest = checkpoint_files(stopped / "checkpoints")
    state = read_checkpoint(newest)
    change(state)
    older.unlink()
    newest.unlink()
    write_checkpoint(stopped / "checkpoints", 9, state)
    capsys.readouterr()
    assert main([OWN, f"--resume={stopped}"]) == 2
    *told, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: resume: ")
    assert message in line
    assert len(told) == ("whole" in message)


def test_a_checkpoint_of_another_layout_is_refused_and_untouched(stopped, capsys):
    """Also where one of this layout is left: what came after it is not to be lost."""
    state = read_checkpoint(checkpoint_files(stopped / "checkpoints")[-1])
    for number, layout in enumerate((LAYOUT - 1, LAYOUT + 1, None), 100):
        own = {"layout": layout, "of another version": torch.ones(2)}
        other = {name: value for name, value in (state | own).items() if value is not None}
        write_checkpoint(stopped / "checkpoints", number, other)
        before = {f: f.read_bytes() for f in stopped.rglob("*") if f.is_file()}
        capsys.readouterr()
        assert main([OWN, f"--resume={stopped}"]) == 2
        output = capsys.readouterr()
        (line,) = output.err.splitlines()
        wrote = "another version of zscgan_ext wrote the checkpoints of"
        assert line.startswith(f"error: resume: {wrote} {stopped}; ")
        assert line.endswith("resume with that one, or start a new run with another --output")
        assert {f: f.read_bytes() for f in stopped.rglob("*") if f.is_file()} == before


def test_a_folder_without_a_run_gives_one_line(tmp_path, capsys):
    assert main([OWN, f"--resume={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "config.yaml cannot be read" in line


def test_what_does_not_change_the_result_may_change(stopped, uninterrupted):
    options = ["--keep-checkpoints=1", "--checkpoint-every=1", "--no-keep-freed-memory"]
    assert main([OWN, f"--resume={stopped}", *options]) == 0
    resumed, expected = results_of(stopped), dict(uninterrupted("deploy"))
    assert not resumed.pop("execution")["keep_freed_memory"]
    expected.pop("execution")
    assert resumed == expected
    assert positions(stopped) == [14]


@pytest.mark.parametrize("reason", ["No space left on device", "Read-only file system"])
def test_a_failed_write_ends_the_run_and_the_one_before_resumes_it(
    monkeypatch, tmp_path, data, uninterrupted, capsys, reason
):
    stream_in = whole_file.stream_in

    @contextmanager
    def full(folder: int, name: str) -> Iterator[BinaryIO]:
        with monkeypatch.context() as patch:
            if name.startswith("000002"):
                patch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, reason)))
            with stream_in(folder, name) as stream:
                yield stream

    with monkeypatch.context() as patch:
        patch.setattr("zscgan_ext.run_folder.own_files.stream_in", full)
        assert main([*TINY, *data, "--checkpoint-every=4", f"--output={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: output: ")
    assert line.endswith(f"cannot be written ({reason})")
    assert positions(tmp_path) == [4]
    assert main([OWN, f"--resume={tmp_path}"]) == 0
    assert results_of(tmp_path) == uninterrupted("deploy")


# ---- signals, from outside -----------------------------------------------------------------------

PROGRAM = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from zscgan_ext.run_folder.checkpoints import Checkpoints
from zscgan_ext.stages import student_stages
from zscgan_ext.train import main
if sys.argv[1] == "slow":
    write = Checkpoints.write
    def slow(self):
        print("writing", flush=True)
        time.sleep(600)
    Checkpoints.write = slow
sys.exit(main(sys.argv[2:]))
"""


def start(folder, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, *arguments, *TINY, "--synthesis-steps=1000000"]
    process = subprocess.Popen(
        [*command, f"--output={folder}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": PYTHONPATH},
    )
    for line in process.stdout:
        if line.startswith("synthesis 2/"):
            return process
    raise AssertionError(process.communicate())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_from_outside_writes_a_checkpoint(tmp_path, number, code):
    process = start(tmp_path, "plain")
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    name = signal.Signals(number).name
    resumes = f"--resume {tmp_path} {OWN.replace('=', ' ')} resumes it"
    assert errors == f"stopped by {name}; {resumes}\n"
    (steps,) = positions(tmp_path)
    assert steps >= 2


def test_a_second_signal_exits_at_once(tmp_path):
    process = start(tmp_path, "slow")
    process.send_signal(signal.SIGTERM)
    for line in process.stdout:
        if line == "writing\n":
            break
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - sent < 20
