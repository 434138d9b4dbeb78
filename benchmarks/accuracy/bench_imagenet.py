"""A real ImageNet classifier quantized without ImageNet, and looked at on the few photos at hand.

    python -m benchmarks.accuracy.bench_imagenet --weights mobilenet_v2.pth --json FILE

One generator for all widths and schemes. Twenty labelled photographs come with the Python package
foolbox, colour pictures with scikit-image: both are fetched with pip into a temporary folder. They
are far too few for an accuracy: what is counted is how often the quantized classifier answers as
the float one does. How far its logits are from the float ones is measured as well: some pictures
have two answers that are about as likely, and any change to a weight decides between them.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import functional as transforms

from benchmarks.accuracy.accuracy_rows import cached_generator, real_rng, squant
from zscgan_ext.config.configs import OPTIONS, RunConfig
from zscgan_ext.environment import environment
from zscgan_ext.images.datasets import LabelledImages
from zscgan_ext.images.image_files import read_image
from zscgan_ext.images.preprocessing import Preprocessing
from zscgan_ext.measures import agreement, predict
from zscgan_ext.quantization.fine_tuning import logit_divergence
from zscgan_ext.stages.generator_stage import generated_batches, learn_generator
from zscgan_ext.stages.preparation import prepare
from zscgan_ext.stages.run import RandomStream, Run
from zscgan_ext.stages.student_stages import (
    calibrated_student,
    fine_tune,
    quantized_student,
    real_batches,
)
from zscgan_ext.stages.variants import (
    FINE_TUNED,
    GENERATED_CALIBRATED,
    NOISE_CALIBRATED,
    REAL_CALIBRATED,
    REAL_FINE_TUNED,
)
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.synthesis.generator_training import noise_batches

PACKAGES = {"foolbox==3.3.4": "foolbox/data/imagenet_", "scikit-image==0.25.2": "skimage/data/"}
PICTURES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
CROPS_PER_SIDE = 3
CROP_FRACTIONS = (0.6, 0.9)  # of the shorter side
BATCH = 20  # pictures that are measured together


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classifier", default="torchvision:mobilenet_v2")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--bits", nargs="+", default=["w8a8", "w4a8", "w4a4"])
    parser.add_argument("--schemes", nargs="+", default=["deploy", "paper"])
    parser.add_argument("--batch-size", type=int, default=32)
    for name in ("synthesis_steps", "fine_tuning_steps"):
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, default=OPTIONS[name].field.default, metavar="N")
    rate = OPTIONS["fine_tuning_learning_rate"].field.default
    parser.add_argument("--fine-tuning-learning-rate", type=float, default=rate, metavar="X")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--generator", type=Path, help="to read, or to learn and write")
    parser.add_argument("--samples", type=Path, help="PNG of generated images, if learned now")
    return parser.parse_args()


def fetch(folder: Path) -> None:
    """Unpack the pictures of both packages into a folder, without installing them."""
    for package, prefix in PACKAGES.items():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", str(folder), package], check=True)
        wheel = next(folder.glob(f"{package.split('==')[0].replace('-', '_')}*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(prefix)]
            archive.extractall(folder, names)


def photos(folder: Path, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Return the labelled photographs, uint8 [20, 3, H, W], and their labels [20]."""
    files = sorted((folder / "foolbox" / "data").glob("imagenet_*.jpg"))
    pixels = torch.stack([read_image(file, preprocessing) for file in files])
    found = [re.search(r"_(\d+)\.jpg$", file.name) for file in files]
    labels = torch.tensor([int(match[1]) for match in found if match is not None])
    return pixels, labels


def crops(folder: Path, preprocessing: Preprocessing) -> Tensor:
    """Return square crops of the colour pictures, uint8 [N, 3, H, W]."""
    _, size, _ = preprocessing.shape  # of square images
    whole = replace(preprocessing, image_size=4 * size)
    found = []
    for name in PICTURES:
        picture = read_image(folder / "skimage" / "data" / name, whole)  # [3, S, S]
        for fraction in CROP_FRACTIONS:
            side = round(fraction * 4 * size)
            for top, left in corners(4 * size - side):
                crop = transforms.crop(picture, top, left, side, side)
                found.append(transforms.resize(crop, [size, size]))
    return torch.stack(found)


def corners(room: int) -> Iterator[tuple[int, int]]:
    """Yield the upper left corners of a regular grid of crops."""
    places = [round(room * i / (CROPS_PER_SIDE - 1)) for i in range(CROPS_PER_SIDE)]
    return ((top, left) for top in places for left in places)


class Pictures:
    """What is measured on: photographs, crops, and the float classifier's answers to them."""

    def __init__(self, run: Run) -> None:
        with tempfile.TemporaryDirectory() as folder:
            fetch(Path(folder))
            preprocessing = run.classifier.preprocessing
            photographs, self.labels = photos(Path(folder), preprocessing)
            pixels = torch.cat([photographs, crops(Path(folder), preprocessing)])
        no_labels = torch.zeros(len(pixels) - len(photographs), dtype=torch.int64)
        self.images = LabelledImages(pixels, torch.cat([self.labels, no_labels]))
        self.run = run
        self.float_logits = self.predict(run.classifier.model)

    def predict(self, model: nn.Module) -> Tensor:
        """Return logits [N, num_classes] of all pictures on the CPU."""
        run = self.run
        where = run.device, run.execution.memory_format
        return predict(model, self.images, run.classifier.preprocessing, BATCH, *where)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Count right answers among the photographs, and compare with float.

        Agreement is in percent; divergence is KL(float || quantized), in nats for a picture.
        """
        logits = self.predict(model)
        count = len(self.labels)
        photos, float_photos = logits[:count], self.float_logits[:count]
        largest = photos.topk(5, 1).indices == self.labels[:, None]
        return {
            "photos_top1": int(largest[:, 0].sum()),
            "photos_top5": int(largest.any(1).sum()),
            "photos_agreement": agreement(photos, float_photos),
            "crops_agreement": agreement(logits[count:], self.float_logits[count:]),
            "agreement": agreement(logits, self.float_logits),
            "divergence": logit_divergence(logits, self.float_logits, temperature=1).item(),
        }


def run_job(
    run: Run, generator: ConditionalGenerator, pictures: Pictures
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what each row of one width and scheme measured, with the seconds it took.

    Rows are the same, whatever was measured before.
    """
    batch_size, start = run.config.generator.batch_size, time.perf_counter()
    torch.manual_seed(run.config.seed)

    def measured(student: nn.Module) -> dict[str, float]:
        nonlocal start
        seconds = time.perf_counter() - start
        figures = {**pictures.measure(student), "seconds": seconds}
        start = time.perf_counter()
        return figures

    yield "squant", measured(squant(run))
    rng = run.rng(RandomStream.NOISE_IMAGES)
    noise = noise_batches(batch_size, run.classifier.preprocessing.shape, rng)
    yield "noise_calibrated", measured(quantized_student(run, NOISE_CALIBRATED, noise))
    # The pictures that are measured on: as good as ranges can be with these ways to choose them.
    real = real_batches(run, pictures.images, real_rng(run), batch_size)
    yield "real_calibrated", measured(quantized_student(run, REAL_CALIBRATED, real))
    student = calibrated_student(run, REAL_FINE_TUNED, real)
    yield "real_fine_tuning_start", measured(student)
    batches = partial(generated_batches, run, generator, run.rng(RandomStream.GENERATED_IMAGES))
    calibrated = quantized_student(run, GENERATED_CALIBRATED, batches(batch_size))
    yield "generated_calibrated", measured(calibrated)
    student = calibrated_student(run, FINE_TUNED, batches(batch_size))
    yield "fine_tuning_start", measured(student)
    fine_tune(run, FINE_TUNED, student, batches(run.config.fine_tuning.batch_size))
    yield "fine_tuned", measured(student)


def main() -> None:
    """Learn one generator, then calibrate and fine-tune every width in every scheme."""
    arguments = parse_arguments()
    made_with = {**environment(), "date": time.strftime("%Y-%m-%d"), "arguments": str(arguments)}
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig().changed(
            classifier=arguments.classifier,
            weights=arguments.weights,
            batch_size=arguments.batch_size,
            synthesis_steps=arguments.synthesis_steps,
            fine_tuning_steps=arguments.fine_tuning_steps,
            fine_tuning_learning_rate=arguments.fine_tuning_learning_rate,
            seed=arguments.seed,
            output=Path(folder, "run"),
        )
        run = prepare(config)
        pictures = Pictures(run)
        rows: list[dict[str, Any]] = []

        def keep(bits: str, scheme: str, row: str, measured: dict[str, float]) -> None:
            rows.append({"bits": bits, "scheme": scheme, "row": row, **measured})
            print(json.dumps(rows[-1]), flush=True)
            content = {"made_with": made_with, "pictures": len(pictures.images), "results": rows}
            arguments.json.write_text(json.dumps(content, indent=1) + "\n")

        keep("float", "float", "float", pictures.measure(run.classifier.model))
        if arguments.generator is None:
            generator = learn_generator(run)
        else:
            generator = cached_generator(run, arguments.generator)
        learned = sorted(Path(folder, "run", "samples").glob("step-*.png"))
        if arguments.samples is not None and learned:
            arguments.samples.write_bytes(learned[-1].read_bytes())
        keep("float", "float", "generator", {"seconds": run.results.seconds["synthesis"]})
        for bits in arguments.bits:
            for scheme in arguments.schemes:
                job = run.with_options(bits=bits, scheme=scheme)
                for row, measured in run_job(job, generator, pictures):
                    keep(bits, scheme, row, measured)


if __name__ == "__main__":
    main()
