"""The log of a run for TensorBoard, which is an optional dependency."""

import importlib
import io
import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zscgan_ext.errors import InputError
from zscgan_ext.run_folder.files import RunFolder


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
    """Writes an event file, which grows by whole events.

    Args:
        folder: for the file.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
        self._append(0, file_version="brain.Event:2")

    def scalars(self, stage: str, values: Mapping[str, Any]) -> None:
        """Log what one step of a stage measured; `step` is among the values."""
        from torch.utils.tensorboard.summary import scalar

        for name, value in values.items():
            if name != "step":
                self._append(values["step"], summary=scalar(f"{stage}/{name}", value))

    def images(self, name: str, images: Tensor, step: int) -> None:
        """Log rows of images, [rows, columns, C, H, W] from 0 to 1, as one picture."""
        from torch.utils.tensorboard.summary import image

        rows, columns, channels, height, width = images.shape
        picture = images.permute(2, 0, 3, 1, 4).reshape(channels, rows * height, columns * width)
        self._append(step, summary=image(name, picture, dataformats="CHW"))

    def _append(self, step: int, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        event = Event(wall_time=time.time(), step=step, **content)
        RecordWriter(record).write(event.SerializeToString())
        self.folder.append(self.name, record.getvalue())
