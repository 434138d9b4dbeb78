"""Image files: those of an ImageFolder tree, and one of them as pixels in a classifier's size."""

import io
import math
import os
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.datasets.folder import is_image_file
from torchvision.transforms import functional as transforms

from zscgan_ext.errors import InputError, first_line
from zscgan_ext.images.idx_files import Split
from zscgan_ext.images.preprocessing import Preprocessing, size_before_cropping
from zscgan_ext.regular_file import read_regular_file, regular_file_size

IMAGE_MODES = {1: "L", 3: "RGB"}
# Those of the endings that a tree is searched for. Others may start programs, as EPS does.
IMAGE_FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Folders that systems leave beside a user's: archives of macOS, storage devices, file systems.
FOLDERS_OF_SYSTEMS = {
    *("__MACOSX", "@eaDir", "@Recycle", "@tmp", "#recycle", "$RECYCLE.BIN"),
    *("System Volume Information", "lost+found", "__pycache__"),
}
# The folders of a split, where a tree has them above its class folders.
SPLIT_FOLDERS = {"train": ("train",), "test": ("test", "val")}
NAMES_OF_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
LARGEST_LABEL = 2**31 - 1
LARGEST_IMAGE = 1 << 27  # pixels, as stored and as resized
LARGEST_FILE = 1 << 31  # bytes; uncompressed pixels of 16 bytes each
TILE_WIDTH, TILE_LENGTH = 322, 323  # tags of TIFF
BAND = 256  # rows of 16 bits that are converted at once
# Pixels, or bytes of a file; with more, one image is read at a time, whatever the threads.
LARGE_IMAGE = 1 << 24
ONE_LARGE_IMAGE = threading.RLock()


@dataclass(frozen=True)
class TreeFiles:
    """The image files of an ImageFolder tree with their labels, and the folder of its classes."""

    root: Path
    files: tuple[Path, ...]
    labels: list[int]


def image_files(folder: Path) -> list[Path]:
    """List the image files below a folder in torchvision's order, no folder twice, none hidden.

    Links to folders are followed, and may lead back to where they stand.

    Raises:
        InputError: if a folder below cannot be read, whose images would be missing.
    """
    seen: set[str] = set()
    found: list[tuple[str, list[str]]] = []
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        seen.add(os.path.realpath(root))
        shown = [name for name in sorted(folders) if not is_hidden(name)]
        folders[:] = [name for name in shown if is_new(os.path.join(root, name), seen)]
        require_targets(root)
        found.append((root, sorted(n for n in names if is_image_file(n) and not is_hidden(n))))
    return [Path(root, name) for root, names in sorted(found) for name in names]


def is_hidden(name: str) -> bool:
    """Return True if a file or folder is hidden, or is none of a user's own."""
    return name.startswith(".") or name in FOLDERS_OF_SYSTEMS


def refuse(error: OSError) -> NoReturn:
    """Raise what a folder cannot be read for as an `InputError`."""
    raise InputError(f"{error.filename}: cannot be read ({error.strerror})") from error


def require_targets(folder: str | Path) -> None:
    """Require that links in a folder lead somewhere: one to images would else not be missed.

    Raises:
        InputError: naming the first that does not, or whose target cannot be reached.
    """
    with listed(folder) as entries:
        links = sorted(each.path for each in entries if each.is_symlink() and each.name[0] != ".")
    for path in links:
        if not os.path.exists(path):
            raise InputError(f"{path}: is a link that leads nowhere, or where nothing can be read")


def is_new(folder: str, seen: set[str]) -> bool:
    """Return True if a folder has not been seen under any name, and remember it."""
    place = os.path.realpath(folder)
    is_known = place in seen
    seen.add(place)
    return not is_known


@contextmanager
def silent_decoders() -> Iterator[None]:
    """Keep decoders from warning; it concerns all threads, so it is not done in each of them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def read_image(file: Path, preprocessing: Preprocessing) -> Tensor:
    """Read one image file in the classifier's size and channels, uint8 [C, H, W].

    One that has the size is taken as it is; others are resized and their centre is cropped.

    Raises:
        InputError: if the file cannot be decoded, or is too large.
    """
    _, *size = preprocessing.shape
    try:
        with room_for(regular_file_size(file)):
            # Of a path Pillow would map the file, and of an opened one libtiff: if it is shortened
            # meanwhile, the process ends.
            stream = io.BytesIO(read_regular_file(file, LARGEST_FILE))
            with Image.open(stream, formats=IMAGE_FORMATS) as image:
                converted = converted_image(image, size, IMAGE_MODES[preprocessing.channels])
    except UnidentifiedImageError:
        raise InputError(
            f"{file}: cannot be read as an image (none of {', '.join(IMAGE_FORMATS)})"
        ) from None
    except Exception as error:  # decoders raise nearly anything
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{file}: cannot be read as an image ({reason})") from None
    pixels: Tensor = transforms.pil_to_tensor(converted)
    return pixels


def converted_image(image: Image.Image, size: Sequence[int], mode: str) -> Image.Image:
    """Decode an image in a mode, resized and cropped to a height and width unless it has them."""
    resized = resized_size(image, size)
    with room_for(check_pixels(image, resized)):
        converted = eight_bits(image).convert(mode)
        if converted.size == (size[1], size[0]):
            return converted
        cropped: Image.Image = transforms.center_crop(transforms.resize(converted, resized), size)
        return cropped


@contextmanager
def room_for(amount: int) -> Iterator[None]:
    """Let no two threads have a large image in memory at the same time.

    Args:
        amount: its pixels, or the bytes of its file.
    """
    with ONE_LARGE_IMAGE if amount > LARGE_IMAGE else nullcontext():
        yield


def resized_size(image: Image.Image, size: Sequence[int]) -> list[int]:
    """Return height and width of an image that is resized to be cropped to a size [2].

    One side is 256/224 of that size and the other one no less; of square images it is the shorter.
    """
    height, width = map(size_before_cropping, size)
    own_width, own_height = (max(side, 1) for side in image.size)
    if own_width * height <= own_height * width:  # narrower than what is cropped
        return [int(width * own_height / own_width), width]
    return [height, int(height * own_width / own_height)]


def check_pixels(image: Image.Image, resized: Sequence[int]) -> int:
    """Return how many pixels an image, now or resized to a height and width, or a tile of it has.

    Raises:
        ValueError: naming the size.
    """
    width, height = image.size
    most = max(width * height, math.prod(resized))
    if most > LARGEST_IMAGE:
        raise ValueError(f"{width}x{height} pixels are too many, or too narrow")
    tile = tile_pixels(image)
    if tile > LARGEST_IMAGE:
        raise ValueError(f"tiles of {tile:,} pixels are too large")
    return max(most, tile)


def tile_pixels(image: Image.Image) -> int:
    """Return the pixels of a tile of a TIFF file, which is decoded as a whole; 0 without tiles.

    Raises:
        Exception: nearly any, if the file says something else there.
    """
    tags = getattr(image, "tag_v2", {})
    return int(tags.get(TILE_WIDTH, 0)) * int(tags.get(TILE_LENGTH, 0))


def eight_bits(image: Image.Image) -> Image.Image:
    """Return an image with 16 bits for each pixel in 8, which converting would clip.

    Raises:
        ValueError: if its values have no known range.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        shifted = Image.new("L", image.size)
        for top in range(0, image.height, BAND):
            bottom = min(top + BAND, image.height)
            band = np.asarray(image.crop((0, top, image.width, bottom)))
            shifted.paste(Image.fromarray((band >> 8).astype(np.uint8)), (0, top))
        return shifted
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, accepted are 8 and 16 bits")
    return image


def list_tree(folder: Path, split: Split) -> TreeFiles:
    """List an ImageFolder tree: one folder for each class, none of them hidden.

    Args:
        folder: holds the class folders, or `train` and `test` or `val` with the class folders.
        split: `train` or `test`, for a tree that has both.

    Raises:
        InputError: if there is no class folder, one without an image, or two of one number.
    """
    inner = (folder / name for name in SPLIT_FOLDERS[split])
    root = next((path for path in inner if os.path.isdir(path)), folder)
    require_targets(root)
    classes = class_folders(root)
    splits = sorted(NAMES_OF_SPLITS.intersection(map(str.lower, classes)))
    if splits:
        raise InputError(
            f"{root}: its folder {splits[0]} is no class, but a part of the images; give the "
            "folder that holds the class folders"
        )
    files = [image_files(root / name) for name in classes]
    empty = [name for name, found in zip(classes, files, strict=True) if not found]
    if empty:
        raise InputError(f"{root}: not an ImageFolder tree (no image for the class {empty[0]})")
    numbers = labels_of(root, classes)
    labels = [label for label, found in zip(numbers, files, strict=True) for _ in found]
    return TreeFiles(root, tuple(file for found in files for file in found), labels)


def holds_only_images(folder: Path) -> bool:
    """Return True for a folder with image files in it and no folder of a class."""
    if not os.path.isdir(folder):
        return False
    shown = [name for name in names_in(folder) if not is_hidden(name)]
    is_flat = not any(os.path.isdir(folder / name) for name in shown)
    return is_flat and any(is_image_file(name) for name in shown)


def class_folders(root: Path) -> list[str]:
    """Return the names of a tree's class folders, sorted.

    Raises:
        InputError: if there is none.
    """
    found = [name for name in names_in(root) if not is_hidden(name) and os.path.isdir(root / name)]
    if not found:
        raise InputError(f"{root}: not an ImageFolder tree (no folder of a class)")
    return sorted(found)


def labels_of(root: Path, classes: Sequence[str]) -> list[int]:
    """Return the label of each class folder: its place among their names, or its name.

    Folders that are all named by whole numbers are meant by these, in whatever order they sort.

    Raises:
        InputError: if two folders have the same number, or one is too large.
    """
    if not all(re.fullmatch("[0-9]+", name) for name in classes):
        return list(range(len(classes)))
    numbered: dict[int, str] = {}
    for name in classes:
        label = int(name)
        if label in numbered:
            raise InputError(f"{root}: its folders {numbered[label]} and {name} are one label")
        if label > LARGEST_LABEL:
            raise InputError(
                f"{root}: its folder {name} is no label of a classifier, whose labels are counted "
                "from 0; where not all names are numbers, labels are in the order of names"
            )
        numbered[label] = name
    return list(numbered)


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder; raises as `listed`."""
    with listed(folder) as entries:
        return [each.name for each in entries]


@contextmanager
def listed(folder: str | Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """List a folder: for each entry, the folder itself says whether it is a link.

    Raises:
        InputError: if that is not allowed.
    """
    try:
        with os.scandir(folder) as entries:
            yield entries
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from None
