"""Many processes compute what one computes, and end together."""

import json
import os
import re
import subprocess
import sys

import parallel_steps
import pytest
import torch
from runs import OWN, PYTHONPATH, TINY, results_of, write_fashion_mnist
from torch import nn
from worker_processes import free_port, run_together

from zscgan_ext import distributed
from zscgan_ext.config.configs import RunConfig
from zscgan_ext.errors import InputError
from zscgan_ext.run_folder.checkpoint_file import checkpoint_files, read_checkpoint
from zscgan_ext.stages.preparation import prepare
from zscgan_ext.synthesis.synchronized_batch_norm import SynchronizedBatchNorm
from zscgan_ext.train import main


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_fashion_mnist(tmp_path_factory.mktemp("data"), count=20))


@pytest.fixture(scope="module", params=[2, 3])
def found(request, data, tmp_path_factory):
    """Folder and findings of so many processes, and how they ended."""
    folder = tmp_path_factory.mktemp("found")
    ended = run_together(request.param, folder, parallel_steps.steps_and_runs, folder, data)
    assert [process.code for process in ended] == [0] * request.param, ended
    return folder, [process.result for process in ended], ended


@pytest.fixture(scope="module")
def alone():
    return parallel_steps.steps()


def test_losses_and_gradients_are_those_of_one_process(found, alone):
    _, findings, _ = found
    for finding in findings:
        assert finding["steps"].keys() == alone.keys()
        for step, expected in alone.items():
            assert finding["steps"][step].keys() == expected.keys()
            assert len(expected) > 10
            for name, value in expected.items():
                torch.testing.assert_close(
                    finding["steps"][step][name],
                    value,
                    rtol=1e-5,
                    atol=1e-5 * max(1.0, float(value.abs().max())),
                    msg=lambda text, step=step, name=name: f"{step}, {name}: {text}",
                )


def test_ranges_are_exactly_those_of_one_process(found, alone):
    _, findings, _ = found
    for step, expected in alone.items():
        for name, value in expected.items():
            if "running_m" in name and name.startswith("range"):
                torch.testing.assert_close(
                    findings[0]["steps"][step][name], value, rtol=1e-6, atol=0
                )


def test_all_processes_learn_the_same(found):
    _, findings, _ = found
    for finding in findings[1:]:
        for step, values in findings[0]["steps"].items():
            assert all(torch.equal(v, finding["steps"][step][name]) for name, v in values.items())


def test_a_signal_to_one_process_stops_all_and_they_go_on_bit_for_bit(found):
    folder, findings, ended = found
    assert all(f["codes"] == {"undisturbed": 0, "stopped": 143, "resumed": 0} for f in findings)
    assert results_of(folder / "stopped") == results_of(folder / "undisturbed")
    for rank, process in enumerate(ended):
        assert ("top-1" in process.printed) == (rank == 0)
        assert ("stopped by SIGTERM" in process.errors) == (rank == 0)


def test_another_number_of_processes_resumes_a_run(found, capsys):
    folder, findings, _ = found
    run = folder / "for one process"
    (file,) = checkpoint_files(run / "checkpoints")
    state = read_checkpoint(file)
    assert state["steps"] == 8
    # Every process draws numbers of its own.
    noise = [own["default_rng"]["cpu"] for own in state["rngs_of_all"]]
    assert len(noise) == len(findings)
    assert not any(torch.equal(noise[0], other) for other in noise[1:])
    assert main([OWN, f"--resume={run}"]) == 0
    assert "after step 8 of all stages" in capsys.readouterr().out
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    before = (folder / "undisturbed" / "metrics.jsonl").read_text().splitlines()
    steps = [(entry["stage"], entry["step"]) for entry in log]
    assert steps == [(e["stage"], e["step"]) for e in map(json.loads, before)]
    assert log[:4] == [json.loads(line) for line in before[:4]]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["execution"]["processes"] == 1


# ---- processes that fail -------------------------------------------------------------------------


def test_an_error_of_all_is_told_once(tmp_path):
    arguments = [*TINY, "--bits=w99a9", f"--output={tmp_path / 'run'}"]
    ended = run_together(3, tmp_path, parallel_steps.run_with, arguments, {}, agent=True)
    assert [process.result for process in ended] == [2, 2, 2]
    assert ended[0].errors.startswith("error: bits: ")
    assert [process.errors.count("\n") for process in ended] == [1, 0, 0]


def test_an_error_of_one_process_is_told_once_with_its_place(tmp_path):
    arguments = [*TINY, "--batch-size=9", f"--output={tmp_path / 'run'}"]
    missing = tmp_path / "missing"
    more = {1: [f"--evaluation-data={missing}"]}
    ended = run_together(3, tmp_path, parallel_steps.run_with, arguments, more, agent=True)
    assert [process.result for process in ended] == [1, 2, 1]
    assert ended[1].errors.startswith("process 1: error: ")
    assert str(missing) in ended[1].errors
    assert [process.errors.count("\n") for process in ended] == [0, 1, 0]


def test_a_full_disk_of_the_first_process_is_told_once(tmp_path):
    run = tmp_path / "run"
    arguments = [*TINY, "--batch-size=9", f"--output={run}"]
    ended = run_together(3, tmp_path, parallel_steps.run_on_a_full_disk, arguments, agent=True)
    assert [process.result for process in ended] == [2, 1, 1]
    reason = "cannot be written (No space left on device)"
    assert ended[0].errors == f"error: output: {run / 'metrics.jsonl'} {reason}\n"
    assert not ended[1].errors + ended[2].errors


def test_a_process_that_dies_ends_the_job_with_a_message(tmp_path):
    run = tmp_path / "run"
    arguments = [*TINY, "--batch-size=9", "--checkpoint-every=2", f"--output={run}"]
    ended = run_together(3, tmp_path, parallel_steps.run_and_die, arguments, agent=True)
    assert [process.code for process in ended] == [0, 9, 0]
    assert [process.result for process in ended] == [1, None, 1]
    assert ended[0].errors.startswith("error: lost another process (")
    assert [process.errors.count("\n") for process in ended] == [1, 0, 0]
    assert not (run / "metrics.json").exists()
    assert [read_checkpoint(f)["steps"] for f in checkpoint_files(run / "checkpoints")] == [2, 4]


def test_half_of_the_environment_of_torchrun_gives_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert main([*TINY, f"--output={tmp_path / 'run'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: RANK is set as by torchrun, but ")
    assert "MASTER_ADDR" in line
    assert not (tmp_path / "run").exists()


DYING_ONCE = """
import os, sys
import parallel_steps
first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
sys.exit((parallel_steps.run_and_die if first else parallel_steps.main)(sys.argv[1:]))
"""


def test_a_job_that_torchrun_restarts_is_resumed(tmp_path, data):
    (tmp_path / "dying.py").write_text(DYING_ONCE)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    options = ["--max-restarts=1", f"--master-port={free_port()}", str(tmp_path / "dying.py")]
    arguments = [*TINY, "--checkpoint-every=2", f"--output={tmp_path / 'run'}"]
    done = subprocess.run(
        [*launcher, *options, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "OMP_NUM_THREADS": "1"},
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"exitcode: 9\b", done.stderr)  # the first time
    assert "resume: after step 4 of all stages" in done.stdout
    assert (tmp_path / "run" / "metrics.json").exists()


def test_a_job_that_torchrun_restarts_keeps_a_finished_run(tmp_path):
    run = tmp_path / "run"
    arguments = [*TINY, f"--output={run}"]
    assert main(arguments) == 0
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    restarted = {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "1"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "zscgan_ext.train", *arguments]
    environment = {**os.environ, **restarted, **place, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, timeout=120
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"{run} already holds a run; give --overwrite" in done.stderr
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


# ---- one process ---------------------------------------------------------------------------------


def test_alone_nothing_is_summed_or_changed():
    x = torch.randn(3)
    assert distributed.all_reduce_sum(x) is x
    assert distributed.all_reduce_mean(x) is x
    assert distributed.agree(True, False) == (True, False)
    assert distributed.all_gather("x") == ["x"]
    assert distributed.shard_range(7) == range(7)
    assert distributed.all_reduce_min_max(torch.tensor([2.0, -1.0, 5.0])).tolist() == [-1, 5]


def test_alone_batch_norm_computes_what_torchs_own_does():
    torch.manual_seed(0)
    ours, theirs = (kind(4).double() for kind in (SynchronizedBatchNorm, nn.BatchNorm2d))
    for training in (True, True, False):
        x, given = torch.randn(2, 3, 4, 5, 5, dtype=torch.float64)
        outcomes = []
        for layer in (ours.train(training), theirs.train(training)):
            inputs = (x.clone().requires_grad_(), *layer.parameters())
            y = layer(inputs[0])
            outcomes.append((y, *torch.autograd.grad(y, inputs, given)))
        for actual, expected in zip(*outcomes, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-12, atol=1e-12)


def test_noise_follows_torchs_default_generator():
    layer, x = SynchronizedBatchNorm(4).eval(), torch.randn(3, 4, 5, 5)

    def noisy(seed):
        torch.manual_seed(seed)
        return [layer.noisy_leaky_relu(x, 0.5, 0.2) for _ in range(2)]

    first, second = noisy(1)
    assert not torch.equal(first, second)
    assert torch.equal(torch.stack(noisy(1)), torch.stack([first, second]))
    assert not torch.equal(noisy(2)[0], first)


@pytest.mark.parametrize(
    ("batch_size", "name", "given"),
    [(128, "batch_size", 128), (129, "fine_tuning_batch_size", 32)],
)
def test_a_batch_that_cannot_be_shared_gives_one_line(
    monkeypatch, tmp_path, batch_size, name, given
):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    shared = "a multiple of the 3 processes, which share each batch"
    message = f"^{name}: expected {shared}, got {given}$"
    with pytest.raises(InputError, match=message):
        prepare(RunConfig().changed(output=tmp_path / "run", batch_size=batch_size))
    assert not (tmp_path / "run").exists()
