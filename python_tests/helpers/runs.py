"""Short runs of the main program that several tests share."""

import json
import os
import struct
from pathlib import Path

import numpy as np

import zscgan_ext
from zscgan_ext.images.datasets import LabelledImages, open_images
from zscgan_ext.run_folder.own_files import OwnFiles
from zscgan_ext.zoo import FASHION_MNIST_PREPROCESSING

# What programs import: these helpers and the package of the tests, so that both write the same
# commit. Without an empty part, which would be the current folder.
FOLDERS = [str(Path(__file__).parent), str(Path(zscgan_ext.__file__).parents[1])]
PYTHONPATH = os.pathsep.join(filter(None, [*FOLDERS, os.environ.get("PYTHONPATH")]))
# A run of a few seconds on a CPU.
SHORT = [
    *("--synthesis-steps=10", "--fine-tuning-steps=3", "--calibration-batches=1"),
    *("--batch-size=16", "--fine-tuning-batch-size=16", "--latent-dim=8", "--log-interval=5"),
    *("--device=cpu", "--no-report"),
]


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray, prefix: str = "t10k") -> None:
    """Write images and labels as idx files."""
    folder.mkdir(exist_ok=True)
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (folder / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())


def write_fashion_mnist(folder: Path, prefix: str = "t10k", count: int = 60) -> Path:
    """Write an idx folder with the first of the bundled test images; return it."""
    data = open_images("fashion-mnist", "test", FASHION_MNIST_PREPROCESSING)
    assert isinstance(data, LabelledImages)
    labels = data.labels[:count].numpy().astype(np.uint8)
    write_idx(folder, data.images[:count, 0].numpy(), labels, prefix)
    return folder


# Named again when a run is resumed: its folder does not decide which code runs.
OWN = "--classifier=networks:small_gray"
# A run of about a second: 6 steps of generator learning, 4 of each fine-tuning.
TINY = [
    *(OWN, "--num-classes=10", "--image-size=28"),
    *("--mean=0.5", "--std=0.25", "--synthesis-steps=6", "--fine-tuning-steps=4"),
    *("--calibration-batches=2", "--batch-size=8", "--fine-tuning-batch-size=12"),
    *("--latent-dim=8", "--log-interval=2", "--device=cpu", "--export=none", "--no-report"),
]


def results_of(folder: Path) -> dict[str, object]:
    """Return what two equal runs have in common: metrics but for times and memory, log, tensors."""
    metrics = json.loads((folder / "metrics.json").read_text())
    results = {k: v for k, v in metrics.items() if k not in ("seconds", "peak_memory_bytes")}
    for name in ("metrics.jsonl", "generator.safetensors", "quantized.safetensors"):
        results[name] = (folder / name).read_bytes()
    return results


def let_go_of_folders() -> None:
    """Close the folders that a test has left open."""
    for own in list(OwnFiles.in_use.values()):
        own.users = 1
        own.close()
