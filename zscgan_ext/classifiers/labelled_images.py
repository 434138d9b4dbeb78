"""Labelled images as the head of a classifier needs them."""

from collections.abc import Sequence

from zscgan_ext.classifiers.heads import MULTI_LABEL, Head
from zscgan_ext.images.datasets import Images, open_labelled
from zscgan_ext.images.idx_files import Split
from zscgan_ext.images.label_table import open_label_table
from zscgan_ext.images.preprocessing import Preprocessing


def open_labelled_for(
    head: Head, name: str, split: Split, preprocessing: Preprocessing, class_names: Sequence[str]
) -> Images:
    """Open images with the labels of a classifier: one each, or several by a table.

    Args:
        head: of the classifier.
        name: as `open_images` takes it, or of a folder with `labels.csv`.
        split: as `open_images` takes it; a table is taken for either.
        preprocessing: of the classifier.
        class_names: of the classifier.

    Raises:
        InputError: if there is nothing to read, it is damaged, or it does not fit.
    """
    if head is MULTI_LABEL:
        return open_label_table(name, preprocessing, class_names)
    return open_labelled(name, split, preprocessing, len(class_names))
