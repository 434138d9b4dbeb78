"""Labelled images from files: Fashion-MNIST, idx folders and ImageFolder trees.

Real images are never needed to quantize. They measure accuracy (`--evaluation-data`) and give the
rows that had the data (`--reference-data`).
"""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from zscgan_ext.errors import InputError
from zscgan_ext.preprocessing import Preprocessing

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
BUNDLED_FASHION_MNIST = Path(__file__).parent / "zoo" / "fashion_mnist"
# Where Debian's package dataset-fashion-mnist installs the training images.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class LabelledImages:
    """Images in memory with their labels."""

    images: Tensor  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N]

    def __len__(self) -> int:
        return self.labels.numel()

    def batches(
        self, batch_size: int, preprocessing: Preprocessing
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in order: normalized [B, C, H, W] float32 and labels [B]."""
        for start in range(0, len(self), batch_size):
            stop = start + batch_size
            yield preprocessing.normalize(self.images[start:stop]), self.labels[start:stop]

    def random_batches(
        self, batch_size: int, preprocessing: Preprocessing, random: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches drawn uniformly with replacement, forever."""
        while True:
            index = torch.randint(len(self), (batch_size,), generator=random)
            yield preprocessing.normalize(self.images[index]), self.labels[index]


def read_idx(file: Path) -> np.ndarray:
    """Read one idx file of unsigned bytes, gzipped or not, as a uint8 array.

    Raises:
        InputError: if the file cannot be read, is truncated or holds another type.
    """
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError) as error:
        raise InputError(f"{file}: cannot be read as an idx file ({error})") from None
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise InputError(f"{file}: not an idx file of unsigned bytes")
    dimensions = data[3]
    header = 4 + 4 * dimensions
    shape = tuple(int(n) for n in np.frombuffer(data[4:header], dtype=">u4"))
    if len(shape) != dimensions or len(data) != header + int(np.prod(shape, dtype=np.int64)):
        raise InputError(f"{file}: truncated, its header announces shape {shape}")
    return np.frombuffer(data, dtype=np.uint8, offset=header).reshape(shape).copy()


def read_idx_folder(folder: Path, split: str) -> LabelledImages:
    """Read `{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]` from a folder.

    Args:
        folder: the folder that holds the four (or two) idx files.
        split: `train` or `test`.

    Raises:
        InputError: if a file is missing or damaged, or the numbers of images and labels differ.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    arrays = []
    for kind in ("images-idx3", "labels-idx1"):
        name = f"{prefix}-{kind}-ubyte"
        candidates = [folder / f"{name}.gz", folder / name]
        file = next((path for path in candidates if path.is_file()), None)
        if file is None:
            raise InputError(f"{folder}: holds neither {name} nor {name}.gz")
        arrays.append(read_idx(file))
    images, labels = arrays
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise InputError(f"{folder}: images {images.shape} and labels {labels.shape} do not match")
    return LabelledImages(
        torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).to(torch.int64)
    )
