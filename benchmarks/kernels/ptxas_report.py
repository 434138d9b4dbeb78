"""Compiles the CUDA kernels and tabulates what can be read from their machine code.

    python -m benchmarks.kernels.ptxas_report [--output FILE]

Writes a markdown document: registers, shared memory and resident blocks of every kernel on every
architecture, as `ptxas -v` reports them; and of the machine code for the H100 and H200, by
`cuobjdump`, the 16-byte accesses and instructions of every inner loop, with the share of the issue
slots that they need at the bandwidth of a copy. Exits with 1 if a kernel spills registers, uses
local memory, or does not read or write whole 8-element vectors in 16 bytes.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.kernels import sass

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
JOBS = 2

BLOCK_THREADS = 256
REGISTERS = 65536  # of a multiprocessor, on all of these
# Threads, blocks and bytes of shared memory that a multiprocessor holds.
LIMITS = {
    75: (1024, 16, 64 << 10),
    80: (2048, 32, 164 << 10),
    86: (1536, 16, 100 << 10),
    89: (1536, 24, 100 << 10),
    90: (2048, 32, 228 << 10),
    100: (2048, 32, 228 << 10),
    120: (1536, 24, 100 << 10),
}
SYSTEM_SHARED = 1 << 10  # of each block, from sm_80 on

# The H100 and H200 have 132 multiprocessors, each with 128 lanes, and a clock under load.
LOOP_ARCHITECTURE = 90
ISSUE_SLOTS = 132 * 128 * 1.74e9
COPY_BANDWIDTHS = {"H100": 3.0e12, "H200": 4.3e12}
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

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
    local_accesses: int
    loop: sass.Loop

    @property
    def blocks(self) -> int:
        """Blocks that a multiprocessor holds at a time."""
        threads, most, shared = LIMITS[self.architecture]
        registers = -(-self.registers // 8) * 8  # handed out in eights
        own_shared = self.shared_bytes + (SYSTEM_SHARED if self.architecture >= 80 else 0)
        found = [threads // BLOCK_THREADS, most, REGISTERS // (registers * BLOCK_THREADS)]
        return min(found + ([shared // own_shared] if own_shared else []))

    @property
    def dtype(self) -> str:
        """The type of the elements, nothing where there is none."""
        last = self.kernel.split(", ")[-1]
        return last if last in ELEMENT_BYTES else ""

    @property
    def elements(self) -> int:
        """Elements that a pass of the inner loop takes."""
        loaded = self.loop.wide_loads * sass.WIDE_BYTES
        return loaded // (ELEMENT_BYTES[self.dtype] * source_count(self.kernel))


def source_count(kernel: str) -> int:
    """Returns how many tensors a kernel reads."""
    if "BatchNormEvalBackward" in kernel:
        reads_x = "WithStatistics" in kernel or "MaskOfX" in kernel
        return 1 + reads_x + ("MaskOfY" in kernel)
    more = ("BatchNormEvalResidual", "WithResidual", "FakeQuantizeLearnedBackward")
    return 2 if any(word in kernel for word in more) else 1


def compile_source(source: Path, architecture: int, folder: Path) -> tuple[str, str]:
    """Returns what ptxas prints for one source file and architecture, and its machine code."""
    cubin = folder / f"{source.stem}_{architecture}.cubin"
    command = ["nvcc", "-std=c++17", "-O3", "--fmad=false", "-Xptxas", "-v"]
    command += ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    command += ["-cubin", str(source), "-o", str(cubin)]
    completed = subprocess.run(command, capture_output=True, text=True)
    if completed.returncode != 0:
        sys.exit(f"nvcc failed on {source.name} for sm_{architecture}:\n{completed.stderr}")
    listing = subprocess.run(
        [find_cuobjdump(), "-sass", str(cubin)], capture_output=True, text=True, check=True
    )
    cubin.unlink()
    return completed.stderr, listing.stdout


def find_cuobjdump() -> str:
    """Returns the program of the CUDA toolkit, or the copy that triton brings along."""
    found = shutil.which("cuobjdump")
    if found is None and (triton := find_spec("triton")) is not None and triton.origin:
        found = shutil.which(
            "cuobjdump", path=Path(triton.origin).parent / "backends" / "nvidia" / "bin"
        )
    if found is None:
        sys.exit("cuobjdump is not on PATH: put the CUDA toolkit's bin folder there")
    return found


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


def parse(output: str, listing: str) -> Iterator[Usage]:
    """Yields every kernel in the output of ptxas and the listing of its machine code."""
    code = dict(sass.functions(listing))
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
            local_accesses=sum(one.is_local for one in code[entry["symbol"]]),
            loop=sass.inner_loop(code[entry["symbol"]]),
        )


def measure(architectures: Sequence[int]) -> list[Usage]:
    """Compiles every source file for these architectures."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(JOBS) as pool:
        runs = [
            pool.submit(compile_source, source, architecture, Path(folder))
            for architecture in architectures
            for source in SOURCES
        ]
        return [usage for run in runs for usage in parse(*run.result())]


def cell(usage: Usage) -> str:
    """Returns registers and resident blocks, with the spilled bytes if there are any."""
    spilled = f" (**{usage.spilled_bytes} spilled**)" if usage.spilled_bytes else ""
    return f"{usage.registers} / {usage.blocks}{spilled}"


def loop_row(usage: Usage) -> str:
    """Returns what one pass of a kernel's inner loop executes and moves, as a row."""
    loop = usage.loop
    per_element = loop.instructions / usage.elements
    moved = loop.bytes / usage.elements
    shares = (
        f"{per_element * bandwidth / moved / ISSUE_SLOTS:.0%}".replace("%", " %")
        for bandwidth in COPY_BANDWIDTHS.values()
    )
    cells = [usage.kernel, loop.wide_loads, loop.wide_stores, usage.elements]
    cells += [loop.instructions, f"{per_element:.1f}", f"{moved:.0f}", *shares]
    return "| " + " | ".join(map(str, cells)) + " |"


def problems(usage: Usage) -> Iterator[str]:
    """Yields what a kernel should not have."""
    place = f"{usage.kernel} on sm_{usage.architecture}"
    if usage.spilled_bytes:
        yield f"{place} spills {usage.spilled_bytes} bytes"
    if usage.local_accesses:
        yield f"{place} has {usage.local_accesses} accesses to local memory"
    if usage.dtype and usage.loop.wide_loads == 0:
        yield f"{place} does not read whole 8-element vectors in 16 bytes"
    if usage.dtype and writes(usage.kernel) and usage.loop.wide_stores == 0:
        yield f"{place} does not write whole 8-element vectors in 16 bytes"


def writes(kernel: str) -> bool:
    """Tells whether a kernel writes a tensor."""
    if not kernel.startswith("reduce"):
        return True
    return "Backward" in kernel or ("BatchNorm" in kernel and "Sums" not in kernel)


def markdown(usages: list[Usage], compiler: str, architectures: Sequence[int]) -> str:
    """Returns the tables as a markdown document."""
    kernels: dict[str, dict[int, Usage]] = {}
    for usage in usages:
        kernels.setdefault(usage.kernel, {})[usage.architecture] = usage
    names = ", ".join(f"sm_{architecture}" for architecture in architectures)
    spilling = sum(usage.spilled_bytes > 0 for usage in usages)
    local = sum(usage.local_accesses > 0 for usage in usages)
    lines = [
        "# What the machine code of the CUDA kernels tells",
        "",
        f"{len(kernels)} kernels on {names}, compiled by {compiler};"
        f" {spilling} of them spill registers, {local} use local memory, and where an inner loop"
        " works on a tensor it reads, and if it writes one writes, whole 8-element vectors in 16"
        " bytes on all. Written by `python -m benchmarks.kernels.ptxas_report`.",
        "",
        "## Registers and occupancy",
        "",
        "Registers of a thread / blocks of 256 threads that a multiprocessor holds at a time,"
        " from `ptxas -v`. Shared memory in bytes per block.",
        "",
        "| kernel | shared | " + " | ".join(f"sm_{a}" for a in architectures) + " |",
        "|---" * (2 + len(architectures)) + "|",
    ]
    for name in sorted(kernels):
        row = kernels[name]
        shared = max(usage.shared_bytes for usage in row.values())
        registers = " | ".join(cell(row[a]) for a in architectures)
        lines.append(f"| {name} | {shared} | {registers} |")
    bandwidths = " and ".join(str(bandwidth / 1e12) for bandwidth in COPY_BANDWIDTHS.values())
    lines += [
        "",
        "## Inner loops",
        "",
        f"One pass of a thread through the inner loop on `sm_{LOOP_ARCHITECTURE}`, for whole,"
        " aligned 8-element vectors of one channel: the path with all 16-byte accesses and the"
        " fewest decisions, from `cuobjdump`. Bytes are those of tensors, per element. The last"
        " columns are the share of the issue slots of an H100 and an H200 that these instructions"
        f" take at the bandwidth of a copy ({bandwidths}"
        " TB/s, 132 multiprocessors of 128 lanes at 1.74 GHz): above 100 % the kernel is bound by"
        " instructions, whatever its memory accesses are.",
        "",
        "| kernel | 16-byte loads | 16-byte stores | elements | instructions | per element |"
        " bytes per element | H100 | H200 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        loop_row(row[LOOP_ARCHITECTURE])
        for _, row in sorted(kernels.items())
        if row[LOOP_ARCHITECTURE].dtype
    ]
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
    parser.add_argument(
        "--architectures",
        nargs="+",
        type=int,
        choices=ARCHITECTURES,
        default=ARCHITECTURES,
        help="ten times the compute capabilities, %(choices)s (default: all)",
    )
    arguments = parser.parse_args()
    if LOOP_ARCHITECTURE not in arguments.architectures:
        parser.error(
            f"--architectures: needed is {LOOP_ARCHITECTURE}, whose inner loops are listed"
        )
    compiler = compiler_version()
    usages = measure(arguments.architectures)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(markdown(usages, compiler, arguments.architectures))
    print(f"{len(usages)} compilations of kernels written to {arguments.output}")
    found = [problem for usage in usages for problem in problems(usage)]
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
