"""Generated images in the formats that other programs read."""

import csv
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zscgan_ext.classifiers.heads import MULTI_LABEL
from zscgan_ext.errors import InputError
from zscgan_ext.images.image_files import IMAGE_MODES
from zscgan_ext.images.label_table import FILE_COLUMN, TABLE
from zscgan_ext.run_folder.own_files import OwnFiles
from zscgan_ext.run_folder.whole_file import json_bytes
from zscgan_ext.synthesis.generator_file import LearnedGenerator
from zscgan_ext.synthesis.labelled_images import generated_images, to_pixels, wanted_labels

IMAGES, LABELS, TORCH_FILE = "images.npy", "labels.npy", "images.pt"
FACTS = "metadata.json"
LONGEST_FOLDER = 100  # bytes of a class name in that of a folder: file systems take some 255
IMAGE_NAME = r"generated-\d{6,}\.png"
NUMBERED = re.compile(rf"(?:images|\d+(?:_[\w.-]+)?)/{IMAGE_NAME}")


def is_generated_name(name: str) -> bool:
    """Return True if image sets have files of this name."""
    return name in (IMAGES, LABELS, TORCH_FILE, TABLE, FACTS) or bool(NUMBERED.fullmatch(name))


@dataclass(frozen=True)
class ImageSet:
    """What is generated: the generator, how many images, from which seed, in which units."""

    learned: LearnedGenerator
    count: int
    seed: int
    are_pixels: bool  # uint8 from 0 to 255 rather than normalized float32

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all images, [N, C, H, W]."""
        return self.count, *self.learned.preprocessing.shape

    @property
    def labels(self) -> Tensor:
        """All labels, int64 [N], or [N, num_classes] where several may apply."""
        rng = torch.Generator().manual_seed(self.seed)
        return wanted_labels(self.learned.generator, self.count, rng)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images [B, C, H, W] in their units, and their labels."""
        generator = self.learned.generator
        for images, labels in generated_images(generator, self.count, self.seed):
            yield (to_pixels(generator, images) if self.are_pixels else images), labels

    def files(self) -> Iterator[tuple[int, Tensor, Any]]:
        """Yield the number, the pixels [C, H, W] and the label, or all labels, of each image."""
        number = 0
        for images, labels in self.batches():
            for image, label in zip(images, labels.tolist(), strict=True):
                yield number, image, label
                number += 1

    def metadata(self) -> dict[str, object]:
        """Return what is known of the images, as JSON's types."""
        return {
            "classifier": self.learned.classifier,
            "class_names": list(self.learned.class_names),
            "head": self.learned.generator.head.name,
            "count": self.count,
            "seed": self.seed,
            "are_pixels": self.are_pixels,
            **self.learned.preprocessing.metadata(),
        }


def write_npy(images: ImageSet, own: OwnFiles) -> None:
    """Write `images.npy` and `labels.npy`, the images while they are generated."""
    with own.stream(IMAGES) as stream:
        dtype = np.dtype(np.uint8 if images.are_pixels else np.float32)
        header = {"descr": dtype.str, "fortran_order": False, "shape": images.shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for batch, _ in images.batches():
            stream.write(batch.contiguous().numpy().tobytes())
    with own.stream(LABELS) as stream:
        np.lib.format.write_array(stream, images.labels.numpy())


def write_torch(images: ImageSet, own: OwnFiles) -> None:
    """Write `images.pt`, which `torch.load(FILE, weights_only=True, mmap=True)` reads."""
    dtype = np.uint8 if images.are_pixels else np.float32
    with (
        own.stream(TORCH_FILE) as stream,
        TemporaryFile(dir=own.folder) as unnamed,  # holds what memory may not
    ):
        for batch, _ in images.batches():
            unnamed.write(batch.contiguous().numpy().tobytes())
        # It is mapped once it is whole: what a full disk does not take would end the process there.
        unnamed.flush()
        held = np.memmap(unnamed, dtype, "c", shape=images.shape)
        torch.save({"images": torch.from_numpy(held), "labels": images.labels}, stream)


def write_png(images: ImageSet, own: OwnFiles) -> None:
    """Write `images/generated-000000.png` and so on, and `labels.csv`.

    Where several labels may apply, the table is one that `--evaluation-data` reads.
    """
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    names = images.learned.class_names
    has_several = images.learned.generator.head is MULTI_LABEL
    rows.writerow([FILE_COLUMN, *(names if has_several else ("label", "class"))])
    for number, image, label in images.files():
        name = f"images/generated-{number:06d}.png"
        own.write(name, png(image))
        rows.writerow([name, *label] if has_several else [name, label, names[label]])
    own.write(TABLE, table.getvalue().encode(errors="backslashreplace"))  # lone surrogates


def write_image_folder(images: ImageSet, own: OwnFiles) -> None:
    """Write a folder for each class, in the order of the classes."""
    folders = class_folders(images.learned.class_names)
    for number, image, label in images.files():
        own.write(f"{folders[label]}/generated-{number:06d}.png", png(image))


def class_folders(names: tuple[str, ...]) -> list[str]:
    """Return a folder's name for each class: its number, and its name where it has another one.

    ImageFolder trees are numbered in the order of the folders' names. The numbers keep the order
    of the classes, and two classes of one name apart.
    """
    digits = len(str(len(names) - 1))
    folders = []
    for label, name in enumerate(names):
        encoded = re.sub(r"[^\w.-]+", "-", name).strip("-.").encode()
        plain = encoded[:LONGEST_FOLDER].decode(errors="ignore")  # not a part of a character
        number = f"{label:0{digits}d}"
        folders.append(number if name == str(label) or not plain else f"{number}_{plain}")
    return folders


def png(image: Tensor) -> bytes:
    """Encode pixels, uint8 [C, H, W] of one or three channels."""
    buffer = io.BytesIO()
    pixels = image.permute(1, 2, 0).contiguous().numpy()  # [H, W, C]
    Image.fromarray(pixels[:, :, 0] if len(image) == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


Writer = Callable[[ImageSet, OwnFiles], None]
WRITERS: dict[str, Writer] = {
    "npy": write_npy,
    "png": write_png,
    "imagefolder": write_image_folder,
    "torch": write_torch,
}


def check_format(learned: LearnedGenerator, format_name: str) -> None:
    """Require a format that can hold a generator's images.

    Raises:
        InputError: if it cannot.
    """
    if format_name == "imagefolder" and learned.generator.head is MULTI_LABEL:
        raise InputError(
            "format: expected npy, torch or png for images of several labels, got imagefolder, "
            "whose folders hold one each"
        )
    channels = learned.preprocessing.channels
    if format_name in ("png", "imagefolder") and channels not in IMAGE_MODES:
        raise InputError(
            f"format: expected npy or torch for images of {channels} channels, got {format_name}; "
            "png files hold 1 or 3"
        )


def write_image_set(images: ImageSet, format_name: str, own: OwnFiles) -> None:
    """Write images in a format that can hold them, and `metadata.json`.

    Raises:
        InputError: if they cannot be written, or something else stands in their place.
    """
    WRITERS[format_name](images, own)
    own.write(FACTS, json_bytes(images.metadata()))
