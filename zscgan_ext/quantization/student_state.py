"""All that a student remembers, for checkpoints."""

from collections.abc import Mapping
from typing import Any

from zscgan_ext.quantization.conversion import QuantizedClassifier
from zscgan_ext.quantization.quantizers import ActivationMode


class StudentState:
    """A student's tensors, and what its activation quantizers know beside them.

    Args:
        student: calibrated or not.
    """

    def __init__(self, student: QuantizedClassifier) -> None:
        self.student = student

    def state_dict(self) -> dict[str, Any]:
        """Return weights, scales and observed ranges, the quantizers' mode, batches observed."""
        quantizers = self.student.activation_quantizers
        return {
            "tensors": self.student.state_dict(),
            "modes": [quantizer.mode.value for quantizer in quantizers],
            "observed_batches": [quantizer.observed_batches for quantizer in quantizers],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a student that was converted alike."""
        self.student.load_state_dict(state["tensors"])
        quantizers = self.student.activation_quantizers
        known = zip(quantizers, state["modes"], state["observed_batches"], strict=True)
        for quantizer, mode, observed_batches in known:
            quantizer.mode = ActivationMode(mode)
            quantizer.observed_batches = int(observed_batches)
