"""What the command `evaluate` does once its arguments are read."""

from pathlib import Path

from zscgan_ext.classifiers.heads import MULTI_LABEL, Head
from zscgan_ext.environment import fewer_bits_warnings
from zscgan_ext.errors import one_line
from zscgan_ext.evaluate.comparison import compare
from zscgan_ext.evaluate.evaluation import (
    Evaluation,
    as_json,
    check_batch_size,
    measure,
    open_data,
    open_target,
    usual_batch_size,
)
from zscgan_ext.images.datasets import (
    few_labels_warnings,
    near_chance_warnings,
    open_unlabelled,
)
from zscgan_ext.images.image_files import holds_only_images
from zscgan_ext.images.label_table import TABLE
from zscgan_ext.run_folder.own_files import check_place
from zscgan_ext.run_folder.whole_file import write_whole


def evaluate(
    path: Path,
    classifier: str | None,
    data_name: str | None,
    batch_size: int | None,
    json: Path | None,
    is_unlabelled: bool = False,
) -> None:
    """Measure a run or an exported file, and print the results.

    Args:
        path: folder of a run, or a file.
        classifier: as `open_target` takes it.
        data_name: of the images; None for those that come with a bundled classifier.
        batch_size: images in a batch; None for as many as are usual of their size.
        json: file to write the results to as well.
        is_unlabelled: whether the folders below `data_name` are no classes; a folder that holds
            image files and no folder is taken for that anyway.

    Raises:
        InputError: if anything does not fit, or `json` is a link, a folder, a device or a pipe.
    """
    if json is not None:  # what is written replaces what stands there, /dev/null as well
        check_place(json.parent, json.name)
    for line in fewer_bits_warnings():
        print(f"warning: {one_line(line)}", flush=True)
    target = open_target(path, classifier)
    if batch_size is None:
        batch_size = usual_batch_size(target.preprocessing)
    if data_name is not None and (is_unlabelled or has_no_labels(Path(data_name), target.head)):
        check_batch_size(batch_size)
        images = open_unlabelled(Path(data_name), target.preprocessing)
        comparison = compare(target, images, batch_size)
        if json is not None:
            write_whole(json, comparison.as_json())
        print(comparison)
        return
    of_target = target.classifier, target.preprocessing, target.class_names, target.head
    data = open_data(data_name, *of_target)
    evaluation = measure(target, data, batch_size)
    classes = len(target.class_names)
    lines = few_labels_warnings(data_name, data, classes)
    if isinstance(evaluation, Evaluation) and evaluation.float_top1 is not None:
        percent = evaluation.float_top1
        lines += near_chance_warnings(data_name, evaluation.images, percent, classes)
    if json is not None:  # first, since printing can fail
        write_whole(json, as_json(evaluation))
    for line in lines:
        print(f"warning: {one_line(line)}")
    print(evaluation)


def has_no_labels(folder: Path, head: Head) -> bool:
    """Return True for a folder of image files that tells no labels of such a classifier."""
    has_table = head is MULTI_LABEL and (folder / TABLE).exists()
    return not has_table and holds_only_images(folder)
