"""Builders of files that a careless or hostile person could give to the programs."""

import gzip
import io
import json
import os
import pickle
import socket
import struct
import tarfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import onnx
import torch
from exported import calibrated, small_classifier
from onnx import TensorProto, helper
from PIL import Image
from runs import write_idx
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from zscgan_ext.export.quantized_file import METADATA, quantized_file
from zscgan_ext.zoo.resnet20 import ResNet20

MARKER = "code_ran"
GIGABYTE = 1 << 30


class RunsCode:
    """Makes a folder when it is unpickled."""

    def __init__(self, function=os.mkdir, argument=MARKER):
        self.call = function, (argument,)

    def __reduce__(self):
        return self.call


# ---- weights ------------------------------------------------------------------------------------


def state(**changes):
    """The weights of a ResNet-20 with some replaced, added, or removed by None."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = ResNet20().state_dict()
    tensors |= {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in tensors.items() if value is not None}


def saved(content, **options):
    """Write anything with `torch.save`."""

    def write(file: Path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # kinds of tensors that torch has given up
            torch.save(content() if callable(content) else content, file, **options)

    return write


def safetensors_of(**changes):
    """Write weights with changes as safetensors."""
    return lambda file: save_file(state(**changes), file)


def cut(write, count: int):
    """Write a file and cut off its last bytes."""

    def write_and_cut(file: Path):
        write(file)
        file.write_bytes(file.read_bytes()[:-count])

    return write_and_cut


def data(content: bytes):
    """Write these bytes."""
    return lambda file: file.write_bytes(content)


def link_to(target: str):
    """Make a link."""
    return lambda file: file.symlink_to(target)


def sparse_file(size: int, start: bytes = b""):
    """Write a file that is large without taking up space."""

    def write(file: Path):
        file.write_bytes(start)
        os.truncate(file, size)

    return write


def bind_socket(file: Path):
    """Leave a socket behind."""
    here = os.getcwd()
    os.chdir(file.parent)  # addresses are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(file.name)
    os.chdir(here)


def torchscript(file: Path):
    """Write a TorchScript archive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, its files remain
        torch.jit.save(torch.jit.script(nn.Conv2d(1, 1, 1)), file)


def rewritten_zip(change, compression=zipfile.ZIP_STORED):
    """Write weights with `torch.save`, then change the content of the archive's entries."""

    def write(file: Path):
        buffer = io.BytesIO()
        torch.save(state(), buffer)
        with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(file, "w", compression) as new:
            for entry in old.namelist():
                for name, content in change(entry, old.read(entry)):
                    new.writestr(name, content)

    return write


def bomb(name: str, content: bytes):
    """Replace a weight by a gigabyte of zeros, which takes up a megabyte."""
    yield name, bytes(GIGABYTE) if name.endswith("data/0") else content


def without_pickle(name: str, content: bytes):
    """Leave out what describes the tensors."""
    if not name.endswith("data.pkl"):
        yield name, content


def more_than_stored(name: str, content: bytes):
    """Announce a million channels of `conv1.weight`, [16, 1, 3, 3], over its few numbers."""
    if not name.endswith("data.pkl"):
        yield name, content
        return
    shape = b"(K\x10K\x01K\x03K\x03t"
    assert shape in content
    yield name, content.replace(shape, b"(K\x10J\x00\x00\x10\x00K\x03K\x03t", 1)


def header(entries, length: int | None = None, body: bytes = b""):
    """Write a safetensors file by hand."""
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    size = len(text) if length is None else length
    return data(size.to_bytes(8, "little") + text + body)


# ---- images -------------------------------------------------------------------------------------


def picture(size=(12, 10), mode="RGB", form="PNG") -> bytes:
    """Encode a picture with a gradient."""
    buffer = io.BytesIO()
    gradient = Image.linear_gradient("L").resize(size)
    gradient.convert(mode).save(buffer, form)
    return buffer.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG that announces a size and has next to no pixels."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    )
    parts = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 10 10
%%EndComments
(code_ran) (w) file closefile
%%EOF
"""


def tree_with(write, name: str = "x.png"):
    """Make a tree of three classes with two good images each, and one file more."""

    def make(folder: Path):
        for label in range(3):
            (folder / f"class{label}").mkdir(parents=True)
            for index in range(2):
                (folder / f"class{label}" / f"{index}.png").write_bytes(picture())
        write(folder / "class1" / name)

    return make


# ---- idx ----------------------------------------------------------------------------------------


def idx(images: bytes | None = None, labels: bytes | None = None, suffix: str = ""):
    """Make an idx folder of three 28x28 images, one of its files replaced."""

    def make(folder: Path):
        write_idx(folder, np.zeros((3, 28, 28), np.uint8), np.arange(3, dtype=np.uint8))
        for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
            if content is not None:
                (folder / f"t10k-{kind}-ubyte{suffix}").write_bytes(content)

    return make


def idx_header(*shape: int, code: int = 8) -> bytes:
    """The header of an idx file."""
    return struct.pack(f">HBB{len(shape)}I", 0, code, len(shape), *shape)


def zipped(content: bytes) -> bytes:
    """Compress with gzip."""
    return gzip.compress(content, 1)


# ---- exported files -----------------------------------------------------------------------------


def onnx_model(metadata=None, shape=(None, 3, 8, 8), axes=1, name="images", external=None):
    """Write an ONNX model that averages each channel: three logits, one for each class."""
    facts = {"classifier": "averages", "image_size": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
    facts |= {"class_names": ["a", "b", "c"]}
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    texts |= metadata or {}

    def write(file: Path):
        nodes = [
            helper.make_node("GlobalAveragePool", [name], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"], axis=axes),
            helper.make_node("Add", ["flat", "offset"], ["logits"]),
        ]
        offset = helper.make_tensor("offset", TensorProto.FLOAT, [1], [0.0])
        if external is not None:
            offset = TensorProto(name="offset", data_type=TensorProto.FLOAT, dims=[1])
            offset.data_location = TensorProto.EXTERNAL
            offset.external_data.add(key="location", value=external)
        graph = helper.make_graph(
            nodes,
            "averages",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
            [offset],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, {k: v for k, v in texts.items() if v is not None})
        onnx.save_model(model, file) if external is None else file.write_bytes(
            model.SerializeToString()
        )

    return write


def quantized(change=lambda tensors, facts: None, text=None):
    """Write a quantized small classifier, its tensors or description changed."""

    def write(file: Path):
        classifier = small_classifier(num_classes=5)
        file.write_bytes(quantized_file(calibrated(classifier, "deploy", 4, 4), classifier))
        with safe_open(file, "pt") as stream:
            facts = json.loads(stream.metadata()[METADATA])
        tensors = load_file(file)
        change(tensors, facts)
        save_file(tensors, file, {METADATA: json.dumps(facts) if text is None else text})

    return write


def with_facts(**facts):
    """Change what the description says; `preprocessing` in parts."""

    def change(tensors, found):
        found["preprocessing"] |= facts.pop("preprocessing", {})
        found |= facts

    return quantized(change)


def with_tensor(name: str, change):
    """Change one tensor."""
    return quantized(lambda tensors, facts: tensors.update({name: change(tensors[name])}))


def tar(file: Path):
    """Write a tar archive with a pickle, torch's first format."""
    content = pickle.dumps(RunsCode())
    with tarfile.open(file, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
