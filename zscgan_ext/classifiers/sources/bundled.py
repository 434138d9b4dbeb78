"""The classifiers that come with the package."""

from torch import nn

from zscgan_ext.classifiers.sources.source import ClassifierSource
from zscgan_ext.classifiers.weights import load_weights
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
