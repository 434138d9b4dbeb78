"""What is measured: the rows, the cells of classifier, scheme, width and seed, and their order."""

from dataclasses import dataclass, replace
from typing import Literal

from zscgan_ext.stages.variants import (
    FINE_TUNED,
    FLOAT,
    GENERATED_CALIBRATED,
    REAL_CALIBRATED,
    REAL_FINE_TUNED,
    Variant,
)

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
VARIANTS = {
    variant.key: variant
    for variant in (
        FLOAT,
        Variant("noise_nearest", "nearest, ranges from noise", "noise", "nearest", "images"),
        Variant(
            key="generated_nearest",
            label="nearest, ranges from generated images",
            images="generated",
            rounding="nearest",
            ranges="images",
        ),
        Variant("real_nearest", "nearest, ranges from real images", "real", "nearest", "images"),
        Variant("squant", "SQuant rounding, ranges from batch norm", None, "squant", "batch_norm"),
        Variant("gdfq", "GDFQ's settings, same number of images", "generated", fine_tune=True),
        replace(GENERATED_CALIBRATED, label="SQuant rounding, ranges from generated images"),
        replace(REAL_CALIBRATED, label="SQuant rounding, ranges from real images"),
        FINE_TUNED,
        REAL_FINE_TUNED,
    )
}
QUANTIZED = tuple(key for key in VARIANTS if key != FLOAT.key)


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
