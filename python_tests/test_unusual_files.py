"""Files that are cut off while they are read, made of holes, kept from being deleted, or too long.

And records of runs that would take minutes to draw, and images that are not those from before.
"""

import errno
import os
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import OWN, TINY
from safetensors.torch import save, save_file

from zscgan_ext.classifiers.pt2.archive import checked_archive
from zscgan_ext.classifiers.weights import read_state_dict
from zscgan_ext.config.command_line import parse_config
from zscgan_ext.errors import InputError
from zscgan_ext.generate import image_set
from zscgan_ext.images import image_files
from zscgan_ext.images.datasets import LabelledImages, read_tree
from zscgan_ext.images.digest import digest_of_images
from zscgan_ext.images.idx_files import read_idx
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.json_values import MismatchError, anything, read_json_lines
from zscgan_ext.regular_file import read_regular_file
from zscgan_ext.run_folder.checkpoint_file import DamagedCheckpointError, read_checkpoint
from zscgan_ext.run_folder.files import NoFolder, RunFolder
from zscgan_ext.run_folder.records import (
    CHOICE_CHECK,
    LAYER_BITS_CHECK,
    METRICS_CHECK,
    MOST_LINES,
    read_log,
)
from zscgan_ext.safetensors_content import read_safetensors_file
from zscgan_ext.stages import run as stages_run
from zscgan_ext.stages.preparation import prepare
from zscgan_ext.train import main as train

GREY = Preprocessing(1, 64, (0.5,), (0.25,))


# ---- cut off while they are read ----------------------------------------------------------------


# What maps a file into memory dies of SIGBUS here, and the run of the tests with it: no process is
# forked for it, as those of torch's threads that hold a lock would be missing there.


@pytest.mark.parametrize("read", [read_state_dict, lambda file: read_safetensors_file(file)[0]])
def test_tensors_that_were_read_do_not_need_their_file(tmp_path, read):
    file = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(1 << 20)}, file)
    tensors = read(file)
    os.truncate(file, 0)
    assert float(tensors["a"].sum()) == 1 << 20


def test_a_picture_that_is_cut_off_while_it_is_decoded_ends_nothing(tmp_path, monkeypatch):
    file = tmp_path / "x.tif"
    pixels = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    Image.fromarray(pixels).save(file)
    usual = image_files.eight_bits

    def cut(image):
        image.load()
        os.truncate(file, 0)
        return usual(image)

    monkeypatch.setattr(image_files, "eight_bits", cut)
    assert np.array_equal(image_files.read_image(file, GREY)[0].numpy(), pixels)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_a_decoder_maps_no_picture(tmp_path, monkeypatch, compression):
    """As libtiff does with an opened file: to shorten it then ends the process."""
    file = tmp_path / "x.tif"
    pixels = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    Image.fromarray(pixels).save(file, compression=compression)
    usual = image_files.check_pixels

    def cut(*arguments):
        os.truncate(file, 0)
        return usual(*arguments)

    monkeypatch.setattr(image_files, "check_pixels", cut)
    assert np.array_equal(image_files.read_image(file, GREY)[0].numpy(), pixels)


# ---- made of holes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "start", "read"),
    [
        ("w.pt2", b"PK\x03\x04", checked_archive),
        ("w.pt", b"PK\x03\x04", read_state_dict),
        ("w.safetensors", save({"a": torch.ones(4)}), read_state_dict),
        ("000001-0123456789abcdef.safetensors", b"x", read_checkpoint),
        ("images-idx3-ubyte", bytes([0, 0, 8, 1, 128, 0, 0, 0]), read_idx),
    ],
)
def test_holes_are_not_read_into_memory(tmp_path, name, start, read):
    file = tmp_path / name
    file.write_bytes(start)
    os.truncate(file, 20 << 30)
    begin = time.process_time()
    with pytest.raises((InputError, DamagedCheckpointError), match="of which were written"):
        read(file)
    assert time.process_time() - begin < 1


@pytest.mark.parametrize(("written", "is_read"), [(1 / 8, True), (1 / 64, False)])
def test_a_file_with_some_holes_is_read(tmp_path, monkeypatch, written, is_read):
    monkeypatch.setattr("zscgan_ext.regular_file.LARGE", 1 << 16)
    file, size = tmp_path / "x", 1 << 22
    with file.open("wb") as stream:
        stream.seek(size // 2)
        stream.write(b"x" * int(written * size))
        stream.truncate(size)
    if is_read:
        assert read_regular_file(file).count(b"x") == written * size
    else:
        with pytest.raises(ValueError, match="of which were written"):
            read_regular_file(file)


# ---- generated images ---------------------------------------------------------------------------


def test_a_disk_that_is_full_while_images_are_kept_aside_is_an_error(tmp_path, monkeypatch):
    class OnFullDisk:
        """A file on a disk with room for a byte."""

        def __init__(self, **arguments) -> None:
            self.file = tempfile.TemporaryFile(**arguments)  # noqa: SIM115 closed by `__exit__`

        def write(self, data: bytes) -> int:
            if len(data) > 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_) -> None:
            self.file.close()

    class Images:
        """Two images."""

        are_pixels, shape, labels = True, (2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)

        def batches(self):
            yield torch.zeros(self.shape, dtype=torch.uint8), self.labels

    monkeypatch.setattr(image_set, "TemporaryFile", OnFullDisk)
    own = image_set.OwnFiles.opened(tmp_path, image_set.is_generated_name)
    try:
        with pytest.raises(InputError, match=r"images.pt cannot be written \(No space left"):
            image_set.write_torch(Images(), own)
    finally:
        own.close()


@pytest.mark.parametrize("letter", ["x", "é", "漢", "\U00020000"])
def test_folders_of_classes_with_long_names_can_be_made(tmp_path, letter):
    for name in image_set.class_folders((letter * 1000, "b")):
        (tmp_path / name).mkdir()
        assert image_set.is_generated_name(f"{name}/generated-000000.png")


# ---- kept from being deleted --------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["i", "a"])
@pytest.mark.parametrize("kept", ["metrics.json", "samples", "run-files.txt"])
def test_a_file_that_cannot_be_deleted_keeps_all_of_the_run(tmp_path, attribute, kept):
    run = RunFolder(tmp_path / "run")
    for name in ("config.yaml", "metrics.json", "samples/step-000001.png"):
        run.write_file(name, b"x")
    run.close()
    before = sorted(tmp_path.rglob("*"))
    path = str(tmp_path / "run" / kept)
    if subprocess.run(["chattr", f"+{attribute}", path], capture_output=True).returncode:
        pytest.skip("needs a file system with attributes, and root")
    try:
        with pytest.raises(InputError, match=r"cannot be (deleted|written)"):
            RunFolder(tmp_path / "run", overwrite=True)
    finally:
        subprocess.run(["chattr", f"-{attribute}", path], check=True)
    assert sorted(tmp_path.rglob("*")) == before


# ---- records ------------------------------------------------------------------------------------


def test_a_long_log_is_read_in_part(tmp_path):
    entries = 40 * MOST_LINES
    lines = (f'{{"stage": "synthesis", "step": {step}, "loss": 1}}\n' for step in range(entries))
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    begin = time.process_time()
    steps = [entry["step"] for entry in read_log(tmp_path)]
    assert time.process_time() - begin < 5
    assert MOST_LINES / 2 < len(steps) <= MOST_LINES
    assert steps[0] == 0
    assert steps[-1] > 0.99 * entries
    assert max(np.diff(steps)) <= 2 * min(np.diff(steps))


def test_a_log_of_empty_lines_takes_no_memory_for_each(tmp_path):
    file = tmp_path / "log"
    file.write_bytes(b"\n" * 20_000_000 + b"{}\nx")
    begin = time.process_time()
    assert read_json_lines(file, anything, 100) == []
    assert time.process_time() - begin < 1
    file.write_bytes(b"1\n" * 100 + b"x")
    with pytest.raises(InputError, match="line 101: is not JSON"):
        read_json_lines(file, anything, 100)


def good_metrics() -> dict:
    rows = {"float": 50.0, "instant": 50.0}
    return {
        **{"classifier": "a", "scheme": "deploy", "seed": 0, "device": "cpu", "execution": {}},
        **{"bits": {"weights": 4, "activations": 4}, "top1": rows, "agreement": rows},
        **{"diversity": {}, "seconds": {"total": 1.0}, "peak_memory_bytes": 1, "warnings": []},
        **{"initial_ranges": {}},
    }


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("seconds", 1.0),
        ("execution", 1.0),
        ("top1", 1.0),
        ("initial_ranges", {"chosen": "images", "divergence": {}}),
    ],
)
def test_rows_that_would_take_minutes_to_draw_are_refused(place, value):
    METRICS_CHECK(good_metrics())
    many = good_metrics() | {place: {f"r{index}": value for index in range(1000)}}
    with pytest.raises(MismatchError, match=rf"{place}: expected a mapping of at most"):
        METRICS_CHECK(many)


def test_layers_and_warnings_are_bounded_and_the_choice_is_one_of_the_students():
    layers = {f"l{index}": {"bits": "w4", "weights": 1} for index in range(20_000)}
    with pytest.raises(MismatchError, match="expected a mapping of at most"):
        LAYER_BITS_CHECK(layers)
    with pytest.raises(MismatchError, match="warnings: expected a list of at most"):
        METRICS_CHECK(good_metrics() | {"warnings": ["x"] * 50_000})
    CHOICE_CHECK({"chosen": "instant", "divergence": {}})
    with pytest.raises(MismatchError, match="chosen: expected 'instant' or 'fine_tuned'"):
        CHOICE_CHECK({"chosen": "float", "divergence": {}})


def test_a_clock_that_is_set_back_makes_no_time_negative(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(stages_run.time, "perf_counter", lambda: now[0])
    results = stages_run.Results(NoFolder(), (0, 3))
    with results.timed("calibration"):
        now[0] = 10.0
    assert min(results.seconds.values()) == 0
    assert results.total_seconds() == 0


# ---- images that are not those from before ------------------------------------------------------


def make_tree(folder: Path) -> None:
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        for number in range(2):
            picture = Image.new("RGB", (28, 28), (40 * number, 9, 90))
            picture.save(folder / label / f"{number}.png")


def test_a_run_asks_for_the_status_of_each_picture_once(tmp_path, monkeypatch):
    """Over a network, some 50,000 of them take minutes."""
    make_tree(tmp_path / "images")
    asked: Counter[str] = Counter()
    for name in ("stat", "lstat"):
        own = getattr(os, name)

        def counting(path, *more, own=own, **options):
            asked[os.path.basename(os.fspath(path)) if not isinstance(path, int) else ""] += 1
            return own(path, *more, **options)

        monkeypatch.setattr(os, name, counting)
    options = ["--evaluation-data", str(tmp_path / "images"), "--output", str(tmp_path / "run")]
    run = prepare(parse_config([*TINY, *options]))
    run.folder.close()
    ((_, versions),) = run.versions
    assert len(versions) == 4
    assert (asked["0.png"], asked["1.png"]) == (2, 2)  # each in two folders


def test_images_are_told_from_others(tmp_path):
    make_tree(tmp_path)
    first = digest_of_images(read_tree(tmp_path, "test"))
    assert digest_of_images(read_tree(tmp_path, "test")) == first
    Image.new("RGB", (40, 40), "red").save(tmp_path / "a" / "1.png")
    other = digest_of_images(read_tree(tmp_path, "test"))
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "2.png")
    assert len({first, other, digest_of_images(read_tree(tmp_path, "test"))}) == 3
    labels = torch.zeros(2, dtype=torch.int64)
    black, white = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.full((2, 1, 4, 4), 255)
    digests = {digest_of_images(LabelledImages(each.byte(), labels)) for each in (black, white)}
    assert len(digests) == 2


def test_a_run_does_not_resume_with_other_images(tmp_path, capsys):
    images = tmp_path / "images"
    make_tree(images)
    folder = tmp_path / "run"
    given = [
        *TINY,
        "--stop-after=synthesis",
        "--checkpoint-every=2",
        f"--calibration-data={images}",
    ]
    assert train([*given, f"--output={folder}"]) == 0
    (images / "a" / "1.png").unlink()
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert train([OWN, f"--resume={folder}"]) == 2
    error = capsys.readouterr().err
    assert "images of calibration_data: expected 4, " in error
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == written
