"""How often runtimes choose the class that the student chooses, at W8A8.

    python -m benchmarks.checks.runtime_agreement CLASSIFIER... --data FOLDER --json FILE

CLASSIFIER: `resnet20`, `mobilenet_v2_small`; `trained:NAME` for a classifier of torchvision that is
trained here for some steps on the idx folder, as 32x32 RGB images; `torchvision:NAME=WEIGHTS`.
Each is quantized without images, and measured on images of a generator learned from it, or of that
of a run, and on test images of the folder, or on pictures. What tells ties from faults: each node
given the integers that the runtime has at its inputs; the student with itself, in float64, on
images that are changed by a millionth, and with one integer of each image one step apart; and where
a runtime decides otherwise, the student's own margin between both classes beside the step of a
logit, which is what one step of a feature makes.
"""

import argparse
import copy
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from onnx import ModelProto
from torch import Tensor, nn
from torch.nn import functional as F

import zscgan_ext
from benchmarks.results_file import made_with
from zscgan_ext.classifiers.exported_program import export_program
from zscgan_ext.classifiers.graph import module_of
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.errors import InputError
from zscgan_ext.export.exporter import model_for
from zscgan_ext.export.node_by_node import BATCHES_BY_NODE, compare_with_runtime
from zscgan_ext.export.onnx.graph import QuantizedValue
from zscgan_ext.export.onnx.runtime import OUTPUT, OnnxClassifier
from zscgan_ext.export.onnx.verification import compare_nodes, nudged, with_integers
from zscgan_ext.export.pt2e import decomposed
from zscgan_ext.images.datasets import LabelledImages, open_unlabelled, read_idx_folder
from zscgan_ext.measures import agreement, percentage
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.quantizers import ActivationQuantizer, QuantizedLayer
from zscgan_ext.run_folder.files import GENERATOR
from zscgan_ext.synthesis.generator import ConditionalGenerator
from zscgan_ext.synthesis.generator_file import load_generator

BATCH, SIZE = 32, 32
Runtime = Callable[[Tensor], Tensor]
# Compares a student with its model on batches of images, and counts integers on a tie.
Ties = Callable[[QuantizedClassifier, ModelProto, dict[str, QuantizedValue], list[Tensor]], int]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("classifiers", nargs="+", metavar="CLASSIFIER")
    parser.add_argument("--data", type=Path, help="idx folder with both parts")
    parser.add_argument("--generator", type=Path, metavar="RUN", help="folder of a run with one")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="test images instead")
    parser.add_argument("--synthesis-steps", type=int, default=60, metavar="N")
    parser.add_argument("--training-steps", type=int, default=150, metavar="N")
    parser.add_argument("--generated-images", type=int, default=512, metavar="N")
    parser.add_argument("--test-images", type=int, default=10_000, metavar="N")
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    """Measure each classifier in each runtime."""
    options = parse_arguments()
    rows: list[dict[str, Any]] = []
    for name in options.classifiers:
        classifier = classifier_named(name, options)
        generator = generator_of(classifier, options)
        drawn = zscgan_ext.generate_images(generator, options.generated_images)
        generated = [images for images, _ in drawn]
        images = {"generated": list(torch.cat(generated).split(BATCH))}
        if options.pictures is not None:
            pictures = open_unlabelled(options.pictures, classifier.preprocessing)
            some = pictures.subset(spread(len(pictures), options.test_images))
            images["test"] = [b for b, _ in some.batches(BATCH, classifier.preprocessing)]
        elif options.data is not None:
            test = read_idx_folder(options.data, "test")
            test = test.subset(torch.arange(min(options.test_images, len(test))))
            images["test"] = list(batches_of(test, classifier))
        for row in rows_of(classifier, images):
            rows.append({"classifier": name, **row})
            print(json.dumps(rows[-1]), flush=True)
            content = {
                "made_with": made_with(torch.device("cpu")),
                "results": rows,
            }
            options.json.write_text(json.dumps(content, indent=1) + "\n")


def generator_of(classifier: Classifier, options: argparse.Namespace) -> ConditionalGenerator:
    """Return the generator of a run, or one that is learned here."""
    if options.generator is not None:
        return load_generator(options.generator / GENERATOR).generator
    return zscgan_ext.train_generator(
        classifier, synthesis_steps=options.synthesis_steps, batch_size=BATCH
    )


def spread(count: int, most: int) -> Tensor:
    """Return at most so many positions, from all over them."""
    return torch.linspace(0, count - 1, min(count, most)).long()


# ---- classifiers ---------------------------------------------------------------------------------


def classifier_named(name: str, options: argparse.Namespace) -> Classifier:
    """Return a classifier by its name on the command line."""
    if name.startswith("trained:"):
        model = trained(name.removeprefix("trained:"), options.data, options.training_steps)
        return zscgan_ext.load_classifier(model, image_size=SIZE, mean=[0.5] * 3, std=[0.25] * 3)
    name, _, weights = name.partition("=")
    return zscgan_ext.load_classifier(name, weights=weights or None)


def as_rgb(images: Tensor) -> Tensor:
    """Return 28x28 pixels as normalized 32x32 RGB images."""
    pixels = F.pad(images.float() / 255, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
    return (pixels - 0.5) / 0.25


def trained(name: str, data: Path, steps: int) -> nn.Module:
    """Return a model of torchvision after some steps on training images."""
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, num_classes=10)
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    first.stride = (1, 1)  # small images would leave one pixel to most layers
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # some architectures have too little for so few steps
    training = read_idx_folder(data, "train")
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        index = torch.randint(len(training), (64,))
        logits = model(as_rgb(training.images[index]))
        loss = F.cross_entropy(logits, training.labels[index].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 50 == 49:
            print(f"{name} {step + 1}/{steps} loss {loss.item():.3f}", flush=True)
    return model.eval()


def batches_of(data: LabelledImages, classifier: Classifier) -> Iterable[Tensor]:
    """Yield normalized images of a classifier."""
    if classifier.preprocessing.channels == 3:
        yield from (as_rgb(images) for images in data.images.split(BATCH))
    else:
        yield from (images for images, _ in data.batches(BATCH, classifier.preprocessing))


# ---- runtimes ------------------------------------------------------------------------------------


class OpenvinoModel:
    """An ONNX model in OpenVINO, on one thread."""

    def __init__(self, model: ModelProto) -> None:
        import openvino

        core = openvino.Core()
        core.set_property("CPU", {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"})
        self.compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU")

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.run([OUTPUT], images)[0]

    def run(self, names: Sequence[str], images: Tensor) -> list[Tensor]:
        """Return some of the outputs."""
        results = self.compiled(images.contiguous().numpy())
        return [torch.from_numpy(np.array(results[name])) for name in names]


def ties_in_openvino(
    student: QuantizedClassifier,
    model: ModelProto,
    quantized: dict[str, QuantizedValue],
    batches: Iterable[Tensor],
) -> int:
    """Compare a student node by node with OpenVINO; return the number of ties.

    The integers are outputs of the model here. OpenVINO may fuse what stands around them otherwise
    than where they are not.

    Raises:
        InputError: naming the first node whose integers differ by more than ties.
    """
    probe = OpenvinoModel(with_integers(model, quantized))
    names = [value.integers for value in quantized.values()]

    def compute(images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        *found, logits = probe.run([*names, OUTPUT], images)
        return dict(zip(quantized, found, strict=True)), logits

    return compare_with_runtime(student, "OpenVINO", compute, batches)[0]


def program_runtime(student: QuantizedClassifier, classifier: Classifier) -> Runtime:
    """Return a student's program of torch.export, written and read back."""
    buffer = io.BytesIO()
    torch.export.save(export_program(decomposed(student), classifier.preprocessing.shape), buffer)
    buffer.seek(0)
    program: Runtime = torch.export.load(buffer).module()
    return program


def in_float64(student: QuantizedClassifier) -> QuantizedClassifier:
    """Return a copy that computes in float64, with the scales, weights and biases of float32."""
    wide = copy.deepcopy(student).double()
    for narrow, module in zip(student.modules(), wide.modules(), strict=True):
        log_scale = getattr(narrow, "log_scale", None)
        if isinstance(log_scale, Tensor):
            module.log_scale.data = log_scale.exp().double().log()
    return wide


def one_integer_apart(student: QuantizedClassifier, images: Tensor) -> Tensor:
    """Return the logits where one integer of each image is another, behind the first layer."""
    rng = torch.Generator().manual_seed(0)
    moved = student.activation_quantizers[1]

    def quantize(quantizer: ActivationQuantizer, x: Tensor) -> Tensor:
        quantized: Tensor = quantizer(x)
        if quantizer is not moved:
            return quantized
        values = quantized.flatten(1).clone()  # [N, elements]
        place = torch.randint(values.shape[1], (len(values), 1), generator=rng)
        chosen, scale = values.gather(1, place), quantizer.qparams().scale
        values.scatter_(1, place, torch.where(chosen > 0, chosen - scale, chosen + scale))
        return values.view_as(quantized)

    logits: Tensor = student.forward_with(quantize, images)
    return logits


@torch.no_grad()
def rows_of(classifier: Classifier, images: dict[str, list[Tensor]]) -> Iterable[dict[str, Any]]:
    """Yield the results of each runtime on each kind of image."""
    for target in ("onnxruntime", "tensorrt"):
        student = zscgan_ext.quantize(classifier, bits="w8a8", target=target)
        model, quantized = model_for(target, student, classifier)
        runtimes: dict[str, Runtime] = {"ONNX Runtime": OnnxClassifier(model.SerializeToString())}
        ties: dict[str, Ties] = {"ONNX Runtime": lambda *given: compare_nodes(*given)[0]}
        if target == "onnxruntime":
            runtimes["OpenVINO"], ties["OpenVINO"] = OpenvinoModel(model), ties_in_openvino
            runtimes["torch"] = program_runtime(student, classifier)
        step, wide = step_of_logits(student), in_float64(student)
        for kind, given in images.items():
            expected = torch.cat([student(batch) for batch in given])
            changed = torch.cat([student(nudged(batch)) for batch in given])
            exact = torch.cat([wide(batch.double()) for batch in given])
            apart = torch.cat([one_integer_apart(student, batch) for batch in given])
            own = {
                "own_agreement": agreement(changed, expected),
                "own_agreement_in_float64": agreement(exact, expected),
                "own_agreement_one_integer_apart": agreement(apart, expected),
            }
            for name, runtime in runtimes.items():
                found = torch.cat([runtime(batch) for batch in given])
                row: dict[str, Any] = {"target": target, "runtime": name, "images": kind}
                if name in ties:
                    some = spread(len(given), BATCHES_BY_NODE).tolist()
                    batches = [given[i] for i in some]
                    row |= by_node(ties[name], student, model, quantized, batches)
                row["agreement_with_float64"] = agreement(found, exact)
                yield {**row, **compared(found, expected, step), **own}


def by_node(
    ties: Ties,
    student: QuantizedClassifier,
    model: ModelProto,
    quantized: dict[str, QuantizedValue],
    batches: list[Tensor],
) -> dict[str, Any]:
    """Return how many integers are rounded to the other side of a tie, or the node that differs."""
    try:
        return {"ties_by_node": ties(student, model, quantized, batches)}
    except InputError as error:
        return {"ties_by_node": str(error)}


def step_of_logits(student: QuantizedClassifier) -> float:
    """Return how much a logit changes at most where one feature changes by a step."""
    step, scale = 0.0, 0.0
    for node in student.graph.graph.nodes:
        module = module_of(student.graph, node)
        if isinstance(module, ActivationQuantizer):
            scale = float(module.qparams().scale)
        elif isinstance(module, QuantizedLayer):
            step = scale * float(module.layer.weight.abs().max())
    return step


def compared(found: Tensor, expected: Tensor, step: float) -> dict[str, Any]:
    """Return how often both choose the same class, and how near those are that differ.

    Args:
        found: logits of a runtime, [N, classes].
        expected: of the student.
        step: of a logit.
    """
    chosen, answers = found.argmax(1), expected.argmax(1)
    differ = chosen != answers
    margin = (expected.amax(1) - expected.gather(1, chosen[:, None])[:, 0])[differ]
    top = expected.topk(2, dim=1).values
    is_clear = top[:, 0] - top[:, 1] > step
    return {
        "count": len(found),
        "agreement": percentage(~differ),
        "agreement_where_margin_exceeds_a_step": percentage(~differ[is_clear]),
        "step": step,
        "differing": int(differ.sum()),
        "differing_within_a_step": int((margin <= step).sum()),
        "largest_margin": float(margin.max()) if len(margin) else 0.0,
        "largest_difference": float((found - expected).abs().max()),
        "median_logit": float(expected.abs().median()),
    }


if __name__ == "__main__":
    main()
