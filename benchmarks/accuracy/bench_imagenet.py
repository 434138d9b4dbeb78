"""A real ImageNet classifier quantized without ImageNet, and looked at on the few photos at hand.

    python -m benchmarks.accuracy.gather_pictures PICTURES
    python -m benchmarks.accuracy.bench_imagenet --weights FILE --pictures PICTURES --json FILE

One generator for all widths and schemes, and none for `--only-instant`. Twenty of the pictures have
labels, which is far too few for an accuracy: what is counted is how often the quantized classifier
answers as the float one does. How far its logits are from the float ones is measured as well: some
pictures have two answers that are about as likely, and any change to a weight decides between them.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.accuracy_rows import cached_generator, real_rng, squant
from zscgan_ext.config.configs import OPTIONS, RunConfig
from zscgan_ext.environment import environment
from zscgan_ext.errors import InputError
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
    instant_student,
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

BATCH = 20  # pictures that are measured together
LABEL = re.compile(r"^imagenet_\d+_(\d+)$")  # of a picture, in its name


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classifier", default="torchvision:mobilenet_v2")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True, help="folder of gathered ones")
    parser.add_argument("--only-instant", action="store_true", help="learn no generator")
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


def read_pictures(folder: Path, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Return pictures, uint8 [N, 3, H, W], and the labels of the first of them, [M].

    A label is the number that the name of a file ends in.

    Raises:
        InputError: if the folder holds no PNG files.
    """
    files = sorted(folder.glob("*.png"))
    if not files:
        raise InputError(f"pictures: {folder} holds no PNG files; gather_pictures.py writes some")
    found = {file: LABEL.search(file.stem) for file in files}
    files.sort(key=lambda file: found[file] is None)  # keeps the order otherwise
    pixels = torch.stack([read_image(file, preprocessing) for file in files])
    labels = [int(match[1]) for match in map(found.get, files) if match is not None]
    return pixels, torch.tensor(labels, dtype=torch.int64)


class Pictures:
    """What is measured on: pictures, and the float classifier's answers to them."""

    def __init__(self, run: Run, folder: Path) -> None:
        pixels, self.labels = read_pictures(folder, run.classifier.preprocessing)
        no_labels = torch.zeros(len(pixels) - len(self.labels), dtype=torch.int64)
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


def run_instant_job(run: Run, pictures: Pictures) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield what the instant student of one width and scheme measured."""
    start = time.perf_counter()
    student = instant_student(run)
    seconds = time.perf_counter() - start
    yield "instant", {**pictures.measure(student), "seconds": seconds}


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


def schedule(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of both trainings, or those of a run that has none."""
    if arguments.only_instant:
        return {"preset": "instant"}
    names = ["batch_size", "synthesis_steps", "fine_tuning_steps", "fine_tuning_learning_rate"]
    return {name: getattr(arguments, name) for name in names}


def main() -> None:
    """Learn one generator, then calibrate and fine-tune every width in every scheme."""
    arguments = parse_arguments()
    made_with = {**environment(), "date": time.strftime("%Y-%m-%d"), "arguments": str(arguments)}
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig.of_options(
            {
                "classifier": arguments.classifier,
                "weights": arguments.weights,
                "seed": arguments.seed,
                "output": Path(folder, "run"),
                **schedule(arguments),
            }
        )
        run = prepare(config)
        pictures = Pictures(run, arguments.pictures)
        rows: list[dict[str, Any]] = []

        def keep(job: Run | None, row: str, measured: dict[str, float]) -> None:
            bits, scheme = "float", "float"
            if job is not None:
                bits, scheme = job.config.quantization.bits, job.config.quantization.scheme
            rows.append({"bits": bits, "scheme": scheme, "row": row, **measured})
            print(json.dumps(rows[-1]), flush=True)
            content = {"made_with": made_with, "pictures": len(pictures.images), "results": rows}
            arguments.json.write_text(json.dumps(content, indent=1) + "\n")

        keep(None, "float", pictures.measure(run.classifier.model))
        jobs = [
            run.with_options(bits=bits, scheme=scheme)
            for bits in arguments.bits
            for scheme in arguments.schemes
        ]
        for job in jobs:
            for row, measured in run_instant_job(job, pictures):
                keep(job, row, measured)
        if arguments.only_instant:
            return
        if arguments.generator is None:
            generator = learn_generator(run)
        else:
            generator = cached_generator(run, arguments.generator)
        learned = sorted(Path(folder, "run", "samples").glob("step-*.png"))
        if arguments.samples is not None and learned:
            arguments.samples.write_bytes(learned[-1].read_bytes())
        keep(None, "generator", {"seconds": run.results.seconds["synthesis"]})
        for job in jobs:
            for row, measured in run_job(job, generator, pictures):
                keep(job, row, measured)


if __name__ == "__main__":
    main()
