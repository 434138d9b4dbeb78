"""The stages of a run in their order: learn the generator, calibrate, fine-tune, evaluate."""

from collections.abc import Callable
from functools import partial

import torch

from zscgan_ext.classifiers.batch_norm import zero_variance_warnings
from zscgan_ext.classifiers.heads import SINGLE_LABEL
from zscgan_ext.classifiers.weights import load_weights
from zscgan_ext.images.datasets import near_chance_warnings
from zscgan_ext.measures import top1
from zscgan_ext.quantization.dead_quantizers import dead_quantizers, dead_weights
from zscgan_ext.quantization.fine_tuning import logit_divergence
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.run_folder.files import EXPORT, EXPORTED, INSTANT_STUDENT, STUDENT
from zscgan_ext.run_folder.made_with import check_file, metadata_of
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

INSTANT_SAVED = "instant saved"
# Generated images that students are compared on, and their pixels.
FEWEST_HELD_BACK, MOST_HELD_BACK, HELD_BACK_PIXELS = 128, 1024, 2**23


def run_instant_stages(run: Run, export: Callable[[QuantizedClassifier], None]) -> None:
    """Quantize from batch-norm statistics alone, write the student and its files, and measure it.

    Args:
        run: to begin.
        export: writes the files to deploy.
    """
    checkpoints = run.checkpoints
    run.results.warn(zero_variance_warnings(run.classifier.model))
    student = instant_student(run)
    if not checkpoints.is_finished(INSTANT_SAVED):
        with checkpoints.stage(INSTANT_SAVED):
            names = [STUDENT]
            if run.config.learns_generator:
                names.append(INSTANT_STUDENT)  # to be compared with the fine-tuned one
            else:
                run.results.warn(dead_weights(student))
            for name in names:
                run.folder.save_tensors(name, student.state_dict(), metadata_of(run.made_with()))
            export(student)
    evaluate(run, FLOAT, run.classifier.model)
    warn_of_chance(run)
    evaluate(run, INSTANT, student)
    checkpoints.release(INSTANT.student_name)  # its file has it


def run_generator_stages(run: Run) -> None:
    """Learn the generator, and up to `stop_after` calibrate and fine-tune on its images."""
    config, batch_size = run.config, run.config.generator.batch_size
    generator = learn_generator(run)
    measure_diversity(run, generator)
    if config.stop_after == "synthesis":
        return
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
    if run.evaluation is not None and run.classifier.head is SINGLE_LABEL:
        name, labels = run.config.evaluation_data, run.evaluation.labels
        percent = top1(run.results.logits[FLOAT.key], labels)
        classes = run.classifier.num_classes
        run.results.warn(near_chance_warnings(name, len(labels), percent, classes))


def save_student(run: Run, student: QuantizedClassifier, generator: ConditionalGenerator) -> None:
    """Look at and write the best student, which checkpoints need not hold any longer."""
    if not run.checkpoints.is_finished("saving"):
        with run.checkpoints.stage("saving"):
            student = best_student(run, student, generator)
            images, _ = next(probe_batches(run, generator))
            run.results.warn(dead_quantizers(student, images))
            run.folder.save_tensors(STUDENT, student.state_dict(), metadata_of(run.made_with()))
            # Those of the instant student, unless they are written again.
            run.folder.delete([EXPORT, *EXPORTED.values()])
            save_generator(run, generator)
            run.checkpoints.release(FINE_TUNED.student_name)
    run.folder.delete([INSTANT_STUDENT])


def best_student(
    run: Run, student: QuantizedClassifier, generator: ConditionalGenerator
) -> QuantizedClassifier:
    """Return the fine-tuned student, unless the instant one is nearer to the classifier.

    Which one is nearer is told by the KL divergence of the logits on generated images that were
    held back from fine-tuning.
    """
    instant = run.new_student()
    file = run.folder.path / INSTANT_STUDENT
    check_file(file, run.made_with())
    load_weights(instant, file)
    instant.quantize_activations()
    students = {INSTANT: instant, FINE_TUNED: student}
    with run.checkpoints.interruptible(), run.results.timed("evaluation"):
        divergences = held_back_divergences(run, list(students.values()), generator)
    by_key = {each.key: value for each, value in zip(students, divergences, strict=True)}
    chosen = INSTANT if by_key[INSTANT.key] < by_key[FINE_TUNED.key] else FINE_TUNED
    run.results.choice = {"chosen": chosen.key, "divergence": by_key}
    shown = ", ".join(f"{key} {value:.3g}" for key, value in by_key.items())
    print(f"result: {chosen.label} (KL divergence on images held back: {shown})", flush=True)
    return students[chosen]


@torch.no_grad()
def held_back_divergences(
    run: Run, students: list[QuantizedClassifier], generator: ConditionalGenerator
) -> list[float]:
    """Return the KL divergence of each student's logits from the classifier's.

    All processes measure on the same images.
    """
    pixels = run.classifier.preprocessing.pixels
    wanted = max(FEWEST_HELD_BACK, min(MOST_HELD_BACK, HELD_BACK_PIXELS // pixels))
    batches = probe_batches(run, generator, RandomStream.HELD_BACK_IMAGES)
    count, sums = 0, [0.0] * len(students)
    while count < wanted:
        images, _ = next(batches)
        logits = run.classifier.model(images)
        for index, student in enumerate(students):
            divergence = logit_divergence(student(images), logits, 1, run.classifier.head)
            sums[index] += len(images) * float(divergence)
        count += len(images)
    return [value / count for value in sums]
