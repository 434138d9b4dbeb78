"""How every command of the package ends: with its exit code, or with one line and 2."""

import argparse
import contextlib
import errno
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from zscgan_ext.errors import (
    CURRENT_FOLDER_IS_GONE,
    InputError,
    current_folder_is_gone,
    first_line,
    is_out_of_memory,
    one_line,
)
from zscgan_ext.output import OutputError, safe_outputs
from zscgan_ext.process_environment import is_distributed, message_prefix

Main = Callable[..., int]  # takes the command line, or None for that of the process
# What helps where memory is short: for commands with sizes to set, and for all others.
SMALLER_SIZES = "a smaller --batch-size or --image-size needs less"
SMALLER_BATCHES = "a smaller --batch-size needs less"
LESS_OF_ALL = "end other programs, or use a machine with more"


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are `InputError`."""

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong as one line."""
        raise InputError(message)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; a value of `--` is refused, which argparse leaves out and gives a list instead."""
        given = sys.argv[1:] if args is None else list(args)
        for argument in given:
            if argument.startswith("--") and argument.endswith("=--"):
                self.error(f"{argument[:-3]}: expected a value, got '--'")
        return super().parse_known_args(given, namespace)


def run_parser(name: str, description: str) -> OneLineParser:
    """Return a parser for a command on a finished run: `RUN` and `--classifier`."""
    parser = OneLineParser(
        prog=f"python -m zscgan_ext.{name}", description=description, allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--classifier",
        metavar="NAME",
        help="for a run of a classifier of your own: the module:function or .pt2 file, which is "
        "not run because a folder names it",
    )
    return parser


def program(
    main: Main, ignores_output_failure: bool = False, if_memory_is_short: str = LESS_OF_ALL
) -> Main:
    """Let a command's main function end with one line and exit code 2 on user errors.

    That is an `InputError`, memory that is used up, and an output that cannot be written: a full
    disk, a closed pipe. Ctrl-C gives 130. Every other error is a defect and keeps its traceback.

    Args:
        main: the function.
        ignores_output_failure: whether it runs on without a standard output that cannot be written.
        if_memory_is_short: what helps then.
    """

    def ended(arguments: Sequence[str] | None) -> int:
        try:
            # Libraries end a process that computes there.
            if current_folder_is_gone():
                return exit_with_message(f"error: {CURRENT_FOLDER_IS_GONE}", 2)
            code = code_of(main, arguments)
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            return exit_with_message("interrupted", 130)
        except InputError as error:
            return exit_with_message(f"error: {error}", 2)
        except OutputError as error:
            return exit_with_message(f"error: standard output: {output_reason(error)}", 2)
        except OSError as error:
            place = "" if error.filename is None else f"{error.filename}: "
            return exit_with_message(f"error: {place}{error.strerror or error}", 2)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            reason = first_line(error)
            return exit_with_message(
                f"error: memory is used up ({reason}); {if_memory_is_short}", 2
            )

    @functools.wraps(main)
    def ending(arguments: Sequence[str] | None = None) -> int:
        with safe_outputs(ignores_output_failure):
            return ended(arguments)

    return ending


@contextlib.contextmanager
def importing_libraries() -> Iterator[None]:
    """Enclose the import of torch, and of all that a command needs with it.

    Ctrl-C ends the command meanwhile, and nothing in the current folder is taken for a library.
    """
    with away_from_the_current_folder(), interruptible_import():
        yield


@contextlib.contextmanager
def away_from_the_current_folder() -> Iterator[None]:
    """Stand in the root folder, unless torch is there already.

    One of the libraries that come with torch (libcusparseLt, whose RUNPATH ends with a colon) looks
    for `libcuda.so.1` in the current folder, before it does so where the system has it. Only Linux
    has that library, and folders that can be opened though they may not be listed.
    """
    if "torch" in sys.modules or not hasattr(os, "O_PATH"):
        yield
        return
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir("/")
        yield
    finally:
        os.fchdir(here)
        os.close(here)


@contextlib.contextmanager
def interruptible_import() -> Iterator[None]:
    """Let Ctrl-C end a command while it imports libraries, of which some lose what it raises."""
    is_pressed = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal is_pressed
        is_pressed = True
        signal.default_int_handler(number, frame)

    # Where a program that calls this one has its own handler, or in a thread, it is not changed.
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    try:
        signal.signal(signal.SIGINT, remember)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    except Exception:
        if not is_pressed:
            raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if is_pressed:
        raise KeyboardInterrupt


def code_of(main: Main, arguments: Sequence[str] | None) -> int:
    """Return the exit code of a main function; what `--help` prints is written before it exits."""
    try:
        return main(arguments)
    except SystemExit:
        sys.stdout.flush()
        raise


def output_reason(error: OutputError) -> str:
    """Say why the standard output takes no more."""
    if error.errno == errno.EPIPE:
        return "the program that reads it has ended, what was left to print is lost"
    return str(error.strerror)


def exit_with_message(text: str, code: int) -> int:
    """Print a line to the standard error output, one of many processes; return the exit code."""
    if prints_the_error():
        print(message_prefix() + one_line(text), file=sys.stderr)
    return code


def prints_the_error() -> bool:
    """Return True if this process is the one to print an error; of many only one is."""
    if not is_distributed():
        return True
    from zscgan_ext import distributed  # which imports torch

    return distributed.prints_the_error()
