"""Compiles the CUDA kernels and tabulates registers and spills, as `ptxas -v` reports them.

    python benchmarks/ptxas_report.py [--output FILE]

Writes a markdown table with one row per kernel and one column per architecture. Exits with 1 if a
kernel spills registers to memory.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
JOBS = 2

ENTRY = re.compile(
    r"Compiling entry function '(?P<symbol>\S+)' for 'sm_(?P<architecture>\d+)'"
    r".*?(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads"
    r".*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)
WORD = re.compile(r"\b[A-Za-z_]\w*")
SHARED = re.compile(r"(\d+) bytes smem")
ELEMENTS = {"float": "float32", "__half": "float16", "__nv_bfloat16": "bfloat16"}


@dataclass(frozen=True)
class Usage:
    """What one kernel uses on one architecture."""

    kernel: str
    architecture: int
    registers: int
    shared_bytes: int
    spilled_bytes: int


def compile_source(source: Path, architecture: int, folder: Path) -> str:
    """Returns what ptxas prints for one source file and architecture."""
    command = ["nvcc", "-std=c++17", "-O3", "--fmad=false", "-Xptxas", "-v"]
    command += ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    command += ["-c", str(source), "-o", str(folder / f"{source.stem}_{architecture}.o")]
    completed = subprocess.run(command, capture_output=True, text=True)
    if completed.returncode != 0:
        sys.exit(f"nvcc failed on {source.name} for sm_{architecture}:\n{completed.stderr}")
    return completed.stderr


def demangle(symbols: list[str]) -> list[str]:
    """Returns the C++ names of linker symbols."""
    filtered = subprocess.run(
        ["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True
    )
    return filtered.stdout.splitlines()


def kernel_name(demangled: str) -> str:
    """`void zscgan::cuda::map_rows<... Op<float>, (int)1>(...)` becomes `map_rows, Op, float32`."""
    name = re.sub(r"zscgan::cuda::|\(anonymous namespace\)::|^void ", "", demangled)
    name = name.split("(")[0]
    words = [word for word in WORD.findall(name) if word not in ELEMENTS]
    elements = [ELEMENTS[word] for word in WORD.findall(name) if word in ELEMENTS]
    return ", ".join(words + elements)


def parse(output: str) -> Iterator[Usage]:
    """Yields every kernel in the output of ptxas."""
    entries = list(ENTRY.finditer(output))
    names = demangle([entry["symbol"] for entry in entries]) if entries else []
    for entry, name in zip(entries, names, strict=True):
        shared = SHARED.search(entry["rest"])
        yield Usage(
            kernel=kernel_name(name),
            architecture=int(entry["architecture"]),
            registers=int(entry["registers"]),
            shared_bytes=int(shared[1]) if shared else 0,
            spilled_bytes=int(entry["stores"]) + int(entry["loads"]),
        )


def measure() -> list[Usage]:
    """Compiles every source file for every architecture."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(JOBS) as pool:
        runs = [
            pool.submit(compile_source, source, architecture, Path(folder))
            for architecture in ARCHITECTURES
            for source in SOURCES
        ]
        return [usage for run in runs for usage in parse(run.result())]


def cell(usage: Usage) -> str:
    """Returns the register count, with the spilled bytes if there are any."""
    spilled = f" (**{usage.spilled_bytes} spilled**)" if usage.spilled_bytes else ""
    return f"{usage.registers}{spilled}"


def markdown(usages: list[Usage], compiler: str) -> str:
    """Returns the table as a markdown document."""
    kernels: dict[str, dict[int, Usage]] = {}
    for usage in usages:
        kernels.setdefault(usage.kernel, {})[usage.architecture] = usage
    spilling = sum(usage.spilled_bytes > 0 for usage in usages)
    lines = [
        "# Registers of the CUDA kernels",
        "",
        f"Registers per thread, from `ptxas -v` of {compiler}, {len(kernels)} kernels on"
        f" {len(ARCHITECTURES)} architectures; {spilling} of them spill to memory. Shared memory"
        " in bytes per block of 256 threads. Written by `python benchmarks/ptxas_report.py`.",
        "",
        "| kernel | shared | " + " | ".join(f"sm_{a}" for a in ARCHITECTURES) + " |",
        "|---" * (2 + len(ARCHITECTURES)) + "|",
    ]
    for name in sorted(kernels):
        row = kernels[name]
        shared = max(usage.shared_bytes for usage in row.values())
        registers = " | ".join(cell(row[a]) for a in ARCHITECTURES)
        lines.append(f"| {name} | {shared} | {registers} |")
    return "\n".join(lines) + "\n"


def compiler_version() -> str:
    """Returns the CUDA compiler and its release; exits with a line where there is none."""
    if shutil.which("nvcc") is None:
        sys.exit("nvcc is not on PATH: put the CUDA toolkit's bin folder there")
    output = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True)
    release = re.search(r"release ([\d.]+)", output.stdout)
    return f"nvcc {release[1]}" if release else "nvcc"


def main() -> None:
    """Writes the table and fails on spills."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "benchmarks" / "results" / "ptxas.md",
        help="markdown file to write (default: %(default)s)",
    )
    arguments = parser.parse_args()
    compiler = compiler_version()
    usages = measure()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(markdown(usages, compiler))
    spilling = sorted({usage.kernel for usage in usages if usage.spilled_bytes})
    print(f"{len(usages)} compilations of kernels written to {arguments.output}")
    if spilling:
        sys.exit(f"registers spilled by: {'; '.join(spilling)}")


if __name__ == "__main__":
    main()
