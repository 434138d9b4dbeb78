"""Images of several labels each: files, and a table that says which labels apply to them."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import torch

from zscgan_ext.errors import InputError, did_you_mean, first_line
from zscgan_ext.images.datasets import ImageTree, check_channels
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.regular_file import read_regular_file

TABLE = "labels.csv"
FILE_COLUMN = "file"
VALUES = {"0": 0, "1": 1}


def open_label_table(
    name: str, preprocessing: Preprocessing, class_names: Sequence[str]
) -> ImageTree:
    """Open the images that a folder's `labels.csv` lists.

    Its first column, `file`, is the path of an image below the folder; each other column is a label
    by its name, 1 where it applies and 0 where not.

    Args:
        name: of the folder.
        preprocessing: of the classifier.
        class_names: its labels, in order.

    Returns:
        The images, with labels int64 [N, num_classes].

    Raises:
        InputError: if there is no such table, it is damaged, or has other labels.
    """
    table = Path(name) / TABLE
    if not table.is_file():
        raise InputError(
            f"{name}: expected a folder with {TABLE}, as several labels may apply to an image: a "
            "column file, and one of 0 and 1 for each label"
        )
    check_channels(name, preprocessing)
    rows = rows_of(table)
    header = next(rows, [])
    order = columns_of(table, header, class_names)
    labels: dict[Path, list[int]] = {}
    for line, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"{table}: row {line} has {len(row)} columns, the first {len(header)}")
        file = file_of(table, row[0])
        if file in labels:
            raise InputError(f"{table}: lists {row[0]} twice, again in row {line}")
        labels[file] = [applies(table, line, row[column]) for column in order]
    if not labels:
        raise InputError(f"{table}: lists no image")
    values = torch.tensor(list(labels.values()), dtype=torch.int64)
    return ImageTree(tuple(labels), values, Path(name))


def rows_of(table: Path) -> Iterator[list[str]]:
    """Yield the rows of a table, empty ones left out: all of them would take much memory at once.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        content = read_regular_file(table).decode("utf-8-sig")
        yield from filter(None, csv.reader(io.StringIO(content), strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{table}: cannot be read ({first_line(error)})") from None


def columns_of(table: Path, header: Sequence[str], class_names: Sequence[str]) -> list[int]:
    """Return which column each label has.

    Names say that, in any order; where a classifier knows none, columns are taken in theirs, unless
    some are numbers of labels.

    Raises:
        InputError: if there are other labels.
    """
    first, *names = (name.strip() for name in header or [""])
    if first != FILE_COLUMN:
        raise InputError(f"{table}: expected {FILE_COLUMN} as its first column, got {first!r}")
    are_numbers = list(class_names) == [str(index) for index in range(len(class_names))]
    if len(names) != len(class_names):
        raise InputError(
            f"{table}: has columns for {len(names)} labels, the classifier has {len(class_names)}"
        )
    if names == list(class_names):
        return list(range(1, len(header)))
    if len(set(names)) < len(names):
        raise InputError(f"{table}: has two columns of one label")
    if are_numbers and not set(names) & set(class_names):
        return list(range(1, len(header)))
    unknown = [name for name in names if name not in class_names]
    if unknown:
        hint = did_you_mean(unknown[0], list(class_names))
        raise InputError(f"{table}: the classifier has no label {unknown[0]!r}{hint}")
    return [1 + names.index(name) for name in class_names]


def file_of(table: Path, text: str) -> Path:
    """Return the path of an image of a table.

    Raises:
        InputError: if it leads out of the folder, or nothing stands there.
    """
    path = PurePosixPath(text)
    if not text or path.is_absolute() or ".." in path.parts or "\0" in text:
        raise InputError(f"{table}: expected paths below its folder, got {text!r}")
    file = table.parent / path
    if not file.is_file():
        raise InputError(f"{table}: its image {text} is missing")
    return file


def applies(table: Path, line: int, text: str) -> int:
    """Return whether a label applies, 0 or 1.

    Raises:
        InputError: if something else stands there.
    """
    value = VALUES.get(text.strip())
    if value is None:
        raise InputError(f"{table}: expected 0 or 1 for each label, got {text!r} in row {line}")
    return value
