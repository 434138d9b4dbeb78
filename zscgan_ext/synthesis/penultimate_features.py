"""What the last layer of a classifier reads: the features that tell its classes apart."""

from typing import Any

from torch import Tensor, nn

from zscgan_ext.synthesis.frozen_convolution import FrozenConvolution


class PenultimateFeatures:
    """Keeps what the last weighted layer of a model reads, each time that the model is run.

    Which layer that is, the run shows: the one that is called last.

    Args:
        model: the classifier, or its graph; `remove_hooks` leaves it as it was.
    """

    def __init__(self, model: nn.Module) -> None:
        self.last_input: Tensor | None = None
        weighted = nn.Linear | nn.Conv2d | FrozenConvolution
        layers = [module for module in model.modules() if isinstance(module, weighted)]
        self.hooks = [layer.register_forward_pre_hook(self.keep) for layer in layers]

    def keep(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep the input of a layer in the place of that of the layer before."""
        self.last_input = inputs[0]

    def take(self, logits: Tensor) -> Tensor:
        """Return the features [N, F] of the run that gave these logits, and forget them.

        Feature maps are averaged over their pixels. Where no module is a weighted layer, the
        logits [N, num_classes] stand for the features.
        """
        features = logits if self.last_input is None else self.last_input
        self.last_input = None
        return features.flatten(2).mean(2) if features.dim() > 2 else features

    def remove_hooks(self) -> None:
        """Leave the model as it was."""
        for hook in self.hooks:
            hook.remove()


def penultimate_features(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Run a model on images [N, C, H, W]; return logits [N, num_classes] and features [N, F]."""
    features = PenultimateFeatures(model)
    try:
        logits: Tensor = model(images)
    finally:
        features.remove_hooks()
    return logits, features.take(logits)
