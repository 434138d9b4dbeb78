"""How steps are executed: the choices, their line, and what they set."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from zscgan_ext.settings.config import Settings
from zscgan_ext.training.precision import resolve_precision

from zscgan_ext.training import execution as execution_module
from zscgan_ext.training.execution import choose_execution

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
    execution = choose_execution(Settings(), CPU)
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
        "keep_freed_memory": True,
        "cuda_graphs": False,
        "compile": False,
    }


def test_another_c_library_keeps_its_ways(monkeypatch):
    monkeypatch.setattr(execution_module, "is_glibc", lambda: False)
    assert not choose_execution(Settings(), CPU).keep_freed_memory


def test_a_gpu_gets_bfloat16_and_graphs(capability):
    execution = choose_execution(replace(Settings(), compile=True), GPU)
    assert str(execution) == "cuda:0, channels_last, bfloat16, CUDA graphs, torch.compile"
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
    assert resolve_precision(given, GPU) == expected
    assert resolve_precision("auto", CPU) == "float32"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Settings(), True),
        (Settings(cuda_graphs="on"), True),
        (Settings(cuda_graphs="off"), False),
        (Settings(precision="float16"), False),
    ],
)
@pytest.mark.usefixtures("capability")
def test_graphs_follow_the_settings(settings, expected):
    assert choose_execution(settings, GPU).cuda_graphs is expected


def test_the_settings_win():
    settings = Settings(memory_format="contiguous", precision="bfloat16", keep_freed_memory=False)
    execution = choose_execution(settings, CPU)
    assert execution.memory_format is torch.contiguous_format
    assert execution.precision_name == "bfloat16"
    assert "freed" not in str(execution)


FAULTS = """
import resource
import torch
from zscgan_ext.settings.config import Settings
from zscgan_ext.training.execution import choose_execution

choose_execution(Settings(keep_freed_memory={keep}), torch.device("cpu")).apply()
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
