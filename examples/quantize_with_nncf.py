"""NNCF's post-training quantization for OpenVINO, calibrated with generated images.

    pip install nncf openvino
    zscgan-ext generate RUN --out images
    python examples/quantize_with_nncf.py float.onnx images/images.npy int8.xml

The images are normalized as the classifier takes them.
"""

import argparse
from pathlib import Path

import nncf
import numpy as np
import openvino


def quantize(model: Path, images: np.ndarray, output: Path) -> None:
    """Write an int8 model for OpenVINO, `output` and weights beside it."""
    batches = nncf.Dataset([np.ascontiguousarray(image[None]) for image in images])
    quantized = nncf.quantize(
        openvino.convert_model(model),
        batches,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
    )
    openvino.save_model(quantized, output)


def main() -> None:
    """Quantize the model that the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="float ONNX file")
    parser.add_argument("images", type=Path, help="images.npy of zscgan-ext generate")
    parser.add_argument("output", type=Path, help="OpenVINO file to write, .xml")
    options = parser.parse_args()
    quantize(options.model, np.load(options.images, mmap_mode="r"), options.output)
    print(f"int8 model in {options.output}")


if __name__ == "__main__":
    main()
