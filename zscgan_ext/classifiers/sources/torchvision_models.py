"""Classifiers of torchvision: `torchvision:NAME`."""

from typing import Any

from torch import nn
from torchvision import models
from torchvision.models import WeightsEnum

from zscgan_ext.classifiers.sources.source import ClassifierSource
from zscgan_ext.errors import InputError, did_you_mean, first_line
from zscgan_ext.images.preprocessing import Preprocessing

PREFIX = "torchvision:"
# Both normalize anew what was normalized for ImageNet, if their weights are torchvision's. To leave
# out their own initialization, which is slow, changes nothing: weights follow.
PORTED_FROM_TENSORFLOW = ("googlenet", "inception_v3")


class TorchvisionSource(ClassifierSource):
    """A classification model of torchvision, by the name that `torchvision.models` lists."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.architecture = name.removeprefix(PREFIX)
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
