"""What is measured: the rows, the cells of classifier, scheme, width and seed, and their order."""

from dataclasses import dataclass
from typing import Literal

CLASSIFIERS = ("resnet20", "mobilenet_v2_small")
Scheme = Literal["paper", "deploy"]
SCHEMES: tuple[Scheme, ...] = ("paper", "deploy")
BITS = ("w8a8", "w4a8", "w4a4", "w3a3", "w2a2")
SEEDS = (0, 1, 2)
# Where methods differ most, first.
IMPORTANT: tuple[tuple[str, Scheme, str], ...] = (
    ("resnet20", "paper", "w4a4"),
    ("resnet20", "paper", "w3a3"),
    ("resnet20", "paper", "w2a2"),
    ("resnet20", "deploy", "w8a8"),
    ("resnet20", "deploy", "w4a4"),
    ("mobilenet_v2_small", "paper", "w4a4"),
    ("mobilenet_v2_small", "paper", "w3a3"),
)
FLOAT = "float"
ROWS = {
    FLOAT: "float",
    "noise_nearest": "nearest, ranges from noise",
    "generated_nearest": "nearest, ranges from generated images",
    "real_nearest": "nearest, ranges from real images",
    "squant": "balanced, ranges from batch norm (SQuant-like)",
    "gdfq": "GDFQ's settings, same number of images",
    "generated_calibrated": "balanced, ranges from generated images",
    "real_calibrated": "balanced, ranges from real images",
    "fine_tuned": "fine-tuned on generated images",
    "real_fine_tuned": "fine-tuned on real images",
}
QUANTIZED_ROWS = tuple(row for row in ROWS if row != FLOAT)


@dataclass(frozen=True)
class Cell:
    """One quantization, which all rows but the float one are measured for."""

    classifier: str
    scheme: Scheme
    bits: str
    seed: int


def ordered_cells(
    classifiers: tuple[str, ...],
    schemes: tuple[Scheme, ...],
    bits: tuple[str, ...],
    seeds: tuple[int, ...],
) -> list[Cell]:
    """Return all cells: the important ones, then all others; of each, one seed after the other."""
    kinds = [(name, scheme, b) for name in classifiers for scheme in schemes for b in bits]
    important = [kind for kind in IMPORTANT if kind in kinds]
    others = [kind for kind in kinds if kind not in IMPORTANT]
    return [Cell(*kind, seed) for part in (important, others) for seed in seeds for kind in part]
