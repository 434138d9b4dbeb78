"""The folder of a run. No file in it is ever half written under its own name."""

import contextlib
import errno
import io
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zscgan_ext.errors import InputError
from zscgan_ext.regular_file import read_regular_file
from zscgan_ext.settings.command_line import CONFIG

PARTIAL = ".partial"
METRICS = "metrics.json"
LOG = "metrics.jsonl"
SAMPLES = "samples"
GENERATOR = "generator.safetensors"
STUDENT = "quantized.safetensors"
PREDICTIONS = "predictions.safetensors"
EXPORTED = {"onnx": "model.onnx", "safetensors": "model.safetensors"}  # by format
EXPORT = "export.json"
REPORT = "report.html"
TRACE, PROFILE = "trace.json", "profile.txt"
CHECKPOINTS = "checkpoints"
# All that a run writes, and all that `overwrite` deletes.
RUN_FILES = (
    *(CONFIG, METRICS, LOG, GENERATOR, STUDENT, PREDICTIONS, *EXPORTED.values(), EXPORT, REPORT),
    *(TRACE, PROFILE, f"{SAMPLES}/*.png", f"{CHECKPOINTS}/*.safetensors", "events.out.tfevents.*"),
)
PARTIAL_FILES = (f".*{PARTIAL}", f"{SAMPLES}/.*{PARTIAL}", f"{CHECKPOINTS}/.*{PARTIAL}")
ALL_FILES = (*RUN_FILES, *PARTIAL_FILES)
SMALLEST_SAMPLE = 56  # pixels, so that 28x28 images can be made out
FONT_SIZE = 14  # pixels
GAP = 2  # pixels between images


@contextlib.contextmanager
def one_line_errors(file: Path) -> Iterator[None]:
    """Turn what goes wrong with a file into an `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"output: {file} cannot be written ({reason})") from error


def write_whole(file: Path, data: bytes) -> None:
    """Write a file, and its folder where that is missing, so that it is there whole or not at all.

    Raises:
        InputError: if it cannot be written.
    """
    partial = file.with_name(f".{file.name}{PARTIAL}")
    with one_line_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        try:
            # "x": a link that somebody put there must not lead to another file.
            with partial.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, file)
            sync_folder(file.parent)
        finally:
            partial.unlink(missing_ok=True)


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Return the JSON file of this content, its keys sorted."""
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def sync_folder(folder: Path) -> None:
    """Make the names of a folder's files survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class RunFolder:
    """Creates the folder of a run and writes its files, each one whole or not at all."""

    def __init__(
        self, path: Path, overwrite: bool = False, resume: bool = False, writes: bool = True
    ) -> None:
        """Create the folder and its parents.

        Args:
            path: the folder.
            overwrite: whether to delete the files of the run that the folder holds.
            resume: whether to keep them and go on writing; then nothing is deleted but files that
                a stopped run had not written to their end.
            writes: whether to create and write anything; of many processes one does.

        Raises:
            InputError: if it cannot be written, or holds a run and `overwrite` is not given.
        """
        self.path = path
        self.writes = writes
        if not writes:
            return
        # os.path answers False where Path raises, on a name that is too long for example.
        if os.path.exists(path) and not os.path.isdir(path):
            raise InputError(f"output: {path} is a file, needed is a folder")
        if os.path.islink(path / SAMPLES):
            raise InputError(f"output: {path / SAMPLES} is a link, needed is a folder")
        if not (overwrite or resume):
            self._check_holds_no_run()
        with one_line_errors(path):
            path.mkdir(parents=True, exist_ok=True)
            for file in self._files_of_a_run(PARTIAL_FILES if resume else ALL_FILES):
                file.unlink()
        self._check_writable()

    def of_checkpoints(self) -> Path | None:
        """Return the folder that checkpoints are kept in, if any are."""
        return self.path

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        self._write(name, text.encode())

    def read_text(self, name: str) -> str:
        """Return a text file's content, nothing for one that is not there."""
        file = self.path / name
        with one_line_errors(file):
            return read_regular_file(file).decode() if file.exists() else ""

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, its keys sorted."""
        self._write(name, json_bytes(content))

    def append_jsonl(self, name: str, entry: Mapping[str, Any]) -> None:
        """Add one line of JSON to a file."""
        self.append(name, (json.dumps(entry) + "\n").encode())

    def append(self, name: str, data: bytes) -> None:
        """Let a file grow by these bytes, all or none of them."""
        if not self.writes:
            return
        with one_line_errors(self.path / name), (self.path / name).open("ab", 0) as stream:
            end = stream.seek(0, os.SEEK_END)
            try:
                # Without a buffer, a full disk can take a part and say so.
                if stream.write(data) < len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                stream.truncate(end)
                raise

    def save_tensors(
        self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write a safetensors file; tensors may lie anywhere and share memory."""
        copies = {
            key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, tensor in tensors.items()
        }
        self._write(name, safetensors.torch.save(copies, dict(metadata or {})))

    def save_image_grid(self, name: str, images: Tensor, labels: Sequence[str]) -> None:
        """Write a PNG with rows of images and a label at the left of each row.

        Args:
            name: the file in the folder, such as `samples/step-000300.png`.
            images: [rows, columns, C, H, W], pixels from 0 to 1, one or three channels.
            labels: one for each row.
        """
        buffer = io.BytesIO()
        draw_grid(images, labels).save(buffer, format="PNG")
        self._write(name, buffer.getvalue())

    def _write(self, name: str, data: bytes) -> None:
        if self.writes:
            write_whole(self.path / name, data)

    def _files_of_a_run(self, patterns: Sequence[str] = ALL_FILES) -> list[Path]:
        """Return what stands here under the names of a run's files, links to nowhere too."""
        named = [self.path / name for name in patterns if "*" not in name]
        found = [file for pattern in patterns if "*" in pattern for file in self.path.glob(pattern)]
        return [file for file in [*named, *found] if os.path.lexists(file)]

    def _check_holds_no_run(self) -> None:
        with one_line_errors(self.path):
            names = [file.name for file in self._files_of_a_run()]
        kept = [name for name in names if not name.endswith(PARTIAL)]
        if kept:
            held = "a run" if {CONFIG, METRICS} & set(kept) else kept[0]
            raise InputError(
                f"output: {self.path} already holds {held}; give --overwrite to replace it, "
                "or another --output"
            )

    def _check_writable(self) -> None:
        probe = self.path / f".write-test{PARTIAL}"
        with one_line_errors(self.path):
            probe.touch()
            probe.unlink()


class NoFolder(RunFolder):
    """The folder of a run that keeps nothing."""

    def __init__(self) -> None:
        self.path = Path()

    def of_checkpoints(self) -> None:
        """Have none."""

    def append(self, name: str, data: bytes) -> None:
        """Add nothing."""

    def _write(self, name: str, data: bytes) -> None:
        """Write nothing."""


def draw_grid(images: Tensor, labels: Sequence[str]) -> Image.Image:
    """Draw rows of images, [rows, columns, C, H, W] from 0 to 1, labels at their left."""
    rows, columns, _, height, width = images.shape
    if rows != len(labels):
        raise ValueError(f"labels: {len(labels)}, needed is one for each of {rows} rows")
    zoom = max(1, math.ceil(SMALLEST_SAMPLE / height))
    font = ImageFont.load_default(FONT_SIZE)
    left = math.ceil(max(font.getlength(label) for label in labels)) + 4 * GAP
    row_height, column_width = height * zoom + GAP, width * zoom + GAP
    grid = Image.new("RGB", (left + columns * column_width, rows * row_height), "white")
    draw = ImageDraw.Draw(grid)
    for row, label in enumerate(labels):
        middle = row * row_height + row_height // 2
        draw.text((2 * GAP, middle), label, fill="black", font=font, anchor="lm")
        for column in range(columns):
            image = to_image(images[row, column], zoom)
            grid.paste(image, (left + column * column_width, row * row_height))
    return grid


def to_image(pixels: Tensor, zoom: int) -> Image.Image:
    """Turn [C, H, W] from 0 to 1 into an RGB image, every pixel `zoom` wide and high.

    Of other than one or three channels it shows the first, or the first three.
    """
    values = (pixels.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    shown = values[:3] if len(values) >= 3 else values[:1].expand(3, -1, -1)
    rgb = shown.permute(1, 2, 0).contiguous()  # [H, W, 3]
    image = Image.fromarray(rgb.numpy())
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)
