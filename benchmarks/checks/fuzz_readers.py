"""Mutates good files and gives them to every reader: each has to be read, or refused in one line.

`python -m benchmarks.checks.fuzz_readers --output results.json` runs libFuzzer (by atheris, which
watches what code of the package each file reaches) on one reader after the other, each in a process
of its own. Anything but an `InputError` counts as a crash, and so do a signal, more than 30 seconds
and more than 2 GB; the file is kept. Code that a file holds would leave a canary, which counts too.
To add a reader, add a line to `READERS`.
"""

import argparse
import contextlib
import gzip
import io
import json
import random
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

try:
    import atheris
except ImportError:  # mutate() and the readers work without
    atheris = None

with atheris.instrument_imports(include=["zscgan_ext"]) if atheris else contextlib.nullcontext():
    from benchmarks.checks import fuzz_archives as archives
    from zscgan_ext.classifiers.loading import Classifier
    from zscgan_ext.classifiers.weights import load_weights
    from zscgan_ext.config.command_line import config_to_yaml, parse_config
    from zscgan_ext.config.configs import RunConfig
    from zscgan_ext.environment import environment
    from zscgan_ext.errors import InputError
    from zscgan_ext.export.quantized_file import load_quantized, quantized_file
    from zscgan_ext.images.idx_files import read_idx
    from zscgan_ext.images.image_files import read_image
    from zscgan_ext.images.preprocessing import Preprocessing
    from zscgan_ext.quantization.calibration import calibrate
    from zscgan_ext.quantization.conversion import convert
    from zscgan_ext.quantization.fine_tuning import StudentTrainer
    from zscgan_ext.quantization.scheme import Scheme
    from zscgan_ext.run_folder.checkpoint_file import (
        checkpoint_files,
        checksum,
        newest_checkpoint,
    )
    from zscgan_ext.run_folder.checkpoints import Checkpoints
    from zscgan_ext.run_folder.files import CHECKPOINTS, NoFolder
    from zscgan_ext.stages.preparation import check_facts
    from zscgan_ext.stages.run import Run, new_run
    from zscgan_ext.synthesis.generator_training import noise_batches
    from zscgan_ext.training.execution import choose_execution

PREPROCESSING = Preprocessing(3, 4, (0.5,) * 3, (0.25,) * 3)
PROGRAM = "benchmarks.checks.fuzz_readers"
CLASSIFIER = f"{PROGRAM}:small_classifier"
FACTS = {"seed": "0", "weights of the classifier": "0123456789abcdef"}
SECONDS, MEGABYTES = 30, 2048  # that one file may take
LARGEST = 1 << 17  # bytes of a mutated file


def small_classifier() -> nn.Module:
    """A classifier of three classes, as small as they get."""
    layers = (nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(*layers).eval().requires_grad_(False)


# ---- good files, from which mutation starts -----------------------------------------------------


def torch_files() -> Iterator[bytes]:
    """State dicts as `torch.save` writes them: now, in former times, nested, in half precision."""
    state = small_classifier().state_dict()
    half = {name: value.half() for name, value in state.items() if value.is_floating_point()}
    for content, is_zip in ((state, True), (state, False), ({"model": state}, True), (half, True)):
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=is_zip)
        yield buffer.getvalue()


def safetensors_files() -> Iterator[bytes]:
    """State dicts as safetensors."""
    yield save(small_classifier().state_dict())
    yield save({"module.a": torch.zeros(2, dtype=torch.bfloat16), "b": torch.zeros(())})


def quantized_files() -> Iterator[bytes]:
    """Exported students of both schemes."""
    names = ("a", "b", "c")
    classifier = Classifier(CLASSIFIER, small_classifier(), 3, PREPROCESSING, names)
    for scheme in ("deploy", "paper"):
        student = convert(classifier.model, Scheme(scheme, 4, 4), PREPROCESSING.shape)
        batch = (torch.randn(4, *PREPROCESSING.shape), torch.zeros(4, dtype=torch.int64))
        calibrate(student, iter([batch]), 1)
        yield quantized_file(student, classifier)


def idx_files() -> Iterator[bytes]:
    """Images and labels."""
    yield bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 4]) + bytes(range(32))
    yield bytes([0, 0, 8, 1, 0, 0, 0, 2]) + b"\0\1"


def image_files() -> Iterator[bytes]:
    """A picture in every format that is read, and in several modes."""
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    for form, modes in {
        "PNG": ("RGB", "L", "P", "1", "I;16"),
        "JPEG": ("RGB", "L", "CMYK"),
        "TIFF": ("RGB", "CMYK", "F"),
        "BMP": ("RGB", "1"),
        "PPM": ("RGB", "L"),
        "WEBP": ("RGB",),
    }.items():
        for mode in modes:
            buffer = io.BytesIO()
            source = picture.convert("L") if mode == "I;16" else picture
            source.convert(mode).save(buffer, form)
            yield buffer.getvalue()


def config_files() -> Iterator[bytes]:
    """All settings."""
    yield config_to_yaml(RunConfig()).encode()
    yield b"generator: {steps: 3, distance: mse}\nquantization: {rounding: nearest}\n"
    yield b"mean: [0.1, .2]\nseed: !!int 3\nclassifier: &a resnet20\nstop_after: ~\n"


def small_run() -> Run:
    """A run of the small classifier that writes nothing, with its student under training."""
    torch.manual_seed(0)
    names = ("a", "b", "c")
    classifier = Classifier(CLASSIFIER, small_classifier(), 3, PREPROCESSING, names)
    options = {"device": "cpu", "batch_size": 2, "fine_tuning_steps": 3, "label_weight": 0.5}
    config = RunConfig().changed(**options)
    execution = choose_execution(config.execution, torch.device("cpu"))
    return new_run(config, classifier, NoFolder(), execution)


def fine_tuning(run: Run) -> StudentTrainer:
    """Fine-tuning of its student on noise."""
    student = run.new_student()
    rng = torch.Generator().manual_seed(0)
    batches = noise_batches(2, PREPROCESSING.shape, rng)
    calibrate(student, batches, 1)
    config = run.config.fine_tuning
    return StudentTrainer(student, run.classifier.model, batches, config, run.execution)


def hold_all(checkpoints: Checkpoints, run: Run, trainer: StudentTrainer) -> None:
    """Hold what a run holds while it fine-tunes."""
    checkpoints.hold("results", run.results, gives_copies=True)
    checkpoints.hold("student", trainer.student)
    checkpoints.hold("fine_tuned/training", trainer)
    checkpoints.hold_rng("image rng", torch.Generator())


def checkpoint_contents() -> Iterator[bytes]:
    """Checkpoints from before the first step of fine-tuning and from behind one."""
    run = small_run()
    trainer = fine_tuning(run)
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = Checkpoints(Path(folder), None, 1, FACTS)
            hold_all(checkpoints, run, trainer)
            checkpoints.write()
            (file,) = checkpoint_files(Path(folder, CHECKPOINTS))
            yield file.read_bytes()
        trainer.step(trainer.sample())


# ---- readers ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """What reads files, the name it needs them to have, and good ones."""

    read: Callable[[Path], Any]
    file: str
    seeds: Callable[[], Iterator[bytes]]


def read_weights(file: Path) -> nn.Module:
    """Return the small classifier with a file's weights."""
    model = small_classifier()
    load_weights(model, file)
    return model


class CheckpointReader:
    """Lets a run resume from a checkpoint, named as its bytes need it, a step further."""

    def __init__(self) -> None:
        self.run: Run | None = None

    def __call__(self, file: Path) -> int:
        """Resume from the only checkpoint; return how many steps were made then."""
        if self.run is None:
            self.run = small_run()
            self.trainer = fine_tuning(self.run)
        with tempfile.TemporaryDirectory(dir=file.parent) as run:
            folder = Path(run, CHECKPOINTS)
            folder.mkdir()
            content = file.read_bytes()
            (folder / f"000001-{checksum(content)}.safetensors").write_bytes(content)
            state = newest_checkpoint(Path(run))
            assert state is not None
            check_facts(FACTS, state["facts"], "the checkpoint")
            checkpoints = Checkpoints(Path(run), None, 1, FACTS, state)
            hold_all(checkpoints, self.run, self.trainer)
            self.trainer.step(self.trainer.sample())
            checkpoints.count_step()
            checkpoints.write()
            return checkpoints.steps


def small_run_folders() -> Iterator[bytes]:
    """Finished runs of the small classifier."""
    run = small_run()
    return archives.run_folders(run, fine_tuning(run).student)


READERS = {
    "weights of torch": Reader(read_weights, "w.pt", torch_files),
    "weights as safetensors": Reader(read_weights, "w.safetensors", safetensors_files),
    "quantized classifier": Reader(
        lambda file: load_quantized(file, CLASSIFIER), "model.safetensors", quantized_files
    ),
    "idx": Reader(read_idx, "images-idx3-ubyte", idx_files),
    "idx in gzip": Reader(
        read_idx, "images-idx3-ubyte.gz", lambda: (gzip.compress(d, 1) for d in idx_files())
    ),
    "image": Reader(lambda file: read_image(file, PREPROCESSING), "x.png", image_files),
    "config": Reader(
        lambda file: parse_config(["--config", str(file)]), "config.yaml", config_files
    ),
    "checkpoint": Reader(CheckpointReader(), "checkpoint", checkpoint_contents),
    "program": Reader(
        archives.canary_checked(archives.read_program),
        "model.pt2",
        lambda: archives.program_files(small_classifier(), torch.zeros(3, *PREPROCESSING.shape)),
    ),
    "run folder": Reader(
        archives.canary_checked(archives.RunReader(CLASSIFIER)),
        "run.zip",
        small_run_folders,
    ),
    "list of a run": Reader(
        archives.canary_checked(archives.read_list), "list", archives.list_files
    ),
    "records of a run": Reader(
        archives.canary_checked(archives.read_records),
        "records.zip",
        lambda: archives.record_files(small_run_folders()),
    ),
    "image tree": Reader(
        archives.canary_checked(lambda file: archives.read_tree(file, PREPROCESSING)),
        "tree.zip",
        archives.image_trees,
    ),
}


# ---- mutation -----------------------------------------------------------------------------------

Change = Callable[[bytes], bytes]


def mutate(content: bytes, change: Change, seed: int) -> bytes:
    """Change a file: half of the time inside its container.

    A checksum or a length alone would refuse most other changes.
    """
    chance = random.Random(seed)
    if chance.random() < 0.5:
        return change(content)
    try:
        if content.startswith(b"PK"):
            return inside_zip(content, change, chance)
        if content.startswith(b"\x1f\x8b"):
            return gzip.compress(change(gzip.decompress(content)), 1)
        return inside_safetensors(content, change, chance)
    except Exception:  # it is damaged already
        return change(content)


def inside_zip(content: bytes, change: Change, chance: random.Random) -> bytes:
    """Change one entry of an archive; its size and checksum follow."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w") as new:
        names = old.namelist()
        pickled = [name for name in names if name.endswith((".pkl", ".json"))]
        chosen = chance.choice(pickled + names)
        for name in names:
            content = old.read(name)
            if name == chosen:
                content = changed_member(name, content, change, chance)
            new.writestr(name, content)
    return result.getvalue()


def changed_member(name: str, content: bytes, change: Change, chance: random.Random) -> bytes:
    """Change a member of an archive: of JSON, mostly one value."""
    if name.endswith(".safetensors") and chance.random() < 0.5:
        return inside_safetensors(content, change, chance)
    if not name.endswith((".json", ".jsonl")) or chance.random() < 0.2:
        return change(content)
    lines = [content] if name.endswith(".json") else content.splitlines()
    values = [json.loads(line) for line in lines]
    replace_somewhere(values, ["0.weight"], chance)
    return b"\n".join(json.dumps(value).encode() for value in values)


def inside_safetensors(content: bytes, change: Change, chance: random.Random) -> bytes:
    """Change the JSON at the start, mostly one value of a checkpoint's; the length follows."""
    end = 8 + int.from_bytes(content[:8], "little")
    if not 8 < end <= len(content):
        return change(content)
    header = content[8:end]
    if b'"state"' in header and chance.random() < 0.8:
        entries = json.loads(header)
        state = json.loads(entries["__metadata__"]["state"])
        replace_somewhere(state, [name for name in entries if name != "__metadata__"], chance)
        entries["__metadata__"]["state"] = json.dumps(state)
        header = json.dumps(entries).encode()
    else:
        header = change(header)
    return len(header).to_bytes(8, "little") + header + content[end:]


# ---- running ------------------------------------------------------------------------------------


STRANGE: Any = (
    *(None, True, -1, 7, 1e300, float("nan"), 10**30, "", "x", [], [0], {}, {"x": "y"}),
    *(4.0, r"$\frac{$", archives.CODE, f"Symbol({archives.CODE!r})", "torch.os.mkdir"),
)


def leaves(state: Any) -> Iterator[Any]:
    """Yield all texts, numbers, booleans and None inside nested JSON."""
    if isinstance(state, dict | list):
        for value in state.values() if isinstance(state, dict) else state:
            yield from leaves(value)
    else:
        yield state


def replace_somewhere(state: Any, tensors: list[str], chance: random.Random) -> None:
    """Replace or delete one value inside nested JSON; a tensor may come to stand there."""
    whole = state
    while True:
        keys = list(state) if isinstance(state, dict) else range(len(state))
        key = chance.choice(keys)
        if not (isinstance(state[key], dict | list) and state[key]) or chance.random() < 0.1:
            break
        state = state[key]
    alike = [value for value in leaves(whole) if type(value) is type(state[key])]
    if chance.random() < 0.1:
        del state[key]
    elif alike and chance.random() < 0.5:  # what passes most checks
        state[key] = chance.choice(alike)
    else:
        state[key] = chance.choice((*STRANGE, {"__tensor__": chance.choice(tensors)}))


def fuzz(name: str, files: int, folder: Path) -> None:
    """Run libFuzzer on one reader; ends the process."""
    reader = READERS[name]
    corpus = folder / "corpus"
    corpus.mkdir()
    for index, seed in enumerate(reader.seeds()):
        (corpus / str(index)).write_bytes(seed)
    counts = {"files": 0, "read": 0, "refused": 0}

    def test(content: bytes) -> None:
        file = folder / reader.file
        file.write_bytes(content)
        counts["files"] += 1
        try:
            reader.read(file)
            counts["read"] += 1
        except InputError as error:
            if "\n" in str(error):
                raise AssertionError("the message has several lines") from error
            counts["refused"] += 1
        finally:
            (folder / "counts.json").write_text(json.dumps(counts))

    def mutated(content: bytes, largest: int, seed: int) -> bytes:
        return mutate(content, lambda part: atheris.Mutate(part, max(len(part) + 64, 64)), seed)[
            :largest
        ]

    options = {"runs": files, "seed": 1, "max_len": LARGEST, "timeout": SECONDS}
    options |= {"rss_limit_mb": MEGABYTES, "verbosity": 0}
    flags = [f"-{key}={value}" for key, value in options.items()]
    flags.append(f"-artifact_prefix={folder}/crash-")
    atheris.Setup([sys.argv[0], *flags, str(corpus)], test, custom_mutator=mutated)
    atheris.Fuzz()


def fuzz_in_a_process(name: str, files: int) -> dict[str, Any]:
    """Run `fuzz` in a process of its own; return what was counted."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    command = [sys.executable, "-m", PROGRAM, "--reader", name, "--files", str(files)]
    start = time.perf_counter()
    done = subprocess.run([*command, "--folder", str(folder)], capture_output=True, text=True)
    counts: dict[str, Any] = json.loads((folder / "counts.json").read_text())
    counts |= {"crashes": int(done.returncode != 0), "seconds": time.perf_counter() - start}
    counts["commit"] = environment()["commit"]  # results of other readers may be older
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-4000:], f"files in {folder}", sep="\n")
    print(f"{name}: {counts}", flush=True)
    return counts


def main() -> int:
    """Run the program; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="for each reader")
    parser.add_argument("--reader", choices=READERS, help="only this one, in this process")
    parser.add_argument("--folder", type=Path, help="for its files")
    parser.add_argument(
        "--output", type=Path, help="JSON with the results, those of other readers kept"
    )
    options = parser.parse_args()
    if atheris is None:
        parser.error("pip install atheris")
    if options.folder:
        fuzz(options.reader, options.files, options.folder)
    names = [options.reader] if options.reader else READERS
    results = {name: fuzz_in_a_process(name, options.files) for name in names}
    if options.output and options.output.exists():
        results = json.loads(options.output.read_text())["readers"] | results
    total = {key: sum(found[key] for found in results.values()) for key in ("files", "crashes")}
    print(total)
    if options.output:
        facts = {"readers": results, "total": total, "environment": environment()}
        options.output.write_text(json.dumps(facts, indent=2) + "\n")
    return int(total["crashes"] > 0)


if __name__ == "__main__":
    sys.exit(main())
