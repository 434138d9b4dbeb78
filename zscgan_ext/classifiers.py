"""Loading the classifier to quantize: a bundled one, or any model that a function returns."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zscgan_ext.datasets import FASHION_MNIST_CLASSES
from zscgan_ext.errors import InputError, did_you_mean, first_line
from zscgan_ext.preprocessing import Preprocessing
from zscgan_ext.weights import load_weights
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_SIZE = 224  # pixels


@dataclass(frozen=True)
class Classifier:
    """A trained float classifier: in eval mode, float32, on the CPU, without gradients."""

    name: str
    model: nn.Module  # [N, C, H, W] to logits [N, num_classes]
    num_classes: int
    preprocessing: Preprocessing
    class_names: tuple[str, ...]


def load_classifier(
    name: str,
    weights: Path | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
) -> Classifier:
    """Load a trained classifier and try it on two blank images.

    Args:
        name: a bundled classifier, or `module:function` for a function that returns a model and
            takes nothing, or `num_classes`. The current folder is importable.
        weights: safetensors or state-dict file; None for the weights that come with the model.
        num_classes: what the model must give; None to take what it gives.
        image_size: height and width in pixels; None for the bundled classifier's, or 224.
        mean: for each channel, pixels from 0 to 1; None for the bundled classifier's, ImageNet's
            for three channels, or 0.5.
        std: like `mean`.

    Raises:
        InputError: if the model cannot be built, the weights do not fit, there is no batch norm,
            or the model does not turn such images into logits.
    """
    if name in BUNDLED_CLASSIFIERS:
        model, preprocessing, class_names = load_bundled(name, weights)
    else:
        model = build_classifier(name, num_classes)
        preprocessing, class_names = default_preprocessing(name, model), ()
    preprocessing = override(preprocessing, image_size, mean, std)
    if weights is not None:
        load_weights(model, weights)
    model.to("cpu", torch.float32).eval().requires_grad_(False)
    check_state(name if weights is None else str(weights), model)
    count = count_logits(name, model, preprocessing)
    if num_classes not in (None, count):
        raise InputError(f"num_classes: {num_classes}, but {name} gives {count} logits")
    class_names = class_names or tuple(str(index) for index in range(count))
    return Classifier(name, model, count, preprocessing, class_names)


def build_classifier(name: str, num_classes: int | None = None) -> nn.Module:
    """Build the model that a name stands for, a bundled one without its weights.

    Args:
        name: a bundled classifier or `module:function`.
        num_classes: passed to a function that takes it.

    Raises:
        InputError: if the model cannot be built.
    """
    if name in BUNDLED_CLASSIFIERS:
        return BUNDLED_CLASSIFIERS[name].build()
    if ":" in name:
        return build_from_function(name, num_classes)
    hint = did_you_mean(name, BUNDLED_CLASSIFIERS)
    accepted = f"{', '.join(BUNDLED_CLASSIFIERS)} and module:function"
    raise InputError(f"classifier: unknown {name!r}{hint or ','} accepted are {accepted}")


def load_bundled(
    name: str, weights: Path | None
) -> tuple[nn.Module, Preprocessing, tuple[str, ...]]:
    """Build a bundled classifier, with its own weights unless others are to follow."""
    bundled = BUNDLED_CLASSIFIERS[name]
    model = build_classifier(name)
    if weights is not None:
        return model, bundled.preprocessing, ()
    load_weights(model, bundled.weights)
    return model, bundled.preprocessing, FASHION_MNIST_CLASSES


def build_from_function(name: str, num_classes: int | None) -> nn.Module:
    """Call the function that `module:function` names."""
    function = import_function(name)
    try:
        takes_num_classes = num_classes is not None and accepts(function, "num_classes")
        model = function(num_classes=num_classes) if takes_num_classes else function()
    except Exception as error:
        raise InputError(
            f"classifier: {name} raised {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        found = type(model).__name__
        raise InputError(f"classifier: {name} returned a {found}, needed is a torch.nn.Module")
    return model


def import_function(name: str) -> Callable[..., Any]:
    """Import what `module:function` names, from the current folder too."""
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(
            f"classifier: importing {module_name!r} raised {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        hint = did_you_mean(function_name, dir(module))
        raise InputError(f"classifier: {module_name} has no function {function_name!r}{hint}")
    result: Callable[..., Any] = function
    return result


def accepts(function: Callable[..., Any], argument: str) -> bool:
    """Tell whether a function takes this keyword argument."""
    parameters = inspect.signature(function).parameters.values()
    return any(
        parameter.name == argument or parameter.kind is parameter.VAR_KEYWORD
        for parameter in parameters
    )


def default_preprocessing(name: str, model: nn.Module) -> Preprocessing:
    """Take the channels of the first convolution, ImageNet's size and normalization."""
    convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if convolution is None:
        raise InputError(f"classifier: {name} has no Conv2d layer, needed is an image classifier")
    channels = convolution.in_channels
    if channels == len(IMAGENET_MEAN):
        return Preprocessing(channels, IMAGENET_SIZE, IMAGENET_MEAN, IMAGENET_STD)
    return Preprocessing(channels, IMAGENET_SIZE, (0.5,) * channels, (0.5,) * channels)


def override(
    preprocessing: Preprocessing,
    image_size: int | None,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> Preprocessing:
    """Replace what was given."""
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != preprocessing.channels:
            raise InputError(
                f"{name}: {len(values)} value(s), the classifier has {preprocessing.channels} "
                "input channel(s)"
            )
    return replace(
        preprocessing,
        image_size=image_size or preprocessing.image_size,
        mean=mean or preprocessing.mean,
        std=std or preprocessing.std,
    )


def check_state(source: str, model: nn.Module) -> None:
    """Require finite values and a batch norm with running statistics."""
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and not bool(value.isfinite().all()):
            raise InputError(f"weights: {source} has NaN or infinite values in {name}")
    layers = (m for m in model.modules() if isinstance(m, _BatchNorm))
    if not any(layer.running_mean is not None for layer in layers):
        raise InputError(
            "classifier: needs at least one BatchNorm layer with running statistics, found none"
        )


@torch.no_grad()
def count_logits(name: str, model: nn.Module, preprocessing: Preprocessing) -> int:
    """Run two blank images through the model and count the logits of one."""
    size = preprocessing.image_size
    try:
        logits = model(torch.zeros(2, preprocessing.channels, size, size))
    except Exception as error:
        raise InputError(
            f"image_size: {name} cannot take {size}x{size} images with "
            f"{preprocessing.channels} channel(s) ({first_line(error)})"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != 2:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"classifier: {name} turned 2 images into {shape}, needed are logits [2, num_classes]"
        )
    return logits.shape[1]
