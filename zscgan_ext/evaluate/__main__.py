"""Evaluate a run or an exported file: `python -m zscgan_ext.evaluate RUN|FILE --data DATA`."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from zscgan_ext.config.values import EVALUATION_BATCH
from zscgan_ext.errors import InputError
from zscgan_ext.program import SMALLER_BATCHES, OneLineParser, importing_libraries, program


@partial(program, if_memory_is_short=SMALLER_BATCHES)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = OneLineParser(
        prog="python -m zscgan_ext.evaluate",
        description="Measure a quantized classifier on images, on the CPU.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "path", metavar="RUN|FILE", type=Path, help="folder of a run, .onnx or .safetensors file"
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="fashion-mnist, a folder of idx files or an ImageFolder tree (default: the bundled "
        "test images for a bundled classifier); of a folder with image files and no folders "
        "agreement, confidence and different answers are measured, which need no labels; for a "
        "classifier of several labels a folder with labels.csv",
    )
    parser.add_argument(
        "--unlabelled",
        action="store_true",
        help="take all images below DATA as images without labels, whatever its folders are",
    )
    parser.add_argument(
        "--classifier",
        metavar="NAME",
        help="for a run or a file of a classifier of your own: the module:function or .pt2 file, "
        "which is not run because a file names it",
    )
    parser.add_argument(
        "--batch-size",
        metavar="N",
        type=int,
        help="images in a batch, which the second latency is of (default: "
        f"{EVALUATION_BATCH}, fewer of large images)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results there too")
    options = parser.parse_args(arguments)
    if options.unlabelled and options.data is None:
        raise InputError("unlabelled: expected --data too, the folder of images")
    with importing_libraries():
        from zscgan_ext.evaluate.command import evaluate  # imports torch, which takes seconds

    evaluate(
        options.path,
        options.classifier,
        options.data,
        options.batch_size,
        options.json,
        options.unlabelled,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
