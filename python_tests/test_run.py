"""Runs that share a classifier and images, and nothing else."""

from functools import partial

import pytest
import torch
from runs import TINY, write_fashion_mnist

from zscgan_ext.classifiers.loading import load_classifier
from zscgan_ext.config.configs import RunConfig
from zscgan_ext.quantization.fine_tuning import StudentTrainer
from zscgan_ext.run_folder.files import NoFolder
from zscgan_ext.stages import student_stages
from zscgan_ext.stages.generator_stage import continued_generator_training, generated_batches
from zscgan_ext.stages.run import new_run
from zscgan_ext.stages.student_stages import (
    calibrated_student,
    fine_tuned_student,
    quantized_student,
)
from zscgan_ext.stages.variants import FINE_TUNED, GENERATED_CALIBRATED
from zscgan_ext.synthesis import frozen_teacher
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.synthesis.generator_training import GeneratorTrainer
from zscgan_ext.train import main
from zscgan_ext.training.execution import choose_execution


@pytest.fixture
def run():
    """A run of `resnet20` at eight bits, whose ranges come from two images."""
    torch.manual_seed(0)
    config = RunConfig().changed(bits="w8a8", scheme="paper", calibration_batches=1, device="cpu")
    execution = choose_execution(config.execution, torch.device("cpu"))
    return new_run(config, load_classifier("resnet20"), NoFolder(), execution)


def images():
    torch.manual_seed(1)
    yield torch.randn(2, 1, 28, 28), torch.zeros(2, dtype=torch.int64)


class SeenBatches:
    """Notes how many images the batches have that a stage takes."""

    def __init__(self, stage, position):
        self.stage, self.position, self.sizes = stage, position, set()

    def __call__(self, *arguments):
        before, batches = arguments[: self.position], arguments[self.position]
        return self.stage(*before, self.watched(batches), *arguments[self.position + 1 :])

    def watched(self, batches):
        for images, labels in batches:
            self.sizes.add(len(images))
            yield images, labels


def test_each_stage_has_batches_of_its_own_size(monkeypatch, tmp_path):
    """On generated and on real images alike."""
    first_ranges = SeenBatches(student_stages.choose_initial_ranges, 2)
    calibration = SeenBatches(student_stages.calibrate, 1)
    fine_tuning = SeenBatches(student_stages.fine_tune, 3)
    monkeypatch.setattr(student_stages, "choose_initial_ranges", first_ranges)
    monkeypatch.setattr(student_stages, "calibrate", calibration)
    monkeypatch.setattr(student_stages, "fine_tune", fine_tuning)
    data = str(write_fashion_mnist(tmp_path / "data", "train"))
    sizes = ["--batch-size=6", "--fine-tuning-batch-size=3", f"--reference-data={data}"]
    assert main([*TINY, *sizes, f"--output={tmp_path / 'run'}"]) == 0
    assert first_ranges.sizes == calibration.sizes == {6}
    assert fine_tuning.sizes == {3}


def test_a_generator_continues_at_a_tenth_of_its_rate_and_barely_moves(run):
    run = run.with_options(batch_size=4, fine_tuning_steps=7, synthesis_learning_rate=0.02)
    generator = ConditionalGenerator(10, 64, run.classifier.preprocessing)
    before = generator.linear.weight.detach().clone()
    trainer = continued_generator_training(run, generator)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.002)
    assert trainer.steps == 7
    trainer.step(trainer.sample())
    # The first step of Adam is as large as its rate.
    assert (generator.linear.weight - before).abs().max().item() == pytest.approx(0.002, rel=1e-3)


def test_a_generator_that_continued_leaves_the_classifier_without_hooks(run, monkeypatch):
    monkeypatch.setattr(frozen_teacher, "uses_native", lambda _: False)  # then hooks measure
    run = run.with_options(batch_size=4, fine_tuning_batch_size=4, fine_tuning_steps=2)
    generator = ConditionalGenerator(10, 64, run.classifier.preprocessing).eval()
    batches = partial(generated_batches, run, generator, torch.Generator().manual_seed(0))
    fine_tuned_student(run, FINE_TUNED, batches, generator)
    assert not any(module._forward_pre_hooks for module in run.classifier.model.modules())


def test_a_generator_learns_a_step_before_each_batch_of_the_student(run, monkeypatch):
    run = run.with_options(batch_size=4, fine_tuning_batch_size=3, fine_tuning_steps=2)
    generator = ConditionalGenerator(10, 64, run.classifier.preprocessing).eval()
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    events = []

    def noted(trainer_class, name):
        step = trainer_class.step

        def noting(self, batch):
            values = step(self, batch)
            events.append((name, self.steps_taken, len(batch[1])))
            return values

        monkeypatch.setattr(trainer_class, "step", noting)

    def watched(batch_size):
        rng = torch.Generator().manual_seed(0)
        for images, labels in generated_batches(run, generator, rng, batch_size):
            assert not generator.training
            assert (images.shape, labels.shape) == ((batch_size, 1, 28, 28), (batch_size,))
            events.append(("batch", batch_size))
            yield images, labels

    noted(GeneratorTrainer, "generator")
    noted(StudentTrainer, "student")
    fine_tuned_student(run, FINE_TUNED, watched, generator)
    turns = [(("generator", step, 4), ("batch", 3), ("student", step, 3)) for step in (1, 2)]
    assert events == [("batch", 4), *turns[0], *turns[1]]
    now = generator.state_dict()
    changed = [name for name, value in now.items() if value.ne(before[name]).any()]
    assert "linear.weight" in changed
    assert "bn.running_mean" in changed


def test_fine_tuning_without_steps_is_calibration(run):
    run = run.with_options(bits="w4a4", fine_tuning_steps=0)
    calibrated = calibrated_student(run, FINE_TUNED, images())
    other = run.with_options()
    tuned = fine_tuned_student(other, FINE_TUNED, lambda size: images())
    for name, value in calibrated.state_dict().items():
        assert torch.equal(tuned.state_dict()[name], value), name
    assert other.checkpoints.is_finished(FINE_TUNED.training_stage)


def values_of_a_kernel(student):
    return student.layers[1].quantize_by_min_max()[0].unique()


def test_a_run_with_other_settings_begins_anew(run):
    run.results.seconds["calibration"] = 5.0
    eight_bits = quantized_student(run, GENERATED_CALIBRATED, images())
    other = run.with_options(bits="w2a2")
    assert other.config.quantization.bits == "w2a2"
    assert run.config.quantization.bits == "w8a8"
    assert set(other.results.seconds.values()) == {0.0}
    two_bits = quantized_student(other, GENERATED_CALIBRATED, images())
    assert len(values_of_a_kernel(two_bits)) <= 4 < len(values_of_a_kernel(eight_bits))
    assert run.checkpoints.is_finished("generated_calibrated")
    alone = quantized_student(run.with_options(bits="w2a2"), GENERATED_CALIBRATED, images())
    for name, value in alone.state_dict().items():
        assert torch.equal(two_bits.state_dict()[name], value), name
