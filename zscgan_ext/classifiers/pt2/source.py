"""Classifiers that `torch.export.save` wrote: `FILE.pt2`."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from zscgan_ext.classifiers.exported_program import images_of, user_outputs, with_one_output
from zscgan_ext.classifiers.outputs import index_of_logits
from zscgan_ext.classifiers.pt2.archive import checked_archive
from zscgan_ext.classifiers.sources.source import ClassifierSource, usual_preprocessing
from zscgan_ext.classifiers.tracing import trace_program
from zscgan_ext.errors import InputError, first_line
from zscgan_ext.images.limits import LARGEST_IMAGE_SIZE, shortest
from zscgan_ext.images.preprocessing import Preprocessing

SUFFIX = ".pt2"
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # the environment variable that torch.load obeys


@contextmanager
def nothing_unpickled() -> Iterator[None]:
    """Let torch.load read only tensors, whatever its caller asks for."""
    before = os.environ.get(WEIGHTS_ONLY)
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        del os.environ[WEIGHTS_ONLY]
        if before is not None:
            os.environ[WEIGHTS_ONLY] = before


@contextmanager
def nothing_logged() -> Iterator[None]:
    """Keep torch from telling at length of archives of its earlier versions."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def root_cause(error: BaseException) -> BaseException:
    """Return the error that others were raised for; torch's own quote whole nodes."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


class ProgramSource(ClassifierSource):
    """A file of a `torch.export` program, which is trained and has all but its normalization.

    The program computes what it wants of images, but runs no code: see `archive.py`.

    Args:
        name: the file.
        output_index: of the logits among its outputs; None for the first that can be that.
    """

    image_shape: tuple[int, int, int] = (0, 0, 0)  # (C, H, W), known once it is built

    def __init__(self, name: str, output_index: int | None = None) -> None:
        super().__init__(name)
        self.output_index = output_index

    def build(self, num_classes: int | None, trained: bool) -> nn.Module:
        """Read the program; weights of another file take the names of the graph's modules."""
        file = Path(self.name)
        archive = checked_archive(file)
        try:
            with nothing_unpickled(), nothing_logged():
                program = torch.export.load(archive)
            self.image_shape = image_shape(file, images_of(program))
            return trace_program(self.with_logits(program), self.image_shape)
        except InputError:
            raise
        except Exception as error:  # what was checked may still not fit together
            reason = first_line(root_cause(error))
            raise InputError(
                f"classifier: {file} cannot be read as a torch.export program ({reason})"
            ) from None

    def with_logits(self, program: ExportedProgram) -> ExportedProgram:
        """Return a program that gives the logits only, of one that may give more."""
        outputs = [of_two_images(output) for output in user_outputs(program)]
        if not outputs:  # something else, which is refused where the program is traced
            return program
        index = index_of_logits(self.name, outputs, self.output_index)
        return program if len(outputs) == 1 or index is None else with_one_output(program, index)

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        """Return the program's image shape, and ImageNet's normalization for three channels."""
        channels, height, width = self.image_shape
        return usual_preprocessing(channels, shortest(height, width))


def of_two_images(output: Any) -> Any:
    """Return an output of a program as two images would give it, without values."""
    if not isinstance(output, Tensor):
        return output
    shape = [size if isinstance(size, int) else 2 for size in output.shape]
    return torch.empty(shape, dtype=output.dtype, device="meta")


def image_shape(file: Path, images: list[int | None]) -> tuple[int, int, int]:
    """Return the shape of one image (C, H, W), of that of a batch with None for what may vary.

    Raises:
        InputError: unless a batch may have any number of images of one size.
    """
    batch, *shape = images or [None]
    if batch is not None:
        raise InputError(
            f"classifier: {file}: expected batches of any size, got {batch} only; export it with "
            "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)"
        )
    channels, height, width = shape if len(shape) == 3 else (None, None, None)
    if channels is None or height is None or width is None:
        raise InputError(
            f"classifier: {file}: expected images [N, C, H, W] of one size, got {shape}"
        )
    if max(height, width) > LARGEST_IMAGE_SIZE:
        raise InputError(
            f"classifier: {file} takes images of {height}x{width} pixels, accepted are "
            f"{LARGEST_IMAGE_SIZE} or fewer"
        )
    return channels, height, width
