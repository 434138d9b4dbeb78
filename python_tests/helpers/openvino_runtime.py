"""OpenVINO on the CPU: exported files as another runtime executes them."""

import numpy as np
import torch


class OpenvinoClassifier:
    """An ONNX model in OpenVINO, with one thread."""

    def __init__(self, model: bytes) -> None:
        import openvino

        core = openvino.Core()
        core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
        self.compiled = core.compile_model(core.read_model(model), "CPU")

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Map images to logits."""
        return torch.from_numpy(np.array(self.compiled(images.contiguous().numpy())["logits"]))
