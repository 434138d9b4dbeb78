"""ONNX Runtime, which is an optional dependency: sessions, logits, latency."""

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zscgan_ext.errors import InputError, first_line

INPUT, OUTPUT = "images", "logits"
ONLY_ERRORS = 3  # ONNX Runtime's logging severity


def require_onnx() -> None:
    """Require the packages that write and run ONNX files.

    Raises:
        InputError: telling how to install them.
    """
    for name in ("onnx", "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise InputError(
                f"export: ONNX files need the package {name}, which is not installed; "
                "pip install onnx onnxruntime"
            ) from None


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
        options.log_severity_level = ONLY_ERRORS
        # Threads that wait in a loop would take time from whatever runs next.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        source = model if isinstance(model, bytes) else str(model)
        try:
            self.session = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own exceptions share no base
            name = "export" if isinstance(model, bytes) else str(model)
            reason = first_line(error)
            raise InputError(f"{name}: ONNX Runtime cannot load the model ({reason})") from None
        inputs = [value.name for value in self.session.get_inputs()]
        outputs = [value.name for value in self.session.get_outputs()]
        if inputs != [INPUT] or OUTPUT not in outputs:
            raise InputError(
                f"{model if isinstance(model, Path) else 'export'}: takes {inputs} and gives "
                f"{outputs}, needed is a model that export wrote, from {INPUT} to {OUTPUT}"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Map normalized images [N, C, H, W] to logits [N, num_classes]."""
        return torch.from_numpy(self.run([OUTPUT], images)[0])

    def run(self, names: Sequence[str], images: Tensor) -> list[np.ndarray]:
        """Return some of the outputs."""
        results: list[np.ndarray] = self.session.run(
            list(names), {INPUT: images.contiguous().numpy()}
        )
        return results

    def metadata(self) -> dict[str, str]:
        """Return what the file says of itself."""
        return dict(self.session.get_modelmeta().custom_metadata_map)


def latencies(
    models: Sequence[Callable[[Tensor], Any]], image: Tensor, seconds: float = 0.5
) -> list[float]:
    """Return the median time of one call of each model on an image [1, C, H, W], milliseconds.

    The models take turns, so that whatever else the machine does slows them alike.

    Args:
        models: what to call.
        image: normalized.
        seconds: to spend on each model, about; at least 5 calls are made.
    """
    measured: list[list[float]] = [[] for _ in models]
    for model in models:
        model(image)
    end = time.perf_counter() + seconds * len(models)
    while len(measured[0]) < 5 or time.perf_counter() < end:
        for model, times in zip(models, measured, strict=True):
            start = time.perf_counter()
            model(image)
            times.append(time.perf_counter() - start)
    return [1000 * statistics.median(times) for times in measured]
