"""Which classifiers of torchvision and timm pass from end to end, and why others do not.

    python -m benchmarks.checks.bench_coverage [--only NAME ...] [--json FILE] [--markdown FILE]

Five checks each, with random weights on small images: the classifier is converted; folded batch
norm changes no logit by more than 1e-4 of the largest, in float64; one step of generator learning
and one step of fine-tuning have finite losses and gradients; and the exported ONNX file computes,
node by node, what the student computes. Each classifier has a process of its own. `--json` keeps
the results of an earlier call for the classifiers that this one leaves out.
"""

import argparse
import copy
import json
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import timm
import torch
import torchvision
from torch import Tensor
from torch.fx.passes.shape_prop import ShapeProp

from benchmarks.checks import coverage_models
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.classifiers.tracing import trace
from zscgan_ext.config.configs import ExecutionConfig, FineTuningConfig, GeneratorConfig
from zscgan_ext.environment import environment
from zscgan_ext.errors import first_line
from zscgan_ext.export.node_by_node import product_step
from zscgan_ext.export.onnx.model import quantized_model
from zscgan_ext.export.onnx.verification import compare_nodes
from zscgan_ext.quantization.batch_norm_folding import fold_batch_norm
from zscgan_ext.quantization.calibration import calibrate
from zscgan_ext.quantization.conversion import convert, folded
from zscgan_ext.quantization.fine_tuning import StudentTrainer
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier
from zscgan_ext.quantization.scheme import Scheme
from zscgan_ext.synthesis.frozen_teacher import FrozenTeacher
from zscgan_ext.synthesis.generator import generator_of
from zscgan_ext.synthesis.generator_training import GeneratorTrainer
from zscgan_ext.training.execution import choose_execution
from zscgan_ext.training.trainer import Trainer

CHECKS = ("convert", "fold", "generator step", "fine-tuning step", "export")
LARGEST_DIFFERENCE = 1e-4  # of a logit, relative to the largest
BATCH = 2  # images in a step
COMPARED = 4  # images on which files and folded models are compared
SECONDS = 600  # for one classifier
GENERATOR, FINE_TUNING = GeneratorConfig(batch_size=BATCH, steps=1), FineTuningConfig(steps=1)
EXECUTION = choose_execution(
    ExecutionConfig("cpu", "float32", "contiguous", cuda_graphs="off"), torch.device("cpu")
)


class Coverage:
    """One classifier and what the checks make of it, each from what those before it left."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.shape = classifier.preprocessing.shape
        self.random = torch.Generator().manual_seed(0)
        self.student: QuantizedClassifier

    def convert(self) -> str:
        """Convert the classifier; return how many layers and activations are quantized."""
        self.student = convert(self.classifier.model, Scheme("deploy", 8, 8), self.shape)
        layers, activations = len(self.student.layers), len(self.student.activation_quantizers)
        return f"{layers} layers, {activations} activations"

    @torch.no_grad()
    def fold(self) -> str:
        """Compare the classifier with itself after folding, in float64.

        Deep networks with random weights magnify rounding: in float32 the logits of the classifier
        itself are off by about as much as those of the folded one. Both are reported.
        """
        images = coverage_models.plausible_images(COMPARED, self.shape[1], self.random)
        model = self.classifier.model
        rounded, rounded_folded = model(images), folded(model, self.shape)(images)
        exact = copy.deepcopy(model).double()
        expected = exact(images.double())
        graph = trace(exact, self.shape)
        ShapeProp(graph).propagate(images.double())
        fold_batch_norm(graph)
        found = graph(images.double())
        if not difference(found, expected) <= LARGEST_DIFFERENCE:
            raise ValueError(f"logits differ by {difference(found, expected):.2g} of the largest")
        return (
            f"{difference(found, expected):.1g} in float64; in float32 "
            f"{difference(rounded_folded, rounded):.1g}, rounding of the classifier itself "
            f"{difference(rounded, expected):.1g}"
        )

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images and labels, forever."""
        while True:
            images = coverage_models.plausible_images(BATCH, self.shape[1], self.random)
            yield images, torch.randint(self.classifier.num_classes, (BATCH,))

    def generator_step(self) -> str:
        """Take one step of generator learning."""
        generator = generator_of(GENERATOR, self.classifier)
        teacher = FrozenTeacher(self.classifier.model, GENERATOR.distance)
        loss = step(GeneratorTrainer(generator, teacher, GENERATOR, EXECUTION, self.random))
        teacher.remove_hooks()
        return loss

    def fine_tuning_step(self) -> str:
        """Calibrate and take one step of fine-tuning."""
        batches = self.batches()
        calibrate(self.student, batches, 2)
        model = self.classifier.model
        return step(StudentTrainer(self.student, model, batches, FINE_TUNING, EXECUTION))

    @torch.no_grad()
    def export(self) -> str:
        """Compare the ONNX file, node by node, with the student, as the exporter does."""
        batches = self.batches()
        calibrate(self.student, batches, 2)
        images = coverage_models.plausible_images(COMPARED, self.shape[1], self.random)
        self.student.requires_grad_(False)
        model, grids = quantized_model(self.student, self.classifier)
        ties, largest, gain = compare_nodes(self.student, model, grids, [images])
        allowed = gain * product_step(self.student)
        if not largest <= allowed:
            raise ValueError(f"logits differ by {largest:.2g}, allowed is {allowed:.2g}")
        return f"{len(model.graph.node)} nodes, {ties} ties"


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference of a logit, relative to the largest logit."""
    return float((found - expected).abs().max() / expected.abs().max())


def step(trainer: Trainer) -> str:
    """Take a step; return its loss.

    Raises:
        ValueError: if the loss or a gradient is not finite.
    """
    loss, _ = trainer.loss(*trainer.sample())
    loss.backward()
    parameters = trainer.parameters()
    gradients = [p.grad for p in parameters if p.grad is not None]
    finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
    if not bool(loss.isfinite()) or not finite:
        raise ValueError(f"loss {float(loss):.3g}, gradients {'' if finite else 'not '}finite")
    if not any(bool(gradient.any()) for gradient in gradients):
        raise ValueError("no gradient arrives")
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    if not all(bool(parameter.isfinite().all()) for parameter in parameters):
        raise ValueError("a parameter is not finite after the step")
    return f"{float(loss):.3g}"


def check(name: str) -> dict[str, Any]:
    """Run all checks on one classifier; those after a conversion that fails fail too."""
    warnings.simplefilter("ignore")  # of the libraries, while they build and export
    start = time.perf_counter()
    coverage = Coverage(coverage_models.plausible_classifier(name))
    tests: list[Callable[[], str]] = [
        *(coverage.convert, coverage.fold, coverage.generator_step),
        *(coverage.fine_tuning_step, coverage.export),
    ]
    result: dict[str, Any] = {
        "image_size": coverage.shape[1],
        "parameters": sum(p.numel() for p in coverage.classifier.model.parameters()),
    }
    for title, test in zip(CHECKS, tests, strict=True):
        began = time.perf_counter()
        try:
            result[title] = {"passed": True, "detail": test()}
        except Exception as error:
            result[title] = {"passed": False, "detail": first_line(error)}
            if title == "convert":
                break
        result[title]["seconds"] = round(time.perf_counter() - began, 1)
    return {**result, "seconds": round(time.perf_counter() - start, 1)}


def write_check(name: str, file: Path) -> None:
    """Check one classifier and write the result; what a process does."""
    file.write_text(json.dumps(check(name)))


def check_in_process(name: str) -> dict[str, Any]:
    """Check one classifier in a process of its own, which its memory goes with."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "result.json")
        process = multiprocessing.get_context("fork").Process(target=write_check, args=(name, file))
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            return {"convert": {"passed": False, "detail": f"took more than {SECONDS} s"}}
        if not file.exists():
            detail = f"its process ended with {process.exitcode}"
            return {"convert": {"passed": False, "detail": detail}}
        result: dict[str, Any] = json.loads(file.read_text())
        return result


def passes(result: dict[str, Any]) -> bool:
    """Return True if all five checks passed."""
    return all(result.get(title, {}).get("passed", False) for title in CHECKS)


def table(results: dict[str, Any], facts: dict[str, Any]) -> str:
    """Lay out the results in Markdown."""
    lines = ["# Coverage of torchvision and timm", ""]
    for library in ("torchvision", "timm"):
        chosen = [r for name, r in results.items() if name.startswith(f"{library}:")]
        passed = sum(map(passes, chosen))
        share = 100 * passed / max(1, len(chosen))
        lines.append(f"- {library}: {passed} of {len(chosen)} pass all five checks ({share:.1f} %)")
    versions = ", ".join(f"{key} {value}" for key, value in facts["versions"].items())
    lines += [
        f"- not checked: `{name}`, {reason}"
        for name, reason in coverage_models.LARGE.items()
        if name not in results
    ]
    lines += [
        "",
        f"Made by `python -m benchmarks.checks.bench_coverage` on {facts['date']} at commit "
        f"{facts['environment']['commit']}: {versions}. Random weights, {BATCH} images in a step, "
        "8-bit weights and activations. The numbers of each row are in coverage.json.",
        "",
        f"| classifier | image | {' | '.join(CHECKS)} |",
        f"|---|--:|{'---|' * len(CHECKS)}",
    ]
    for name, result in results.items():
        cells = []
        for title in CHECKS:
            found = result.get(title)
            cells.append("-" if found is None else "pass" if found["passed"] else found["detail"])
        lines.append(f"| `{name}` | {result.get('image_size', '')} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(results: dict[str, Any], file: Path | None, markdown: Path | None) -> None:
    """Write what is known so far."""
    facts = {
        "date": time.strftime("%Y-%m-%d"),
        "command": "python -m benchmarks.checks.bench_coverage",
        "environment": environment(),
        "versions": {m.__name__: m.__version__ for m in (torch, torchvision, timm, onnx)}
        | {"onnxruntime": onnxruntime.__version__},
    }
    if file is not None:
        content = {**facts, "results": results}
        file.write_text(json.dumps(content, indent=1) + "\n")
    if markdown is not None:
        markdown.write_text(table(results, facts))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=None, help="such as timm:resnet18")
    parser.add_argument("--json", type=Path, help="file to read, where it is there, and to write")
    parser.add_argument("--markdown", type=Path, help="file to write")
    return parser.parse_args()


def main() -> None:
    """Check all classifiers, print a line for each, and write them down after each."""
    arguments = parse_arguments()
    known: dict[str, Any] = {}
    if arguments.json is not None and arguments.json.exists():
        known = json.loads(arguments.json.read_text())["results"]
    names = coverage_models.all_names()
    for name in arguments.only or [name for name in names if name not in coverage_models.LARGE]:
        result = known[name] = check_in_process(name)
        failed = [
            f"{title}: {result[title]['detail']}"
            for title in CHECKS
            if title in result and not result[title]["passed"]
        ]
        print(f"{name}: {'; '.join(failed) or 'passes'}", flush=True)
        ordered = {key: known[key] for key in (*names, *known) if key in known}
        write(ordered, arguments.json, arguments.markdown)


if __name__ == "__main__":
    main()
