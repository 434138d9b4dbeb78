"""Classifiers at hand: bundled ones, model objects, and those of a `module:function`."""

import copy
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from zscgan_ext.classifiers.sources.source import ClassifierSource
from zscgan_ext.classifiers.weights import load_weights
from zscgan_ext.errors import InputError, did_you_mean, first_line
from zscgan_ext.images.datasets import FASHION_MNIST_CLASSES
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.zoo import BUNDLED_CLASSIFIERS


class BundledSource(ClassifierSource):
    """One of `zoo.BUNDLED_CLASSIFIERS`."""

    class_names = FASHION_MNIST_CLASSES

    def build(self, num_classes: int | None, trained: bool) -> nn.Module:
        """Build it; the number of its classes is fixed."""
        bundled = BUNDLED_CLASSIFIERS[self.name]
        model = bundled.build()
        if trained:
            load_weights(model, bundled.weights)
        return model

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        """Return what it was trained with."""
        return BUNDLED_CLASSIFIERS[self.name].preprocessing


class ModelSource(ClassifierSource):
    """A model object, which is copied and named after its class.

    Args:
        model: the classifier, on any device.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(type(model).__name__)
        self.model = model

    def build(self, num_classes: int | None, trained: bool) -> nn.Module:
        """Return a copy, whose weights are replaced where others follow."""
        return copy.deepcopy(self.model)


class FunctionSource(ClassifierSource):
    """`module:function`: the function takes nothing, or `num_classes`, and returns a model."""

    def build(self, num_classes: int | None, trained: bool) -> nn.Module:
        """Call the function; only it knows whether its model is trained."""
        function = import_function(self.name)
        try:
            takes_num_classes = num_classes is not None and accepts(function, "num_classes")
            model = function(num_classes=num_classes) if takes_num_classes else function()
        except (Exception, SystemExit) as error:
            raise InputError(
                f"classifier: {self.name} raised {type(error).__name__}: {first_line(error)}"
            ) from error
        if not isinstance(model, nn.Module):
            found = type(model).__name__
            raise InputError(f"classifier: {self.name}: expected a torch.nn.Module, got a {found}")
        return model


def import_function(name: str) -> Callable[..., Any]:
    """Import what `module:function` names; from the current folder, unless it is installed."""
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path and not is_installed(module_name):
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
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


def is_installed(module_name: str) -> bool:
    """Return True if Python finds a module without the current folder.

    That one stays out then: libraries import what they can do without by names that a file in it
    may have.
    """
    try:
        return importlib.util.find_spec(module_name.partition(".")[0]) is not None
    except (ImportError, ValueError):  # no name of a module
        return False


def accepts(function: Callable[..., Any], argument: str) -> bool:
    """Return True if a function takes this keyword argument."""
    parameters = inspect.signature(function).parameters.values()
    return any(
        parameter.name == argument or parameter.kind is parameter.VAR_KEYWORD
        for parameter in parameters
    )
