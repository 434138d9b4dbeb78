"""Classifiers that `torch.export.save` wrote: `FILE.pt2`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from zscgan_ext.classifiers.exported_program import check_output, images_of
from zscgan_ext.classifiers.sources.source import ClassifierSource, usual_preprocessing
from zscgan_ext.classifiers.tracing import trace_program
from zscgan_ext.errors import InputError, first_line
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.regular_file import regular_file_size, utf8_path

SUFFIX = ".pt2"
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # the environment variable that torch.load obeys


@contextmanager
def nothing_unpickled() -> Iterator[None]:
    """Let torch.load read tensors alone, whatever its caller asks for."""
    before = os.environ.get(WEIGHTS_ONLY)
    os.environ[WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        del os.environ[WEIGHTS_ONLY]
        if before is not None:
            os.environ[WEIGHTS_ONLY] = before


class ProgramSource(ClassifierSource):
    """A file of a `torch.export` program, which is trained and has all but its normalization.

    A program is code as a function is: load files that you trust.
    """

    image_shape: tuple[int, int, int] = (0, 0, 0)  # (C, H, W), known once it is built

    def build(self, num_classes: int | None, trained: bool) -> nn.Module:
        """Read the program; weights of another file take the names of the graph's modules."""
        file = Path(self.name)
        try:
            regular_file_size(file)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"classifier: {file} cannot be read ({reason})") from None
        try:
            with nothing_unpickled(), utf8_path(file) as path:
                program = torch.export.load(path)
        except Exception as error:  # a damaged file raises nearly anything
            raise InputError(
                f"classifier: {file} cannot be read as a torch.export program ({first_line(error)})"
            ) from None
        check_output(program)
        batch, *shape = images_of(program)
        channels, height, width = shape if len(shape) == 3 else (None, None, None)
        if batch is not None:
            raise InputError(
                f"classifier: {file} takes batches of {batch} alone; export it with "
                "dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)"
            )
        if channels is None or height is None or height != width:
            raise InputError(
                f"classifier: {file} takes {shape}, needed are square images [N, C, H, W] of one "
                "size"
            )
        self.image_shape = (channels, height, height)
        return trace_program(program, self.image_shape)

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        """Return the program's image shape, and ImageNet's normalization for three channels."""
        channels, size, _ = self.image_shape
        return usual_preprocessing(channels, size)
