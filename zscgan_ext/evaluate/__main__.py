"""Evaluate a run or an exported file: `python -m zscgan_ext.evaluate RUN|FILE --data DATA`."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from zscgan_ext.errors import one_line
from zscgan_ext.evaluate.evaluation import BATCH, as_json, measure, open_data, open_target
from zscgan_ext.images.datasets import few_labels_warnings, near_chance_warnings
from zscgan_ext.program import SMALLER_BATCHES, OneLineParser, program
from zscgan_ext.run_folder.whole_file import write_whole


@partial(program, if_memory_is_short=SMALLER_BATCHES)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = OneLineParser(
        prog="python -m zscgan_ext.evaluate",
        description="Measure a quantized classifier on labelled images, on the CPU.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "path", metavar="RUN|FILE", type=Path, help="folder of a run, .onnx or .safetensors file"
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="fashion-mnist, a folder of idx files or an ImageFolder tree (default: the bundled "
        "test images for a bundled classifier)",
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
        default=BATCH,
        help=f"images in a batch, which the second latency is of (default: {BATCH})",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the results there too")
    options = parser.parse_args(arguments)
    target = open_target(options.path, options.classifier)
    data = open_data(options.data, target.classifier, target.preprocessing, target.class_names)
    evaluation = measure(target, data, options.batch_size)
    classes, percent = len(target.class_names), evaluation.float_top1
    lines = few_labels_warnings(options.data, data, classes)
    if percent is not None:
        lines += near_chance_warnings(options.data, evaluation.images, percent, classes)
    if options.json is not None:  # first, since printing can fail
        write_whole(options.json, as_json(evaluation))
    for line in lines:
        print(f"warning: {one_line(line)}")
    print(evaluation)
    return 0


if __name__ == "__main__":
    sys.exit(main())
