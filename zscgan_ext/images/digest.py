"""What tells images that were given from others."""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from zscgan_ext.images.datasets import Images, ImageTree, LabelledImages


def digest_of_images(images: Images | None) -> str:
    """Return how many images there are, and a digest: of pixels in memory, or of files.

    Of files it is of their names and sizes, as reading all of them would take minutes.
    """
    if images is None:
        return "none"
    digest = hashlib.sha256(images.labels.contiguous().numpy().tobytes())
    if isinstance(images, LabelledImages):
        digest.update(images.images.contiguous().numpy().data)
    elif isinstance(images, ImageTree):
        for file in images.files:
            name = os.fsencode(os.path.relpath(file, images.root))
            digest.update(b"%s\0%d\0" % (name, bytes_of(file)))
    return f"{len(images)}, {digest.hexdigest()[:16]}"


def bytes_of(file: Path) -> int:
    """Return the bytes of a file, -1 for one that is gone, which is told when it is read."""
    try:
        return file.stat().st_size
    except OSError:
        return -1


def versions_of_files(images: Images | None) -> dict[Path, tuple[int, int]]:
    """Return what changes when files of images are written anew; nothing of images in memory."""
    if not isinstance(images, ImageTree):
        return {}
    found = {}
    for file in images.files:
        with suppress(OSError):  # one that is gone is told when it is read
            status = file.stat()
            found[file] = status.st_size, status.st_mtime_ns
    return found


def changed_files_warnings(before: Mapping[Path, tuple[int, int]], images: Images) -> list[str]:
    """Return a line if files were written anew since: results are of different images then."""
    now = versions_of_files(images)
    changed = [file for file, version in before.items() if now.get(file) != version]
    if not changed:
        return []
    return [
        f"{changed[0]}: was changed while the run went on, one of {len(changed):,} such images; "
        "what was measured before and after that is of different images"
    ]
