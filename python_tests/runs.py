"""Short runs of the main program that several tests share."""

from pathlib import Path

import numpy as np
from test_datasets import write_idx

from zscgan_ext.datasets import LabelledImages, open_images
from zscgan_ext.zoo import FASHION_MNIST_PREPROCESSING

# A run of a few seconds on a CPU.
SHORT = [
    *("--synthesis-steps=10", "--fine-tuning-steps=3", "--calibration-batches=1"),
    *("--batch-size=16", "--latent-dim=8", "--log-interval=5", "--device=cpu"),
    "--no-report",
]


def write_fashion_mnist(folder: Path, prefix: str = "t10k", count: int = 60) -> Path:
    """Write an idx folder with the first of the bundled test images; return it."""
    data = open_images("fashion-mnist", "test", FASHION_MNIST_PREPROCESSING)
    assert isinstance(data, LabelledImages)
    labels = data.labels[:count].numpy().astype(np.uint8)
    write_idx(folder, data.images[:count, 0].numpy(), labels, prefix)
    return folder
