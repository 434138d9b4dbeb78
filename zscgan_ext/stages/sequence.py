"""The stages of a run in their order: learn the generator, calibrate, fine-tune, evaluate."""

from functools import partial

import torch

from zscgan_ext.classifiers.batch_norm import zero_variance_warnings
from zscgan_ext.images.datasets import near_chance_warnings
from zscgan_ext.measures import top1
from zscgan_ext.quantization.dead_quantizers import dead_quantizers, dead_weights
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.run_folder.files import STUDENT
from zscgan_ext.stages.calibration_data import mixed
from zscgan_ext.stages.generator_stage import (
    generated_batches,
    learn_generator,
    measure_diversity,
    probe_batches,
    save_generator,
)
from zscgan_ext.stages.run import RandomStream, Run
from zscgan_ext.stages.student_stages import (
    BatchesOfSize,
    evaluate,
    fine_tuned_student,
    instant_student,
    quantized_student,
    real_batches,
)
from zscgan_ext.stages.variants import (
    FINE_TUNED,
    FLOAT,
    GENERATED_CALIBRATED,
    INSTANT,
    NOISE_CALIBRATED,
    REAL_CALIBRATED,
    REAL_FINE_TUNED,
)
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.synthesis.generator_training import noise_batches


def write_instant_student(run: Run) -> QuantizedClassifier:
    """Quantize from batch-norm statistics alone, and write the student."""
    run.results.warn(zero_variance_warnings(run.classifier.model))
    student = instant_student(run)
    if not run.checkpoints.is_finished("saving"):
        with run.checkpoints.stage("saving"):
            run.results.warn(dead_weights(student))
            run.folder.save_tensors(STUDENT, student.state_dict())
    return student


def measure_instant_student(run: Run, student: QuantizedClassifier) -> None:
    """Evaluate the float classifier and the instant student."""
    evaluate(run, FLOAT, run.classifier.model)
    warn_of_chance(run)
    evaluate(run, INSTANT, student)


def run_generator_stages(run: Run) -> None:
    """Learn the generator, and up to `stop_after` calibrate and fine-tune on its images."""
    config, batch_size = run.config, run.config.generator.batch_size
    generator = learn_generator(run)
    measure_diversity(run, generator)
    if config.stop_after == "synthesis":
        return
    evaluate(run, FLOAT, run.classifier.model)
    warn_of_chance(run)
    shape = run.classifier.preprocessing.shape
    noise = noise_batches(batch_size, shape, run.rng(RandomStream.NOISE_IMAGES))
    quantized_student(run, NOISE_CALIBRATED, noise)
    rng = run.checkpoints.hold_rng("image rng", run.rng(RandomStream.GENERATED_IMAGES))
    batches: BatchesOfSize = partial(generated_batches, run, generator, rng)
    quantized_student(run, GENERATED_CALIBRATED, batches(batch_size))
    continued = generator if config.training == "alternating" else None
    if run.calibration is not None:
        batches = mixed(run, run.calibration, batches)
    student = fine_tuned_student(run, FINE_TUNED, batches, continued)
    save_student(run, student, generator)


def run_reference_stages(run: Run) -> None:
    """Calibrate and fine-tune on real images, if there are any, for comparison."""
    if run.reference is None or run.config.stop_after is not None:
        return
    rng = torch.Generator().manual_seed(run.own_seed(run.config.seed))
    run.checkpoints.hold_rng("real image rng", rng)
    batches: BatchesOfSize = partial(real_batches, run, run.reference, rng)
    quantized_student(run, REAL_CALIBRATED, batches(run.config.generator.batch_size))
    fine_tuned_student(run, REAL_FINE_TUNED, batches)


def warn_of_chance(run: Run) -> None:
    """Warn of evaluation images on which the float classifier seems to guess."""
    if run.evaluation is not None:
        name, labels = run.config.evaluation_data, run.evaluation.labels
        percent = top1(run.results.logits[FLOAT.key], labels)
        classes = run.classifier.num_classes
        run.results.warn(near_chance_warnings(name, len(labels), percent, classes))


def save_student(run: Run, student: QuantizedClassifier, generator: ConditionalGenerator) -> None:
    """Look at and write the fine-tuned student, which checkpoints need not hold any longer."""
    if not run.checkpoints.is_finished("saving"):
        with run.checkpoints.stage("saving"):
            images, _ = next(probe_batches(run, generator))
            run.results.warn(dead_quantizers(student, images))
            run.folder.save_tensors(STUDENT, student.state_dict())
            save_generator(run, generator)
            run.checkpoints.release(FINE_TUNED.student_name)
