"""The results of a run as files and on the terminal: metrics, predictions, and the table."""

import sys
from typing import Any

import torch
from torch import Tensor

from zscgan_ext.classifiers.heads import MULTI_LABEL
from zscgan_ext.config.values import parse_bits
from zscgan_ext.environment import environment
from zscgan_ext.measures import agreement, mean_average_precision, top1
from zscgan_ext.quantization.layer_widths import average_width
from zscgan_ext.run_folder.made_with import MADE_WITH, digest
from zscgan_ext.run_folder.records import ACCURACY_NAMES, accuracy_in
from zscgan_ext.stages.run import Run
from zscgan_ext.stages.variants import FLOAT, VARIANTS


def metrics(run: Run) -> dict[str, Any]:
    """Collect what `metrics.json` holds; None where nothing was measured."""
    config, results = run.config, run.results
    weight_bits, activation_bits = parse_bits(config.quantization.bits)
    head = run.classifier.head
    accuracy = accuracy_in({"head": head.name})
    measured: dict[str, dict[str, float | None]] = {
        name: dict.fromkeys(VARIANTS) for name in ("top1", "mean_average_precision", "agreement")
    }
    if run.evaluation is not None:
        labels = run.evaluation.labels
        measure = mean_average_precision if head is MULTI_LABEL else top1
        for key, logits in results.logits.items():
            measured[accuracy][key] = measure(logits, labels)
            measured["agreement"][key] = agreement(logits, results.logits[FLOAT.key], head)
    return {
        "classifier": config.classifier,
        "bits": {"weights": weight_bits, "activations": activation_bits},
        "layer_bits": results.layer_bits,
        "average_weight_bits": average_width(results.layer_bits),
        "scheme": config.quantization.scheme,
        "seed": config.seed,
        "device": str(run.device),
        "execution": run.execution.facts(),
        "head": head.name,
        **measured,
        "diversity": results.diversity,
        "initial_ranges": results.initial_ranges,
        "choice": results.choice,
        "warnings": results.warnings,
        "seconds": {**results.seconds, "total": results.total_seconds()},
        "peak_memory_bytes": peak_memory(run.device),
        MADE_WITH: digest(run.made_with()),
        **environment(),
    }


def predictions(run: Run) -> dict[str, Tensor]:
    """Return what each variant chooses for each evaluation image.

    It is the class, int32 [N], or of several labels 1 for each that applies, [N, num_classes].
    """
    head = run.classifier.head
    return {key: head.chosen(logits).int() for key, logits in run.results.logits.items()}


def peak_memory(device: torch.device) -> int:
    """Return the most memory the process (or, on a GPU, torch) held at a time, in bytes.

    0 where the system does not tell, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def table(metrics: dict[str, Any]) -> str:
    """Lay out the measured variants as a table."""
    name = accuracy_in(metrics)
    heading = f"{ACCURACY_NAMES[name]} %"
    lines = [f"{'':42} {heading:>8} {'agreement with float %':>23}"]
    for key, variant in VARIANTS.items():
        if metrics[name][key] is not None:
            accuracy, equal = metrics[name][key], metrics["agreement"][key]
            lines.append(f"{variant.label:42} {accuracy:8.2f} {equal:23.2f}")
    return "\n".join(lines)
