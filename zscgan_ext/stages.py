"""The stages of a run in their order: learn the generator, calibrate, fine-tune, evaluate."""

from collections.abc import Iterator
from dataclasses import asdict

import torch
from torch import Tensor, nn

from zscgan_ext.batch_norm_matching import FrozenTeacher
from zscgan_ext.datasets import Images
from zscgan_ext.diversity import compare_diversity, generated_classes, real_classes
from zscgan_ext.evaluation import predict
from zscgan_ext.generator import ConditionalGenerator
from zscgan_ext.memory_format import to_memory_format
from zscgan_ext.progress import Progress
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import QuantizedClassifier, folded
from zscgan_ext.quantization.fine_tuning import FineTuningStep, fine_tune
from zscgan_ext.quantization.rounding import round_weights
from zscgan_ext.results import ROWS
from zscgan_ext.run import Run, new_student
from zscgan_ext.synthesis import (
    SynthesisStep,
    noise_batches,
    synthetic_batches,
    train_generator,
)

EVALUATION_BATCH = 500  # images
SAMPLES_PER_CLASS = 10
SAMPLED_CLASSES = 20  # at most, in a grid
SAMPLED_FRACTIONS = (0.1, 0.3, 1.0)  # of the synthesis steps, beside the first


def run_stages(run: Run) -> None:
    """Run all stages, or those up to `stop_after`."""
    settings = run.settings
    generator = learn_generator(run)
    measure_diversity(run, generator)
    if settings.stop_after == "synthesis":
        return
    evaluate(run, run.classifier.model, "float")
    shape = run.classifier.preprocessing.shape
    quantize(run, noise_batches(settings.batch_size, shape, run.random(3)), "noise_calibrated")
    batches = generated_batches(run, generator)
    student = quantize(run, batches, "generated_calibrated")
    fine_tune_student(run, student, batches, "fine_tuned")
    run.folder.save_tensors("quantized.safetensors", student.state_dict())
    if run.reference is not None:
        batches = real_batches(run, run.reference)
        student = quantize(run, batches, "real_calibrated")
        fine_tune_student(run, student, batches, "real_fine_tuned")


def learn_generator(run: Run) -> ConditionalGenerator:
    """Learn the generator, with samples and a log on the way."""
    settings, classifier = run.settings, run.classifier
    generator = ConditionalGenerator(
        classifier.num_classes, settings.latent_dim, classifier.preprocessing
    )
    generator.to(run.device).to(memory_format=run.execution.memory_format)
    teacher = FrozenTeacher(classifier.model, settings.distance)
    steps = settings.synthesis_steps
    sampled = {1, *(max(1, round(fraction * steps)) for fraction in SAMPLED_FRACTIONS)}
    with (
        run.timed("synthesis"),
        run.profiled("synthesis", steps) as after_step,
        Progress("synthesis", steps, settings.log_interval) as progress,
    ):

        def report(step: SynthesisStep) -> None:
            progress.update(
                step.step, {"loss": step.loss, "teacher accuracy": step.teacher_accuracy}
            )
            if progress.is_due(step.step):
                run.log("synthesis", asdict(step))
            if step.step in sampled:
                save_samples(run, generator, step.step)

        def is_due(step: int) -> bool:
            return progress.wants(step) or step in sampled

        train_generator(generator, teacher, settings, run.random(1), report, is_due, after_step)
    teacher.remove_hooks()
    run.folder.save_tensors("generator.safetensors", generator.state_dict())
    return generator


@torch.no_grad()
def save_samples(run: Run, generator: ConditionalGenerator, step: int) -> None:
    """Write a grid of generated images, one row per class; the same latent vectors each time."""
    classes = min(run.classifier.num_classes, SAMPLED_CLASSES)
    labels = torch.arange(classes, device=run.device).repeat_interleave(SAMPLES_PER_CLASS)
    latent, _ = generator.random_inputs(len(labels), run.random(2))
    was_training = generator.training
    generator.eval()
    images = generator(latent, labels)
    generator.train(was_training)
    pixels = run.classifier.preprocessing.denormalize(images)
    grid = pixels.reshape(classes, SAMPLES_PER_CLASS, *pixels.shape[1:])
    names = run.classifier.class_names[:classes]
    run.folder.save_image_grid(f"samples/step-{step:06d}.png", grid, names)
    if run.tensorboard is not None:
        run.tensorboard.images("samples", grid, step)


def quantize(run: Run, batches: Iterator[tuple[Tensor, Tensor]], row: str) -> QuantizedClassifier:
    """Convert the classifier, round it, take its ranges from these images, and evaluate it."""
    with run.timed("calibration"):
        student = new_student(run.settings, run.classifier, run.execution)
        if run.settings.rounding == "balanced":
            round_weights(student)
        calibrate(student, batches, run.settings.calibration_batches)
    evaluate(run, student, row)
    return student


def fine_tune_student(
    run: Run, student: QuantizedClassifier, batches: Iterator[tuple[Tensor, Tensor]], row: str
) -> None:
    """Fine-tune a calibrated student on these images, and evaluate it."""
    settings = run.settings
    with (
        run.timed("fine_tuning"),
        run.profiled(row, settings.fine_tuning_steps) as after_step,
        Progress(ROWS[row], settings.fine_tuning_steps, settings.log_interval) as progress,
    ):

        def report(step: FineTuningStep) -> None:
            progress.update(step.step, {"loss": step.loss, "agreement": step.agreement})
            if progress.is_due(step.step):
                run.log(row, asdict(step))

        teacher = folded(run.classifier.model).to(memory_format=run.execution.memory_format)
        fine_tune(student, teacher, batches, settings, report, progress.wants, after_step)
    evaluate(run, student, row)


def measure_diversity(run: Run, generator: ConditionalGenerator) -> None:
    """Measure how diverse generated images are, and real ones where there are any."""
    data, classifier = run.reference or run.evaluation, run.classifier
    with run.timed("evaluation"):
        generated = generated_classes(generator, run.random(6))
        real = None
        if data is not None:
            shape = classifier.preprocessing, classifier.num_classes
            real = real_classes(data, *shape, run.device)
        run.diversity = compare_diversity(classifier.model, generated, real)


def evaluate(run: Run, model: nn.Module, row: str) -> None:
    """Keep the model's logits on the evaluation images, if there are any."""
    if run.evaluation is None:
        return
    with run.timed("evaluation"):
        preprocessing = run.classifier.preprocessing
        run.logits[row] = predict(
            *(model, run.evaluation, preprocessing, EVALUATION_BATCH, run.device),
            run.execution.memory_format,
        )


def generated_batches(run: Run, generator: ConditionalGenerator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of generated images on the device, forever."""
    return synthetic_batches(
        generator, run.settings.batch_size, run.random(4), run.execution.memory_format
    )


def real_batches(run: Run, reference: Images) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random batches of real training images on the device."""
    random = torch.Generator().manual_seed(run.settings.seed)
    preprocessing = run.classifier.preprocessing
    for images, labels in reference.random_batches(run.settings.batch_size, preprocessing, random):
        images = to_memory_format(images.to(run.device), run.execution.memory_format)
        yield images, labels.to(run.device)
