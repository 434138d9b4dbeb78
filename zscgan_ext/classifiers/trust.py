"""Which classifiers a file may name, and which only the user may."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from zscgan_ext.classifiers.sources import timm_models, torchvision_models
from zscgan_ext.errors import InputError
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS

LIBRARIES = (torchvision_models.PREFIX, timm_models.PREFIX)


def is_of_a_library(name: str | nn.Module) -> bool:
    """Tell whether a classifier is bundled, of torchvision or of timm: code that is installed."""
    return isinstance(name, str) and (name in BUNDLED_CLASSIFIERS or name.startswith(LIBRARIES))


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
    """Tell whether arguments hold an option, as `--option VALUE` or as `--option=VALUE`."""
    return any(each == option or each.startswith(f"{option}=") for each in arguments)
