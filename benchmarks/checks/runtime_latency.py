"""How long runtimes take for one image, of a float classifier and of the same at W8A8.

    python -m benchmarks.checks.runtime_latency CLASSIFIER... --json FILE

CLASSIFIER: `resnet20`, `mobilenet_v2_small`, or `torchvision:NAME=WEIGHTS`. Each is quantized
without images. All runtimes compute on one thread and take turns, float and quantized; times are
medians of what the processor spent on one call, so that waiting for other programs does not count.
`inductor` needs torchao and a C++ compiler, `xnnpack` ExecuTorch.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

import zscgan_ext
from benchmarks.checks.lower_program import lowered_to_x86, lowered_to_xnnpack
from benchmarks.checks.runtime_agreement import OpenvinoModel
from benchmarks.results_file import made_with, write_rows
from zscgan_ext.classifiers.exported_program import export_program, quiet_export
from zscgan_ext.classifiers.loading import Classifier
from zscgan_ext.classifiers.trials import random_images
from zscgan_ext.export.exporter import model_for
from zscgan_ext.export.onnx.model import float_model
from zscgan_ext.export.onnx.runtime import OnnxClassifier
from zscgan_ext.export.pt2e import decomposed
from zscgan_ext.images.memory_format import lay_out
from zscgan_ext.quantization.conversion import folded
from zscgan_ext.quantization.quantized_classifier import QuantizedClassifier

Model = Callable[[Tensor], Tensor]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("classifiers", nargs="+", metavar="CLASSIFIER")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--calls", type=int, default=100, metavar="N", help="of each model")
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    """Measure each classifier in all runtimes."""
    options = parse_arguments()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in options.classifiers:
        source, _, weights = name.partition("=")
        classifier = zscgan_ext.load_classifier(source, weights=weights or None)
        student = zscgan_ext.quantize(classifier, bits="w8a8")
        graph = folded(classifier.model, classifier.preprocessing.shape)
        pairs = {each: RUNTIMES[each](classifier, graph, student) for each in options.runtimes}
        image = random_images(1, classifier.preprocessing.shape, torch.zeros(()))
        models = [model for pair in pairs.values() for model in pair]
        times = processor_milliseconds(models, image, options.calls)
        for number, runtime in enumerate(pairs):
            of_float, quantized = times[2 * number : 2 * number + 2]
            row = {"classifier": source, "runtime": runtime, "float_ms": of_float}
            rows.append({**row, "quantized_ms": quantized, "ratio": quantized / of_float})
            print(json.dumps(rows[-1]), flush=True)
        write_rows(options.json, made_with(torch.device("cpu")), rows)


def processor_milliseconds(models: Sequence[Model], image: Tensor, calls: int) -> list[float]:
    """Return the median time of all threads for one call of each model on [1, C, H, W]."""
    times: list[list[float]] = [[] for _ in models]
    for model in models:
        model(image)
    for _ in range(calls):
        for model, measured in zip(models, times, strict=True):
            start = time.process_time()
            model(image)
            measured.append(time.process_time() - start)
    return [1000 * statistics.median(measured) for measured in times]


# ---- runtimes: the float classifier and the student in each --------------------------------------


def in_onnxruntime(
    classifier: Classifier, graph: fx.GraphModule, student: QuantizedClassifier
) -> tuple[Model, Model]:
    """Return both in ONNX Runtime."""
    quantized = model_for("onnxruntime", student, classifier)[0].SerializeToString()
    of_float = float_model(graph, classifier).SerializeToString()
    return OnnxClassifier(of_float), OnnxClassifier(quantized)


def in_openvino(
    classifier: Classifier, graph: fx.GraphModule, student: QuantizedClassifier
) -> tuple[Model, Model]:
    """Return both in OpenVINO."""
    quantized = model_for("openvino", student, classifier)[0]
    return OpenvinoModel(float_model(graph, classifier)), OpenvinoModel(quantized)


def in_torch(
    classifier: Classifier, graph: fx.GraphModule, student: QuantizedClassifier
) -> tuple[Model, Model]:
    """Return the graph, and the student's program, operator by operator."""
    program = export_program(decomposed(student), classifier.preprocessing.shape)
    return graph, program.module()


def in_inductor(
    classifier: Classifier, graph: fx.GraphModule, student: QuantizedClassifier
) -> tuple[Model, Model]:
    """Return both compiled by torch.compile, the program lowered by torchao before."""
    shape = classifier.preprocessing.shape
    images = random_images(1, shape, torch.zeros(()))
    with quiet_export():
        lowered, _ = lowered_to_x86(export_program(decomposed(student), shape), images)
    models = torch.compile(graph, dynamic=False), torch.compile(lowered, dynamic=False)
    for model in models:
        model(images)
    return models


def in_xnnpack(
    classifier: Classifier, graph: fx.GraphModule, student: QuantizedClassifier
) -> tuple[Model, Model]:
    """Return both in ExecuTorch, delegated to XNNPACK."""
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

    _unsafe_reset_threadpool(torch.get_num_threads())
    shape = classifier.preprocessing.shape
    images = random_images(1, shape, torch.zeros(()))
    nets = (lay_out(each, torch.contiguous_format) for each in (graph, decomposed(student)))
    programs = (export_program(net, shape) for net in nets)
    with quiet_export():
        of_float, quantized = (lowered_to_xnnpack(program, images)[0] for program in programs)
    return of_float, quantized


RUNTIMES: dict[
    str, Callable[[Classifier, fx.GraphModule, QuantizedClassifier], tuple[Model, Model]]
] = {
    "onnxruntime": in_onnxruntime,
    "openvino": in_openvino,
    "torch": in_torch,
    "inductor": in_inductor,
    "xnnpack": in_xnnpack,
}


if __name__ == "__main__":
    main()
