"""Running the programs of `benchmarks/`, and reading what they write."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import zscgan_ext

ROOT = Path(__file__).parents[2]
PACKAGE = Path(zscgan_ext.__file__).parents[1]
# Torch 2.6 leaves a temporary folder of its own to the end of the interpreter.
TORCHS_OWN = "ignore:Implicitly cleaning up:ResourceWarning"
DOCUMENT = "before\n<!-- measured:begin -->\nold\n<!-- measured:end -->\nafter\n"


def run_benchmark(program: str, *arguments: object, **environment: str):
    """Run a program in a process of its own: it sets threads, allocator and environment."""
    # The package first: it need not be the one of this checkout.
    paths = {"PYTHONPATH": os.pathsep.join([str(PACKAGE), str(ROOT)]), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [
            *(sys.executable, "-W", "error", "-W", TORCHS_OWN),
            *("-m", f"benchmarks.{program}", *map(str, arguments)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | paths | {"OMP_NUM_THREADS": "1"} | environment,
        check=False,
    )


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a result file."""
    return list(json.loads(file.read_text())["rows"])
