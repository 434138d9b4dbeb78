"""Writing what was measured: JSON with how it was made, and the table in a document."""

import datetime
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from zscgan_ext.environment import environment

BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"


def made_with(device: torch.device, **settings: Any) -> dict[str, Any]:
    """Describe the machine and the run, for a file of results."""
    versions = environment()
    return {
        "commit": versions["commit"],
        "cpu": versions["cpu"],
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "versions": versions,
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **settings,
    }


def write_rows(file: Path | None, made: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write what was measured so far, if a file is wanted: what is cut off keeps its rows."""
    if file is None:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"made_with": made, "rows": rows}, indent=1) + "\n")


def replace_measured_table(document: Path, table: str) -> None:
    """Replace what stands between the markers of a document.

    Raises:
        SystemExit: if the document lacks the markers.
    """
    text = document.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{document}: has no {BEGIN} and {END} around a table")
    document.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
