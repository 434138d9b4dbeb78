"""The variants of the classifier that a run measures, which are the rows of its table.

Runner, metrics, report, benchmarks and the Python API take them from here.
"""

from dataclasses import dataclass
from typing import Literal

from zscgan_ext.config.configs import RunConfig


@dataclass(frozen=True)
class Variant:
    """One way to quantize the classifier, or the float classifier itself."""

    key: str  # in metrics, predictions, checkpoints and the log
    label: str
    images: Literal["noise", "generated", "real", "given"] | None  # None: takes no images
    rounding: str | None = None  # None: as the configuration says
    ranges: str | None = None  # None: as the configuration says
    fine_tune: bool = False

    @property
    def calibration_stage(self) -> str:
        """Name of the stage that calibrates it."""
        return f"{self.key} start" if self.fine_tune else self.key

    @property
    def training_stage(self) -> str:
        """Name of the stage that fine-tunes it."""
        return self.key

    @property
    def evaluation_stage(self) -> str:
        """Name of the stage that evaluates it."""
        return f"{self.key} evaluated"

    @property
    def student_name(self) -> str:
        """Name of its student in checkpoints."""
        return f"{self.calibration_stage} student"


FLOAT = Variant("float", "float", None)
NOISE_CALIBRATED = Variant(
    "noise_calibrated", "quantized, ranges from random noise", "noise", ranges="images"
)
INSTANT = Variant(
    "instant", "instant, from batch-norm statistics", None, rounding="squant", ranges="batch_norm"
)
GENERATED_CALIBRATED = Variant(
    "generated_calibrated", "quantized, ranges from generated images", "generated", ranges="images"
)
FINE_TUNED = Variant("fine_tuned", "fine-tuned on generated images", "generated", fine_tune=True)
REAL_CALIBRATED = Variant(
    "real_calibrated", "quantized, ranges from real images", "real", ranges="images"
)
REAL_FINE_TUNED = Variant("real_fine_tuned", "fine-tuned on real images", "real", fine_tune=True)
# Of the Python API only.
GIVEN_FINE_TUNED = Variant(
    "given_fine_tuned", "fine-tuned on given images", "given", fine_tune=True
)

VARIANTS = {
    variant.key: variant
    for variant in (
        *(FLOAT, INSTANT, NOISE_CALIBRATED, GENERATED_CALIBRATED, FINE_TUNED),
        *(REAL_CALIBRATED, REAL_FINE_TUNED),
    )
}


def result_of(config: RunConfig) -> Variant:
    """Return the variant whose student a run writes."""
    return FINE_TUNED if config.learns_generator else INSTANT
