"""What `fuzz_readers.py` makes of programs and whole folders: good ones as archives, and readers.

A folder is one archive here, so that it can be mutated as a file is; its reader unpacks it.
Everything that hostile code would do is to make a folder, the canary, which no reader may.
"""

import io
import json
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn
from torch._export.serde.serialize import serialize

from zscgan_ext.classifiers.loading import Classifier, load_classifier
from zscgan_ext.config.command_line import config_to_yaml, stored_config
from zscgan_ext.errors import InputError
from zscgan_ext.images.datasets import open_images
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.run_folder.checkpoint_file import newest_checkpoint
from zscgan_ext.run_folder.files import NAMES, is_name_of_a_run, own_files
from zscgan_ext.run_folder.finished_run import open_run
from zscgan_ext.run_folder.own_files import HEADER, LIST
from zscgan_ext.run_folder.records import (
    read_export,
    read_layer_bits,
    read_log,
    read_metrics,
    read_predictions,
)
from zscgan_ext.stages.run import TIMED, Run
from zscgan_ext.stages.variants import VARIANTS
from zscgan_ext.synthesis.generator import generator_of

CANARY = "code_ran"
CODE = f"__import__('os').mkdir('{CANARY}')"
MOST_FILES = 64  # of a folder


class RunsCode:
    """Makes the canary when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (CANARY,)


def archive(members: Mapping[str, bytes]) -> bytes:
    """Write an archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def canary_checked(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Let a reader run where code of a file would leave the canary, and fail if it does."""

    def reading(file: Path) -> Any:
        place = os.getcwd()
        os.chdir(file.parent)
        try:
            return read(file)
        finally:
            found = os.path.lexists(CANARY)
            os.chdir(place)
            if found:
                raise AssertionError("code of a file has run")

    return reading


# ---- programs -----------------------------------------------------------------------------------


def program_files(model: nn.Module, images: torch.Tensor) -> Iterator[bytes]:
    """Programs in both of torch's formats, without code and with code wherever it could stand."""
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (images,), dynamic_shapes=shapes, strict=False)
        artifact = serialize(program)
    flat = {
        "version": b"8.2",
        "serialized_exported_program.json": artifact.exported_program,
        "serialized_state_dict.pt": artifact.state_dict,
        "serialized_constants.pt": artifact.constants,
        "serialized_example_inputs.pt": b"",
    }
    yield archive(flat)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    yield buffer.getvalue()
    code = pickle.dumps(RunsCode())
    yield archive({**flat, "serialized_example_inputs.pt": code})
    text = artifact.exported_program.decode()
    for old, new in (
        ("Symbol('s", f"{CODE} or Symbol('s"),
        ("torch.ops.aten.relu.default", "torch.os.mkdir"),
        ('"name": "input"', f'"name": "x={CODE}"'),
    ):
        hostile = text.replace(old, new, 1).encode()
        yield archive({**flat, "serialized_exported_program.json": hostile})
    with zipfile.ZipFile(io.BytesIO(buffer.getvalue())) as stored:
        members = {name: stored.read(name) for name in stored.namelist()}
    folder = next(iter(members)).partition("/")[0]
    listed = f"{folder}/data/constants/model_constants_config.json"
    if listed in members:
        facts = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
        config = {"config": {"x": {**facts, "tensor_meta": None}}}
        members[listed] = json.dumps(config).encode()
        yield archive({**members, f"{folder}/data/constants/opaque_obj_0": code})


def read_program(file: Path) -> Classifier:
    """Load the classifier of a program."""
    return load_classifier(str(file))


# ---- folders ------------------------------------------------------------------------------------


def unpacked(file: Path, folder: str) -> None:
    """Write the members of an archive as files of a folder, if they are such.

    Raises:
        InputError: if it is no archive any more, which says nothing of the reader of folders.
    """
    try:
        with zipfile.ZipFile(file) as stored:
            members = {name: stored.read(name) for name in stored.namelist()[:MOST_FILES]}
    except Exception as error:  # a damaged archive raises nearly anything
        raise InputError("not an archive any more") from error
    for name, content in members.items():
        parts = name.split("/")
        if len(parts) <= 2 and all(re.sub("[._-]", "", part).isalnum() for part in parts):
            place = Path(folder, name)
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content)


def run_folders(run: Run, student: nn.Module) -> Iterator[bytes]:
    """A finished run of the small classifier, and one that names code of a stranger."""
    facts = run.classifier.preprocessing
    shape: dict[str, Any] = {"image_size": facts.image_size, "mean": facts.mean, "std": facts.std}
    config = run.config.changed(classifier=run.classifier.name, latent_dim=4, **shape)
    rows = dict.fromkeys(VARIANTS, 50.0)
    measured = {
        "images": 6,
        "classes": [0, 1],
        "spread": [0.5, 0.25],
        "near_duplicates": [0.0, 50.0],
        "confidence_histogram": [10.0] * 10,
        "mean_confidence": 50.0,
        "mean_entropy": 0.5,
    }
    metrics = {
        "classifier": config.classifier,
        "bits": {"weights": 4, "activations": 4},
        "scheme": "deploy",
        "seed": 0,
        "device": "cpu",
        "execution": {"memory_format": "channels_last", "threads": 1},
        "top1": rows,
        "agreement": rows,
        "diversity": {"generated": measured, "real": None},
        "initial_ranges": {"fine_tuned": {"chosen": "images", "divergence": {"images": 0.5}}},
        "choice": {"chosen": "fine_tuned", "divergence": {"instant": 0.5, "fine_tuned": 0.25}},
        "layer_bits": {"0": {"bits": "w4a4", "weights": 54, "divergence": {"2": 0.5, "4": 0.1}}},
        "average_weight_bits": 4.0,
        "seconds": {**dict.fromkeys(TIMED, 1.0), "total": 5.0},
        "peak_memory_bytes": 1000,
        "commit": None,
    }
    export = {
        "bytes": {"onnx": 1, "safetensors": 2},
        "onnx": {"latency_ms": {"float": 1.0, "quantized": 2.0}},
    }
    log = [{"stage": "synthesis", "step": step, "loss": 1.5} for step in (1, 2)]
    classes = torch.tensor([0, 1, 2], dtype=torch.int32)
    generator = generator_of(config.generator, run.classifier)
    members = {
        "config.yaml": config_to_yaml(config).encode(),
        "metrics.json": json.dumps(metrics).encode(),
        "metrics.jsonl": "".join(json.dumps(entry) + "\n" for entry in log).encode(),
        "export.json": json.dumps(export).encode(),
        "predictions.safetensors": save({"float": classes, "fine_tuned": classes.clone()}),
        "quantized.safetensors": save(copies(student)),
        "generator.safetensors": save(copies(generator)),
        LIST: f"{HEADER}config.yaml\nmetrics.json\nsamples/step-000001.png\n".encode(),
    }
    yield archive(members)
    stranger = members["config.yaml"].replace(config.classifier.encode(), b"stranger:build")
    yield archive({**members, "config.yaml": stranger, "stranger.py": f"{CODE}\n".encode()})


def copies(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors of a module, none of which share memory."""
    return {
        name: value.detach().cpu().contiguous().clone()
        for name, value in module.state_dict().items()
    }


class RunReader:
    """Reads all that report, export and `--resume` read of a run's folder.

    Args:
        classifier: the name of the run's classifier, which the user gives.
    """

    def __init__(self, classifier: str) -> None:
        self.classifier = classifier

    def __call__(self, file: Path) -> list[Any]:
        """Read the folder that is packed in a file; return what was read of it, part by part."""
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:
            unpacked(file, folder)
            place = Path(folder)
            errors, found = [], []
            parts: tuple[Callable[[], Any], ...] = (
                lambda: read_metrics(place, 3),
                lambda: read_log(place),
                lambda: read_export(place),
                lambda: read_predictions(place, 3),
                lambda: newest_checkpoint(place),
                lambda: stored_config(place),
                lambda: names_to_delete(place),
                lambda: open_run(place).generator(),
            )
            for part in parts:
                try:
                    found.append(part())
                except InputError as error:
                    errors.append(error)
            named = [error for error in errors if "--classifier" in str(error)]
            if named:  # as it is with a run that is good: it is to be named
                errors.remove(named[0])
            if (place / "config.yaml").exists() and b"stranger" not in (
                place / "config.yaml"
            ).read_bytes():
                open_run(place, self.classifier).generator()
            if errors:
                raise errors[0]
            return found


def read_list(file: Path) -> list[str]:
    """Return what `--overwrite` would delete of a folder in which all names are taken."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        for name in (*NAMES, "notes.txt"):
            Path(folder, name).touch()
        Path(folder, LIST).write_bytes(file.read_bytes())
        return names_to_delete(Path(folder))


def list_files() -> Iterator[bytes]:
    """Lists of what runs wrote, and one with names that lead elsewhere."""
    names = "".join(f"{name}\n" for name in (*NAMES, "samples/step-000001.png"))
    yield f"{HEADER}{names}".encode()
    yield f"{HEADER}../x\n/etc/passwd\nsamples/../../x\n{LIST}\n\n{names}notes.txt".encode()
    yield b""


def read_records(file: Path) -> list[Any]:
    """Return what is read of a run's metrics and of the widths of its layers, packed in a file."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        unpacked(file, folder)
        place = Path(folder)
        return [read_metrics(place, 3), read_layer_bits(place)]


def record_files(runs: Iterator[bytes]) -> Iterator[bytes]:
    """The records of the first of some runs, and with a choice and widths of other forms."""
    with zipfile.ZipFile(io.BytesIO(next(runs))) as stored:
        metrics = json.loads(stored.read("metrics.json"))
    layers = {"layers": metrics["layer_bits"]}
    other: dict[str, Any] = {
        "choice": {},
        "layer_bits": {"0": {"bits": "float", "weights": 1}, "4": {"bits": "w8", "weights": 0}},
        "average_weight_bits": None,
    }
    for changes in ({}, other):
        content = {**metrics, **changes}
        files = {"metrics.json": content, "layer_bits.json": {"layers": content["layer_bits"]}}
        yield archive({name: json.dumps(value).encode() for name, value in files.items()})
    yield archive({"metrics.json": b"{}", "layer_bits.json": json.dumps(layers).encode()})


def names_to_delete(folder: Path) -> list[str]:
    """Return what `--overwrite` would delete: names that runs give, whatever the list holds.

    Raises:
        InputError: if the list is none, or something is in the way.
    """
    own = own_files(folder)
    try:
        names = own.check_deletable(own.names)
    finally:
        own.close()
    assert all(is_name_of_a_run(name) for name in names)
    return names


def image_trees() -> Iterator[bytes]:
    """A tree of two classes with three formats, and one with files that are no images."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    members = {}
    for label in ("cat", "dog"):
        for form in ("png", "jpeg", "bmp"):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, form)
            members[f"{label}/x.{form}"] = buffer.getvalue()
    yield archive(members)
    yield archive({**members, "dog/notes.txt": b"none", "readme.md": b"none", "owl/y.png": b""})


def read_tree(file: Path, preprocessing: Preprocessing) -> list[Tensor]:
    """Return all images and labels of the tree that is packed in a file."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        unpacked(file, folder)
        batches = open_images(folder, "test", preprocessing).batches(4, preprocessing)
        images, labels = zip(*batches, strict=True)
        return [torch.cat(images), torch.cat(labels)]
