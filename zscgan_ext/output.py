"""The standard outputs of a program: they may be closed, fail, or lead to a terminal."""

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from zscgan_ext.errors import one_line, printable

# How a reader of a pipe, or a terminal, ends.
ENDED = (errno.EPIPE, errno.EIO, errno.ENXIO)

LINE_ENDS = re.compile("(\n)")
MOVES = re.compile("(\n|\r|\x1b\\[A)")  # of a bar: to the start of a line, and a line up


class OutputError(OSError):
    """The standard output takes no more."""


class Output:
    """An output on which no text steers a terminal, and whose failure is reported or ignored.

    Args:
        stream: that takes the text.
        ignores_failure: whether an output that fails is left out.
        draws: whether a bar of progress is drawn there, which moves within the lines.
    """

    def __init__(self, stream: Any, ignores_failure: bool, draws: bool) -> None:
        self.stream = stream
        self.ignores_failure = ignores_failure
        self.draws = draws

    def __getattr__(self, name: str) -> Any:
        """Be as the stream in all else."""
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write text."""
        kept = MOVES if self.draws else LINE_ENDS
        parts = [p if kept.fullmatch(p) else printable(p) for p in kept.split(text)]
        with self.failing():
            self.stream.write("".join(parts))
        return len(text)

    def flush(self) -> None:
        """Write what is buffered."""
        with self.failing():
            self.stream.flush()

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Leave out the output where writing fails, or raise `OutputError`."""
        try:
            yield
        except OSError as error:
            discard(self.stream)
            reason = one_line(error.strerror or str(error))
            if not self.ignores_failure:
                raise OutputError(error.errno, reason) from error
            # Nobody is left to hear of a reader or a terminal that ended.
            if not self.draws and error.errno not in ENDED:
                lost = f"warning: standard output: {reason}; the run goes on without it"
                print(lost, file=sys.stderr)


@contextlib.contextmanager
def safe_outputs(ignores_failure: bool) -> Iterator[None]:
    """Let programs print whatever they want, wherever the standard outputs lead.

    Closed ones take text and lose it. The standard error output never ends a program.

    Args:
        ignores_failure: whether a standard output that fails is left out.
    """
    before = sys.stdout, sys.stderr
    open_closed_descriptors()
    with contextlib.ExitStack() as stack:
        for stream in before:
            stack.enter_context(any_characters(stream))
        output, errors = (
            stack.enter_context(open(os.devnull, "w")) if stream is None else stream
            for stream in before
        )
        try:
            sys.stderr = cast(TextIO, Output(errors, ignores_failure=True, draws=True))
            sys.stdout = cast(TextIO, Output(output, ignores_failure, draws=False))
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OutputError):
                    stream.flush()
            sys.stdout, sys.stderr = before


def open_closed_descriptors() -> None:
    """Open the standard descriptors that are closed, so that no file of a run gets their number.

    Libraries write warnings to them.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # It takes the lowest number that is free.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


@contextlib.contextmanager
def any_characters(stream: Any) -> Iterator[None]:
    """Let a stream take names that its encoding lacks."""
    if not isinstance(stream, io.TextIOWrapper):
        yield
        return
    errors = stream.errors
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            stream.reconfigure(errors=errors)


def discard(stream: Any) -> None:
    """Send what is left for a stream that failed nowhere; Python flushes it once more at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
