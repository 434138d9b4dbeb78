"""Write the report of a finished run: `python -m zscgan_ext.report RUN`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from zscgan_ext.errors import one_line
from zscgan_ext.program import OneLineParser, program
from zscgan_ext.report.page import write_report


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = OneLineParser(
        prog="python -m zscgan_ext.report",
        description="Write report.html into the folder of a finished run: one page, complete in "
        "itself, about what was lost, where, and what the generated images look like.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--classifier",
        metavar="NAME",
        help="for a run of a classifier of your own: the module:function or .pt2 file, which is "
        "not run because a folder names it",
    )
    options = parser.parse_args(arguments)
    print(one_line(f"report in {write_report(options.run, options.classifier)}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
