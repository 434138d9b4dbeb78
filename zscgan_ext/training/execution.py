"""How passes are executed: memory format, dtype, allocator, CUDA graphs, compiler."""

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch

from zscgan_ext import processes
from zscgan_ext.settings.config import Settings
from zscgan_ext.training.allocator import is_glibc, keep_freed_memory
from zscgan_ext.training.precision import Precision, resolve_precision

MEMORY_FORMATS = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}


@dataclass(frozen=True)
class Execution:
    """The choices for one run, made by `choose_execution`.

    docs/developer/performance.md gives reasons.
    """

    device: str
    memory_format_name: str  # channels_last or contiguous
    precision_name: str  # float32, bfloat16 or float16
    keep_freed_memory: bool  # of the CPU, by the allocator
    cuda_graphs: bool
    compile: bool

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of models, images and what lies between."""
        return MEMORY_FORMATS[self.memory_format_name]

    def new_precision(self) -> Precision:
        """Return autocast and loss scaling for one training."""
        return Precision(self.precision_name, torch.device(self.device))

    def apply(self) -> None:
        """Set what holds for the whole process."""
        if self.keep_freed_memory:
            keep_freed_memory()
        if self.device.startswith("cuda"):
            torch.backends.cudnn.benchmark = True  # shapes are the same at each step
            with warnings.catch_warnings():
                # Some versions of torch recommend a newer setting, which others lack.
                warnings.filterwarnings("ignore", "Please use the new API settings", UserWarning)
                torch.set_float32_matmul_precision("high")  # TF32, as in cuDNN's convolutions

    def facts(self) -> dict[str, Any]:
        """Return the choices for `metrics.json`."""
        facts = {name.removesuffix("_name"): value for name, value in asdict(self).items()}
        return facts | {"threads": torch.get_num_threads(), "processes": processes.count()}

    def __str__(self) -> str:
        """Name the choices in one line."""
        on_cpu = f"{torch.get_num_threads()} threads" if self.device == "cpu" else ""
        names = {
            "freed memory is kept": self.keep_freed_memory,
            "CUDA graphs": self.cuda_graphs,
            "torch.compile": self.compile,
            f"{processes.count()} processes": processes.count() > 1,
        }
        chosen = [name for name, is_chosen in names.items() if is_chosen]
        parts = [self.device, on_cpu, self.memory_format_name, self.precision_name, *chosen]
        return ", ".join(part for part in parts if part)


def choose_execution(settings: Settings, device: torch.device) -> Execution:
    """Turn what the settings leave to `auto` into choices for a device."""
    precision = resolve_precision(settings.precision, device)
    # Scaling a float16 loss asks the device whether the gradients were finite.
    # Collectives of many processes are not captured.
    can_capture = device.type == "cuda" and precision != "float16" and processes.count() == 1
    return Execution(
        device=str(device),
        memory_format_name=(
            "channels_last" if settings.memory_format == "auto" else settings.memory_format
        ),
        precision_name=precision,
        keep_freed_memory=settings.keep_freed_memory and device.type == "cpu" and is_glibc(),
        cuda_graphs=settings.cuda_graphs != "off" and can_capture,
        compile=settings.compile,
    )
