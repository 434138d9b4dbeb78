"""What the command `generate` does once its arguments are read."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from zscgan_ext.classifiers.heads import MULTI_LABEL
from zscgan_ext.errors import InputError, one_line
from zscgan_ext.generate.image_set import ImageSet, check_format, is_generated_name, write_image_set
from zscgan_ext.ops.implementation import require_implementation
from zscgan_ext.run_folder.files import GENERATOR, STUDENT
from zscgan_ext.run_folder.finished_run import require_files
from zscgan_ext.run_folder.made_with import check_file, read_made_with
from zscgan_ext.run_folder.own_files import LIST, OwnFiles, require_folder
from zscgan_ext.run_folder.whole_file import PARTIAL, one_line_errors
from zscgan_ext.synthesis.generator_file import load_generator


def generate(
    run: Path,
    count: int,
    format_name: str,
    are_pixels: bool,
    seed: int,
    folder: Path,
    overwrite: bool,
) -> None:
    """Generate the images of a run's generator, write them, and say so.

    Args:
        run: folder of a run that learned a generator; it need not have gone on from there.
        count: of the images.
        format_name: `npy`, `png`, `imagefolder` or `torch`.
        are_pixels: whether they are uint8 rather than normalized float32.
        seed: of all random numbers.
        folder: for the files.
        overwrite: whether to replace the images that it holds.

    Raises:
        InputError: if the run has no generator, or the folder holds something else.
    """
    require_implementation()
    require_files(run, GENERATOR)
    if (run / STUDENT).is_file():
        check_file(run / GENERATOR, read_made_with(run / STUDENT))
    learned = load_generator(run / GENERATOR)
    check_format(learned, format_name)
    images = ImageSet(learned, count, seed, are_pixels)
    with image_folder(folder, overwrite) as own:
        write_image_set(images, format_name, own)
    classes, known = len(learned.generator.learned_classes()), len(learned.class_names)
    if classes < known:
        print(f"warning: the generator has learned {classes:,} of {known:,} classes")
    has_several = learned.generator.head is MULTI_LABEL
    shown = f"{classes:,} labels" if has_several else f"{min(count, classes):,} classes"
    print(one_line(f"{count:,} images of {shown} in {folder}"))


@contextlib.contextmanager
def image_folder(folder: Path, overwrite: bool) -> Iterator[OwnFiles]:
    """Open a folder for images, in which nothing else stands.

    Raises:
        InputError: if something does, or it holds images that are not to be overwritten.
    """
    with one_line_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        require_folder(folder)
        held = set(os.listdir(folder))
    if held and LIST not in held:  # before the list is made
        raise InputError(not_of_images(folder, min(held)))
    own = OwnFiles.opened(folder, is_generated_name)
    try:
        require_own(own, held, overwrite)
        own.delete_partial()
        own.delete(list(own.names))
        delete_empty_folders(own)
        yield own
    finally:
        own.close()


def require_own(own: OwnFiles, held: set[str], overwrite: bool) -> None:
    """Require a folder that is empty, or holds nothing but images that may be overwritten.

    Args:
        own: its list.
        held: the names in it before that was opened.
        overwrite: whether images may be.
    """
    if held <= {LIST}:
        return
    images = {name.split("/")[0] for name in own.names}
    others = sorted(name for name in held - images - {LIST} if not name.endswith(PARTIAL))
    if others:
        raise InputError(not_of_images(own.folder, others[0]))
    if not overwrite:
        raise InputError(
            f"out: {own.folder} already holds generated images; give --overwrite to replace them, "
            "or another --out"
        )


def not_of_images(folder: Path, name: str) -> str:
    """Say that a folder holds something that is not of generated images."""
    return (
        f"out: {folder} holds {name}, which generate did not write; give an empty folder or "
        "another --out"
    )


def delete_empty_folders(own: OwnFiles) -> None:
    """Delete the folders whose images were deleted, unless something else stands in them."""
    for name in {name.split("/")[0] for name in own.names if "/" in name}:
        with contextlib.suppress(OSError):
            own.opened_folder.remove_folder(name)
