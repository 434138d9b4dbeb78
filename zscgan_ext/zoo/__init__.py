"""The bundled classifiers: trained on Fashion-MNIST, small enough for a CPU."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from zscgan_ext.errors import InputError
from zscgan_ext.images.datasets import Images, open_labelled
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.zoo.mobilenet_v2_small import MobileNetV2Small
from zscgan_ext.zoo.resnet20 import ResNet20

FASHION_MNIST_PREPROCESSING = Preprocessing(
    channels=1, image_size=28, mean=(0.2860,), std=(0.3530,)
)


@dataclass(frozen=True)
class BundledClassifier:
    """An architecture and the safetensors file of its trained weights."""

    build: Callable[[], nn.Module]
    weights: Path
    num_classes: int
    preprocessing: Preprocessing


def _bundled(name: str, build: Callable[[], nn.Module]) -> BundledClassifier:
    weights = Path(__file__).parent / f"{name}.safetensors"
    return BundledClassifier(build, weights, 10, FASHION_MNIST_PREPROCESSING)


BUNDLED_CLASSIFIERS = {
    "resnet20": _bundled("resnet20", ResNet20),
    "mobilenet_v2_small": _bundled("mobilenet_v2_small", MobileNetV2Small),
}


def bundled_images(classifier: str) -> str | None:
    """Return the name of the test images that come with a bundled classifier, None for others."""
    return "fashion-mnist" if classifier in BUNDLED_CLASSIFIERS else None


def open_bundled(classifier: str, preprocessing: Preprocessing, num_classes: int) -> Images | None:
    """Open the test images that come with a bundled classifier, None for others.

    Raises:
        InputError: if it was changed so that they do not fit; nobody has named them.
    """
    name = bundled_images(classifier)
    if name is None:
        return None
    try:
        return open_labelled(name, "test", preprocessing, num_classes)
    except InputError as error:
        raise InputError(
            f"no labelled images were named, and those that come with {classifier} do not fit it "
            f"as it is here ({error}); name others, or leave its image size and classes"
        ) from None
