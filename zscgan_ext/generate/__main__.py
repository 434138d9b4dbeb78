"""Write labelled synthetic images of a run's generator: `python -m zscgan_ext.generate RUN`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from zscgan_ext.config.values import (
    IMAGE_SET_FORMATS,
    LARGEST_COUNT,
    LARGEST_SEED,
    check_between,
)
from zscgan_ext.errors import InputError
from zscgan_ext.program import OneLineParser, importing_libraries, program


def make_parser() -> OneLineParser:
    """Return the parser of the command."""
    parser = OneLineParser(
        prog="python -m zscgan_ext.generate",
        description="Write labelled synthetic images of a run's generator, as many of each class, "
        "for other quantizers and whatever else takes images.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run with a generator")
    parser.add_argument(
        "--count", metavar="N", type=int, default=1024, help="images (default: 1024)"
    )
    parser.add_argument(
        "--format",
        choices=IMAGE_SET_FORMATS,
        default="npy",
        help="npy: images.npy and labels.npy; torch: images.pt; png: files with a table of labels; "
        "imagefolder: files in a folder for each class (default: npy); where several labels apply, "
        "labels are 0 or 1 for each, and there is no imagefolder",
    )
    units = parser.add_mutually_exclusive_group()
    units.add_argument(
        "--pixels",
        action="store_true",
        help="uint8 from 0 to 255 (default for png and imagefolder)",
    )
    units.add_argument(
        "--normalized",
        action="store_true",
        help="float32 as the classifier takes them (default for npy and torch)",
    )
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="(default: 0)")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder for them (default: generated in RUN)"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the generated images that DIR holds"
    )
    return parser


@program
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    options = make_parser().parse_args(arguments)
    check_between("count", options.count, 1, LARGEST_COUNT)
    check_between("seed", options.seed, 0, LARGEST_SEED)
    are_files = options.format in ("png", "imagefolder")
    if are_files and options.normalized:
        raise InputError(
            f"normalized: {options.format} files hold pixels; leave it out, or take npy or torch"
        )
    folder = options.run / "generated" if options.out is None else options.out
    with importing_libraries():
        from zscgan_ext.generate.command import generate  # imports torch, which takes seconds

    are_pixels = are_files or options.pixels
    generate(
        options.run,
        options.count,
        options.format,
        are_pixels,
        options.seed,
        folder,
        options.overwrite,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
