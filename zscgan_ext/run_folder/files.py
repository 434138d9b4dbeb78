"""The folder of a run. No file in it is ever half written under its own name."""

import io
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from zscgan_ext.config.command_line import CONFIG
from zscgan_ext.errors import InputError, printable
from zscgan_ext.regular_file import read_regular_file
from zscgan_ext.run_folder.own_files import (
    LIST,
    OwnFiles,
    check_place,
    not_ours,
    require_folder,
)
from zscgan_ext.run_folder.whole_file import json_bytes, one_line_errors

METRICS = "metrics.json"
LOG = "metrics.jsonl"
SAMPLES = "samples"
GENERATOR = "generator.safetensors"
STUDENT = "quantized.safetensors"
INSTANT_STUDENT = "instant.safetensors"  # until a run is through
PREDICTIONS = "predictions.safetensors"
# By format.
EXPORTED = {"onnx": "model.onnx", "pt2": "model.pt2", "safetensors": "model.safetensors"}
EXPORT = "export.json"
LAYER_BITS = "layer_bits.json"
REPORT = "report.html"
TRACE, PROFILE = "trace.json", "profile.txt"
CHECKPOINTS = "checkpoints"
# All names of files that runs write.
NAMES = (
    *(CONFIG, METRICS, LOG, GENERATOR, STUDENT, PREDICTIONS, *EXPORTED.values(), EXPORT, REPORT),
    *(TRACE, PROFILE, LAYER_BITS, INSTANT_STUDENT),
)
CHECKPOINT_NAMES = re.compile(rf"{CHECKPOINTS}/\d{{6,}}-[0-9a-f]{{16}}\.safetensors", re.ASCII)
EVENT_NAMES = re.compile(r"events\.out\.tfevents\.[\w.-]+", re.ASCII)
SAMPLE_NAMES = re.compile(rf"{SAMPLES}/step-\d{{6,}}\.png", re.ASCII)
NUMBERED = (CHECKPOINT_NAMES, EVENT_NAMES, SAMPLE_NAMES)
SMALLEST_SAMPLE = 56  # pixels, so that 28x28 images can be made out
FONT_SIZE = 14  # pixels
GAP = 2  # pixels between images


def is_name_of_a_run(name: str) -> bool:
    """Return True if runs write files of this name into their folder."""
    return name in NAMES or any(pattern.fullmatch(name) for pattern in NUMBERED)


def own_files(folder: Path) -> OwnFiles:
    """Return the list of what runs wrote into a folder, which is made where it is missing.

    Raises:
        InputError: if the folder is a link or in use, or cannot be written.
    """
    with one_line_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        require_folder(folder)
    return OwnFiles.opened(folder, is_name_of_a_run)


@contextmanager
def only_writer(folder: Path) -> Iterator[OwnFiles]:
    """Keep other processes from writing into a folder, of which the list is given.

    Raises:
        InputError: as `own_files`.
    """
    own = own_files(folder)
    try:
        yield own
    finally:
        own.close()


def write_own(folder: Path, name: str, data: bytes) -> Path:
    """Write a file of a run's folder, or of another one for exported files; return its path.

    Raises:
        InputError: if it cannot be written, the folder is in use, or something stands there that
            no run wrote.
    """
    with only_writer(folder) as own:
        own.write(name, data)
    return folder / name


class RunFolder:
    """Creates the folder of a run and writes its files, each one whole or not at all.

    Until `close`, no other process can write there.
    """

    def __init__(
        self, path: Path, overwrite: bool = False, resume: bool = False, writes: bool = True
    ) -> None:
        """Create the folder and its parents.

        Args:
            path: the folder.
            overwrite: whether to delete the files of the run that the folder holds, unless it is
                resumed: then its checkpoints are all that is left of it if it is killed.
            resume: whether to keep them and write on; then nothing is deleted but files that
                a stopped run had not written to their end.
            writes: whether to create and write anything; of many processes one does.

        Raises:
            InputError: if it cannot be written or is in use, holds a run and `overwrite` is not
                given, or holds a link or a file of somebody else where a run writes its own.
        """
        self.path = path
        self.writes = writes
        self.own: OwnFiles | None = None
        self.config = ""  # as it was written last
        if not writes:
            return
        # os.path answers False where Path raises, on a name that is too long for example.
        if os.path.lexists(path):
            if os.path.isfile(path) and not os.path.islink(path):
                raise InputError(f"output: expected a folder, {path} is a file")
            require_folder(path)
        if not (overwrite or resume):
            self._check_holds_no_run()
        if not os.path.lexists(path / LIST):  # which is not made where something is in the way
            self._check_found((), resume)
        self.own = own_files(path)
        try:
            self._prepare(overwrite, resume)
        except BaseException:
            self.close()
            raise

    def _prepare(self, overwrite: bool, resume: bool) -> None:
        """Check all that stands in the folder, then delete what is to go."""
        assert self.own is not None
        if not (overwrite or resume):
            self._check_holds_no_run()  # again, now that no other program writes here
        found = self._check_found(self.own.names, resume)
        if resume and CONFIG not in self.own.names:
            self.own.adopt(found)
        if overwrite and not resume:
            self.own.delete_all()
        else:
            self.own.delete_partial()

    def _check_found(self, own: Collection[str], resume: bool) -> list[str]:
        """Return the names of a run's files that stand here; all can be replaced or deleted.

        Raises:
            InputError: if something else stands in the place of one, or no run wrote it.
        """
        found = self._names_of_a_run()
        for name in found:
            check_place(self.path, name)
        if resume and CONFIG not in own:  # a run of before there was a list
            return found
        for name in found:
            # A run resumes from any whole checkpoint, and deletes none that is not on its list.
            if name not in own and not (resume and CHECKPOINT_NAMES.fullmatch(name)):
                raise InputError(not_ours(self.path, name))
        return found

    def close(self) -> None:
        """Let another run into the folder."""
        own, self.own = self.own, None
        if own is not None:
            own.close()

    def of_checkpoints(self) -> Path | None:
        """Return the folder that checkpoints are kept in, if any are."""
        return self.path

    def write_config(self, text: str) -> None:
        """Write the settings of the run, which other programs read."""
        self.config = text
        self.write_text(CONFIG, text)

    def require_same_config(self) -> None:
        """Require that nobody has changed the settings since they were written.

        Raises:
            InputError: telling what to do.
        """
        if self.own is not None and self.read_text(CONFIG) != self.config:
            raise InputError(
                f"config: {self.path / CONFIG} was changed or deleted while the run went on, whose "
                "results are written but belong to the settings from before; put those back, then "
                f"export and report by python -m zscgan_ext.export {self.path} and "
                f"python -m zscgan_ext.report {self.path}"
            )

    def write_text(self, name: str, text: str) -> None:
        """Write a text file."""
        self.write_file(name, text.encode())

    def read_text(self, name: str) -> str:
        """Return a text file's content, nothing for one that is not there."""
        file = self.path / name
        check_place(self.path, name)
        with one_line_errors(file):
            return read_regular_file(file).decode() if file.exists() else ""

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file, its keys sorted."""
        self.write_file(name, json_bytes(content))

    def append_jsonl(self, name: str, entry: Mapping[str, Any]) -> None:
        """Add one line of JSON to a file."""
        self.append(name, (json.dumps(entry) + "\n").encode())

    def append(self, name: str, data: bytes) -> None:
        """Let a file grow by these bytes, all or none of them."""
        if self.own is not None:
            self.own.grow(name, data)

    def save_tensors(
        self, name: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write a safetensors file; tensors may lie anywhere and share memory."""
        copies = {
            key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for key, tensor in tensors.items()
        }
        self.write_file(name, safetensors.torch.save(copies, dict(metadata or {})))

    def save_image_grid(self, name: str, images: Tensor, labels: Sequence[str]) -> None:
        """Write a PNG with rows of images and a label at the left of each row.

        Args:
            name: the file in the folder, such as `samples/step-000300.png`.
            images: [rows, columns, C, H, W], pixels from 0 to 1, one or three channels.
            labels: one for each row.
        """
        buffer = io.BytesIO()
        draw_grid(images, labels).save(buffer, format="PNG")
        self.write_file(name, buffer.getvalue())

    def delete(self, names: Iterable[str]) -> None:
        """Delete files that this run has written; others of these names stay."""
        if self.own is not None:
            self.own.delete(names)

    def write_file(self, name: str, data: bytes) -> None:
        """Write a file."""
        if self.own is not None:
            self.own.write(name, data)

    def _names_of_a_run(self) -> list[str]:
        """Return what stands here under the names of a run's files, links to nowhere too."""
        named = [name for name in NAMES if os.path.lexists(self.path / name)]
        for folder in (SAMPLES, CHECKPOINTS):
            inner = self.path / folder
            if os.path.lexists(inner):
                require_folder(inner)
                named += sorted(f"{folder}/{name}" for name in os.listdir(inner))
        return [name for name in named if is_name_of_a_run(name)]

    def _check_holds_no_run(self) -> None:
        with one_line_errors(self.path):
            names = self._names_of_a_run()
        if names:
            held = "a run" if {CONFIG, METRICS} & set(names) else names[0]
            raise InputError(
                f"output: {self.path} already holds {held}; give --overwrite to replace it, "
                "or another --output"
            )


class NoFolder(RunFolder):
    """The folder of a run that keeps nothing."""

    def __init__(self) -> None:
        self.path = Path()
        self.own = None

    def of_checkpoints(self) -> None:
        """Have none."""

    def append(self, name: str, data: bytes) -> None:
        """Add nothing."""

    def write_file(self, name: str, data: bytes) -> None:
        """Write nothing."""


def draw_grid(images: Tensor, labels: Sequence[str]) -> Image.Image:
    """Draw rows of images, [rows, columns, C, H, W] from 0 to 1, labels at their left."""
    rows, columns, _, height, width = images.shape
    if rows != len(labels):
        raise ValueError(f"labels: expected one for each of {rows} rows, got {len(labels)}")
    labels = [printable(label) for label in labels]
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
