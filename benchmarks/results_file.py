"""Writing what was measured: JSON with how it was made, and the table in a document."""

import argparse
import datetime
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from zscgan_ext.environment import environment

BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"


def measuring_parser(
    description: str | None, chart: str, samples: int, quick: str
) -> argparse.ArgumentParser:
    """Return a parser for what every benchmark of rows takes.

    Args:
        description: of the benchmark.
        chart: name of the chart where there is no JSON file.
        samples: of each time, unless others are asked for.
        quick: what `--quick` measures.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the rows")
    parser.add_argument(
        "--chart", type=Path, metavar="FILE", help=f"default: beside the JSON, or {chart}"
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--samples", type=int, default=samples, help="default: %(default)s")
    parser.add_argument(
        "--update-docs",
        type=Path,
        metavar="FILE",
        help="measure nothing; write the rows of --json into the table of this document",
    )
    return parser


def earlier_rows(options: argparse.Namespace) -> Path:
    """Return the file whose rows `--update-docs` writes into a document.

    Raises:
        SystemExit: if there is none.
    """
    file: Path | None = options.json
    if file is None or not file.is_file():
        raise SystemExit(f"--update-docs: needs --json with a file of an earlier run, got {file}")
    return file


def chart_file(options: argparse.Namespace, name: str) -> Path:
    """Return where the chart goes; `name` where neither a chart nor a JSON file was named."""
    file: Path = options.chart or (options.json.with_suffix(".png") if options.json else Path(name))
    return file


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
