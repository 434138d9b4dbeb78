"""The stages of the main command as functions: what it does from files, these do from objects.

Each takes the typed configuration of its stage, or options of the command line as keywords
(docs/reference/settings.md lists them), and runs the very stage that the command runs.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zscgan_ext.api_arguments import (
    ImageSource,
    check_classifier,
    check_formats,
    check_images,
    check_student,
    check_weights,
    check_whole_number,
    checked_answers,
    checked_batch,
    checked_data,
    checked_form,
    checked_path,
    kind,
)
from zscgan_ext.classifiers import loading
from zscgan_ext.classifiers.graph import device_of
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.classifiers.trials import random_images
from zscgan_ext.config.configs import (
    SECTIONS,
    ExecutionConfig,
    FineTuningConfig,
    GeneratorConfig,
    QuantizationConfig,
    RunConfig,
    defaults_of,
)
from zscgan_ext.config.fields import check_section
from zscgan_ext.config.values import (
    EVALUATION_BATCH,
    LARGEST_COUNT,
    LARGEST_SEED,
    parse_image_size,
)
from zscgan_ext.errors import InputError
from zscgan_ext.evaluate.evaluation import (
    Evaluation,
    EvaluationTarget,
    MultiLabelEvaluation,
    check_batch_size,
    measure,
    open_data,
)
from zscgan_ext.export import exporter
from zscgan_ext.images.datasets import Images
from zscgan_ext.images.memory_format import lay_out, to_memory_format
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.run_folder.files import NoFolder
from zscgan_ext.stages import generator_stage, student_stages
from zscgan_ext.stages.precision_choice import (
    FINE_TUNING,
    GENERATOR,
    Training,
    fine_tuning,
    generator_training,
    is_open,
    with_chosen_precision,
)
from zscgan_ext.stages.run import RandomStream, Run, new_run
from zscgan_ext.stages.variants import FINE_TUNED, GIVEN_FINE_TUNED, Variant
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.synthesis.labelled_images import generated_images, to_pixels
from zscgan_ext.torch_settings import alone, usual_torch
from zscgan_ext.training.execution import choose_execution

__all__ = [
    "evaluate",
    "export",
    "fine_tune",
    "generate_images",
    "load_classifier",
    "quantize",
    "train_generator",
]


@alone()
@usual_torch()
def load_classifier(
    name: str | nn.Module,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    image_size: int | str | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    output_index: int | None = None,
    head: str = "auto",
) -> Classifier:
    """Load a trained classifier and try it on two blank images.

    Args:
        name: as `--classifier`, or a model object, which is copied.
        weights: safetensors or state-dict file; None for the weights that come with the model,
            which torchvision and timm download.
        num_classes: what the model must give; None to take what it gives.
        image_size: pixels, or height and width such as "96x192" or (96, 192); None for what the
            source knows, or 224.
        mean: for each channel, pixels from 0 to 1; None for what the source knows, ImageNet's for
            three channels, or 0.5.
        std: like `mean`.
        output_index: which of the model's several outputs are the logits; None for the first that
            can be.
        head: what the logits mean, `single-label` or `multi-label`; `auto` for multi-label where a
            model of several outputs ends in a sigmoid.

    Raises:
        InputError: if an argument is out of range, the model cannot be built, the weights do not
            fit, there is no batch norm, or the model does not turn such images into logits.
    """
    if not isinstance(name, str | nn.Module):
        raise InputError(f"classifier: expected a name or a torch.nn.Module, got {kind(name)}")
    if isinstance(image_size, tuple | list) and len(image_size) == 2:
        image_size = "x".join(map(str, image_size))
    given = {"num_classes": num_classes, "image_size": image_size, "mean": mean, "std": std}
    given |= {"output_index": output_index, "head": head}
    config = RunConfig().changed(**given)
    file = None if weights is None else checked_path("weights", weights)
    size = parse_image_size(config.image_size)
    return loading.load_classifier(
        name,
        file,
        config.num_classes,
        size,
        config.mean,
        config.std,
        config.output_index,
        head=config.head,
    )


@alone()
@usual_torch()
def train_generator(
    classifier: Classifier,
    config: GeneratorConfig | None = None,
    *,
    execution: ExecutionConfig | None = None,
    seed: int = 0,
    **settings: Any,
) -> ConditionalGenerator:
    """Learn a conditional generator of labelled images from a classifier alone.

    Args:
        classifier: what `load_classifier` gave; moved to the device.
        config: how it is learned; the defaults for None.
        execution: on which device and how; the defaults for None.
        seed: of all random numbers.
        settings: options of the command line, which win, such as `synthesis_steps`, `device`.

    Returns:
        The generator in evaluation mode, on the device.

    Raises:
        InputError: if a setting is unknown or out of range, or numbers cease to be finite.
    """
    check_classifier(classifier)
    with seeded_run(classifier, seed, settings, generator=config, execution=execution) as run:
        if not run.config.learns_generator:
            raise InputError("preset: instant learns no generator, leave it out or take another")
        trainings = {GENERATOR: generator_training(run.config, classifier)}
        return generator_stage.learn_generator(with_open_precision(run, trainings))


def generate_images(
    generator: ConditionalGenerator, count: int, *, seed: int = 0, pixels: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Generate labelled images, as many of each class as of the others.

    Args:
        generator: what `train_generator` gave.
        count: of the images.
        seed: of all random numbers; the same seed gives the same images.
        pixels: give uint8 from 0 to 255 instead of what the classifier takes.

    Returns:
        An iterator over batches on the CPU: images [B, C, H, W], normalized float32 unless
        `pixels`, and labels, int64 [B]; where several may apply [B, num_classes] of 0 and 1.

    Raises:
        InputError: if an argument is out of range or of another type.
    """
    check_weights(generator)
    count = check_whole_number("count", count, 1, LARGEST_COUNT)
    seed = check_whole_number("seed", seed, 0, LARGEST_SEED)
    return image_batches(generator.eval(), generated_images(generator, count, seed), pixels)


def image_batches(
    generator: ConditionalGenerator, batches: Iterator[tuple[Tensor, Tensor]], pixels: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of a generator; between two of them torch is the user's, and other threads'."""
    while True:
        with alone(), usual_torch():
            batch = next(batches, None)
            if batch is None:
                return
            images, labels = batch
            images = to_pixels(generator, images) if pixels else images
        yield images, labels


@alone()
@usual_torch()
def quantize(
    classifier: Classifier,
    images: ImageSource | None = None,
    config: QuantizationConfig | None = None,
    *,
    execution: ExecutionConfig | None = None,
    seed: int = 0,
    **settings: Any,
) -> QuantizedClassifier:
    """Convert a classifier to a quantized one, with the ranges that fine-tuning starts from.

    Args:
        classifier: what `load_classifier` gave; moved to the device, and left in floats.
        images: a generator, or batches of normalized images; None for none, as with the preset
            `instant`: batch-norm statistics tell everything.
        config: how it is quantized; the defaults for None.
        execution: on which device and how; the defaults for None.
        seed: of all random numbers.
        settings: options of the command line, which win, such as `bits`, `batch_size`, `device`.

    Returns:
        The student, which maps images [N, C, H, W] to logits [N, num_classes].

    Raises:
        InputError: if a setting is unknown or out of range, the classifier cannot be converted,
            images do not fit it, there are too few batches, or labels are needed and missing.
    """
    check_classifier(classifier)
    if images is None:
        settings = {**settings, "preset": "instant"}
    else:
        check_images(images, classifier)
    with seeded_run(classifier, seed, settings, quantization=config, execution=execution) as run:
        if images is None:
            return student_stages.instant_student(run)
        if not run.config.learns_generator:
            raise InputError("preset: instant takes no images; give none, or leave the preset out")
        batches = batches_of(run, images, run.config.generator.batch_size)
        return student_stages.calibrated_student(run, variant_of(images), batches)


@alone()
@usual_torch()
def fine_tune(
    student: QuantizedClassifier,
    classifier: Classifier,
    images: ImageSource,
    config: FineTuningConfig | None = None,
    *,
    execution: ExecutionConfig | None = None,
    seed: int = 0,
    **settings: Any,
) -> QuantizedClassifier:
    """Fine-tune a student in place, to answer as the float classifier does.

    Args:
        student: what `quantize` gave; moved to the device.
        classifier: the float classifier that it was made from; moved to the device.
        images: a generator, or batches of normalized images; a sequence of batches is repeated,
            an iterator needs as many as there are steps.
        config: how it is fine-tuned; the defaults for None.
        execution: on which device and how; the defaults for None.
        seed: of all random numbers.
        settings: options of the command line, which win, such as `fine_tuning_steps`, `device`.

    Returns:
        The student.

    Raises:
        InputError: if a setting is unknown or out of range, the student is of another classifier,
            images do not fit it, there are too few batches, labels are needed and missing, numbers
            cease to be finite, or the generator is to be trained meanwhile, which only
            `python -m zscgan_ext.train` does.
    """
    check_classifier(classifier)
    check_student(student, classifier)
    check_images(images, classifier)
    if settings.get("training", "staged") != "staged":
        raise InputError(
            "training: expected staged, only python -m zscgan_ext.train trains the generator "
            "meanwhile"
        )
    with seeded_run(classifier, seed, settings, fine_tuning=config, execution=execution) as run:
        lay_out(student.to(run.device), run.execution.memory_format)
        trainings = {FINE_TUNING: fine_tuning(run.config, classifier, student)}
        run = with_open_precision(run, trainings)
        batches = batches_of(run, images, run.config.fine_tuning.batch_size)
        student_stages.fine_tune(run, variant_of(images), student, batches)
    return student


@usual_torch()
def evaluate(
    model: Callable[[Tensor], Tensor],
    classifier: Classifier,
    data: str | Path | Images | None = None,
    batch_size: int = EVALUATION_BATCH,
) -> Evaluation | MultiLabelEvaluation:
    """Measure a quantized classifier on labelled images, beside the float one.

    Args:
        model: maps normalized images to logits: a student, what `load_quantized` gave, or the
            model of the classifier itself.
        classifier: the float classifier, on any device.
        data: `fashion-mnist`, a folder of idx files or an ImageFolder tree, for a classifier of
            several labels a folder with `labels.csv`, or opened images; None for the test images
            that come with a bundled classifier.
        batch_size: images in a batch.

    Returns:
        Top-1, top-5, agreement, calibration error, latency, and results of each class; where
        several labels apply mean average precision, agreement and results of each label.

    Raises:
        InputError: if there are no such images, they or the model do not fit, or the batch size
            is below 1.
    """
    check_classifier(classifier)
    answers = checked_answers(model, classifier)
    check_batch_size(batch_size)
    if isinstance(data, Path):
        data = str(data)
    if data is not None and not isinstance(data, str):
        data = checked_data(data, classifier)
    float_model, preprocessing = classifier.model, classifier.preprocessing
    facts = (classifier.name, preprocessing, classifier.class_names, classifier.head)
    opened = open_data(data, *facts)
    device = device_of(model) if isinstance(model, nn.Module) else torch.device("cpu")
    if device_of(float_model) != device:
        float_model = copy.deepcopy(float_model).to(device)
    return measure(EvaluationTarget(answers, float_model, *facts), opened, batch_size, device)


@alone()
@usual_torch()
def export(
    classifier: Classifier,
    student: QuantizedClassifier,
    images: ImageSource | None,
    folder: str | Path,
    formats: Sequence[str] = ("safetensors",),
    target: str | None = None,
    input: str = "float32",
    resize_input: bool = False,
) -> dict[str, Any]:
    """Write a student as files to deploy, each compared with the student before it is written.

    Args:
        classifier: the float classifier that it was made from.
        student: what `quantize` or `fine_tune` gave.
        images: to compare on: a generator, or batches of normalized images; None for a few random
            ones, which tell as well whether files and student compute the same.
        folder: for `model.onnx`, `model.pt2`, `model.safetensors` and `export.json`; made where it
            is missing.
        formats: `onnx`, `pt2`, `safetensors`.
        target: runtime that is to execute the files, one of those of `quantize`; that which the
            student was quantized for with None.
        input: what the ONNX file takes: `float32` for normalized images [N, C, H, W], `uint8` for
            pixels [N, H, W, C], `uint8-nchw` for pixels [N, C, H, W].
        resize_input: whether an ONNX file of pixels takes pictures of any size.

    Returns:
        What `export.json` holds: bytes, agreement, differences, latencies, versions.

    Raises:
        InputError: if a format is unknown or its packages are missing, the student is of another
            classifier, images do not fit it, a node cannot be exported, a file differs from the
            student, or something stands in its place that no export wrote.
    """
    formats, form = check_formats(formats), checked_form(target, input, resize_input)
    folder = checked_path("folder", folder)
    check_classifier(classifier)
    check_student(student, classifier)
    if images is None:
        shape = classifier.preprocessing.shape
        images = [random_images(exporter.CHECKED_IMAGES, shape, torch.zeros(()))]
    check_images(images, classifier)
    classifier, student = copy.deepcopy((classifier, student))
    lay_out(student.to("cpu").requires_grad_(False), torch.channels_last)
    with seeded_run(classifier, 0, {"device": "cpu"}) as run:
        if isinstance(images, ConditionalGenerator):
            source: ImageSource = copy.deepcopy(images)
        else:
            source = list(islice(images, exporter.BATCHES))
        batches = batches_of(run, source, exporter.BATCH)
        pictures = [batch for batch, _ in islice(batches, exporter.BATCHES)]
    return exporter.export(classifier, student, pictures, folder, formats, form)


# ---- from objects to a run ----------------------------------------------------------------------


@contextmanager
def seeded_run(
    classifier: Classifier, seed: int, settings: Mapping[str, Any], **sections: object
) -> Iterator[Run]:
    """Start a run that keeps no files; torch's default generators are left as they were.

    Args:
        classifier: of the run.
        seed: of all random numbers.
        settings: options of the command line by name.
        sections: configurations as `RunConfig` has them; None for the defaults.
    """
    config = configured(seed, settings, sections)
    device = config.execution.resolved_device()
    is_gpu = device.type == "cuda"
    current = torch.cuda.device(device) if is_gpu else nullcontext()
    with current, torch.random.fork_rng([device] if is_gpu else []):
        run = new_run(config, classifier, NoFolder(), choose_execution(config.execution, device))
        run.execution.apply()
        yield run


def with_open_precision(run: Run, trainings: Mapping[str, Training]) -> Run:
    """Choose the precision of trainings, where the run leaves it open."""
    if not is_open(run.config.execution.precision, run.execution):
        return run
    return replace(run, execution=with_chosen_precision(run.execution, trainings))


def configured(seed: int, settings: Mapping[str, Any], sections: Mapping[str, object]) -> RunConfig:
    """Return a configuration with these sections, in which settings win.

    Raises:
        InputError: if one is unknown, of another type or out of range.
    """
    given = {name: section for name, section in sections.items() if section is not None}
    for name, section in given.items():
        argument = name if name == "execution" else "config"
        check_section(argument, section, SECTIONS[name])
    config = RunConfig(seed=seed, **given)  # type: ignore[arg-type]
    return config.changed(**{**defaults_of(settings), **settings})


def variant_of(images: ImageSource) -> Variant:
    """Return the variant that a student of these images is."""
    return FINE_TUNED if isinstance(images, ConditionalGenerator) else GIVEN_FINE_TUNED


def batches_of(run: Run, images: ImageSource, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images [N, C, H, W] and their labels on the run's device, forever.

    Args:
        run: that is given them.
        images: a generator, or batches.
        batch_size: N of a generator's batches; others keep theirs.
    """
    if isinstance(images, ConditionalGenerator):
        generator = images.to(run.device).eval()
        rng = run.rng(RandomStream.GENERATED_IMAGES)
        return generator_stage.generated_batches(run, generator, rng, batch_size)
    return given_batches(run, images)


def given_batches(run: Run, images: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a user, from the start again where that is possible.

    Raises:
        InputError: when an iterator ends, there is no batch, one does not fit the classifier, or
            labels are needed and missing.
    """
    while True:
        count = 0
        for batch in images:
            count += 1
            pixels, labels = checked_batch(batch, run.classifier)
            if labels is None and run.config.fine_tuning.label_weight > 0:
                raise InputError("images: expected labels too, which label_weight needs")
            if labels is None:
                none = torch.zeros(len(pixels), dtype=torch.int64)
                labels = run.classifier.head.only(none, run.classifier.num_classes)
            pixels = to_memory_format(pixels.to(run.device), run.execution.memory_format)
            yield pixels, labels.to(run.device)
        if count == 0 or isinstance(images, Iterator):
            raise InputError(f"images: expected more batches, got {count}")
