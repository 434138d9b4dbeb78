"""Bad and hostile input: one line, exit code 2, no traceback, nothing overwritten, no code run."""

import os
import pickle
import re
import resource
import subprocess
import sys
from pathlib import Path

import hostile_cases
import hostile_files as make
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from runs import SHORT

from zscgan_ext import train
from zscgan_ext.classifiers.weights import read_state_dict
from zscgan_ext.evaluate.__main__ import main as evaluate
from zscgan_ext.export import __main__ as export
from zscgan_ext.export.onnx.runtime import OnnxClassifier
from zscgan_ext.images.datasets import open_images
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.report import __main__ as report

PROGRAMS = {
    "train": train.main,
    "evaluate": evaluate,
    "export": export.main,
    "report": report.main,
}
MOST_MEMORY = 700 << 20  # bytes that a case may add to the peak

TABLE = [pytest.param(*case, id=name) for name, *case in hostile_cases.table()]


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The current folder, with a good model and good images."""
    monkeypatch.chdir(tmp_path)
    make.onnx_model()(Path("good.onnx"))
    make.tree_with(make.data(make.picture()))(Path("good"))
    Path("precious.txt").write_text("keep")
    return tmp_path


def content(path: str):
    """What stands at a path: a link, a folder, a special file, or bytes."""
    if os.path.islink(path):
        return os.readlink(path)
    if not os.path.isfile(path):
        return os.lstat(path).st_mode
    if os.path.getsize(path) > make.GIGABYTE:  # a file with holes, too large to be read
        return os.path.getsize(path), os.stat(path).st_mtime_ns
    return Path(path).read_bytes()


def snapshot(folder: Path):
    """Everything in a folder, links not followed."""
    places = (os.path.join(r, name) for r, ds, fs in os.walk(folder) for name in [*ds, *fs])
    return {place: content(place) for place in places if "__pycache__" not in place}


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_good_files_are_evaluated(workplace, capsys):
    """What the cases below spoil is good: otherwise they would prove nothing."""
    assert evaluate(["good.onnx", "--data", "good"]) == 0
    make.quantized()(workplace / "m.safetensors")
    classifier = ["--classifier", "networks:small_residual"]
    assert evaluate(["m.safetensors", "--data", "good", *classifier]) == 0
    assert capsys.readouterr().err == ""
    make.rewritten_zip(lambda name, content: [(name, content)])(workplace / "w.pt")
    assert set(read_state_dict(workplace / "w.pt")) == set(make.state())


@pytest.mark.parametrize(("write", "name", "program", "arguments", "message"), TABLE)
def test_one_line_and_nothing_changed(workplace, capfd, write, name, program, arguments, message):
    if write is not None:
        write(workplace / name)
    short = [*SHORT, "--output", "run"] if program == "train" else []
    before, memory = snapshot(workplace), peak_memory()
    assert PROGRAMS[program]([*short, *arguments]) == 2
    output = capfd.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert re.match("error: .*" + message, line), line
    assert len(line) < 3000
    assert snapshot(workplace) == before
    assert not os.path.exists(make.MARKER)
    assert peak_memory() - memory < MOST_MEMORY


def test_there_are_enough_cases():
    assert len(TABLE) >= 60
    assert len({parameter.id for parameter in TABLE}) == len(TABLE)


GRAY16 = Preprocessing(1, 16, (0.0,), (1.0,))


def pixels_of(folder: Path, write, name: str = "x.png"):
    """Read one image file with the program's own reader; return its gray values [16, 16]."""
    make.tree_with(write, name)(folder)
    images, _ = next(open_images(str(folder), "test", GRAY16).batches(9, GRAY16))
    return images[-3, 0] * 255  # the last of class1, before the two of class2


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L", "P", "1", "RGBA", "LA"])
@pytest.mark.parametrize("size", [(1, 1), (300, 2), (18, 18)])
def test_unusual_images_are_read(tmp_path, mode, size):
    form = "TIFF" if mode == "CMYK" else "PNG"
    values = pixels_of(tmp_path, make.data(make.picture(size, mode, form)))
    assert values.isfinite().all()
    plain = pixels_of(tmp_path / "plain", make.data(make.picture(size, "L")))
    assert mode == "1" or (values - plain).abs().max() <= 3


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 18 * 18).astype(np.uint16).reshape(18, 18)
    expected = torch.from_numpy((ramp >> 8).astype(np.float32))[1:17, 1:17]
    for suffix in ("png", "tif"):
        values = pixels_of(
            tmp_path / suffix, lambda file: Image.fromarray(ramp).save(file), f"x.{suffix}"
        )
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-4)


def test_links_between_folders_are_followed_once(tmp_path):
    make.tree_with(make.data(make.picture()))(tmp_path / "tree")
    for label in range(3):
        folder = tmp_path / "tree" / f"class{label}"
        for name in ("up", "again", "own"):  # three ways in each of 40 levels, if followed
            (folder / name).symlink_to(".." if name == "up" else ".")
    data = open_images(str(tmp_path / "tree"), "test", GRAY16)
    assert len(data) <= 3 * 7


OUTPUTS = {
    "samples that lead elsewhere": ("samples", True, "run/samples is a link, expected a folder"),
    "log that leads elsewhere": ("metrics.jsonl", False, "already holds metrics.jsonl; give"),
    "log that leads nowhere": ("metrics.jsonl", None, "already holds metrics.jsonl; give"),
    "model of somebody": ("model.onnx", False, "already holds model.onnx; give --overwrite"),
}


@pytest.mark.parametrize(("name", "is_folder", "message"), OUTPUTS.values(), ids=OUTPUTS)
def test_an_output_folder_cannot_lead_elsewhere(workplace, capsys, name, is_folder, message):
    elsewhere = workplace / "elsewhere"
    if is_folder is not None:
        elsewhere.mkdir() if is_folder else elsewhere.write_text("keep")
    if is_folder:
        (elsewhere / "mine.png").write_text("keep")
    (workplace / "run").mkdir()
    (workplace / "run" / name).symlink_to(elsewhere)
    before = snapshot(workplace)
    overwrite = ["--overwrite"] if is_folder else []
    assert train.main([*SHORT, "--output", "run", *overwrite]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert snapshot(workplace) == before


def test_an_exported_file_decides_of_no_code(workplace, capsys):
    """A run beside a file may name any function, which only --classifier makes it run."""
    Path("never_imported.py").write_text("raise SystemExit")
    Path("config.yaml").write_text("classifier: never_imported:build\n")
    make.onnx_model({"classifier": "never_imported:build"})(workplace / "m.onnx")
    assert evaluate(["m.onnx", "--data", "good"]) == 0
    assert "agreement" not in capsys.readouterr().out
    trusted = ["--classifier", "never_imported:build"]
    assert evaluate(["m.onnx", "--data", "good", *trusted]) == 2
    assert "raised SystemExit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "make_it"),
    {
        "link": lambda file: file.symlink_to("precious.txt"),
        "device, pipe or socket": os.mkfifo,
        "folder": Path.mkdir,
    }.items(),
)
def test_results_replace_nothing_but_files(workplace, capsys, kind, make_it):
    """A rename would replace whatever stands there: /dev/null, of a user who may write there."""
    make_it(workplace / "results.json")
    before = snapshot(workplace)
    assert evaluate(["good.onnx", "--data", "good", "--json", "results.json"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert f"results.json is a {kind}, expected a file or nothing" in output.err
    assert snapshot(workplace) == before


SUBPROCESSES = {
    "train": ["--weights", "w.pt"],
    "evaluate": ["bad.onnx"],
    "export": ["gone"],
}


@pytest.mark.parametrize(("program", "arguments"), SUBPROCESSES.items())
def test_as_a_program(workplace, program, arguments):
    """The same from outside: the exit code, and one line though libraries write past Python."""
    make.data(pickle.dumps(make.RunsCode()))(workplace / "w.pt")
    make.data(b"no model")(workplace / "bad.onnx")
    before = snapshot(workplace)
    done = subprocess.run(
        [sys.executable, "-m", f"zscgan_ext.{program}", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert snapshot(workplace) == before


def test_what_onnx_runtime_reads_is_what_was_checked(workplace):
    """A file of its own format begins with the place of its model and the letters ORTM.

    The fields of an ONNX file can do so too, and hold such a file beside another model.
    """
    make.onnx_model({"classifier": "another"})(workplace / "another.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = "another.ort"
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.log_severity_level = 4
    providers = ["CPUExecutionProvider"]
    onnxruntime.InferenceSession("another.onnx", options, providers=providers)
    inner, checked = (Path(name).read_bytes() for name in ("another.ort", "good.onnx"))
    # The version of ONNX and the length of a text, which are together the inner model's place.
    start = b"\x08\x01\x12\x04" + b"ORTM" + checked
    place = int.from_bytes(start[:4], "little") - int.from_bytes(inner[:4], "little")
    # A field of a number that ONNX does not have, and its length in five bytes.
    length = place + len(inner) - len(start) - 7
    sizes = bytes((length >> 7 * i & 127) | (i < 4) << 7 for i in range(5))
    Path("both.onnx").write_bytes((start + b"\xc2\x3e" + sizes).ljust(place, b"\0") + inner)
    misled = onnxruntime.InferenceSession(Path("both.onnx").read_bytes(), providers=providers)
    assert misled.get_modelmeta().custom_metadata_map["classifier"] == "another"
    assert OnnxClassifier(Path("both.onnx")).metadata()["classifier"] == "averages"


def test_logits_that_are_a_sequence_are_refused(workplace, capsys):
    model = onnx.load("good.onnx")
    model.graph.node[-1].output[0] = "tensor"
    model.graph.node.append(onnx.helper.make_node("SequenceConstruct", ["tensor"], ["logits"]))
    kind = onnx.helper.make_tensor_sequence_value_info("logits", onnx.TensorProto.FLOAT, None)
    model.graph.output[0].CopyFrom(kind)
    onnx.save_model(model, "sequence.onnx")
    assert evaluate(["sequence.onnx", "--data", "good"]) == 2
    assert "expected logits as a tensor, got a list" in capsys.readouterr().err
