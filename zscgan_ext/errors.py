"""The one exception a user can cause, and what its messages share."""

import difflib
import os
from collections.abc import Iterable, Sequence

LONGEST_MESSAGE = 2000  # characters
MOST_NAMED = 5  # of many things of one kind
# How torch says that memory is used up, where it does not raise `torch.OutOfMemoryError`.
OUT_OF_MEMORY = (
    *("can't allocate memory", "Storage size calculation overflowed", "out of memory"),
    "std::bad_alloc",
)
CURRENT_FOLDER_IS_GONE = "the current folder was deleted; change to one that exists"


class InputError(ValueError):
    """A wrong argument, file or model.

    The message is one line that names what was given, what was found and what is accepted. The
    command line prints it and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """Escape what is not printable, so that names from a file cannot steer a terminal; shorten."""
    if len(text) > LONGEST_MESSAGE:
        half = LONGEST_MESSAGE // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return printable(text)


def printable(text: str) -> str:
    """Escape what is not printable: control characters, line ends, marks that reorder a line."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def current_folder_is_gone() -> bool:
    """Return True if the current folder was deleted, so that no relative path leads anywhere."""
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `, did you mean ...?` with the known names nearest to `name`, or nothing."""
    nearest = difflib.get_close_matches(name, list(known), n=3)
    return f", did you mean {' or '.join(nearest)}?" if nearest else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def some_of(names: Sequence[str]) -> str:
    """List the first of many names."""
    return ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error means that memory is used up."""
    # By name, as torch may not be imported.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    message = str(error).strip()
    # That is all that oneDNN says of it.
    return message == "could not create a primitive" or any(t in message for t in OUT_OF_MEMORY)
