"""Measuring the rows of one cell with the stages of the main program."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.baselines.gdfq import quantize_as_gdfq, warmed_up_generator
from zscgan_ext.classifiers.weights import load_weights
from zscgan_ext.errors import InputError
from zscgan_ext.images.datasets import Images, LabelledImages
from zscgan_ext.quantization.batch_norm_ranges import calibrate_from_batch_norm
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.squant import round_weights
from zscgan_ext.run_folder.files import GENERATOR
from zscgan_ext.run_folder.whole_file import write_whole
from zscgan_ext.settings.config import Settings
from zscgan_ext.stages.generator_stage import generated_batches, learn_generator
from zscgan_ext.stages.preparation import prepare
from zscgan_ext.stages.run import RandomStream, Run, new_student
from zscgan_ext.stages.student_stages import evaluate, fine_tuned_student, quantize, real_batches
from zscgan_ext.synthesis.generator import ConditionalGenerator, generator_of
from zscgan_ext.synthesis.generator_training import noise_batches

HELD_OUT_PART = 12  # the last of twelve equal parts: images 55,000 to 60,000 of Fashion-MNIST
GeneratorSource = Callable[[], ConditionalGenerator]  # learns or reads it when a row needs it
Rows = Callable[[Run, GeneratorSource], Iterator[str]]


def real_random(run: Run) -> torch.Generator:
    """Return what real images are drawn with."""
    return torch.Generator().manual_seed(run.settings.seed)


def nearest_rows(run: Run, generator: GeneratorSource) -> Iterator[str]:
    """Round to nearest; ranges from standard normal noise, generated and real images."""
    assert run.reference is not None
    nearest = replace(run, settings=replace(run.settings, rounding="nearest"))
    size, shape = run.settings.batch_size, run.classifier.preprocessing.shape
    images = run.random(RandomStream.GENERATED_IMAGES)
    sources = {
        "noise_nearest": noise_batches(size, shape, run.random(RandomStream.NOISE_IMAGES)),
        "generated_nearest": generated_batches(run, generator(), images, size),
        "real_nearest": real_batches(run, run.reference, real_random(run), size),
    }
    for row, batches in sources.items():
        quantize(nearest, batches, row)
        yield row


def generated_rows(run: Run, generator: GeneratorSource) -> Iterator[str]:
    """Round so that errors cancel, then calibrate and fine-tune, all on generated images."""
    random = run.random(RandomStream.GENERATED_IMAGES)
    batches = partial(generated_batches, run, generator(), random)
    quantize(run, batches(run.settings.batch_size), "generated_calibrated")
    yield "generated_calibrated"
    fine_tuned_student(run, batches, "fine_tuned")
    yield "fine_tuned"


def real_rows(run: Run, _: GeneratorSource) -> Iterator[str]:
    """Do as with generated images, with real ones."""
    assert run.reference is not None
    batches = partial(real_batches, run, run.reference, real_random(run))
    quantize(run, batches(run.settings.batch_size), "real_calibrated")
    yield "real_calibrated"
    fine_tuned_student(run, batches, "real_fine_tuned")
    yield "real_fine_tuned"


def squant_rows(run: Run, _: GeneratorSource) -> Iterator[str]:
    """Round and calibrate without any image."""
    evaluate(run, squant(run), "squant")
    yield "squant"


def squant(run: Run) -> QuantizedClassifier:
    """Round weights so that errors cancel, and take ranges from batch norm."""
    student = new_student(run.settings, run.classifier, run.execution)
    round_weights(student)
    preprocessing = run.classifier.preprocessing
    calibrate_from_batch_norm(student, run.classifier.model, preprocessing, run.random(20))
    return student


def gdfq_rows(run: Run, _: GeneratorSource) -> Iterator[str]:
    """Quantize by GDFQ's settings, on as many generated images as both trainings here take."""
    generator = warmed_up_generator(run, run.folder.path.with_suffix(".gdfq.safetensors"))
    evaluate(run, quantize_as_gdfq(run, generator), "gdfq")
    yield "gdfq"


# The rows that each function gives, in its order; quick ones first.
MEASURED: tuple[tuple[Rows, tuple[str, ...]], ...] = (
    (nearest_rows, ("noise_nearest", "generated_nearest", "real_nearest")),
    (squant_rows, ("squant",)),
    (generated_rows, ("generated_calibrated", "fine_tuned")),
    (real_rows, ("real_calibrated", "real_fine_tuned")),
    (gdfq_rows, ("gdfq",)),
)


def measure_rows(run: Run, generator: GeneratorSource, wanted: set[str]) -> Iterator[str]:
    """Measure rows one by one.

    Args:
        run: with the settings of the cell; gets the logits of each row.
        generator: returns the learned one; asked only by rows of generated images.
        wanted: names of rows.

    Yields:
        The name of each wanted row, when its logits are there. They are the same, whichever other
        rows are wanted.
    """
    for rows, names in MEASURED:
        missing = wanted.intersection(names)
        if not missing:
            continue
        torch.manual_seed(run.settings.seed)
        for name in rows(run, generator):
            if name in missing:
                missing.remove(name)
                yield name
            if not missing:
                break


def prepare_run(settings: Settings, data: str, held_out: bool) -> Run:
    """Prepare what the cells of one classifier and seed share.

    Args:
        settings: with a classifier, a seed and an output folder.
        data: `fashion-mnist` or a folder of idx files with training and test images.
        held_out: whether to evaluate on the last twelfth of the training images, and to take real
            images from the others; otherwise on the test images.

    Raises:
        InputError: if anything does not fit.
    """
    run = prepare(replace(settings, overwrite=True, evaluation_data=data, reference_data=data))
    if not held_out:
        return run
    if not isinstance(run.reference, LabelledImages):
        raise InputError(f"data: {data} is no folder of idx files, which --held-out needs")
    start = len(run.reference) - len(run.reference) // HELD_OUT_PART
    training, held = part(run.reference, 0, start), part(run.reference, start, None)
    return replace(run, reference=training, evaluation=held)


def part(data: LabelledImages, start: int, stop: int | None) -> Images:
    """Return the images from one index to another."""
    return LabelledImages(data.images[start:stop], data.labels[start:stop])


def seeded_generator(run: Run) -> ConditionalGenerator:
    """Learn a generator with the random numbers of the run's seed alone."""
    torch.manual_seed(run.settings.seed)
    return learn_generator(run)


def cached_generator(run: Run, file: Path) -> ConditionalGenerator:
    """Read the generator of a run's classifier and seed, or learn it and write it down.

    Torch's random numbers go on as if it had not been asked.
    """
    with torch.random.fork_rng():
        if not file.is_file():
            seeded_generator(run)
            write_whole(file, (run.folder.path / GENERATOR).read_bytes())
        generator = generator_of(run.settings, run.classifier)
    load_weights(generator, file)
    generator.to(run.device).to(memory_format=run.execution.memory_format)
    return generator.eval()
