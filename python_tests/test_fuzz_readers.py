"""A little of what `benchmarks/checks/fuzz_readers.py` does, without atheris."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from benchmarks.checks import fuzz_readers
from zscgan_ext.config.command_line import config_to_yaml
from zscgan_ext.errors import InputError
from zscgan_ext.run_folder.files import NAMES

FILES = 60


def damaged(content: bytes, seed: int) -> bytes:
    """Change a few bytes, or cut something out."""
    chance, changed = random.Random(seed), bytearray(content)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(changed) or 1)
        if chance.random() < 0.7 and changed:
            changed[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        else:
            del changed[place : place + chance.randint(1, 40)]
    return bytes(changed)


@pytest.mark.parametrize("name", fuzz_readers.READERS)
def test_damaged_files_are_read_or_refused(tmp_path, name):
    reader = fuzz_readers.READERS[name]
    seeds = list(reader.seeds())
    messages = []
    for index in range(FILES):
        good = seeds[index % len(seeds)]
        bad = fuzz_readers.mutate(good, lambda part, i=index: damaged(part, i), index)
        (tmp_path / reader.file).write_bytes(bad)
        try:
            reader.read(tmp_path / reader.file)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > FILES / 10
    assert not any("\n" in message for message in messages)


def is_filled(model, state) -> bool:
    return all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def is_quantized(student, _) -> bool:
    logits = student(torch.zeros(2, 3, 4, 4))
    named = student.class_names == ("a", "b", "c") and student.scheme.weight_bits == 4
    return named and logits.shape == (2, 3) and bool(logits.isfinite().all())


def is_picture(pixels, content) -> bool:
    """A picture of 9x7 pixels is enlarged to a shorter side of 5, and 4x4 of it are taken."""
    picture = Image.open(io.BytesIO(content)).convert("RGB").resize((5, 6), Image.BILINEAR)
    middle = np.asarray(picture)[1:5, 0:4]
    return np.abs(pixels.permute(1, 2, 0).numpy().astype(int) - middle).max() <= 1


def is_run(parts, _) -> bool:
    metrics, log, export, predictions, checkpoint, config, names = parts
    assert config.generator.latent_dim > 0
    assert set(names) == {"config.yaml", "metrics.json"}
    steps = [(entry["stage"], entry["step"], entry["loss"]) for entry in log]
    return (
        set(metrics["top1"].values()) == {50.0}
        and steps == [("synthesis", 1, 1.5), ("synthesis", 2, 1.5)]
        and export["bytes"] == {"onnx": 1, "safetensors": 2}
        and [classes.tolist() for classes in predictions] == [[0, 1, 2]] * 2
        and checkpoint is None
    )


# What a reader gives for the first of its good files, and whether that is what was written.
IS_RIGHT = {
    "weights of torch": lambda model, content: is_filled(model, torch.load(io.BytesIO(content))),
    "weights as safetensors": lambda model, content: is_filled(model, load(content)),
    "quantized classifier": is_quantized,
    "idx": lambda array, _: (array == np.arange(32).reshape(2, 4, 4)).all(),
    "idx in gzip": lambda array, _: (array == np.arange(32).reshape(2, 4, 4)).all(),
    "image": is_picture,
    "config": lambda config, content: config_to_yaml(config).encode() == content,
    "checkpoint": lambda steps, _: steps == 1,
    "program": lambda classifier, _: (
        classifier.num_classes == 3 and classifier.preprocessing.shape == (3, 4, 4)
    ),
    "run folder": is_run,
    "list of a run": lambda names, _: set(names) == set(NAMES),
    "records of a run": lambda parts, _: (
        parts[0]["choice"]["chosen"] == "fine_tuned"
        and parts[0]["layer_bits"] == parts[1]
        and parts[1]["0"] == {"bits": "w4a4", "weights": 54, "divergence": {"2": 0.5, "4": 0.1}}
    ),
    "image tree": lambda batch, _: (
        batch[0].shape == (6, 3, 4, 4) and batch[1].tolist() == [0, 0, 0, 1, 1, 1]
    ),
}


@pytest.mark.parametrize("name", fuzz_readers.READERS)
def test_good_files_are_read(tmp_path, name):
    reader = fuzz_readers.READERS[name]
    content = next(iter(reader.seeds()))
    (tmp_path / reader.file).write_bytes(content)
    assert IS_RIGHT[name](reader.read(tmp_path / reader.file), content)
