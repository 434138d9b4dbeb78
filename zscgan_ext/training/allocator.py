"""What the C library does with freed memory."""

import ctypes
import sys

# Parameters of mallopt, and values under which memory is never returned to the system: nothing is
# allocated by mmap, and the heap does not shrink.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEEPING = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}


def is_glibc() -> bool:
    """Tell whether memory comes from glibc, whose allocator can be told to keep it."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the tensors of the next step.

    By default it returns large tensors to the system as they are freed, and the next ones lie on
    fresh pages, whose faults cost more than filling them. The setting holds for the whole process.
    """
    library = ctypes.CDLL(None)
    for parameter, value in KEEPING.items():
        library.mallopt(parameter, value)
