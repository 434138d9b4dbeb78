"""How passes are executed: memory format, dtype, allocator, CUDA graphs, compiler."""

import contextlib
import ctypes
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from zscgan_ext import distributed
from zscgan_ext.config.configs import ExecutionConfig

MEMORY_FORMATS = {
    "channels_last": torch.channels_last,
    "contiguous": torch.contiguous_format,
}
PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Parameters of mallopt, and values under which memory is never returned to the system: nothing is
# allocated by mmap, and the heap does not shrink.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEEPING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}


def resolve_precision(name: str, device: torch.device) -> tuple[str, str]:
    """Turn `auto` into bfloat16 on a GPU that computes in it, and into float32 elsewhere.

    Returns:
        The precision, and why; empty where there was no choice. On a CPU `stages` has more to say.
    """
    if name != "auto":
        return name, ""
    if device.type != "cuda":
        return "float32", ""
    if torch.cuda.get_device_capability(device) >= (8, 0):
        return "bfloat16", "the GPU computes in bfloat16"
    return "float32", "the GPU does not compute in bfloat16"


class Precision:
    """Autocast for forward passes, and loss scaling where float16 needs it.

    Statistics, scales and losses stay float32 whatever the precision.

    Args:
        name: float32, bfloat16 or float16.
        device: where the passes run.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self.dtype = PRECISIONS[name]
        self.device = device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Run what it encloses in this precision."""
        enabled = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=enabled):
            yield

    def step(self, loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Take one optimizer step down the gradient of a scalar loss, and free the gradient.

        The gradient is the mean of those of all processes.
        """
        self.scaler.scale(loss).backward()
        distributed.average_gradients(
            p for group in optimizer.param_groups for p in group["params"]
        )
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)


def is_glibc() -> bool:
    """Return True if memory comes from glibc, whose allocator can be told to keep it."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the tensors of the next step.

    By default it returns large tensors to the system as they are freed, and the next ones lie on
    fresh pages, whose faults cost more than filling them. The setting holds for the whole process.
    """
    library = ctypes.CDLL(None)
    for parameter, value in KEEPING.items():
        library.mallopt(parameter, value)


@dataclass(frozen=True)
class Execution:
    """The choices for one run, made by `choose_execution`.

    docs/developer/performance.md gives reasons.
    """

    device: str
    memory_format_name: str  # channels_last or contiguous
    precision_name: str  # float32, bfloat16 or float16
    fine_tuning_precision_name: str  # the same, for students
    precision_reason: str  # why they were chosen; empty where they were given
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

    def of_fine_tuning(self) -> "Execution":
        """Return the choices for training a student."""
        return replace(self, precision_name=self.fine_tuning_precision_name)

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
        return facts | {"threads": torch.get_num_threads(), "processes": distributed.world_size()}

    def __str__(self) -> str:
        """Name the choices in one line."""
        on_cpu = f"{torch.get_num_threads()} threads" if self.device == "cpu" else ""
        names = {
            "freed memory is kept": self.keep_freed_memory,
            "CUDA graphs": self.cuda_graphs,
            "torch.compile": self.compile,
            f"{distributed.world_size()} processes": distributed.world_size() > 1,
        }
        chosen = [name for name, is_chosen in names.items() if is_chosen]
        precision, fine_tuning = self.precision_name, self.fine_tuning_precision_name
        if fine_tuning != precision:
            precision = f"{precision} and {fine_tuning} for fine-tuning"
        parts = [self.device, on_cpu, self.memory_format_name, precision, *chosen]
        reason = f" ({self.precision_reason})" if self.precision_reason else ""
        return ", ".join(part for part in parts if part) + reason


def choose_execution(config: ExecutionConfig, device: torch.device) -> Execution:
    """Turn what a configuration leaves to `auto` into choices for a device."""
    precision, reason = resolve_precision(config.precision, device)
    # Scaling a float16 loss asks the device whether the gradients were finite.
    # Collectives of many processes are not captured.
    can_capture = device.type == "cuda" and precision != "float16" and distributed.world_size() == 1
    return Execution(
        device=str(device),
        memory_format_name=(
            "channels_last" if config.memory_format == "auto" else config.memory_format
        ),
        precision_name=precision,
        fine_tuning_precision_name=precision,
        precision_reason=reason,
        keep_freed_memory=config.keep_freed_memory and device.type == "cpu" and is_glibc(),
        cuda_graphs=config.cuda_graphs != "off" and can_capture,
        compile=config.compile,
    )
