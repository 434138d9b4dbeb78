"""Running the scripts of `benchmarks/`, and reading what they write."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
# Torch 2.6 leaves a temporary folder of its own to the end of the interpreter.
TORCHS_OWN = "ignore:Implicitly cleaning up:ResourceWarning"
DOCUMENT = "before\n<!-- measured:begin -->\nold\n<!-- measured:end -->\nafter\n"


def run_benchmark(script: str, *arguments: object, **environment: str):
    """Run a script in a process of its own: it sets threads, allocator and environment."""
    settings = {"PYTHONPATH": str(BENCHMARKS.parent), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [
            *(sys.executable, "-W", "error", "-W", TORCHS_OWN),
            *(str(BENCHMARKS / script), *map(str, arguments)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | settings,
        check=False,
    )


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a result file."""
    return list(json.loads(file.read_text())["rows"])
