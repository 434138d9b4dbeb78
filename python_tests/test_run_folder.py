"""The folder of a run: what may be written where, and that no file is ever half written."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from zscgan_ext.errors import InputError
from zscgan_ext.run_folder import files as run_folder
from zscgan_ext.run_folder.files import RunFolder
from zscgan_ext.run_folder.own_files import LIST


def files_of(folder: Path) -> set[str]:
    """Return the files of a folder, less the list of them."""
    files = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    return {name for name in files if not name.endswith(LIST)}


def test_parents_are_created_and_nothing_is_left(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b")
    assert folder.path.is_dir()
    assert files_of(tmp_path) == set()


def test_text_json_and_lines_read_back(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_text("config.yaml", "name: é\n")
    folder.write_json("metrics.json", {"b": 1, "a": {"d": None, "c": 0.5}})
    folder.append_jsonl("metrics.jsonl", {"step": 1, "loss": 0.25})
    folder.append_jsonl("metrics.jsonl", {"step": 2})
    assert (tmp_path / "config.yaml").read_text("utf-8") == "name: é\n"
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text) == {"a": {"c": 0.5, "d": None}, "b": 1}
    assert text.index('"a"') < text.index('"c"') < text.index('"d"') < text.index('"b"')
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1, "loss": 0.25}, {"step": 2}]
    assert files_of(tmp_path) == {"config.yaml", "metrics.json", "metrics.jsonl"}


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write_text("config.yaml", "old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"config.yaml cannot be written \(No space left"):
        folder.write_text("config.yaml", "new")
    assert (tmp_path / "config.yaml").read_text() == "old"
    assert files_of(tmp_path) == {"config.yaml"}


def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.write_text("config.yaml", "old")

    def interrupt(source, target, **folders):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        folder.write_text("config.yaml", "new")
    assert (tmp_path / "config.yaml").read_text() == "old"
    assert files_of(tmp_path) == {"config.yaml"}


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json"])
def test_folder_with_a_run_is_refused(tmp_path, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(InputError, match="already holds a run; give --overwrite"):
        RunFolder(tmp_path)
    assert (tmp_path / name).read_text() == "x"


def test_overwrite_deletes_only_what_a_run_writes(tmp_path):
    first = RunFolder(tmp_path)
    first.write_text("config.yaml", "x")
    first.write_json("metrics.json", {})
    first.append_jsonl("metrics.jsonl", {})
    first.save_tensors("generator.safetensors", {"w": torch.zeros(1)})
    first.save_image_grid("samples/step-000001.png", torch.zeros(1, 1, 1, 4, 4), ["a"])
    (tmp_path / ".config.yaml.partial").touch()
    mine = {"notes.txt", "teacher.safetensors", "samples/thoughts.txt", "other/metrics.json"}
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("keep")
    RunFolder(tmp_path, overwrite=True)
    assert files_of(tmp_path) == mine


def test_folder_with_other_files_is_not_a_run(tmp_path):
    (tmp_path / "notes.txt").write_text("keep")
    RunFolder(tmp_path)
    assert files_of(tmp_path) == {"notes.txt"}


def test_files_in_the_way_give_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"expected a folder, \S+ is a file$"):
        RunFolder(tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written"):
        RunFolder(tmp_path / "file" / "run")
    with pytest.raises(InputError, match="File name too long"):
        RunFolder(tmp_path / ("x" * 300))


def test_unwritable_folder_gives_one_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=r"cannot be written \(Permission denied\)"):
        RunFolder(tmp_path)


def test_tensors_of_every_layout_read_back(tmp_path):
    weight = torch.randn(2, 3, 4, 5)
    tensors = {
        "channels_last": weight.to(memory_format=torch.channels_last),
        "transposed": weight.transpose(0, 3),
        "shared": weight,
        "parameter": torch.nn.Parameter(weight),
        "half": weight.bfloat16(),
        "scalar": torch.tensor(3),
    }
    RunFolder(tmp_path).save_tensors("quantized.safetensors", tensors, {"bits": "w4a4"})
    loaded = load_file(tmp_path / "quantized.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("channels", "height", "shown"),
    [(1, 28, 56), (3, 28, 56), (3, 64, 64), (2, 28, 56), (5, 28, 56)],
)
def test_image_grid_shows_every_pixel(tmp_path, channels, height, shown):
    images = torch.rand(2, 3, channels, height, height)
    RunFolder(tmp_path).save_image_grid("samples/grid.png", images, ["Ankle boot", "Bag"])
    with Image.open(tmp_path / "samples" / "grid.png") as file:
        grid = torch.frombuffer(bytearray(file.convert("RGB").tobytes()), dtype=torch.uint8)
        grid = grid.view(file.height, file.width, 3)
    zoom, gap = shown // height, run_folder.GAP
    for row in range(2):
        for column in range(3):
            top = row * (shown + gap)
            left = grid.shape[1] - (3 - column) * (shown + gap)
            tile = grid[top : top + shown, left : left + shown].permute(2, 0, 1)  # [3, H, W]
            some = images[row, column, : 3 if channels > 2 else 1]
            expected = (some * 255).round().to(torch.uint8).expand(3, -1, -1)
            assert torch.equal(tile[:, ::zoom, ::zoom], expected)
            assert torch.equal(tile[:, zoom - 1 :: zoom, zoom - 1 :: zoom], expected)
        label = grid[row * (shown + gap) : (row + 1) * (shown + gap), : left - 2 * (shown + gap)]
        assert label.min() < 100  # text stands there


def test_image_grid_needs_a_label_for_each_row(tmp_path):
    with pytest.raises(ValueError, match="labels: expected one for each of 2 rows, got 1"):
        RunFolder(tmp_path).save_image_grid("g.png", torch.zeros(2, 1, 1, 4, 4), ["a"])
