"""ONNX Runtime, which is an optional dependency: sessions and logits."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zscgan_ext.errors import InputError, first_line
from zscgan_ext.regular_file import read_regular_file

LARGEST = 1 << 31  # bytes of an ONNX file, as protobuf has it
INPUT, OUTPUT = "images", "logits"
NOTHING_BUT_CRASHES = 4  # ONNX Runtime's logging severity; errors are raised as well


def require_onnx() -> None:
    """Require the packages that write and run ONNX files.

    Raises:
        InputError: saying how to install them.
    """
    for name in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise InputError(
                f"export: ONNX files need the package {name}, which is not installed; "
                "pip install onnx onnxruntime"
            ) from None


def require_packages(formats: Sequence[str]) -> None:
    """Require what the files of these formats are written with.

    Raises:
        InputError: saying how to install it.
    """
    if "onnx" in formats:
        require_onnx()


class OnnxClassifier:
    """An ONNX model in ONNX Runtime on the CPU, with as many threads as torch has."""

    def __init__(self, model: bytes | Path) -> None:
        """Load a model.

        Args:
            model: a file, or what would be in it.

        Raises:
            InputError: if ONNX Runtime cannot load it, or it does not map images to logits.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = NOTHING_BUT_CRASHES
        # Threads that wait in a loop would take time from whatever runs next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # A file may also be one of ONNX Runtime's own format, with another model in it.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        self.name = "export" if isinstance(model, bytes) else str(model)
        source = model if isinstance(model, bytes) else read_model(model)
        try:
            self.session = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own exceptions share no base
            reason = first_line(error)
            raise InputError(
                f"{self.name}: ONNX Runtime cannot load the model ({reason})"
            ) from None
        inputs = [value.name for value in self.session.get_inputs()]
        outputs = [value.name for value in self.session.get_outputs()]
        if inputs != [INPUT] or OUTPUT not in outputs:
            raise InputError(
                f"{self.name}: expected a model that export wrote, from {INPUT} to {OUTPUT}, got "
                f"one from {inputs} to {outputs}"
            )

    @property
    def takes_pixels(self) -> bool:
        """Whether the model takes pixels, not normalized images."""
        return bool(self.session.get_inputs()[0].type == "tensor(uint8)")

    def __call__(self, images: Tensor) -> Tensor:
        """Map images, normalized or as pixels, to logits [N, num_classes]."""
        (logits,) = self.run([OUTPUT], images)
        if not isinstance(logits, np.ndarray):
            found = type(logits).__name__
            raise InputError(f"{self.name}: expected logits as a tensor, got a {found}")
        if logits.ndim != 2 or len(logits) != len(images) or logits.dtype != np.float32:
            found = f"{logits.dtype} {logits.shape}"
            raise InputError(
                f"{self.name}: expected logits, float32 ({len(images)}, N), got {found}"
            )
        return torch.from_numpy(logits)

    def run(self, names: Sequence[str], images: Tensor) -> list[np.ndarray]:
        """Return some of the outputs.

        Raises:
            InputError: if the model cannot be run on these images.
        """
        try:
            results: list[np.ndarray] = self.session.run(
                list(names), {INPUT: images.contiguous().numpy()}
            )
        except Exception as error:  # its own exceptions share no base
            raise InputError(
                f"{self.name}: ONNX Runtime cannot run the model on images of shape "
                f"{tuple(images.shape)} ({first_line(error)})"
            ) from None
        return results

    def metadata(self) -> dict[str, str]:
        """Return the metadata of the file."""
        return dict(self.session.get_modelmeta().custom_metadata_map)


def read_model(file: Path) -> bytes:
    """Read an ONNX file, all of whose tensors have to be in it.

    Raises:
        InputError: if it cannot be read, is damaged, or names other files.
    """
    import onnx

    try:
        data = read_regular_file(file, LARGEST)
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf's exceptions share no base
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{file}: cannot be read as an ONNX model ({reason})") from None
    if has_external_data(model):
        raise InputError(f"{file}: keeps tensors in other files, which are never opened")
    return data


def has_external_data(message: Any) -> bool:
    """Return True if a tensor anywhere in a protobuf message lies in another file."""
    for field, value in message.ListFields():
        if field.name == "external_data":
            return True
        if field.message_type is not None:
            parts = [value] if hasattr(value, "ListFields") else value
            if any(map(has_external_data, parts)):
                return True
    return False
