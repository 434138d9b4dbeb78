"""Labelled images from files: Fashion-MNIST, idx folders and ImageFolder trees.

Real images are never needed to quantize. They measure accuracy (`--evaluation-data`) and give the
rows that had the data (`--reference-data`).
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from zscgan_ext.errors import InputError
from zscgan_ext.images.idx_files import Split, read_idx_pair
from zscgan_ext.images.image_files import (
    IMAGE_MODES,
    image_files,
    list_tree,
    names_in,
    read_image,
    silent_decoders,
)
from zscgan_ext.images.preprocessing import Preprocessing

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
BUNDLED_FASHION_MNIST = Path(__file__).parents[1] / "zoo" / "fashion_mnist"
# Where Debian's package dataset-fashion-mnist installs the training images.
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


IDX_ENDINGS = ("-ubyte", "-ubyte.gz")
NEAR_CHANCE = 0.1  # of the way from guessing to always being right
FEWEST_TO_JUDGE = 10  # images


class Images(Protocol):
    """Labelled images, wherever they lie."""

    @property
    def labels(self) -> Tensor:
        """All labels, int64 [N]; [N, num_classes] of 0 and 1 where several may apply."""

    def __len__(self) -> int: ...

    def batches(
        self, batch_size: int, preprocessing: Preprocessing
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in order: normalized [B, C, H, W] float32 and labels [B]."""

    def random_batches(
        self, batch_size: int, preprocessing: Preprocessing, rng: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches drawn uniformly with replacement, forever."""

    def subset(self, index: Tensor) -> "Images":
        """Return the images at these positions, int64 [M], in this order."""


class IndexedImages(ABC):
    """Labelled images that are read by their positions."""

    labels: Tensor  # int64 [N], or [N, num_classes]

    @abstractmethod
    def read(self, index: Tensor, preprocessing: Preprocessing) -> Tensor:
        """Read the images at these positions [B], normalized [B, C, H, W] float32."""

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, batch_size: int, preprocessing: Preprocessing
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in order: normalized [B, C, H, W] float32 and labels [B]."""
        for start in range(0, len(self), batch_size):
            index = torch.arange(start, min(start + batch_size, len(self)))
            yield self.read(index, preprocessing), self.labels[index]

    def random_batches(
        self, batch_size: int, preprocessing: Preprocessing, rng: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches drawn uniformly with replacement, forever."""
        while True:
            index = torch.randint(len(self), (batch_size,), generator=rng)
            yield self.read(index, preprocessing), self.labels[index]


@dataclass(frozen=True)
class LabelledImages(IndexedImages):
    """Images in memory with their labels."""

    images: Tensor  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N]

    def read(self, index: Tensor, preprocessing: Preprocessing) -> Tensor:
        """Normalize the images at these positions [B] to [B, C, H, W] float32."""
        return preprocessing.normalize(self.images[index])

    def subset(self, index: Tensor) -> "LabelledImages":
        """Return the images at these positions, int64 [M], in this order."""
        return LabelledImages(self.images[index], self.labels[index])


@dataclass(frozen=True)
class ImageTree(IndexedImages):
    """Image files of an ImageFolder tree, read when their batch is due.

    The shorter side is resized to 256/224 of the classifier's image size and the centre cropped,
    the usual evaluation on ImageNet. Images that have this size already are taken as they are, as
    is usual for small ones.
    """

    files: tuple[Path, ...]
    labels: Tensor  # int64 [N]
    root: Path = Path()  # that holds the class folders

    def read(self, index: Tensor, preprocessing: Preprocessing) -> Tensor:
        """Read the files at these positions [B], normalized [B, C, H, W] float32."""
        with ThreadPoolExecutor(torch.get_num_threads()) as pool, silent_decoders():
            pixels = pool.map(lambda i: read_image(self.files[i], preprocessing), index.tolist())
            return preprocessing.normalize(torch.stack(list(pixels)))

    def subset(self, index: Tensor) -> "ImageTree":
        """Return the images at these positions, int64 [M], in this order."""
        return replace(
            self, files=tuple(self.files[i] for i in index.tolist()), labels=self.labels[index]
        )


def read_idx_folder(folder: Path, split: Split) -> LabelledImages:
    """Read an idx folder into memory; raises as `read_idx_pair`."""
    images, labels = read_idx_pair(folder, split)
    return LabelledImages(
        torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).to(torch.int64)
    )


def read_tree(folder: Path, split: Split) -> ImageTree:
    """List an ImageFolder tree, whose images are read when they are needed; as `list_tree`."""
    tree = list_tree(folder, split)
    return ImageTree(tree.files, torch.tensor(tree.labels), tree.root)


def fashion_mnist_folder(split: Split) -> Path:
    """Return the folder of Fashion-MNIST's idx files: bundled for testing, Debian's for training.

    Raises:
        InputError: if the training images are not installed.
    """
    if split == "test":
        return BUNDLED_FASHION_MNIST
    if not DEBIAN_FASHION_MNIST.is_dir():
        raise InputError(
            "fashion-mnist: only its test images are bundled; install Debian's package "
            "dataset-fashion-mnist or give the folder that holds the idx files"
        )
    return DEBIAN_FASHION_MNIST


def open_images(name: str, split: Split, preprocessing: Preprocessing) -> Images:
    """Open labelled images for a classifier.

    Args:
        name: `fashion-mnist`, a folder of idx files, or an ImageFolder tree.
        split: `test` to measure accuracy, `train` to fine-tune.
        preprocessing: of the classifier. The images of an idx folder must have its shape.

    Raises:
        InputError: if there is nothing to read, it is damaged, or its shape does not fit.
    """
    folder = fashion_mnist_folder(split) if name == "fashion-mnist" else Path(name)
    if not os.path.isdir(folder):
        raise InputError(f"{name}: no such folder, accepted are fashion-mnist or a folder")
    if not holds_idx_files(folder):
        check_channels(name, preprocessing)
        return read_tree(folder, split)
    data = read_idx_folder(folder, split)
    needed = preprocessing.shape
    if tuple(data.images.shape[1:]) != needed or not len(data):
        raise InputError(
            f"{name}: holds images of shape {tuple(data.images.shape)}, "
            f"the classifier takes {('N', *needed)}"
        )
    return data


def holds_idx_files(folder: Path) -> bool:
    """Return True for a folder with idx files in it."""
    return os.path.isdir(folder) and any(name.endswith(IDX_ENDINGS) for name in names_in(folder))


def open_unlabelled(folder: Path, preprocessing: Preprocessing) -> ImageTree:
    """Open all image files below a folder, whose labels nobody knows: they are given as 0.

    Raises:
        InputError: if there is none, or the classifier takes images of other channels than files.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder, expected one with image files")
    check_channels(str(folder), preprocessing)
    files = tuple(image_files(folder))
    if not files:
        raise InputError(f"{folder}: holds no image, accepted are files such as .jpg and .png")
    return ImageTree(files, torch.zeros(len(files), dtype=torch.int64), folder)


def check_channels(name: str, preprocessing: Preprocessing) -> None:
    """Require a classifier of images that files can hold.

    Raises:
        InputError: if they have another number of channels.
    """
    if preprocessing.channels not in IMAGE_MODES:
        raise InputError(
            f"{name}: holds images of 1 or 3 channels, "
            f"the classifier takes {preprocessing.channels}"
        )


def open_labelled(
    name: str, split: Split, preprocessing: Preprocessing, num_classes: int
) -> Images:
    """Open labelled images whose labels a classifier has.

    Raises:
        InputError: as `open_images` and `check_labels`.
    """
    data = open_images(name, split, preprocessing)
    check_labels(data, num_classes)
    return data


def few_labels_warnings(name: str | None, data: Images | None, num_classes: int) -> list[str]:
    """Return a line where labels end before the classes do: then they may count other classes."""
    if data is None or data.labels.dim() > 1:
        return []
    largest = int(data.labels.max())
    if largest == num_classes - 1:
        return []
    return [
        f"{name}: labels end at {largest}, the classifier has {num_classes} classes; folders of "
        "images are numbered in the order of their names, unless all are named by numbers"
    ]


def check_labels(data: Images, num_classes: int) -> None:
    """Require labels that the classifier has.

    Raises:
        InputError: naming the largest label, or if there are no images.
    """
    if len(data) == 0:
        raise InputError("expected one or more labelled images, got none")
    largest = int(data.labels.max())
    counted_from_one = isinstance(data, ImageTree) and int(data.labels.min()) == 1
    if largest >= num_classes and isinstance(data, ImageTree) and not counted_from_one:
        raise InputError(
            f"{data.root}: holds {largest + 1} class folders, the classifier has {num_classes} "
            "classes; give the folder that holds a folder for each of them and no other"
        )
    if largest >= num_classes:
        hint = ", whose labels are counted from 0" if counted_from_one else ""
        raise InputError(
            f"labels up to {largest} were found, the classifier has {num_classes} classes{hint}"
        )


def near_chance_warnings(
    name: str | None, images: int, percent: float, num_classes: int
) -> list[str]:
    """Return a line where a classifier is hardly right more often than one that guesses.

    Args:
        name: of the images; None for those that come with the classifier.
        images: how many there are; few tell nothing.
        percent: top-1 on them.
        num_classes: of the classifier.
    """
    chance = 100 / num_classes
    if images < FEWEST_TO_JUDGE or percent > chance + NEAR_CHANCE * (100 - chance):
        return []
    return [
        f"{name or 'test images'}: the float classifier is right on {percent:.1f} % of them, near "
        f"chance, {chance:.1f} %; their labels may count other classes or in another order, or "
        "--mean, --std and --image-size may not be those of its training"
    ]
