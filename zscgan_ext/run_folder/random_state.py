"""The states of random numbers, to be kept and put back."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class DefaultRandom:
    """Torch's default random numbers: those of the CPU and, in use, of every CUDA device."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each device, uint8 tensors."""
        uses_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        return {
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if uses_cuda else [],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; devices that are not there are left out."""
        torch.set_rng_state(state["cpu"])
        devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for index, numbers in enumerate(state["cuda"][:devices]):
            torch.cuda.set_rng_state(numbers, index)


class OwnRandom:
    """A random generator of one's own."""

    def __init__(self, random: torch.Generator) -> None:
        self.random = random

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state, a uint8 tensor."""
        return {"state": self.random.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self.random.set_state(state["state"])
