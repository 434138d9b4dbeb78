"""What tells images that were given from others."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from zscgan_ext.images.datasets import Images, ImageTree, LabelledImages

GONE = -1, -1  # the version of a file that is not there

FileVersions = Mapping[Path, tuple[int, int]]  # bytes and time of the last change of each file


def digest_of_images(images: Images | None, versions: FileVersions | None = None) -> str:
    """Return how many images there are, and a digest: of pixels in memory, or of files.

    Of files it is of their names and sizes, as reading all of them would take minutes.

    Args:
        images: None for none.
        versions: of their files, as `versions_of_files` gives them; looked up for None.
    """
    if images is None:
        return "none"
    digest = hashlib.sha256(images.labels.contiguous().numpy().tobytes())
    if isinstance(images, LabelledImages):
        digest.update(images.images.contiguous().numpy().data)
    elif isinstance(images, ImageTree):
        known = versions_of_files(images) if versions is None else versions
        for file in images.files:
            name = os.fsencode(os.path.relpath(file, images.root))
            size, _ = known.get(file, GONE)
            digest.update(b"%s\0%d\0" % (name, size))
    return f"{len(images)}, {digest.hexdigest()[:16]}"


def versions_of_files(images: Images | None) -> FileVersions:
    """Return what changes when files of images are written anew; nothing of images in memory."""
    if not isinstance(images, ImageTree):
        return {}
    found = {}
    for file in images.files:
        with suppress(OSError):  # one that is gone is told when it is read
            status = file.stat()
            found[file] = status.st_size, status.st_mtime_ns
    return found


def changed_files_warnings(before: FileVersions, images: Images | None) -> list[str]:
    """Return a line if files were written anew since: results are of different images then."""
    now = versions_of_files(images)
    changed = [file for file, version in before.items() if now.get(file) != version]
    if not changed:
        return []
    return [
        f"{changed[0]}: was changed while the run went on, one of {len(changed):,} such images; "
        "what was measured before and after that is of different images"
    ]
