"""How steps are executed: the choices, their line, what they set, and the dtype of passes."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from zscgan_ext.config.configs import ExecutionConfig
from zscgan_ext.training import execution as execution_module
from zscgan_ext.training.execution import (
    PRECISIONS,
    Precision,
    choose_execution,
    resolve_precision,
)

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def capability(monkeypatch):
    """A GPU of a generation that a test sets."""
    found = [(8, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: found[0])
    return found


def test_a_cpu_gets_float32_channels_last_and_no_graphs(monkeypatch):
    monkeypatch.setattr(execution_module, "is_glibc", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 6)
    execution = choose_execution(ExecutionConfig(), CPU)
    assert execution.memory_format is torch.channels_last
    assert execution.precision_name == "float32"
    assert not execution.cuda_graphs
    assert not execution.compile
    assert str(execution) == "cpu, 6 threads, channels_last, float32, freed memory is kept"
    assert execution.facts() == {
        "device": "cpu",
        "threads": 6,
        "processes": 1,
        "memory_format": "channels_last",
        "precision": "float32",
        "fine_tuning_precision": "float32",
        "precision_reason": "",
        "keep_freed_memory": True,
        "cuda_graphs": False,
        "compile": False,
    }


def test_another_c_library_keeps_its_ways(monkeypatch):
    monkeypatch.setattr(execution_module, "is_glibc", lambda: False)
    assert not choose_execution(ExecutionConfig(), CPU).keep_freed_memory


def test_a_gpu_gets_bfloat16_and_graphs(capability):
    execution = choose_execution(ExecutionConfig(compile=True), GPU)
    choices = "cuda:0, channels_last, bfloat16, CUDA graphs, torch.compile"
    assert str(execution) == f"{choices} (the GPU computes in bfloat16)"
    assert not execution.keep_freed_memory


@pytest.mark.parametrize(
    ("given", "found", "expected"),
    [
        ("auto", (7, 5), "float32"),
        ("auto", (8, 0), "bfloat16"),
        ("auto", (12, 0), "bfloat16"),
        ("float32", (9, 0), "float32"),
        ("float16", (7, 0), "float16"),
    ],
)
def test_precision_follows_the_gpu_where_it_is_left_open(capability, given, found, expected):
    capability[0] = found
    precision, reason = resolve_precision(given, GPU)
    assert precision == expected
    assert bool(reason) is (given == "auto")
    assert resolve_precision("auto", CPU) == ("float32", "")


def test_students_may_be_trained_in_another_precision():
    execution = replace(choose_execution(ExecutionConfig(), CPU), precision_name="bfloat16")
    assert ", bfloat16 and float32 for fine-tuning" in str(execution)
    assert execution.of_fine_tuning().precision_name == "float32"
    assert ", float32, " in f"{execution.of_fine_tuning()}, "


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, True),
        ({"cuda_graphs": "on"}, True),
        ({"cuda_graphs": "off"}, False),
        ({"precision": "float16"}, False),
    ],
)
@pytest.mark.usefixtures("capability")
def test_graphs_follow_the_settings(settings, expected):
    assert choose_execution(ExecutionConfig(**settings), GPU).cuda_graphs is expected


def test_the_settings_win():
    execution = choose_execution(
        ExecutionConfig(memory_format="contiguous", precision="bfloat16", keep_freed_memory=False),
        CPU,
    )
    assert execution.memory_format is torch.contiguous_format
    assert execution.precision_name == "bfloat16"
    assert "freed" not in str(execution)


FAULTS = """
import resource
import torch
from zscgan_ext.config.configs import ExecutionConfig
from zscgan_ext.training.execution import choose_execution

choose_execution(ExecutionConfig(keep_freed_memory={keep}), torch.device("cpu")).apply()
for _ in range(12):
    torch.ones(2**24)  # 64 MiB, 16384 pages of 4 KiB
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(16):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_kept_memory_has_no_page_faults():
    faults = {}
    for keep in (True, False):
        script = FAULTS.format(keep=keep)
        command = [sys.executable, "-W", "error", "-c", script]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
        faults[keep] = int(done.stdout)
    # A first touch of a part of the heap may still be left.
    assert faults[True] < 2 * 16_384 + 1000
    assert faults[False] > 15 * 16_384


# ---- precision -----------------------------------------------------------------------------------

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def model_and_optimizer():
    model = nn.Linear(2, 1, bias=False)
    nn.init.constant_(model.weight, 0.5)
    return model, torch.optim.SGD(model.parameters(), lr=0.25)


def test_there_are_three_precisions():
    assert PRECISIONS == DTYPES


@pytest.mark.parametrize("name", PRECISIONS)
def test_forward_passes_have_the_dtype(name):
    model, _ = model_and_optimizer()
    precision = Precision(name, CPU)
    with precision.autocast():
        assert model(torch.ones(3, 2)).dtype == DTYPES[name]
    assert model(torch.ones(3, 2)).dtype == torch.float32
    assert model.weight.dtype == torch.float32


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_step_goes_down_the_gradient(name):
    model, optimizer = model_and_optimizer()
    precision = Precision(name, CPU)
    for taken in (1, 2):
        with precision.autocast():
            loss = model(torch.tensor([[1.0, 2.0]])).float().sum() / 16
        precision.step(loss, optimizer)
        # The gradient is (1/16, 1/8) each time; nothing of the first step is left in the second.
        expected = torch.tensor([[0.5 - taken / 64, 0.5 - taken / 32]])
        torch.testing.assert_close(model.weight.detach(), expected)


def test_float16_skips_a_step_whose_gradient_overflows():
    model, optimizer = model_and_optimizer()
    precision = Precision("float16", CPU)
    scale = precision.scaler.get_scale()
    precision.step(model(torch.tensor([[torch.inf, 1.0]])).sum(), optimizer)
    assert torch.equal(model.weight.detach(), torch.full((1, 2), 0.5))
    assert precision.scaler.get_scale() == scale / 2


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_only_float16_scales_its_loss(name):
    assert not Precision(name, CPU).scaler.is_enabled()
