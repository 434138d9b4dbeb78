"""What is installed, built and in use, as torch and the native core tell it."""

from typing import Any

import torch

from zscgan_ext.environment import environment, fewer_bits_warnings
from zscgan_ext.ops import implementation


def versions() -> dict[str, str]:
    """Return the versions, the processor and the commit."""
    facts = {name: value or "none" for name, value in environment().items()}
    if facts["zscgan_ext"] == "none":
        facts["zscgan_ext"] = "not installed, imported from a folder"
    return facts


def build_info(native: Any) -> dict[str, Any]:
    """Return what the native core says of its build, nothing where it is missing."""
    return dict(native.build_info()) if hasattr(native, "build_info") else {}


def native_core() -> dict[str, str]:
    """Return whether the native core is built and in use, and its instruction sets."""
    native, requested = implementation.NATIVE, implementation.REQUESTED
    facts = {"ZSCGAN_EXT_IMPL": requested}
    if native is None:
        return facts | {"native core": f"missing ({implementation.MISSING_REASON})"}
    use = "built, not in use" if requested == "reference" else "built, in use"
    build = build_info(native)
    return facts | {
        "native core": use,
        "compiler": build.get("compiler", "unknown"),
        "instruction sets built": " ".join(build.get("cpu_instruction_sets", ())) or "unknown",
        "instruction sets of the CPU": torch.backends.cpu.get_cpu_capability(),
        "instruction set in use": native.cpu.instruction_set(),
    }


def cuda() -> dict[str, str]:
    """Return whether the CUDA kernels are built, for what, and whether they can run."""
    build = build_info(implementation.NATIVE)
    facts = {"CUDA kernels": "not built"}
    if build.get("cuda"):
        facts["CUDA kernels"] = f"built by {build['cuda_compiler']}"
        facts["CUDA architectures"] = build["cuda_architectures"]
    reason = implementation.cuda_missing_reason()
    facts["CUDA"] = f"not usable ({reason})" if reason else "usable"
    if torch.cuda.is_available():
        facts["GPU"] = torch.cuda.get_device_name()
    return facts


def installation() -> dict[str, str]:
    """Return all facts by name.

    Raises:
        InputError: if `ZSCGAN_EXT_IMPL` asks for kernels that there are not.
    """
    implementation.require_implementation()
    facts = versions() | native_core() | cuda()
    computing = {"threads": str(torch.get_num_threads())}
    for line in fewer_bits_warnings():
        name, _, text = line.partition(": ")
        computing[name] = text
    return facts | computing
