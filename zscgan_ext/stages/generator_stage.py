"""The stage that learns the generator, and what is asked of the generator afterwards."""

import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from zscgan_ext.classifiers.batch_norm import zero_variance_warnings
from zscgan_ext.classifiers.heads import MULTI_LABEL
from zscgan_ext.images.memory_format import to_memory_format
from zscgan_ext.run_folder.files import GENERATOR
from zscgan_ext.run_folder.made_with import MADE_WITH
from zscgan_ext.stages.monitor import StageMonitor
from zscgan_ext.stages.run import RandomStream, Run
from zscgan_ext.synthesis.diversity import (
    chosen_classes,
    compare_diversity,
    generated_classes,
    real_classes,
)
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher
from zscgan_ext.synthesis.generator import (
    ConditionalGenerator,
    default_random_seeded,
    generator_of,
)
from zscgan_ext.synthesis.generator_file import generator_metadata
from zscgan_ext.synthesis.generator_training import GeneratorTrainer, synthetic_batches

SAMPLES_PER_CLASS = 10
PROBES_PER_CLASS = 8
NAMED_CLASSES = 5  # at most, in a warning
# Fraction of the learning rate: at all of it, Adam's first steps would undo what was learned.
CONTINUED_RATE = 0.1
SAMPLED_FRACTIONS = (0.1, 0.3, 1.0)  # of the synthesis steps, beside the first


def learn_generator(run: Run) -> ConditionalGenerator:
    """Learn the generator, with samples and a log on the way."""
    config, checkpoints = run.config.generator, run.checkpoints
    generator = generator_of(config, run.classifier)
    generator.to(run.device).to(memory_format=run.execution.memory_format)
    run.separate_processes()
    checkpoints.hold("generator", generator)
    if checkpoints.is_finished("synthesis"):
        return generator.eval()
    rng = checkpoints.hold_rng("synthesis/rng", run.rng(RandomStream.GENERATOR_LEARNING))
    run.results.warn(zero_variance_warnings(run.classifier.model))
    teacher = FrozenTeacher(run.classifier.model, config.distance)
    trainer = GeneratorTrainer(generator, teacher, config, run.execution, rng)
    sampled = {1, *(max(1, round(fraction * config.steps)) for fraction in SAMPLED_FRACTIONS)}
    with StageMonitor(run, "synthesis", trainer, seconds="synthesis") as monitor:
        for step in monitor.steps():
            values = trainer.step(trainer.sample())
            if step in sampled:
                save_samples(run, generator, step)
            monitor.after_step(step, values)
        generator.eval()
        run.results.warn([*not_learned(run, generator), *never_generated(run, generator)])
        save_generator(run, generator)
    teacher.remove_hooks()
    return generator


def save_generator(run: Run, generator: ConditionalGenerator) -> None:
    """Write the generator, with what it generates."""
    metadata = generator_metadata(generator, run.classifier, {MADE_WITH: run.made_with()})
    run.folder.save_tensors(GENERATOR, generator.state_dict(), metadata)


def continued_generator_training(run: Run, generator: ConditionalGenerator) -> GeneratorTrainer:
    """Return a trainer that continues with the generator while the student learns."""
    config = run.config.generator
    rng = run.checkpoints.hold_rng("alternating/rng", run.rng(RandomStream.ALTERNATING))
    trainer = GeneratorTrainer(
        generator,
        FrozenTeacher(run.classifier.model, config.distance),
        config,
        run.execution,
        rng,
        steps=run.config.fine_tuning.steps,
        learning_rate=CONTINUED_RATE * config.learning_rate,
    )
    return run.checkpoints.hold("alternating/training", trainer)


@torch.no_grad()
def save_samples(run: Run, generator: ConditionalGenerator, step: int) -> None:
    """Write a grid of generated images, one row per class; the same latent vectors each time."""
    classes = chosen_classes(generator.learned_classes())
    labels = torch.tensor(classes, device=run.device).repeat_interleave(SAMPLES_PER_CLASS)
    latent, _ = generator.random_inputs(len(labels), run.shared_rng(RandomStream.SAMPLES))
    was_training = generator.training
    generator.eval()
    images = generator(latent, generator.head.only(labels, generator.num_classes))
    generator.train(was_training)
    pixels = run.classifier.preprocessing.denormalize(images)
    grid = pixels.reshape(len(classes), SAMPLES_PER_CLASS, *pixels.shape[1:])
    names = [run.classifier.class_names[label] for label in classes]
    run.folder.save_image_grid(f"samples/step-{step:06d}.png", grid, names)
    if run.tensorboard is not None:
        run.tensorboard.images("samples", grid, step)


def probe_batches(
    run: Run, generator: ConditionalGenerator, stream: RandomStream = RandomStream.PROBES
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield generated images [B, C, H, W] and labels, learned classes in turn, to look at.

    Several labels of an image are drawn instead. They take no random numbers from any stage.

    Args:
        run: that the generator belongs to.
        generator: in evaluation mode.
        stream: of latent vectors.
    """
    classes = torch.tensor(generator.learned_classes(), device=run.device)
    size, rng, next_index = run.config.generator.batch_size, run.shared_rng(stream), 0
    while True:
        index = torch.arange(next_index, next_index + size, device=run.device)
        labels = classes[index % len(classes)]
        next_index += size
        latent, drawn = generator.random_inputs(size, rng)
        labels = drawn if generator.head is MULTI_LABEL else labels
        with default_random_seeded(run.device, next_index), torch.no_grad():
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
    learned, size = generator.learned_classes(), run.config.generator.batch_size
    head, classes = run.classifier.head, run.classifier.num_classes
    hits = torch.zeros(classes, dtype=torch.int64, device=run.device)
    batches = math.ceil(PROBES_PER_CLASS * len(learned) / size)
    for images, labels in islice(probe_batches(run, generator), batches):
        chosen = head.chosen(run.classifier.model(images))
        hits += (head.rows(labels, classes) * head.rows(chosen, classes)).sum(0)
    counts = hits.tolist()
    missing = [label for label in learned if counts[label] == 0]
    if not missing:
        return []
    names = [run.classifier.class_names[label] for label in missing[:NAMED_CLASSES]]
    more = ", ..." if len(missing) > NAMED_CLASSES else ""
    never = f"{len(missing)} of {len(learned)} classes are never generated"
    return [f"{never}, as the classifier sees it: {', '.join(names)}{more}"]


def measure_diversity(run: Run, generator: ConditionalGenerator) -> None:
    """Measure how diverse generated images are, and real ones where there are any."""
    checkpoints, classifier = run.checkpoints, run.classifier
    data = run.reference or run.evaluation
    if checkpoints.is_finished("diversity"):
        return
    with (
        checkpoints.stage("diversity"),
        checkpoints.interruptible(),
        run.results.timed("evaluation"),
    ):
        rng = run.shared_rng(RandomStream.DIVERSITY)
        at_once = run.config.generator.batch_size
        generated = generated_classes(generator, rng, at_once)
        real = None
        if data is not None:
            labels = chosen_classes(generator.learned_classes())
            of_data = data, classifier.preprocessing, labels, run.device
            real = real_classes(*of_data, classifier.head)
        run.results.diversity = compare_diversity(
            classifier.model, generated, real, at_once, classifier.head
        )


def generated_batches(
    run: Run, generator: ConditionalGenerator, rng: torch.Generator, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of generated images on the device, forever."""
    return synthetic_batches(generator, batch_size, rng, run.execution.memory_format)
