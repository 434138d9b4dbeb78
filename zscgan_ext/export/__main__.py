"""Export a finished run: `python -m zscgan_ext.export RUN`."""

import sys
from collections.abc import Sequence

from zscgan_ext.config.configs import TARGETS, RunConfig
from zscgan_ext.config.fields import choices_of, hints_of
from zscgan_ext.config.values import parse_formats
from zscgan_ext.errors import one_line
from zscgan_ext.program import importing_libraries, program, run_parser


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = run_parser(
        "export",
        "Write the quantized classifier of a run as files to deploy, proved to compute "
        "what the classifier computes.",
    )
    parser.add_argument(
        "--formats",
        metavar="FORMATS",
        help="onnx, pt2, safetensors, or several with a comma between them (default: safetensors, "
        "and pt2 for the target pt2e, onnx for all others)",
    )
    parser.add_argument(
        "--target",
        choices=TARGETS,
        help="runtime that is to execute the files (default: the one that the run was for)",
    )
    parser.add_argument(
        "--input",
        choices=choices_of(hints_of(RunConfig)["input"]),
        help="what the ONNX file takes: normalized images or pixels (default: as in the run)",
    )
    parser.add_argument(
        "--resize-input",
        action="store_true",
        default=None,
        help="let an ONNX file of pixels take pictures of any size",
    )
    options = parser.parse_args(arguments)
    formats = None if options.formats is None else parse_formats(options.formats)
    with importing_libraries():
        from zscgan_ext.export.exporter import (
            FileForm,
            export_run,
            summary,
        )  # imports torch: seconds

    report = export_run(
        options.run,
        formats,
        options.classifier,
        FileForm(options.target, options.input, options.resize_input),
    )
    print(summary(report))
    print(one_line(f"results in {options.run}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
