"""What a run ran on: versions, processor, commit."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch
import torchvision

ROOT = Path(__file__).parent.parent
# By these, oneDNN multiplies float32 in fewer bits, whatever torch is told.
FEWER_BITS = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")


def environment() -> dict[str, str | None]:
    """Return the versions of what computes, the processor, and the commit of a checkout.

    None stands for a version of an uninstalled package and for a commit outside a checkout.
    """
    return {
        "zscgan_ext": installed_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "commit": commit(),
    }


def fewer_bits_warnings() -> list[str]:
    """Return a line where a variable has float32 computed in fewer bits on the CPU."""
    named = ((name, os.environ.get(name, "")) for name in FEWER_BITS)
    return [
        f"{name}: {value} in the environment has oneDNN multiply float32 in fewer bits where the "
        "CPU can; unset it for the results of float32"
        for name, value in named
        if value.lower() not in ("", "strict")
    ]


def installed_version() -> str | None:
    """Return the version of the installed package."""
    try:
        return metadata.version("zscgan_ext")
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the processor's name as Linux gives it, or what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def commit() -> str | None:
    """Return the commit of the checkout that holds this package, None for an installed one."""
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "rev-parse", "--verify", "HEAD"]
    # Variables such as GIT_DIR, which git sets for its hooks, would name another repository.
    variables = {name: text for name, text in os.environ.items() if not name.startswith("GIT_")}
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True, env=variables
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
