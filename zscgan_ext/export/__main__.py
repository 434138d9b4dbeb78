"""Export a finished run: `python -m zscgan_ext.export RUN`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from zscgan_ext.errors import one_line
from zscgan_ext.export.exporter import export_run, summary
from zscgan_ext.program import OneLineParser, program
from zscgan_ext.settings.values import EXPORT_FORMATS, parse_formats


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = OneLineParser(
        prog="python -m zscgan_ext.export",
        description="Write the quantized classifier of a run as files to deploy, proved to compute "
        "what the classifier computes.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--formats",
        metavar="FORMATS",
        default=",".join(EXPORT_FORMATS),
        help="onnx, safetensors, or both with a comma between them (default: both)",
    )
    parser.add_argument(
        "--classifier",
        metavar="NAME",
        help="for a run of a classifier of your own: the module:function or .pt2 file, which is "
        "not run because a folder names it",
    )
    options = parser.parse_args(arguments)
    report = export_run(options.run, parse_formats(options.formats), options.classifier)
    print(summary(report))
    print(one_line(f"results in {options.run}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
