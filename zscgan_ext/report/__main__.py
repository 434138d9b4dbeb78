"""Write the report of a finished run: `python -m zscgan_ext.report RUN`."""

import sys
from collections.abc import Sequence

from zscgan_ext.errors import one_line
from zscgan_ext.program import importing_libraries, program, run_parser
from zscgan_ext.report import require_matplotlib


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = run_parser(
        "report",
        "Write report.html into the folder of a finished run: one page, complete in "
        "itself, about what was lost, where, and what the generated images look like.",
    )
    options = parser.parse_args(arguments)
    with importing_libraries():
        require_matplotlib()
        from zscgan_ext.report.page import write_report  # imports torch, which takes seconds

    print(one_line(f"report in {write_report(options.run, options.classifier)}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
