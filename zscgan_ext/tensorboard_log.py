"""The log of a run for TensorBoard, which is an optional dependency."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from zscgan_ext.errors import InputError


def require_tensorboard() -> None:
    """Require the package that writes TensorBoard's files.

    Raises:
        InputError: telling how to install it.
    """
    try:
        importlib.import_module("tensorboard")
    except ImportError:
        raise InputError(
            "tensorboard: needs the package tensorboard, which is not installed; "
            "pip install tensorboard"
        ) from None


class TensorboardLog:
    """Writes event files into a folder.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder))

    def scalars(self, stage: str, values: Mapping[str, Any]) -> None:
        """Log what one step of a stage measured; `step` is among the values."""
        for name, value in values.items():
            if name != "step":
                self.writer.add_scalar(f"{stage}/{name}", value, values["step"])

    def images(self, name: str, images: Tensor, step: int) -> None:
        """Log rows of images, [rows, columns, C, H, W] from 0 to 1, as one picture."""
        rows, columns, channels, height, width = images.shape
        picture = images.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)
        self.writer.add_image(name, picture, step)
        self.writer.flush()

    def close(self) -> None:
        """Write what is still in memory."""
        self.writer.close()
