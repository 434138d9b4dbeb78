"""The precision of a run on a CPU that leaves it open: who measures, and what is chosen."""

from dataclasses import replace

import pytest
import torch

from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.config.configs import RunConfig
from zscgan_ext.synthesis import precision_choice
from zscgan_ext.synthesis.precision_choice import choose_precision, multiplies_bfloat16
from zscgan_ext.train import main

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
CONFIG = RunConfig.of_options({"synthesis_steps": 100, "batch_size": 4})
AMX = "processor : 0\nflags : fpu sse avx512f avx512_bf16 amx_bf16 amx_tile\n"
WITHOUT = "processor : 0\nflags : fpu sse avx2 avx512f amx_bf16_of_others\n"


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("resnet20")


@pytest.fixture
def processor(monkeypatch, tmp_path):
    """Return a function that sets what Linux tells of the processor."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision_choice, "CPU_INFORMATION", file)
    return file.write_text


@pytest.fixture
def seconds(monkeypatch):
    """Return what the steps take, which a test may change, and count how often it was asked."""
    found = {"float32": 1.0, "bfloat16": 0.5, "asked": 0}

    def step_seconds(*_):
        found["asked"] += 1
        return found["float32"], found["bfloat16"]

    monkeypatch.setattr(precision_choice, "step_seconds", step_seconds)
    return found


def test_which_processors_multiply_bfloat16(processor):
    assert not multiplies_bfloat16()  # nothing is told
    for text, expected in ((AMX, True), (WITHOUT, False), ("", False)):
        processor(text)
        assert multiplies_bfloat16() is expected


@pytest.mark.parametrize(("share", "expected"), [(0.5, "bfloat16"), (0.9, "float32")])
def test_bfloat16_is_taken_where_it_is_clearly_faster(
    processor, seconds, classifier, share, expected
):
    processor(AMX)
    seconds["bfloat16"] = share
    choice = choose_precision(CONFIG, classifier, CPU, None)
    assert choice.name == expected
    milliseconds = round(1000 * share)
    assert choice.reason == f"step: {milliseconds} ms in bfloat16, 1000 ms in float32"


def test_nothing_is_measured_where_nothing_is_to_choose(processor, seconds, classifier):
    processor(AMX)
    execution = CONFIG.execution
    explicit = replace(CONFIG, execution=replace(execution, precision="float32"))
    assert choose_precision(explicit, classifier, CPU, None) == ("float32", "")
    assert choose_precision(CONFIG, classifier, GPU, None) == ("auto", "")
    for few in (CONFIG.changed(synthesis_steps=49), RunConfig.of_options({"preset": "instant"})):
        assert choose_precision(few, classifier, CPU, None).name == "float32"
    processor(WITHOUT)
    assert choose_precision(CONFIG, classifier, CPU, None).name == "float32"
    assert seconds["asked"] == 0


def test_a_resumed_run_keeps_its_precision(processor, seconds, classifier, tmp_path):
    processor(AMX)
    resumed = CONFIG.changed(resume=tmp_path)
    assert choose_precision(resumed, classifier, CPU, "bfloat16").name == "bfloat16"
    # Of a checkpoint that knows none, or that somebody wrote.
    for earlier in (None, "nonsense", "float16", ["bfloat16"]):
        assert choose_precision(resumed, classifier, CPU, earlier).name == "float32"
    assert seconds["asked"] == 0


def test_measuring_disturbs_no_random_numbers(classifier):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    wide, narrow = precision_choice.step_seconds(CONFIG, classifier, CPU)
    assert wide > 0
    assert narrow > 0
    assert torch.equal(torch.rand(3), expected)
    assert not classifier.model._forward_pre_hooks
    assert not any(layer._forward_pre_hooks for layer in classifier.model.modules())


def test_a_run_says_why_and_a_resumed_one_does_the_same(
    processor, seconds, monkeypatch, tmp_path, capsys
):
    processor(AMX)
    monkeypatch.setattr(precision_choice, "FEWEST_STEPS", 1)
    arguments = ["--synthesis-steps=2", "--fine-tuning-steps=1", "--batch-size=8"]
    arguments += ["--fine-tuning-batch-size=8", "--calibration-batches=1", "--export=none"]
    arguments += ["--checkpoint-every=1", "--no-report", "--stop-after=synthesis"]
    assert main([*arguments, f"--output={tmp_path / 'run'}"]) == 0
    first = capsys.readouterr().out
    assert "bfloat16" in first.splitlines()[0]
    assert "(step: 500 ms in bfloat16, 1000 ms in float32)" in first.splitlines()[0]
    seconds["bfloat16"] = 2.0  # the machine is another now
    assert main([f"--resume={tmp_path / 'run'}"]) == 0
    again = capsys.readouterr().out
    assert "bfloat16" in again.splitlines()[0]
    assert "(as before)" in again.splitlines()[0]
    assert seconds["asked"] == 1
