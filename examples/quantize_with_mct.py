"""Sony's Model Compression Toolkit, calibrated with generated images.

    pip install model-compression-toolkit
    zscgan-ext generate RUN --out images
    python examples/quantize_with_mct.py resnet20 images/images.npy

The images are normalized as the classifier takes them. What comes out is a torch module,
which is compared with the float model.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import model_compression_toolkit as mct
import numpy as np
import torch
from torch import nn

from zscgan_ext.classifiers.loading import find_source
from zscgan_ext.classifiers.weights import load_weights

BATCH = 32


def quantize(model: nn.Module, images: np.ndarray) -> nn.Module:
    """Return a copy with weights and activations quantized to 8 bits."""

    def batches() -> Iterator[list[np.ndarray]]:
        for start in range(0, len(images), BATCH):
            yield [np.ascontiguousarray(images[start : start + BATCH])]

    quantized: nn.Module
    quantized, _ = mct.ptq.pytorch_post_training_quantization(model, batches)
    return quantized


def main() -> None:
    """Quantize the classifier that the command line names, and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("classifier", help="as --classifier of zscgan-ext train")
    parser.add_argument("images", type=Path, help="images.npy of zscgan-ext generate")
    parser.add_argument("--weights", type=Path, help="of the classifier")
    options = parser.parse_args()
    images = np.load(options.images, mmap_mode="r")
    model = find_source(options.classifier).build(None, trained=options.weights is None)
    if options.weights is not None:
        load_weights(model, options.weights)
    model.eval()
    quantized = quantize(model, images)
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    with torch.no_grad():
        same = [quantized(part).argmax(1) == model(part).argmax(1) for part in pixels.split(BATCH)]
    print(f"the same class on {100 * torch.cat(same).float().mean():.1f} % of {len(images)} images")


if __name__ == "__main__":
    main()
