"""The precision of training on a CPU that leaves it open: who measures, and what is chosen."""

import signal
from dataclasses import replace
from itertools import repeat

import pytest
import torch
from runs import OWN, TINY, results_of, write_fashion_mnist

from zscgan_ext import api
from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.config.configs import ExecutionConfig, RunConfig
from zscgan_ext.run_folder.checkpoints import Checkpoints
from zscgan_ext.stages import precision_choice
from zscgan_ext.stages.precision_choice import (
    FINE_TUNING,
    GENERATOR,
    Training,
    fine_tuning,
    generator_training,
    is_open,
    multiplies_bfloat16,
    step_seconds,
    with_chosen_precision,
)
from zscgan_ext.stages.preparation import PRECISION, with_earlier_precision
from zscgan_ext.train import main
from zscgan_ext.training.execution import Execution, choose_execution

CPU = torch.device("cpu")
EXECUTION = choose_execution(ExecutionConfig(), CPU)
CONFIG = RunConfig.of_options(
    {"synthesis_steps": 100, "batch_size": 4, "fine_tuning_batch_size": 2}
)
AMX = "processor : 0\nflags : fpu sse avx512f avx512_bf16 amx_bf16 amx_tile\n"
ARM = "processor : 0\nFeatures : fp asimd sve bf16 i8mm\n"
WITHOUT = "processor : 0\nflags : fpu sse avx2 avx512f amx_bf16_of_others\n"
MANY = {name: Training(100, name) for name in (GENERATOR, FINE_TUNING)}
SLOWER = {"float32": 1.0, "bfloat16": 0.9}
FASTER = {"float32": 1.0, "bfloat16": 0.5}


@pytest.fixture(scope="module")
def classifier():
    return load_classifier("networks:small_gray", None, 10, 28, [0.5], [0.25])


@pytest.fixture
def processor(monkeypatch, tmp_path):
    """Return a function that sets what Linux tells of the processor."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision_choice, "CPU_INFORMATION", file)
    return file.write_text


@pytest.fixture
def seconds(monkeypatch, processor):
    """Return what the steps of trainings take, which a test may change, by their order."""
    processor(AMX)
    monkeypatch.setattr(precision_choice, "FEWEST_STEPS", 1)
    found = []
    monkeypatch.setattr(precision_choice, "step_seconds", lambda *_: found.pop(0))
    return found


@pytest.fixture
def trained_in(monkeypatch):
    """Return the precisions that trainers are made in."""
    seen, new_precision = [], Execution.new_precision

    def spy(execution):
        seen.append(execution.precision_name)
        return new_precision(execution)

    monkeypatch.setattr(Execution, "new_precision", spy)
    return seen


def test_which_processors_multiply_bfloat16(processor):
    assert not multiplies_bfloat16()  # nothing is told
    for text, expected in ((AMX, True), (ARM, True), (WITHOUT, False), ("", False)):
        processor(text)
        assert multiplies_bfloat16() is expected


def test_each_training_takes_bfloat16_where_it_is_clearly_faster(seconds):
    seconds += [FASTER, SLOWER]
    chosen = with_chosen_precision(EXECUTION, MANY)
    assert (chosen.precision_name, chosen.fine_tuning_precision_name) == ("bfloat16", "float32")
    assert chosen.precision_reason == (
        "generator step: 500 ms in bfloat16, 1000 ms in float32; "
        "fine-tuning step: 900 ms in bfloat16, 1000 ms in float32"
    )
    seconds += [SLOWER, FASTER]
    chosen = with_chosen_precision(EXECUTION, MANY)
    assert (chosen.precision_name, chosen.fine_tuning_precision_name) == ("float32", "bfloat16")


def test_nothing_is_measured_where_nothing_is_to_choose(processor, monkeypatch, classifier):
    monkeypatch.setattr(precision_choice, "step_seconds", None)  # would raise
    assert is_open("auto", EXECUTION)
    assert not is_open("float32", EXECUTION)
    assert not is_open("auto", replace(EXECUTION, device="cuda:0"))
    processor(AMX)
    few = CONFIG.changed(synthesis_steps=49, fine_tuning_steps=49)
    instant = RunConfig.of_options({"preset": "instant"})
    for config in (few, instant):
        trainings = {
            GENERATOR: generator_training(config, classifier),
            FINE_TUNING: fine_tuning(config, classifier),
        }
        chosen = with_chosen_precision(EXECUTION, trainings)
        assert chosen.precision_name == chosen.fine_tuning_precision_name == "float32"
        assert "fewer than 50 generator steps" in chosen.precision_reason
    processor(WITHOUT)
    chosen = with_chosen_precision(EXECUTION, MANY)
    assert chosen == replace(EXECUTION, precision_reason="the processor does not multiply bfloat16")


class Steps:
    """A trainer whose steps do what they are told, each in turn."""

    def __init__(self, *steps):
        self.left = list(steps)

    def sample(self):
        return ()

    def step(self, _):
        value = self.left.pop(0)
        if isinstance(value, Exception):
            raise value
        return torch.tensor([value])


@pytest.mark.parametrize("bad", [RuntimeError("not implemented for BFloat16"), float("nan")])
def test_what_bfloat16_breaks_stays_in_float32(processor, bad):
    processor(AMX)

    def new_trainer(execution):
        return Steps(*(1.0, 1.0, bad, 1.0) if execution.precision_name == "bfloat16" else [1.0] * 4)

    chosen = with_chosen_precision(EXECUTION, {GENERATOR: Training(100, new_trainer)})
    assert chosen.precision_name == "float32"
    assert chosen.precision_reason == "generator step: fails in bfloat16"


def test_what_float32_breaks_is_told():
    with pytest.raises(RuntimeError, match="of everything"):
        step_seconds(lambda _: Steps(RuntimeError("of everything")), EXECUTION)


def test_measuring_leaves_classifier_and_random_numbers_as_they_were(processor, classifier):
    processor(AMX)
    before = {name: value.clone() for name, value in classifier.model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    trainings = {
        GENERATOR: generator_training(CONFIG, classifier),
        FINE_TUNING: fine_tuning(CONFIG, classifier),
    }
    chosen = with_chosen_precision(EXECUTION, trainings)
    assert "generator step: " in chosen.precision_reason
    assert "fine-tuning step: " in chosen.precision_reason
    assert torch.equal(torch.rand(3), expected)
    assert not any(layer._forward_pre_hooks for layer in classifier.model.modules())
    assert not any(layer._forward_hooks for layer in classifier.model.modules())
    after = classifier.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_run_says_why_and_is_resumed_bit_for_bit(
    seconds, trained_in, monkeypatch, tmp_path, capsys
):
    data = write_fashion_mnist(tmp_path / "data", count=20)
    arguments = [*TINY, f"--evaluation-data={data}"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    reason = "(generator step: 900 ms in bfloat16, 1000 ms in float32; fine-tuning step: 500 ms"
    for folder in (whole, parts):
        seconds += [SLOWER, FASTER]
        with monkeypatch.context() as patch:
            if folder == parts:
                patch.setattr(Checkpoints, "count_step", stopped_after(4))
            assert main([*arguments, f"--output={folder}"]) == (143 if folder == parts else 0)
        first = capsys.readouterr().out.splitlines()[0]
        assert ", float32 and bfloat16 for fine-tuning, " in first
        assert reason in first
    assert main([OWN, f"--resume={parts}"]) == 0  # on a machine that would not say again
    assert capsys.readouterr().out.splitlines()[0] == first
    assert results_of(parts) == results_of(whole)
    assert trained_in == ["float32", "bfloat16", "float32", "float32", "bfloat16"]


def stopped_after(step):
    """A method of checkpoints that lets a signal come after a step."""
    count_step = Checkpoints.count_step

    def stopped(checkpoints):
        count_step(checkpoints)
        if checkpoints.steps == step:
            signal.raise_signal(signal.SIGTERM)

    return stopped


@pytest.mark.parametrize("earlier", [None, "nonsense", "float16", ["bfloat16"]])
def test_a_checkpoint_that_knows_no_precision_goes_on_in_float32(earlier):
    chosen = with_earlier_precision(EXECUTION, {} if earlier is None else {PRECISION: earlier})
    assert chosen.precision_name == chosen.fine_tuning_precision_name == "float32"


def test_functions_of_python_choose_as_the_command_does(seconds, trained_in, classifier):
    settings = {"batch_size": 4, "calibration_batches": 1}
    seconds += [FASTER, FASTER, SLOWER]
    generator = api.train_generator(classifier, synthesis_steps=1, **settings)
    student = api.quantize(classifier, generator, **settings)
    tuning = {"fine_tuning_steps": 1, "fine_tuning_batch_size": 2}
    images = repeat(torch.randn(2, 1, 28, 28))
    for _ in range(2):
        api.fine_tune(student, classifier, images, **tuning)
    api.fine_tune(student, classifier, images, **tuning, precision="bfloat16")
    assert trained_in == ["bfloat16", "bfloat16", "float32", "bfloat16"]
    assert seconds == []
