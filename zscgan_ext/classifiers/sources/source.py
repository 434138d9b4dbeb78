"""What every source of classifiers answers, and ImageNet's preprocessing."""

from abc import ABC, abstractmethod

from torch import nn

from zscgan_ext.images.limits import ImageSize
from zscgan_ext.images.preprocessing import Preprocessing

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IMAGENET_SIZE = 224  # pixels


def usual_preprocessing(channels: int, image_size: ImageSize) -> Preprocessing:
    """Return ImageNet's normalization for three channels; for others, to -1 to 1."""
    mean, std = (0.5,) * channels, (0.5,) * channels
    if channels == len(IMAGENET_MEAN):
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    return Preprocessing(channels, image_size, mean, std, is_assumed=True)


class ClassifierSource(ABC):
    """Builds one classifier, and knows what it expects of images.

    Args:
        name: of the classifier, as the user gives it.
    """

    class_names: tuple[str, ...] = ()  # of the weights it comes with; none where nobody knows

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def build(self, num_classes: int | None, trained: bool) -> nn.Module:
        """Return the model.

        Args:
            num_classes: wanted, where the source can choose; None for the source's own number.
            trained: whether to fill it with the weights that it comes with; other weights follow
                where not.

        Raises:
            InputError: if the model cannot be built or its weights cannot be had.
        """

    def preprocessing(self, model: nn.Module) -> Preprocessing:
        """Return input shape and normalization of a model that `build` returned.

        Where a source does not know better: the channels of the first convolution, three without
        one, and ImageNet's size and normalization.
        """
        convolution = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
        channels = len(IMAGENET_MEAN) if convolution is None else convolution.in_channels
        return usual_preprocessing(channels, IMAGENET_SIZE)
