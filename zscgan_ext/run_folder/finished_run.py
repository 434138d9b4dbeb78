"""Reading back what a run left in its folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from zscgan_ext.classifiers.loading import Classifier, classifier_of, find_source
from zscgan_ext.classifiers.trials import random_images
from zscgan_ext.classifiers.trust import (
    allowed_classifier,
    check_model_size,
    is_of_a_library,
)
from zscgan_ext.classifiers.weights import load_weights
from zscgan_ext.config.command_line import CONFIG, parse_config
from zscgan_ext.config.configs import GeneratorConfig, RunConfig
from zscgan_ext.config.values import parse_image_size
from zscgan_ext.errors import InputError, one_line
from zscgan_ext.images.memory_format import lay_out, to_channels_last
from zscgan_ext.ops.implementation import require_implementation
from zscgan_ext.quantization.conversion import student_of
from zscgan_ext.quantization.layer_widths import described_widths, widths_described
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.regular_file import regular_file_size
from zscgan_ext.run_folder.files import GENERATOR, INSTANT_STUDENT, LAYER_BITS, STUDENT
from zscgan_ext.run_folder.made_with import (
    MadeWith,
    check_classifier,
    check_file,
    check_settings,
    check_widths,
    read_made_with,
)
from zscgan_ext.run_folder.records import read_layer_bits
from zscgan_ext.synthesis.generator import (
    ConditionalGenerator,
    default_random_seeded,
    generator_of,
)
from zscgan_ext.synthesis.generator_file import require_weights

CPU = torch.device("cpu")
BITS_OF_FLOAT = 32
RANDOM_IMAGES = 8  # enough to compare files with the student


@dataclass(frozen=True)
class FinishedRun:
    """A run's configuration, the float classifier and the student, on the CPU."""

    folder: Path
    config: RunConfig
    classifier: Classifier
    student: QuantizedClassifier
    made_with: MadeWith | None = None  # as its student says; None for runs of earlier versions

    def new_generator(self) -> ConditionalGenerator:
        """Return a generator of the run's shape that has learned nothing, always the same."""
        with default_random_seeded(CPU, self.config.seed):
            return generator_of(self.config.generator, self.classifier)

    def generator(self) -> ConditionalGenerator:
        """Return the generator that the run learned."""
        generator = self.new_generator()
        load_weights(generator, self.folder / GENERATOR)
        return generator.eval()

    def comparison_images(self, batch_size: int, batches: int) -> list[Tensor]:
        """Return images to compare files with the student on, always the same.

        They are the generator's, `batches` of [batch_size, C, H, W]. Of a run without a generator
        it is one batch of a few random ones: nothing but equality is looked for on them.
        """
        if self.config.learns_generator:
            return self.generated_images(batch_size, batches)
        images = random_images(RANDOM_IMAGES, self.classifier.preprocessing.shape, torch.zeros(()))
        return [to_channels_last(images)]

    @torch.no_grad()
    def generated_images(self, batch_size: int, batches: int) -> list[Tensor]:
        """Return batches of the generator's images, [batch_size, C, H, W], always the same."""
        generator, seed = self.generator(), self.config.seed
        rng = torch.Generator().manual_seed(seed)
        with default_random_seeded(CPU, seed):
            return [
                to_channels_last(generator(*generator.random_inputs(batch_size, rng)))
                for _ in range(batches)
            ]


def read_run_config(folder: Path) -> RunConfig:
    """Return the configuration of a run, to be used on the CPU."""
    on_the_cpu = ("--device=cpu", "--precision=float32", "--cuda-graphs=off", "--no-compile")
    return parse_config(["--config", str(folder / CONFIG), *on_the_cpu])


def require_files(folder: Path, *names: str) -> None:
    """Require files of a run that went to its end.

    Raises:
        InputError: naming the first that is missing.
    """
    for name in names:
        if not os.path.isfile(folder / name):  # Path raises where a name is too long
            raise InputError(f"{folder}: expected the folder of a finished run, it lacks {name}")


def require_finished(folder: Path) -> None:
    """Require the folder of a run that went to its end.

    Raises:
        InputError: naming the first file that is missing.
    """
    require_files(folder, CONFIG, STUDENT)


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """Require that no other run is written into a folder while it is read.

    Raises:
        InputError: if settings and student may be those of two runs.
    """
    before = versions(folder)
    yield
    if versions(folder) != before:
        raise InputError(f"{folder}: was written anew while it was read; try again after that")


def versions(folder: Path) -> list[tuple[int, int]]:
    """Return what changes when the settings or the student of a run are written anew."""
    try:
        found = [os.stat(folder / name) for name in (CONFIG, STUDENT)]
    except OSError:
        return []
    return [(status.st_ino, status.st_mtime_ns) for status in found]


def check_generator_size(file: Path, config: GeneratorConfig, classifier: Classifier) -> None:
    """Require that a file is as large as the generator that a run's settings describe.

    Raises:
        InputError: if the file has too few bytes.
    """
    shape = classifier.num_classes, config.latent_dim, classifier.preprocessing
    require_weights(file, regular_file_size(file), shape)


def open_run(folder: Path, classifier: str | None = None) -> FinishedRun:
    """Read the folder of a run that went to its end.

    Args:
        folder: of the run.
        classifier: its classifier as the user names it; needed where it is of no library, so that
            no folder decides which code runs.

    Raises:
        InputError: if a file is missing or does not fit the classifier, or `classifier` is needed.
    """
    require_implementation()
    require_finished(folder)
    with unchanged(folder):
        return read_run(folder, classifier)


def read_run(folder: Path, classifier: str | None) -> FinishedRun:
    """Read the folder of a run that has its files; raises as `open_run`."""
    stored = config = read_run_config(folder)
    if config.learns_generator:
        require_files(folder, GENERATOR)
    allowed = allowed_classifier(config.classifier, classifier, folder / CONFIG)
    config = replace(config, classifier=allowed)
    if is_of_a_library(allowed):
        held = regular_file_size(folder / STUDENT)
        shape = config.num_classes, parse_image_size(config.image_size)
        check_model_size(folder / STUDENT, held, BITS_OF_FLOAT, find_source(allowed), *shape)
    loaded = classifier_of(config, size_from=folder / CONFIG)
    if config.learns_generator:
        check_generator_size(folder / GENERATOR, config.generator, loaded)
    made_with = checked_made_with(folder, stored, loaded)
    if config.learns_generator:
        check_file(folder / GENERATOR, made_with)
    chosen = None
    if config.quantization.chooses_layer_bits:
        chosen = widths_described(read_layer_bits(folder))
    student = student_of(config.quantization, loaded, chosen)
    if chosen is not None and chosen != widths_described(described_widths(student)):
        raise InputError(
            f"{folder / LAYER_BITS}: expected the width of each layer, some are missing"
        )
    if chosen is not None:
        check_widths(folder, chosen, made_with or {})
    load_weights(student, folder / STUDENT)
    student.quantize_activations()
    lay_out(student.requires_grad_(False), torch.channels_last)
    if (folder / INSTANT_STUDENT).exists():  # until the run has chosen
        print(
            one_line(
                f"warning: {folder} is of a run that has not come to its end; what it holds is the "
                "student from batch-norm statistics, which nothing was learned for"
            ),
            flush=True,
        )
    return FinishedRun(folder, config, loaded, student, made_with)


def checked_made_with(folder: Path, stored: RunConfig, loaded: Classifier) -> MadeWith | None:
    """Return what a run was made with, which its settings and classifier are.

    Args:
        folder: of the run.
        stored: the settings that it holds.
        loaded: its classifier.

    Raises:
        InputError: if one of them was changed after the run.
    """
    made_with = read_made_with(folder / STUDENT)
    if made_with is None:
        print(
            one_line(
                f"warning: {folder / STUDENT} does not say what it was made with, as of earlier "
                f"versions; {CONFIG} and the classifier are taken as they are"
            ),
            flush=True,
        )
        return None
    check_settings(folder, stored, made_with)
    check_classifier(loaded.name, loaded.model, loaded.preprocessing.shape, made_with)
    return made_with
