"""What a run measured: its rows, `metrics.json` and the table it ends with."""

import resource
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.environment import environment
from zscgan_ext.measures import agreement, top1
from zscgan_ext.settings.values import parse_bits
from zscgan_ext.stages.run import Run

ROWS = {
    "float": "float",
    "noise_calibrated": "quantized, ranges from random noise",
    "generated_calibrated": "quantized, ranges from generated images",
    "fine_tuned": "fine-tuned on generated images",
    "real_calibrated": "quantized, ranges from real images",
    "real_fine_tuned": "fine-tuned on real images",
}
# What is printed while a student of a row learns; the last is that of the Python API.
LEARNING_ROWS = {**ROWS, "given_fine_tuned": "fine-tuned on given images"}


def metrics(run: Run, total_seconds: float) -> dict[str, Any]:
    """Collect what `metrics.json` holds; None where nothing was measured."""
    settings = run.settings
    weight_bits, activation_bits = parse_bits(settings.bits)
    measured_top1: dict[str, float | None] = dict.fromkeys(ROWS)
    measured_agreement: dict[str, float | None] = dict.fromkeys(ROWS)
    if run.evaluation is not None:
        for row, logits in run.logits.items():
            measured_top1[row] = top1(logits, run.evaluation.labels)
            measured_agreement[row] = agreement(logits, run.logits["float"])
    return {
        "classifier": settings.classifier,
        "bits": {"weights": weight_bits, "activations": activation_bits},
        "scheme": settings.scheme,
        "seed": settings.seed,
        "device": str(run.device),
        "execution": run.execution.facts(),
        "top1": measured_top1,
        "agreement": measured_agreement,
        "diversity": run.diversity,
        "first_ranges": run.first_ranges,
        "warnings": run.warnings,
        "seconds": {**run.seconds, "total": total_seconds},
        "peak_memory_bytes": peak_memory(run.device),
        **environment(),
    }


def predictions(run: Run) -> dict[str, Tensor]:
    """Return the class that each row chooses for each evaluation image, int32 [N]."""
    return {row: logits.argmax(1).int() for row, logits in run.logits.items()}


def peak_memory(device: torch.device) -> int:
    """Return the most memory the process (or, on a GPU, torch) held at a time, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(results: dict[str, Any]) -> str:
    """Lay out the measured rows as a table."""
    lines = [f"{'':42} {'top-1 %':>8} {'agreement with float %':>23}"]
    for row, name in ROWS.items():
        if results["top1"][row] is not None:
            accuracy, equal = results["top1"][row], results["agreement"][row]
            lines.append(f"{name:42} {accuracy:8.2f} {equal:23.2f}")
    return "\n".join(lines)
