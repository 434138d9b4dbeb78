"""Shows that the emulated GPU finds what it is for: takes barriers and fences away, and more.

    python -m benchmarks.checks.emulation_proof [--output FILE] [--only WORD]

Each fault is put into a scratch copy of the checkout, which is built and tested as `.ci/emulate`
does. A fault is found where tests fail that pass without it. Among the faults are the four causes
of the failures of the first run on a GPU, as the code was then. Takes about ten minutes on two
cores, and exits with 1 if a fault that has to be found is not.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Kernels with a fault are compiled from a copy of csrc/cuda, one source of it for each fault.
REDUCTION = "csrc/fault/reduction.cuh"
STATISTICS = "batch_norm_statistics.cu"
STATISTICS_TESTS = (
    *("python_tests/test_batch_norm_statistics.py", "-k"),
    "mean_and_variance and float32 or sizes_around",
)
FENCE = """    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last"""


@dataclass(frozen=True)
class Fault:
    """A change of one file, the tests that should fail then, and whether they have to."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...] = STATISTICS_TESTS
    source: str | None = STATISTICS  # of csrc/fault, where the fault is one of a kernel
    has_to_be_found: bool = True


PLAN = """inline ColumnPartition plan_column_reduction(const Shape3& shape) {
    // Blocks for two on each multiprocessor: what they leave is merged by one.
    constexpr int64_t usual_splits = 256;
    // A thread's float32 sums of more rows than this would lose digits.
    constexpr int64_t most_rows_of_thread = 1024;"""
SYNCHRONIZE = "    __syncthreads();\n"
LONG_SUMS = "long sums"  # in place of tests
FAULTS = (
    Fault(
        "first run: the reference of observe divides by a number",
        "zscgan_ext/ops/reference/quantization.py",
        "steps = torch.full_like(scale, quant_max - quant_min)",
        "steps = quant_max - quant_min",
        ("python_tests/test_emulation.py", "-k", "reference_of_observe"),
        source=None,
    ),
    Fault(
        "first run: a captured step takes a number from the host",
        "zscgan_ext/distributed.py",
        "means[0].new_full((), images)",
        "means[0].new_tensor(float(images))",
        ("python_tests/test_trainer.py", "-k", "takes_no_numbers_from_the_host"),
        source=None,
    ),
    Fault(
        "no fence before a block counts itself",
        REDUCTION,
        FENCE,
        FENCE[len("    __threadfence();\n") :],
    ),
    Fault(
        "no barrier before a block counts itself",
        REDUCTION,
        FENCE,
        FENCE.replace(SYNCHRONIZE, ""),
    ),
    Fault(
        "no barrier before all threads learn who is last",
        REDUCTION,
        "== blocks - 1;\n    __syncthreads();\n",
        "== blocks - 1;\n",
    ),
    Fault(
        "no barrier before thread 0 combines the warps",
        REDUCTION,
        "warps[threadIdx.x / warp_threads] = sums;\n    __syncthreads();\n",
        "warps[threadIdx.x / warp_threads] = sums;\n",
    ),
    Fault(
        "no barrier before helpers are combined",
        REDUCTION,
        "shares[threadIdx.x] = sums;\n    __syncthreads();\n",
        "shares[threadIdx.x] = sums;\n",
    ),
    Fault(
        "no barrier before a block combines its lanes",
        "csrc/fault/column_reduction.cuh",
        "sums[j][threadIdx.x] = columns.sums[j];\n    __syncthreads();\n",
        "sums[j][threadIdx.x] = columns.sums[j];\n",
    ),
    Fault(
        "no barrier before a layer's distance is read",
        "csrc/fault/batch_norm_distance.cu",
        "layer.channels, sums);\n    __syncthreads();\n",
        "layer.channels, sums);\n",
        ("python_tests/test_batch_norm_distance.py",),
        "batch_norm_distance.cu",
    ),
    Fault(
        "no barrier before helpers store again",
        REDUCTION,
        "SumsOf<Operation> shares[block_threads];\n    __syncthreads();",
        "SumsOf<Operation> shares[block_threads];\n    //",
    ),
    Fault(
        "counters are not zeroed",
        "csrc/fault/reduction_launcher.cuh",
        "if (partition.counter_count() > 0) {",
        "if (partition.counter_count() < 0) {",
    ),
    Fault(
        "first run: a workspace of no bytes is refused",
        "csrc/backends.h",
        "require(launch_.workspace || bytes() == 0,",
        "(void)bytes, require(launch_.workspace,",
        STATISTICS_TESTS,
        source=None,
    ),
    Fault(
        "first run: a thread sums 4,096 rows in float32",
        "csrc/fault/column_reduction.cuh",
        PLAN,
        # Static, so that other sources do not lend this one their function.
        PLAN.replace("1024", "int64_t{1} << 40").replace("inline", "static"),
        (LONG_SUMS,),
    ),
)

LONG_SUMS_PROGRAM = """
import ctypes, mmap, os, sys, torch
sys.path.insert(0, "python_tests/helpers")
from kernel_results import make_inputs
from zscgan_ext.ops.implementation import EMULATED

# What test_gpu_large.py measured on that GPU: 2^31 elements in channels_last, as copies of one
# sample. Here they are the same pages of memory again and again.
COPIES, CHANNELS = 32769, 16
inputs = make_inputs((1, CHANNELS, 64, 64), 1, "channels_last", torch.bfloat16)
sample = inputs.x.movedim(1, -1).contiguous().view(-1, CHANNELS)
size = sample.numel() * 2
file = os.memfd_create("sample")
os.write(file, ctypes.string_at(sample.data_ptr(), size))
library = ctypes.CDLL(None, use_errno=True)
library.mmap.restype = ctypes.c_void_p
library.mmap.argtypes = [ctypes.c_void_p, *[ctypes.c_size_t] + [ctypes.c_int] * 3, ctypes.c_long]
start = library.mmap(None, COPIES * size, 1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
for copy in range(COPIES):
    library.mmap(start + copy * size, size, 1, mmap.MAP_SHARED | 0x10, file, 0)
shape = (COPIES * 64 * 64, CHANNELS, 1)
shift, mean, variance = inputs.vectors[0], torch.empty(CHANNELS), torch.empty(CHANNELS)
scratch = torch.empty(EMULATED.cuda.reduction_workspace(shape), dtype=torch.uint8)
addresses = [v.data_ptr() for v in (shift, mean, variance)]
EMULATED.cuda.batch_norm_statistics(2, shape, start, *addresses, (0, 0, scratch.data_ptr()))
true = torch.stack(torch.var_mean(sample.double(), 0, correction=0))
found = torch.stack([variance, mean]).double()
errors = ((found - true) / true).abs().amax(1).tolist()
print("relative errors of variance {:.2e} and mean {:.2e}, allowed are 1e-5".format(*errors))
raise SystemExit(max(errors) >= 1e-5)
"""


def build(copy: Path) -> str:
    """Build the emulated kernels of a scratch copy; return an error's text, or nothing."""
    folder = copy / "build" / "proof"
    if not folder.exists():
        pybind11 = subprocess.check_output(
            [sys.executable, "-m", "pybind11", "--cmakedir"], text=True
        ).strip()
        subprocess.run(
            [
                *("cmake", "-S", str(copy), "-B", str(folder), "-G", "Ninja"),
                *("-DZSCGAN_EXT_EMULATE_CUDA=ON", f"-Dpybind11_DIR={pybind11}"),
                f"-DPython_EXECUTABLE={sys.executable}",
            ],
            env=os.environ | {"ZSCGAN_EXT_CUDA": "0", "CXX": "g++"},
            check=True,
            stdout=subprocess.DEVNULL,
        )
    command = ["cmake", "--build", str(folder), "--target", "_native_emulated"]
    completed = subprocess.run(command, capture_output=True, text=True)
    if completed.returncode:
        return str(completed.stdout)
    for old in (copy / "zscgan_ext").glob("_native_emulated*.so"):
        old.unlink()
    shutil.copy(next(folder.glob("_native_emulated*.so")), copy / "zscgan_ext")
    return ""


def outcome(copy: Path, tests: tuple[str, ...]) -> tuple[bool, str]:
    """Run tests in the scratch copy: whether one failed, and their summary."""
    command = [sys.executable, "-c", LONG_SUMS_PROGRAM]
    if tests != (LONG_SUMS,):
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        if not any("test_trainer" in test for test in tests):
            command += ["-m", "cuda or emulation"]
    own = {"PYTHONPATH": str(copy), "ZSCGAN_EXT_EMULATE_CUDA": "1", "OMP_NUM_THREADS": "1"}
    completed = subprocess.run(
        command, cwd=copy, env=os.environ | own, capture_output=True, text=True
    )
    lines = (completed.stdout or completed.stderr).strip().splitlines()
    return completed.returncode != 0, re.sub(r" in [\d.]+s.*", "", lines[-1] if lines else "")


def change(copy: Path, fault: Fault, before: str, after: str) -> None:
    """Replace what stands once in a file."""
    path = copy / fault.file
    text = path.read_text()
    if text.count(before) != 1:
        sys.exit(
            f"{fault.file}: {fault.name!r} does not fit the code, {before!r} is not there once"
        )
    path.write_text(text.replace(before, after))


def examine(copy: Path, fault: Fault) -> tuple[bool, str]:
    """Put a fault into the scratch copy, test it, and take it out again."""
    change(copy, fault, fault.before, fault.after)
    if fault.source:
        used = copy / "csrc" / "cuda" / fault.source
        right = used.read_text()
        used.write_text(f'#include "../fault/{fault.source}"\n')
    problem = build(copy)
    if problem:
        sys.exit(f"{fault.name}: the scratch copy does not compile\n{problem}")
    found = outcome(copy, fault.tests)
    change(copy, fault, fault.after, fault.before)
    if fault.source:
        used.write_text(right)
    return found


def markdown(rows: list[tuple[str, str, str, str]]) -> str:
    """Return the table as a markdown document."""
    lines = [
        "# What the emulated GPU finds",
        "",
        "Each fault alone in a copy of the code, and what the tests say of it on the emulated GPU;"
        " the same tests without it. Written by `python -m benchmarks.checks.emulation_proof`.",
        "",
        "| fault | found | with it | without |",
        "|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Examine every fault and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "benchmarks" / "results" / "emulation.md",
        help="markdown file to write (default: %(default)s)",
    )
    parser.add_argument("--copy", type=Path, help="scratch copy to make, keep and use again")
    parser.add_argument("--only", default="", help="only faults whose name has this word")
    arguments = parser.parse_args()
    faults = [fault for fault in FAULTS if arguments.only in fault.name]
    rows, missed = [], []
    with tempfile.TemporaryDirectory() as folder:
        copy = arguments.copy or Path(folder) / "copy"
        if not copy.exists():
            ignored = shutil.ignore_patterns(".git", "build", ".venv*", "runs", "__pycache__")
            shutil.copytree(ROOT, copy, ignore=ignored)
            shutil.copytree(copy / "csrc" / "cuda", copy / "csrc" / "fault")
        problem = build(copy)
        if problem:
            sys.exit(problem)
        without = {tests: outcome(copy, tests) for tests in {fault.tests for fault in faults}}
        for fault in faults:
            start = time.monotonic()
            failed, summary = examine(copy, fault)
            was_failing, usual = without[fault.tests]
            is_found = failed and not was_failing
            if fault.has_to_be_found and not is_found:
                missed.append(fault.name)
            rows.append((fault.name, "yes" if is_found else "no", summary, usual))
            print(*rows[-1], f"{time.monotonic() - start:.0f} s", sep=" | ", flush=True)
    arguments.output.write_text(markdown(rows))
    if missed:
        sys.exit(f"not found: {'; '.join(missed)}")


if __name__ == "__main__":
    main()
