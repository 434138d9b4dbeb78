"""Classifiers at hand: bundled ones, model objects, and those of a `module:function`."""

import copy
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

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
        """Return a copy, whose weights are replaced where others follow.

        Raises:
            InputError: if the model holds something that cannot be copied.
        """
        try:
            return copy.deepcopy(self.model, computed_tensors(self.model))
        except Exception as error:  # of whatever the model holds
            raise InputError(
                f"classifier: {self.name} cannot be copied ({first_line(error)}); keep what cannot "
                "be copied out of the model"
            ) from error


def computed_tensors(model: nn.Module) -> dict[int, Tensor]:
    """Return copies of tensors that modules keep and that hooks compute anew, by their identity.

    Weight norm and pruning keep such ones, which torch does not copy itself.
    """
    kept = [value for module in model.modules() for value in vars(module).values()]
    computed = [value for value in kept if isinstance(value, Tensor) and not value.is_leaf]
    return {id(value): value.detach().clone() for value in computed}


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
    """Import what `module:function` names, from the current folder where it is nowhere else.

    Of a folder whose module was not named nothing is imported, also later: libraries look for
    optional packages.
    """
    module_name, _, function_name = name.partition(":")
    try:
        if not is_installed(module_name) and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
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
    """Return True if a module's outermost package is found without the current folder."""
    package = module_name.partition(".")[0]
    return package in sys.modules or importlib.util.find_spec(package) is not None


def accepts(function: Callable[..., Any], argument: str) -> bool:
    """Return True if a function takes this keyword argument."""
    parameters = inspect.signature(function).parameters.values()
    return any(
        parameter.name == argument or parameter.kind is parameter.VAR_KEYWORD
        for parameter in parameters
    )
