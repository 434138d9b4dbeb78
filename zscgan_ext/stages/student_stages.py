"""The stages that quantize the classifier: convert, calibrate, fine-tune, evaluate."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from zscgan_ext import distributed
from zscgan_ext.images.datasets import Images
from zscgan_ext.images.memory_format import to_memory_format
from zscgan_ext.measures import predict
from zscgan_ext.quantization.calibration import calibrate, choose_initial_ranges, least
from zscgan_ext.quantization.fine_tuning import StudentTrainer
from zscgan_ext.quantization.instant import quantize_from_batch_norm
from zscgan_ext.quantization.layer_widths import described_widths, two_bit_warnings
from zscgan_ext.quantization.quantized_classifier import (
    QuantizedClassifier,
    round_biases_to_int32,
)
from zscgan_ext.quantization.squant import round_weights
from zscgan_ext.stages.generator_stage import continued_generator_training
from zscgan_ext.stages.layer_bits_stage import choose_layer_bits
from zscgan_ext.stages.monitor import StageMonitor
from zscgan_ext.stages.run import RandomStream, Run
from zscgan_ext.stages.variants import INSTANT, Variant
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.synthesis.generator_training import GeneratorTrainer

MOST_EVALUATED, EVALUATED_PIXELS = 500, 2**21  # images and their pixels in a batch, at most

Batches = Iterator[tuple[Tensor, Tensor]]  # images [B, C, H, W] and labels [B], forever
BatchesOfSize = Callable[[int], Batches]  # gives batches of the size that it is called with


def quantized_student(run: Run, variant: Variant, batches: Batches) -> QuantizedClassifier:
    """Convert the classifier, calibrate it on these images, and evaluate it."""
    student = calibrated_student(run, variant, batches)
    evaluate(run, variant, student)
    run.checkpoints.release(variant.student_name)  # nothing resumes from it
    return student


def fine_tuned_student(
    run: Run,
    variant: Variant,
    batches: BatchesOfSize,
    continued: ConditionalGenerator | None = None,
) -> QuantizedClassifier:
    """Convert the classifier, calibrate and fine-tune it on these images, and evaluate it.

    Args:
        run: that the variant belongs to.
        variant: that is fine-tuned.
        batches: which calibration and fine-tuning take in the sizes that are set for them.
        continued: the generator of these images, if its training is continued meanwhile.
    """
    student = calibrated_student(run, variant, batches(run.config.generator.batch_size))
    trainer = None if continued is None else continued_generator_training(run, continued)
    fine_tune(run, variant, student, batches(run.config.fine_tuning.batch_size), trainer)
    if trainer is not None:
        trainer.teacher.remove_hooks()
    return student


def instant_student(run: Run) -> QuantizedClassifier:
    """Quantize the classifier from its batch-norm statistics."""
    rng = run.shared_rng(RandomStream.BATCH_NORM_SAMPLES)

    def quantize(student: QuantizedClassifier) -> None:
        quantize_from_batch_norm(student, run.classifier, rng)

    return initial_student(run, INSTANT, quantize)


def calibrated_student(run: Run, variant: Variant, batches: Batches) -> QuantizedClassifier:
    """Convert the classifier, round its weights, and give its activations initial ranges."""

    def quantize(student: QuantizedClassifier) -> None:
        if (variant.rounding or run.config.quantization.rounding) == "squant":
            round_weights(student)
        give_ranges(run, variant, student, batches)

    return initial_student(run, variant, quantize)


def initial_student(
    run: Run, variant: Variant, quantize: Callable[[QuantizedClassifier], None]
) -> QuantizedClassifier:
    """Convert the classifier and quantize it, or resume what was quantized before.

    Args:
        run: that the variant belongs to.
        variant: that is quantized.
        quantize: changes a converted student in place.
    """
    choose_layer_bits(run)
    checkpoints, stage = run.checkpoints, variant.calibration_stage
    student = run.new_student()
    run.results.warn(two_bit_warnings(student))
    run.results.layer_bits = run.results.layer_bits or described_widths(student)
    if checkpoints.is_finished(stage):
        checkpoints.hold(variant.student_name, student)
        student.quantize_activations()
        return student
    with checkpoints.stage(stage):
        with checkpoints.interruptible(), run.results.timed("calibration"):
            quantize(student)
        checkpoints.hold(variant.student_name, student)
    return student


def give_ranges(run: Run, variant: Variant, student: QuantizedClassifier, batches: Batches) -> None:
    """Calibrate a student; where its logits choose the initial ranges, print which these are."""
    classifier, count = run.classifier.model, run.config.quantization.calibration_batches
    ranges = variant.ranges or run.config.quantization.ranges
    input_range = run.classifier.preprocessing.input_range()
    if ranges != "min_kl":
        calibrate(student, batches, count, ranges, classifier, input_range)
        return
    temperature = run.config.fine_tuning.temperature
    divergences = choose_initial_ranges(
        student, classifier, batches, count, temperature, input_range, run.classifier.head
    )
    chosen = least(divergences)
    run.results.initial_ranges[variant.key] = {"chosen": chosen, "divergence": divergences}
    shown = ", ".join(f"{name} {value:.3g}" for name, value in divergences.items())
    print(f"{variant.label}: initial ranges {chosen} (KL divergence: {shown})", flush=True)


def fine_tune(
    run: Run,
    variant: Variant,
    student: QuantizedClassifier,
    batches: Batches,
    generator_trainer: GeneratorTrainer | None = None,
) -> None:
    """Fine-tune a calibrated student on these images, and evaluate it.

    Args:
        run: that the variant belongs to.
        variant: that is fine-tuned.
        student: calibrated; changed in place.
        batches: of images and labels.
        generator_trainer: takes a step before each batch, if the generator still learns.
    """
    if not run.checkpoints.is_finished(variant.training_stage):
        train_student(run, variant, student, batches, generator_trainer)
    evaluate(run, variant, student)


def train_student(
    run: Run,
    variant: Variant,
    student: QuantizedClassifier,
    batches: Batches,
    generator_trainer: GeneratorTrainer | None,
) -> None:
    """Take the steps of `fine_tune`; at the end biases are as integer kernels add them."""
    config, classifier = run.config.fine_tuning, run.classifier.model
    execution = run.execution.of_fine_tuning()
    head = run.classifier.head
    trainer = StudentTrainer(student, classifier, batches, config, execution, head)
    with StageMonitor(
        run,
        variant.training_stage,
        trainer,
        seconds="fine_tuning",
        label=variant.label,
        upstream=() if generator_trainer is None else (generator_trainer,),
    ) as monitor:
        for step in monitor.steps():
            if generator_trainer is not None:
                generator_trainer.step(generator_trainer.sample())
            values = trainer.step(trainer.sample())
            monitor.after_step(step, values)
        round_biases_to_int32(student)


def evaluate(run: Run, variant: Variant, model: nn.Module) -> None:
    """Keep the model's logits on the evaluation images, if there are any."""
    checkpoints, stage = run.checkpoints, variant.evaluation_stage
    if run.evaluation is None or checkpoints.is_finished(stage):
        return
    with checkpoints.stage(stage), checkpoints.interruptible(), run.results.timed("evaluation"):
        preprocessing, images = run.classifier.preprocessing, run.evaluation
        if distributed.world_size() > 1:
            images = images.subset(
                torch.tensor(distributed.shard_range(len(images)), dtype=torch.int64)
            )
        batch_size = max(1, min(MOST_EVALUATED, EVALUATED_PIXELS // preprocessing.pixels))
        memory_format = run.execution.memory_format
        logits = predict(model, images, preprocessing, batch_size, run.device, memory_format)
        run.results.logits[variant.key] = torch.cat(distributed.all_gather(logits))


def real_batches(run: Run, reference: Images, rng: torch.Generator, batch_size: int) -> Batches:
    """Yield random batches of real training images on the device."""
    preprocessing = run.classifier.preprocessing
    for images, labels in reference.random_batches(batch_size, preprocessing, rng):
        images = to_memory_format(images.to(run.device), run.execution.memory_format)
        yield images, labels.to(run.device)
