"""A classifier that is there already: a model object."""

import copy

from torch import nn

from zscgan_ext.classifiers.sources.source import ClassifierSource


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
