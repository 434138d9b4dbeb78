"""Classifiers of torchvision (`torchvision:NAME`) and of timm (`timm:NAME`), which is optional."""

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from zscgan_ext.classifiers.sources.source import ClassifierSource
from zscgan_ext.errors import InputError, did_you_mean, first_line
from zscgan_ext.images.preprocessing import Preprocessing

TORCHVISION, TIMM = "torchvision:", "timm:"  # prefixes of names
# Both normalize anew what was normalized for ImageNet, if their weights are torchvision's. To leave
# out their own initialization, which is slow, changes nothing: weights follow.
PORTED_FROM_TENSORFLOW = ("googlenet", "inception_v3")


class TorchvisionSource(ClassifierSource):
    """A classification model of torchvision, by the name that `torchvision.models` lists."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.architecture = name.removeprefix(TORCHVISION)
        known = models.list_models(module=models)
        if self.architecture not in known:
            hint = did_you_mean(self.architecture, known)
            raise InputError(
                f"classifier: torchvision has no classification model {self.architecture!r}"
                f"{hint or ', see torchvision.models.list_models()'}"
            )
        self.weights: WeightsEnum = models.get_model_weights(self.architecture).DEFAULT
        self.class_names = tuple(self.weights.meta.get("categories", ()))

    def build(self, num_classes: int | None, trained: bool) -> nn.Module:
        """Build it; its own weights are downloaded, or read from torch.hub's cache."""
        own_classes = len(self.class_names)
        count = own_classes if trained or num_classes is None else num_classes
        options: dict[str, Any] = {"num_classes": count}
        if self.architecture in PORTED_FROM_TENSORFLOW:
            options |= {"transform_input": count == own_classes, "init_weights": False}
        model: nn.Module = models.get_model(self.architecture, weights=None, **options)
        if trained:
            model.load_state_dict(self.download())
        return model

    def download(self) -> dict[str, Any]:
        """Return torchvision's weights."""
        try:
            state: dict[str, Any] = self.weights.get_state_dict(
                progress=False, check_hash=True, weights_only=True
            )
        except Exception as error:  # of the network, of the file system, or a wrong hash
            raise InputError(
                f"classifier: the weights of {self.name} cannot be downloaded "
                f"({first_line(error)}); give them as --weights FILE"
            ) from None
        return state

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        """Return what torchvision's weights were trained with."""
        transforms = self.weights.transforms()
        (size,) = transforms.crop_size
        mean, std = tuple(transforms.mean), tuple(transforms.std)
        return Preprocessing(len(mean), size, mean, std)


def require_timm() -> Any:
    """Import timm.

    Raises:
        InputError: saying how to install it.
    """
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise InputError(
            "classifier: timm's models need the package timm, which is not installed; "
            "pip install timm"
        ) from None


@contextmanager
def quiet_downloads() -> Iterator[None]:
    """Keep Hugging Face from printing each of its attempts."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class TimmSource(ClassifierSource):
    """A model of timm, by the name that `timm.list_models` lists, with or without a tag."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.timm = require_timm()
        self.architecture = name.removeprefix(TIMM)
        # Also refuses names that would make timm read a folder or a repository.
        if not self.timm.is_model(self.architecture):
            hint = did_you_mean(self.architecture, self.timm.list_models())
            raise InputError(
                f"classifier: timm has no model {self.architecture!r}"
                f"{hint or ', see timm.list_models()'}"
            )

    def build(self, num_classes: int | None, trained: bool) -> nn.Module:
        """Build it; its own weights are downloaded, or read from the cache of Hugging Face."""
        options = {} if trained or num_classes is None else {"num_classes": num_classes}
        try:
            with quiet_downloads():
                model: nn.Module = self.timm.create_model(
                    self.architecture, pretrained=trained, **options
                )
        except Exception as error:  # of the network, of the file system, or an unknown tag
            wanted = f"cannot be built{' with its own weights' if trained else ''}"
            remedy = "; give weights as --weights FILE" if trained else ""
            raise InputError(
                f"classifier: {self.name} {wanted} ({first_line(error)}){remedy}"
            ) from None
        return model

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        """Return what timm's weights were trained with."""
        config: dict[str, Any] = vars(model)["pretrained_cfg"]
        channels, size, _ = config["input_size"]
        return Preprocessing(channels, size, tuple(config["mean"]), tuple(config["std"]))
