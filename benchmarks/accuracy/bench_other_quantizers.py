"""Other quantizers calibrated with generated images, with noise and with real ones.

    python -m benchmarks.accuracy.bench_other_quantizers RUN --tool onnxruntime --data FOLDER \
        --json FILE

For a bundled classifier the last 5,000 training images measure accuracy, and the others give the
real images. A classifier of ImageNet is measured on `--pictures` of `gather_pictures`, by how often
it answers as the float one does; the real images are the same pictures, as good as any can be.
Each tool is looked for where this is run: NNCF and MCT want environments of their own.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy.bench_imagenet import read_pictures
from zscgan_ext.api import generate_images
from zscgan_ext.classifiers.loading import Classifier, classifier_of, find_source
from zscgan_ext.classifiers.weights import load_weights
from zscgan_ext.environment import environment
from zscgan_ext.export.onnx.model import float_model
from zscgan_ext.images.datasets import read_idx_folder
from zscgan_ext.measures import agreement, top1
from zscgan_ext.quantization.conversion import folded
from zscgan_ext.run_folder.finished_run import read_run_config
from zscgan_ext.synthesis.generator_file import load_generator

HELD_OUT = 5000
BATCH = 50
Answers = Callable[[Tensor], Tensor]  # images [N, C, H, W] to logits [N, num_classes]


def onnxruntime_model(run: Path, model: Path, images: np.ndarray) -> Answers:
    """Quantize with ONNX Runtime."""
    from examples.quantize_with_onnxruntime import quantize

    return onnxruntime_answers(written(model, images, quantize, "int8.onnx"))


def onnxruntime_answers(file: Path) -> Answers:
    """Run an ONNX file."""
    from onnxruntime import InferenceSession

    session = InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: torch.from_numpy(session.run(None, {name: batch.numpy()})[0])


def nncf_model(run: Path, model: Path, images: np.ndarray) -> Answers:
    """Quantize with NNCF, run in OpenVINO."""
    import openvino

    from examples.quantize_with_nncf import quantize

    compiled = openvino.compile_model(written(model, images, quantize, "int8.xml"), "CPU")
    return lambda batch: torch.from_numpy(compiled(batch.numpy())[0].copy())


def mct_model(run: Path, model: Path, images: np.ndarray) -> Answers:
    """Quantize with MCT, run in torch."""
    from examples.quantize_with_mct import quantize

    config = read_run_config(run)
    built = find_source(config.classifier).build(None, trained=config.weights is None)
    if config.weights is not None:
        load_weights(built, config.weights)
    return quantize(built.eval(), images).eval()


def written(
    model: Path, images: np.ndarray, quantize: Callable[[Path, np.ndarray, Path], None], name: str
) -> Path:
    """Return the file that a tool writes beside the float model."""
    output = model.with_name(name)
    quantize(model, images, output)
    return output


TOOLS = {"onnxruntime": onnxruntime_model, "nncf": nncf_model, "mct": mct_model}


def image_sources(
    run: Path, classifier: Classifier, data: Path | None, pictures: Path, count: int
) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
    """Return images to calibrate with by source, images to measure on, and their labels."""
    shape, generator = classifier.preprocessing.shape, load_generator(run / "generator.safetensors")
    made = torch.cat([images for images, _ in generate_images(generator.generator, count)])
    noise = torch.randn((count, *shape), generator=torch.Generator().manual_seed(0))
    labels: Tensor | None = None
    if data is not None:
        training = read_idx_folder(data, "train")
        pixels, labels = training.images[-HELD_OUT:], training.labels[-HELD_OUT:]
        drawn = torch.randperm(
            len(training) - HELD_OUT, generator=torch.Generator().manual_seed(0)
        )[:count]
        real = classifier.preprocessing.normalize(training.images[drawn])
    else:
        pixels, _ = read_pictures(pictures, classifier.preprocessing)
        real = classifier.preprocessing.normalize(pixels)
    measured = classifier.preprocessing.normalize(pixels)
    return {"generated": made, "noise": noise, "real": real}, measured, labels


def answers_of(model: Answers, images: Tensor) -> Tensor:
    """Return logits [N, num_classes]."""
    with torch.no_grad():
        return torch.cat([model(part.contiguous()) for part in images.split(BATCH)])


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run with a generator")
    parser.add_argument("--tool", choices=TOOLS, required=True)
    images = parser.add_mutually_exclusive_group(required=True)
    images.add_argument("--data", type=Path, help="idx folder with the training images")
    images.add_argument("--pictures", type=Path, help="folder of gathered pictures")
    parser.add_argument("--count", type=int, default=512, help="images to calibrate with")
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Quantize with one tool from each source, and measure."""
    options = parse_arguments()
    config = read_run_config(options.run)
    classifier = classifier_of(config)
    given = options.data, options.pictures, options.count
    sources, images, labels = image_sources(options.run, classifier, *given)
    float_logits = answers_of(classifier.model, images)
    facts = {
        "made_with": {**environment(), "date": time.strftime("%Y-%m-%d"), "tool": options.tool},
        "classifier": config.classifier,
        "synthesis_steps": config.generator.steps,
        "calibration_images": options.count,
        "images": len(images),
        "float_top1": None if labels is None else top1(float_logits, labels),
    }
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "float.onnx")
        graph = folded(classifier.model, classifier.preprocessing.shape)
        model.write_bytes(float_model(graph, classifier).SerializeToString())
        for source, calibration in sources.items():
            quantized = TOOLS[options.tool](options.run, model, calibration.numpy())
            logits = answers_of(quantized, images)
            rows[source] = {"agreement": agreement(logits, float_logits)}
            if labels is not None:
                rows[source]["top1"] = top1(logits, labels)
            print(source, rows[source], flush=True)
            options.json.write_text(json.dumps({**facts, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
