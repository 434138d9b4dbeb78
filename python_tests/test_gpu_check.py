"""The script that checks a GPU: its arguments, its steps, and what it says of those that fail.

An interpreter that does nothing stands for Python, and writes down how it was called.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "checks" / "gpu_check.sh"
STEPS = [
    *("build", "build-info", "build-usable", "test"),
    *("initcheck", "memcheck", "racecheck", "synccheck"),
    *("kernels", "steps", "schedule", "default", "cpu"),
]
PYTHON = """#!/bin/sh
echo "$@" "$PYTHONPATH"
case "$*" in
    *bench_kernels*) exit 3 ;;
    *cuda_missing_reason*) echo "$REASON" && [ -z "$REASON" ] ;;
    *zscgan_ext.train*) sleep 30 ;;
esac
"""
SANITIZER = """#!/bin/sh
echo "$@"
case "$*" in *racecheck*) exit 9 ;; esac
"""


def check(*arguments: object, folder: Path = ROOT, **environment: str):
    """Run the script."""
    return subprocess.run(
        [SCRIPT, *map(str, arguments)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    """A folder with programs that stand for Python and the sanitizer."""
    folder = tmp_path_factory.mktemp("bin")
    for name, text in (("python", PYTHON), ("compute-sanitizer", SANITIZER)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder / "python"


def commands(*arguments: object, **environment: str):
    """Return the command of each step by its name, as a dry run tells them."""
    done = check("--dry-run", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    lines = [line.split(": ", 1) for line in done.stdout.splitlines()]
    return {name: shlex.split(command) for name, command in lines}


def test_a_dry_run_tells_every_step_and_does_nothing(tmp_path):
    output = tmp_path / "results"
    assert sorted(commands("--output", output)) == sorted(STEPS)
    assert not output.exists()


def test_stages_run_in_the_order_of_their_worth(tmp_path):
    order = list(commands("--output", tmp_path / "results"))
    worth = ["build", "test", "kernels", "steps", "default", "memcheck", "schedule", "cpu"]
    assert sorted(worth, key=order.index) == worth


def test_the_first_five_stages_fit_into_the_time_of_all():
    steps = commands()
    first = [steps[name] for name in ("build", "test", "kernels", "steps", "default")]
    assert {words[0] for words in first} == {"timeout"}
    limit = re.search(r"--limit SECONDS .*\(default: (\d+)\)", check("--help").stdout)[1]
    assert sum(int(words[1]) for words in first) <= int(limit) < 9 * 60


def test_stages_can_be_chosen():
    assert list(commands("schedule", "build")) == ["schedule", *STEPS[:3]]


def test_wheels_are_installed_before_the_build(tmp_path):
    (tmp_path / "simple_parsing-1-py3-none-any.whl").touch()
    steps = commands("--wheels", tmp_path, "build")
    assert list(steps) == ["build-wheels", *STEPS[:3]]
    assert steps["build-wheels"][-1] == str(tmp_path / "simple_parsing-1-py3-none-any.whl")
    assert "--no-index" in steps["build-wheels"]


@pytest.mark.parametrize("step", ["kernels", "schedule"])
def test_programs_know_the_options_they_are_given(step):
    words = commands("--weights", __file__, PYTHON=sys.executable)[step]
    place = words.index(sys.executable)
    command = [*words[place : place + 3], "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    options = {word for word in words if word.startswith("--")}
    assert options
    assert options <= set(re.findall(r"--[\w-]+", done.stdout))


def test_the_kernel_stage_covers_every_op_where_memory_is_the_limit():
    from benchmarks.kernels.plans import LAYOUTS, quick_plan, without_repetition

    assert "--quick" in commands("kernels")["kernels"]
    plans = without_repetition(quick_plan(torch.device("cuda")))
    large = {
        (plan.make, plan.kind.layout, plan.kind.dtype)
        for plan in plans
        if plan.kind.elements * plan.kind.dtype.itemsize == 256 * 2**20
    }
    activations = [
        (m, x) for m, xs in LAYOUTS.items() for x in xs if x in ("NCHW", "channels_last")
    ]
    assert len(activations) >= 10
    for make, layout in activations:
        assert {(make, layout, dtype) for dtype in (torch.float32, torch.bfloat16)} <= large
    for make in {make for make, _ in activations}:
        elements = {plan.kind.elements for plan in plans if plan.make is make}
        assert {2**10, 2**30} <= elements


@pytest.mark.parametrize("step", ["initcheck", "memcheck", "racecheck", "synccheck"])
def test_sanitizers_run_tests_that_exist(step):
    words = commands("sanitize")[step]
    assert words[words.index("--tool") + 1] == step
    assert (ROOT / words[-1]).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tests"], "tests: no stage, accepted are build test kernels steps default sanitize"),
        (["--fast"], "--fast: unknown option"),
        (["--output"], "--output: needs a value"),
        (["--limit", "9m"], "--limit: 9m, needed is a number of seconds"),
        (["--wheels", "nowhere"], "--wheels: nowhere is no folder"),
        (["--weights", "nowhere"], "--weights: nowhere is no file"),
    ],
)
def test_wrong_arguments_give_one_line(arguments, message):
    done = check(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_a_missing_interpreter_gives_one_line():
    done = check("--dry-run", PYTHON="no-such-python")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no-such-python is no program" in done.stderr


def rows(output):
    """Return the exit statuses of the summary by step."""
    lines = (output / "summary.txt").read_text().splitlines()[1:]
    return {line.split()[0]: int(line.split()[1]) for line in lines}


def test_a_failed_stage_stops_no_other_and_time_is_limited(interpreter, tmp_path):
    stages = ("kernels", "steps", "sanitize", "default", "schedule")
    done = check("--output", tmp_path, "--limit", 3, *stages, PYTHON=str(interpreter))
    assert done.returncode == 1
    ends = rows(tmp_path)
    assert ends == {
        **{"kernels": 3, "steps": 0, "racecheck": 9, "initcheck": 0, "memcheck": 0, "synccheck": 0},
        **{"default": 124, "schedule": 124},  # cut off, and not begun
    }
    assert list(ends)[:2] == ["kernels", "steps"]
    assert "no time was left" in (tmp_path / "logs" / "schedule.log").read_text()
    assert "bench_train_step --device cuda" in (tmp_path / "logs" / "steps.log").read_text()
    assert f"{ROOT}/build/gpu" in (tmp_path / "logs" / "steps.log").read_text()
    assert (tmp_path / "summary.txt").read_text() in done.stdout
    assert "commit " in (tmp_path / "environment.txt").read_text()


def test_a_build_that_cannot_use_the_gpu_fails(interpreter, tmp_path):
    reason = "no NVIDIA driver is installed"
    done = check("--output", tmp_path, "build", PYTHON=str(interpreter), REASON=reason)
    assert done.returncode == 1
    assert rows(tmp_path) == {"build": 0, "build-info": 0, "build-usable": 1}
    assert reason in (tmp_path / "logs" / "build-usable.log").read_text()


def test_the_archive_holds_what_was_measured_before_the_machine_was_taken_away(
    interpreter, tmp_path
):
    archive = tmp_path / "results.tgz"
    arguments = ("--output", tmp_path / "results", "--archive", archive, "steps", "default")
    environment = os.environ | {"PYTHON": str(interpreter)}
    process = subprocess.Popen(
        [SCRIPT, *map(str, arguments)], cwd=ROOT, env=environment, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 30
        while not archive.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # in its last stage, which sleeps
        process.wait()
    with tarfile.open(archive) as file:
        names = file.getnames()
    assert {"./summary.txt", "./logs/steps.log", "./environment.txt"} <= set(names)


def test_success_is_the_exit_status(interpreter, tmp_path):
    options = ("--output", "results", "--commit", "a tarball")
    done = check(*options, "build", "test", folder=tmp_path, PYTHON=str(interpreter))
    assert done.returncode == 0, done.stdout
    output = tmp_path / "results"
    assert rows(output) == dict.fromkeys(STEPS[:4], 0)
    assert (output / "environment.txt").read_text().startswith("commit a tarball\n")
    assert "--no-build-isolation ." in (output / "logs" / "build.log").read_text()
