"""ONNX Runtime's own static quantizer, calibrated with generated images.

    zscgan-ext generate RUN --out images
    python examples/quantize_with_onnxruntime.py float.onnx images/images.npy int8.onnx

The images are normalized as the classifier takes them. They come from the classifier alone, so that
no picture of its training is needed.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from onnxruntime.quantization import QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Batches:
    """Batches of images under the name of a model's input, a `CalibrationDataReader`."""

    def __init__(self, name: str, images: np.ndarray, batch_size: int = 32) -> None:
        starts = range(0, len(images), batch_size)
        self.batches: Iterator[dict[str, np.ndarray]] = iter(
            [{name: np.ascontiguousarray(images[i : i + batch_size])} for i in starts]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, None after the last."""
        return next(self.batches, None)


def quantize(model: Path, images: np.ndarray, output: Path) -> None:
    """Write an int8 model: activations of 8 bits, weights of 8 bits for each output channel."""
    session = InferenceSession(model, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    prepared = output.with_suffix(".prepared.onnx")
    quant_pre_process(model, prepared, skip_symbolic_shape=True)
    try:
        quantize_static(
            prepared,
            output,
            Batches(name, images),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        prepared.unlink(missing_ok=True)


def main() -> None:
    """Quantize the model that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="float ONNX file")
    parser.add_argument("images", type=Path, help="images.npy of zscgan-ext generate")
    parser.add_argument("output", type=Path, help="int8 ONNX file to write")
    options = parser.parse_args()
    quantize(options.model, np.load(options.images, mmap_mode="r"), options.output)
    print(f"{options.output.stat().st_size:,} bytes in {options.output}")


if __name__ == "__main__":
    main()
