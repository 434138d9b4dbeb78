"""What a file may decide: which classifiers it may name, and how much memory they may take."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zscgan_ext.classifiers.sources.libraries import TIMM, TORCHVISION
from zscgan_ext.classifiers.sources.source import ClassifierSource
from zscgan_ext.errors import InputError
from zscgan_ext.images.limits import ImageSize, shortest, sides, size_text
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS

BITS_OF_BYTE = 8
LARGEST_FEATURE_MAPS = 1 << 26  # numbers of one image between two layers
LARGEST_OF_OWN = 1 << 24  # the same in a classifier of one's own, of which a file gives the size
LEAST_SHARE = 0.5  # of a classifier's weights in a file: what only training uses may be left out


def is_of_a_library(name: str | nn.Module) -> bool:
    """Return True if a classifier is bundled, of torchvision or of timm: code that is installed."""
    return isinstance(name, str) and (
        name in BUNDLED_CLASSIFIERS or name.startswith((TORCHVISION, TIMM))
    )


def allowed_classifier(named: str, given: str | None, file: Path) -> str:
    """Return the classifier to load for what a file names.

    Args:
        named: in the file.
        given: by the user; None where no classifier was.
        file: that names it.

    Raises:
        InputError: if it is of no library, and nothing was given: a file does not decide which
            code runs.
    """
    if given is not None:
        return given
    if not is_of_a_library(named):
        raise InputError(
            f"classifier: {file} names {named!r}, which is of no library; if you trust its code, "
            "give it yourself as --classifier"
        )
    return named


def gives_option(arguments: Sequence[str], option: str) -> bool:
    """Return True if arguments hold an option, as `--option VALUE` or as `--option=VALUE`."""
    return any(each == option or each.startswith(f"{option}=") for each in arguments)


# ---- size --------------------------------------------------------------------------------------


def check_model_size(
    file: Path,
    held: int,
    bits: int,
    source: ClassifierSource,
    num_classes: int | None,
    image_size: ImageSize | None,
) -> None:
    """Require that a file is as large as the classifier that it names.

    A small file could otherwise name a large classifier, or images that fill the memory.

    Args:
        file: for messages.
        held: bytes that it has.
        bits: that it has of each weight, at least.
        source: of the classifier.
        num_classes: as the source takes them.
        image_size: pixels; None for those of the source.

    Raises:
        InputError: if the file has too few bytes, or feature maps are huge.
    """
    weights, largest = model_size(source, num_classes, image_size)
    if held < LEAST_SHARE * weights * bits / BITS_OF_BYTE:
        raise InputError(
            f"{file}: has {held:,} bytes, too few for the {weights:,} weights of {source.name}"
        )
    require_feature_maps(file, source.name, largest, image_size)


def require_feature_maps(
    file: Path,
    name: str,
    largest: int,
    image_size: ImageSize | None,
    most: int = LARGEST_FEATURE_MAPS,
) -> None:
    """Require feature maps of at most so many numbers, as a file may ask for.

    Raises:
        InputError: if they are huge.
    """
    if largest > most:
        shown = None if image_size is None else size_text(image_size)
        raise InputError(
            f"{file}: image_size {shown} gives feature maps of {largest:,} numbers in "
            f"{name}, accepted from a file are {most:,}"
        )


def check_image_size(file: Path, name: str, model: nn.Module, shape: tuple[int, int, int]) -> None:
    """Require that the images of a file do not fill the memory in a classifier that is built.

    Args:
        file: for messages.
        name: of the classifier.
        model: that takes them.
        shape: of an image, (C, H, W).

    Raises:
        InputError: if images or feature maps are huge.
    """
    size = shortest(*shape[1:])
    for largest in (math.prod(shape), largest_feature_map(model, shape)):
        require_feature_maps(file, name, largest, size, LARGEST_OF_OWN)


@torch.no_grad()
def largest_feature_map(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return the numbers of the largest output of any module for one image, or of the image.

    Nothing is computed for that. What is not a module's output is not seen.
    """
    without_values = {
        name: value.to("meta")
        for name, value in (*model.named_parameters(), *model.named_buffers())
    }
    with largest_output(model) as largest, contextlib.suppress(Exception):
        functional_call(model, without_values, (torch.zeros(1, *shape, device="meta"),))
    return max(math.prod(shape), largest[0])


@contextlib.contextmanager
def largest_output(model: nn.Module) -> Iterator[list[int]]:
    """Keep the numbers of the largest output of any module, in a list of one."""
    largest = [0]

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            largest[0] = max(largest[0], output.numel())

    hooks = [module.register_forward_hook(look) for module in model.modules()]
    try:
        yield largest
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def model_size(
    source: ClassifierSource, num_classes: int | None, image_size: ImageSize | None
) -> tuple[int, int]:
    """Return how many weights a classifier has, and numbers its largest feature map of one image.

    It is built without memory for that. Both are 0 where it cannot be.
    """
    try:
        with torch.device("meta"):
            model = source.build(num_classes, trained=False).eval()
            weights = sum(parameter.numel() for parameter in model.parameters())
            usual = source.preprocessing(model)
            size = image_size or usual.image_size
            images = torch.zeros(1, usual.channels, *sides(size))
    except Exception:  # some build tensors of numbers that they compute
        return 0, 0
    # What does not fit is reported when it is loaded.
    with largest_output(model) as largest, contextlib.suppress(Exception):
        model(images)
    return weights, largest[0]
