"""Lower a `model.pt2` to integer kernels by torchao or ExecuTorch, and run what comes out.

    python -m benchmarks.checks.lower_program model.pt2 --to x86 --json FILE

`x86` needs torchao; `xnnpack` needs ExecuTorch, for which activations of 8 bits become int8 here:
the same values, all integers and zero points less 128.
"""

import argparse
import importlib
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor
from torch.export import ExportedProgram

from zscgan_ext.classifiers.exported_program import quiet_export
from zscgan_ext.classifiers.trials import random_images
from zscgan_ext.environment import environment
from zscgan_ext.measures import agreement

IMAGES = 128
OPERATORS = torch.ops.quantized_decomposed
PATTERNS = "torchao.quantization.pt2e.quantizer.x86_inductor_quantizer"
PER_TENSOR = (OPERATORS.quantize_per_tensor.default, OPERATORS.dequantize_per_tensor.default)
Model = Callable[[Tensor], Tensor]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", type=Path)
    parser.add_argument("--to", choices=("x86", "xnnpack"), required=True)
    parser.add_argument("--json", type=Path, required=True)
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    """Lower a program, and compare it with the program as torch executes it."""
    options = parse_arguments()
    program = torch.export.load(options.program)
    shape = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == "images")
    images = random_images(IMAGES, tuple(shape.meta["val"].shape[1:]), torch.zeros(()))
    expected = program.module()(images)
    lower = {"x86": lowered_to_x86, "xnnpack": lowered_to_xnnpack}[options.to]
    with quiet_export():
        model, operators = lower(program, images)
    found = model(images)
    content = {
        "made_with": {**environment(), "date": time.strftime("%Y-%m-%d")},
        "program": options.program.name,
        "to": options.to,
        "operators_left": operators,
        "images": IMAGES,
        "agreement": agreement(found, expected),
        "largest_difference": float((found - expected).abs().max()),
    }
    print(json.dumps(content, indent=1))
    options.json.write_text(json.dumps(content, indent=1) + "\n")


def counted(graph: Any) -> dict[str, int]:
    """Return how often each operator is called."""
    names = (
        str(n.target).split(">")[0].lstrip("<") for n in graph.nodes if n.op == "call_function"
    )
    return dict(Counter(names).most_common())


def lowered_to_x86(program: ExportedProgram, images: Tensor) -> tuple[Model, dict[str, int]]:
    """Return the model with oneDNN's integer kernels, and its operators."""
    import torch._inductor.config
    from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86

    importlib.import_module(PATTERNS)  # which registers them
    torch._inductor.config.freezing = True
    model = lower_pt2e_quantized_to_x86(program.module(), (images,))
    return model, counted(model.graph)


def lowered_to_xnnpack(program: ExportedProgram, images: Tensor) -> tuple[Model, dict[str, int]]:
    """Return the model in ExecuTorch's runtime, one image at a time, and its operators."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    importlib.import_module("executorch.kernels.quantized")  # registers the operators that stay
    exported = torch.export.export(with_int8(program).module(), (images[:1],))
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    operators = counted(edge.exported_program().graph)
    buffer = edge.to_executorch().buffer
    loaded = Runtime.get().load_program(buffer)
    method = loaded.load_method("forward")

    def model(batch: Tensor) -> Tensor:
        _ = buffer, loaded  # the method reads them as long as it runs
        return torch.cat([method.execute([each[None].contiguous()])[0].clone() for each in batch])

    return model, operators


def with_int8(program: ExportedProgram) -> ExportedProgram:
    """Turn uint8 activations into int8 of the same values."""
    for node in program.graph.nodes:
        if node.target in PER_TENSOR and node.args[-1] == torch.uint8:
            x, scale, *integers, _ = node.args
            node.args = (x, scale, *(integer - 128 for integer in integers), torch.int8)
    return program


if __name__ == "__main__":
    main()
