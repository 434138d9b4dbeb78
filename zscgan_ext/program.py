"""How every program of the package ends: with its exit code, or with one line and 2."""

import argparse
import contextlib
import functools
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import torch

from zscgan_ext import processes
from zscgan_ext.errors import InputError, first_line, one_line
from zscgan_ext.ops.implementation import require_implementation

Main = Callable[..., int]  # takes the command line, or None for that of the process
# How torch tells that memory is used up, where it does not raise `torch.OutOfMemoryError`.
OUT_OF_MEMORY = ("can't allocate memory", "Storage size calculation overflowed", "out of memory")


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are `InputError`."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong as one line."""
        raise InputError(message)


def program(main: Main) -> Main:
    """Let a program's main function end with one line and exit code 2 where a user can help it.

    That is an `InputError`, memory that is used up, and an output that cannot be written: a full
    disk, a closed pipe. Ctrl-C gives 130. All else is a defect and keeps its traceback.
    """

    @functools.wraps(main)
    def ending(arguments: Sequence[str] | None = None) -> int:
        try:
            require_implementation()
            with any_characters():
                code = main(arguments)
                sys.stdout.flush()
                return code
        except KeyboardInterrupt:
            return told("interrupted", 130)
        except InputError as error:
            return told(f"error: {error}", 2)
        except OSError as error:
            if error.filename is None:
                discard_output()
            place = error.filename or "standard output"
            return told(f"error: {place}: {error.strerror or error}", 2)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            hint = "a smaller --batch-size or --image-size needs less"
            return told(f"error: memory is used up ({first_line(error)}); {hint}", 2)

    return ending


def told(text: str, code: int) -> int:
    """Print a line to the standard error output, one of many processes; return the exit code."""
    if processes.tells_the_error():
        print(processes.name() + one_line(text), file=sys.stderr)
    return code


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory is used up."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(text in str(error) for text in OUT_OF_MEMORY)


@contextlib.contextmanager
def any_characters() -> Iterator[None]:
    """Let the standard output take names that its encoding lacks."""
    output = sys.stdout
    if not isinstance(output, io.TextIOWrapper):
        yield
        return
    errors = output.errors
    output.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        output.reconfigure(errors=errors)


def discard_output() -> None:
    """Send what is left for an output that failed nowhere; Python flushes it once more at exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
