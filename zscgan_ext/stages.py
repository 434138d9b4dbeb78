"""The stages of a run in their order: learn the generator, calibrate, fine-tune, evaluate."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from zscgan_ext import processes
from zscgan_ext.batch_norm_matching import FrozenTeacher
from zscgan_ext.datasets import Images
from zscgan_ext.diversity import (
    chosen_classes,
    compare_diversity,
    generated_classes,
    real_classes,
)
from zscgan_ext.evaluation import predict
from zscgan_ext.finite_numbers import zero_variance_warnings
from zscgan_ext.generator import ConditionalGenerator
from zscgan_ext.memory_format import to_memory_format
from zscgan_ext.progress import Progress
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import QuantizedClassifier, folded
from zscgan_ext.quantization.dead_quantizers import dead_quantizers
from zscgan_ext.quantization.fine_tuning import FineTuningStep, fine_tune
from zscgan_ext.quantization.rounding import round_weights
from zscgan_ext.quantization.student_state import StudentState
from zscgan_ext.results import ROWS
from zscgan_ext.run import Run, new_student
from zscgan_ext.synthesis import (
    GeneratorTraining,
    SynthesisStep,
    learning_batches,
    noise_batches,
    synthetic_batches,
    train_generator,
)

EVALUATION_BATCH = 500  # images
SAMPLES_PER_CLASS = 10
PROBES_PER_CLASS = 8
NAMED_CLASSES = 5  # at most, in a warning
SAMPLED_FRACTIONS = (0.1, 0.3, 1.0)  # of the synthesis steps, beside the first

# Gives batches of the size it is called with: images [B, C, H, W] and labels [B], forever.
BatchesOfSize = Callable[[int], Iterator[tuple[Tensor, Tensor]]]


def run_stages(run: Run) -> None:
    """Run all stages, or those up to `stop_after`, that are not finished."""
    settings = run.settings
    generator = learn_generator(run)
    measure_diversity(run, generator)
    if settings.stop_after == "synthesis":
        return
    evaluate(run, run.classifier.model, "float")
    shape = run.classifier.preprocessing.shape
    quantize(run, noise_batches(settings.batch_size, shape, run.random(3)), "noise_calibrated")
    random = run.checkpoints.hold_random("image random", run.random(4))
    batches: BatchesOfSize = partial(generated_batches, run, generator, random)
    quantize(run, batches(settings.batch_size), "generated_calibrated")
    alternating = settings.training == "alternating"
    feeding = [generator_goes_on(run, generator)] if alternating else []
    student = fine_tuned_student(run, batches, "fine_tuned", feeding)
    save_student(run, student, generator)
    if run.reference is not None:
        random = torch.Generator().manual_seed(run.own_seed(settings.seed))
        run.checkpoints.hold_random("real image random", random)
        batches = partial(real_batches, run, run.reference, random)
        quantize(run, batches(settings.batch_size), "real_calibrated")
        fine_tuned_student(run, batches, "real_fine_tuned")


def learn_generator(run: Run) -> ConditionalGenerator:
    """Learn the generator, with samples and a log on the way."""
    settings, classifier = run.settings, run.classifier
    generator = ConditionalGenerator(
        classifier.num_classes, settings.latent_dim, classifier.preprocessing
    )
    generator.to(run.device).to(memory_format=run.execution.memory_format)
    run.separate_processes()
    run.checkpoints.hold("generator", generator)
    if run.checkpoints.is_finished("synthesis"):
        return generator.eval()
    random = run.checkpoints.hold_random("synthesis/random", run.random(1))
    run.warn(zero_variance_warnings(classifier.model))
    teacher = FrozenTeacher(classifier.model, settings.distance)
    steps = settings.synthesis_steps
    sampled = {1, *(max(1, round(fraction * steps)) for fraction in SAMPLED_FRACTIONS)}
    with (
        run.checkpoints.stage("synthesis"),
        run.timed("synthesis"),
        run.steps_of("synthesis", steps) as around,
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

        train_generator(
            *(generator, teacher, settings, random, report, is_due),
            *(around.after_step, around.before_steps),
        )
        run.warn([*not_learned(run, generator), *never_generated(run, generator)])
        run.folder.save_tensors("generator.safetensors", generator.state_dict())
    teacher.remove_hooks()
    return generator


def generator_goes_on(run: Run, generator: ConditionalGenerator) -> GeneratorTraining:
    """Return a training that goes on with the generator while the student learns."""
    settings = replace(run.settings, synthesis_steps=run.settings.fine_tuning_steps)
    random = run.checkpoints.hold_random("alternating/random", run.random(8))
    teacher = FrozenTeacher(run.classifier.model, settings.distance)
    training = GeneratorTraining(generator, teacher, settings, random)
    generator.eval()
    return run.checkpoints.hold("alternating/training", training)


@torch.no_grad()
def save_samples(run: Run, generator: ConditionalGenerator, step: int) -> None:
    """Write a grid of generated images, one row per class; the same latent vectors each time."""
    classes = chosen_classes(generator.learned_classes())
    labels = torch.tensor(classes, device=run.device).repeat_interleave(SAMPLES_PER_CLASS)
    latent, _ = generator.random_inputs(len(labels), run.shared_random(2))
    was_training = generator.training
    generator.eval()
    images = generator(latent, labels)
    generator.train(was_training)
    pixels = run.classifier.preprocessing.denormalize(images)
    grid = pixels.reshape(len(classes), SAMPLES_PER_CLASS, *pixels.shape[1:])
    names = [run.classifier.class_names[label] for label in classes]
    run.folder.save_image_grid(f"samples/step-{step:06d}.png", grid, names)
    if run.tensorboard is not None:
        run.tensorboard.images("samples", grid, step)


def probe_batches(run: Run, generator: ConditionalGenerator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield generated images [B, C, H, W] and labels [B], learned classes in turn, to look at.

    They take no random numbers from any stage.
    """
    classes = torch.tensor(generator.learned_classes(), device=run.device)
    size, random, next_index = run.settings.batch_size, run.shared_random(7), 0
    while True:
        index = torch.arange(next_index, next_index + size, device=run.device)
        labels = classes[index % len(classes)]
        next_index += size
        latent, _ = generator.random_inputs(size, random)
        devices = [run.device] if run.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(next_index)
            images = generator(latent, labels)
        yield to_memory_format(images, run.execution.memory_format), labels


def not_learned(run: Run, generator: ConditionalGenerator) -> list[str]:
    """Return a line that counts the classes learned, if that is not all of them."""
    learned, classes = len(generator.learned_classes()), run.classifier.num_classes
    if learned == classes:
        return []
    return [
        f"the generator had images enough for {learned} of {classes} classes; "
        "give more --synthesis-steps or a larger --batch-size for more"
    ]


@torch.no_grad()
def never_generated(run: Run, generator: ConditionalGenerator) -> list[str]:
    """Return a line that names learned classes that came out as others, if there are any."""
    learned, size = generator.learned_classes(), run.settings.batch_size
    hits = torch.zeros(run.classifier.num_classes, dtype=torch.int64, device=run.device)
    batches = math.ceil(PROBES_PER_CLASS * len(learned) / size)
    for images, labels in islice(probe_batches(run, generator), batches):
        hits.index_add_(0, labels, (run.classifier.model(images).argmax(1) == labels).long())
    counts = hits.tolist()
    missing = [label for label in learned if counts[label] == 0]
    if not missing:
        return []
    names = [run.classifier.class_names[label] for label in missing[:NAMED_CLASSES]]
    more = ", ..." if len(missing) > NAMED_CLASSES else ""
    never = f"{len(missing)} of {len(learned)} classes are never generated"
    return [f"{never}, as the classifier sees it: {', '.join(names)}{more}"]


def calibrated_student(
    run: Run, batches: Iterator[tuple[Tensor, Tensor]], stage: str, ranges: str
) -> QuantizedClassifier:
    """Convert the classifier, round it, and give its activations ranges.

    Args:
        run: that the stage belongs to.
        batches: of images and labels.
        stage: the stage's name.
        ranges: as the setting.
    """
    checkpoints, name = run.checkpoints, f"{stage} student"
    student = new_student(run.settings, run.classifier, run.execution)
    if checkpoints.is_finished(stage):
        checkpoints.hold(name, StudentState(student))
        return student
    with checkpoints.stage(stage):
        with checkpoints.interruptible(), run.timed("calibration"):
            if run.settings.rounding == "balanced":
                round_weights(student)
            count = run.settings.calibration_batches
            calibrate(student, batches, count, ranges, run.classifier.model)
        checkpoints.hold(name, StudentState(student))
    return student


def quantize(run: Run, batches: Iterator[tuple[Tensor, Tensor]], row: str) -> QuantizedClassifier:
    """Convert the classifier, round it, take its ranges from these images, and evaluate it."""
    student = calibrated_student(run, batches, row, "images")
    evaluate(run, student, row)
    run.checkpoints.release(f"{row} student")  # nothing goes on from it
    return student


def fine_tuned_student(
    run: Run, batches: BatchesOfSize, row: str, feeding: Sequence[GeneratorTraining] = ()
) -> QuantizedClassifier:
    """Convert the classifier, calibrate and fine-tune it on these images, and evaluate it.

    Args:
        run: that the row belongs to.
        batches: which calibration and fine-tuning take in the sizes that are set for them.
        row: its name.
        feeding: trainings of the generator that take a step before each step of fine-tuning.
    """
    student = starting_student(run, batches(run.settings.batch_size), row)
    batches_of_fine_tuning = batches(run.settings.fine_tuning_batch_size)
    fine_tune_student(run, student, batches_of_fine_tuning, row, feeding)
    return student


def starting_student(
    run: Run, batches: Iterator[tuple[Tensor, Tensor]], row: str
) -> QuantizedClassifier:
    """Return the student that the fine-tuning of a row starts from."""
    return calibrated_student(run, batches, f"{row} start", run.settings.ranges)


def fine_tune_student(
    run: Run,
    student: QuantizedClassifier,
    batches: Iterator[tuple[Tensor, Tensor]],
    row: str,
    feeding: Sequence[GeneratorTraining] = (),
) -> None:
    """Fine-tune a calibrated student on these images, and evaluate it."""
    if not run.checkpoints.is_finished(row):
        train_student(run, student, batches, row, feeding)
    evaluate(run, student, row)


def train_student(
    run: Run,
    student: QuantizedClassifier,
    batches: Iterator[tuple[Tensor, Tensor]],
    row: str,
    feeding: Sequence[GeneratorTraining],
) -> None:
    """Fine-tune a calibrated student on these images, with a log on the way.

    Args:
        run: that the stage belongs to.
        student: calibrated.
        batches: of images and labels.
        row: the stage's name.
        feeding: trainings of the generator that take a step before each batch.
    """
    settings = run.settings
    for training in feeding:
        batches = learning_batches(training, batches)
    with (
        run.checkpoints.stage(row),
        run.timed("fine_tuning"),
        run.steps_of(row, settings.fine_tuning_steps, feeding) as around,
        Progress(ROWS[row], settings.fine_tuning_steps, settings.log_interval) as progress,
    ):

        def report(step: FineTuningStep) -> None:
            progress.update(step.step, {"loss": step.loss, "agreement": step.agreement})
            if progress.is_due(step.step):
                run.log(row, asdict(step))

        teacher = folded(run.classifier.model).to(memory_format=run.execution.memory_format)
        fine_tune(
            *(student, teacher, batches, settings, report, progress.wants),
            *(around.after_step, around.before_steps),
        )


def save_student(run: Run, student: QuantizedClassifier, generator: ConditionalGenerator) -> None:
    """Look at and write the fine-tuned student, which checkpoints need not hold any longer."""
    if not run.checkpoints.is_finished("saving"):
        with run.checkpoints.stage("saving"):
            images, _ = next(probe_batches(run, generator))
            run.warn(dead_quantizers(student, images))
            run.folder.save_tensors("quantized.safetensors", student.state_dict())
            run.folder.save_tensors("generator.safetensors", generator.state_dict())
            run.checkpoints.release("fine_tuned start student")


def measure_diversity(run: Run, generator: ConditionalGenerator) -> None:
    """Measure how diverse generated images are, and real ones where there are any."""
    checkpoints, classifier = run.checkpoints, run.classifier
    data = run.reference or run.evaluation
    if checkpoints.is_finished("diversity"):
        return
    with checkpoints.stage("diversity"), checkpoints.interruptible(), run.timed("evaluation"):
        generated = generated_classes(generator, run.shared_random(6))
        real = None
        if data is not None:
            labels = chosen_classes(generator.learned_classes())
            real = real_classes(data, classifier.preprocessing, labels, run.device)
        run.diversity = compare_diversity(classifier.model, generated, real)


def evaluate(run: Run, model: nn.Module, row: str) -> None:
    """Keep the model's logits on the evaluation images, if there are any."""
    stage = f"{row} evaluated"
    if run.evaluation is None or run.checkpoints.is_finished(stage):
        return
    with (
        run.checkpoints.stage(stage),
        run.checkpoints.interruptible(),
        run.timed("evaluation"),
    ):
        preprocessing = run.classifier.preprocessing
        images = run.evaluation
        if processes.count() > 1:
            images = images.subset(torch.tensor(processes.share(len(images)), dtype=torch.int64))
        logits = predict(
            *(model, images, preprocessing, EVALUATION_BATCH, run.device),
            run.execution.memory_format,
        )
        run.logits[row] = torch.cat(processes.of_all(logits))


def generated_batches(
    run: Run, generator: ConditionalGenerator, random: torch.Generator, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of generated images on the device, forever."""
    return synthetic_batches(generator, batch_size, random, run.execution.memory_format)


def real_batches(
    run: Run, reference: Images, random: torch.Generator, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random batches of real training images on the device."""
    preprocessing = run.classifier.preprocessing
    for images, labels in reference.random_batches(batch_size, preprocessing, random):
        images = to_memory_format(images.to(run.device), run.execution.memory_format)
        yield images, labels.to(run.device)
