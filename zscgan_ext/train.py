"""The main command: a classifier goes in, its quantized form and what that cost come out.

`python -m zscgan_ext.train --help` lists the settings. Each stage leaves its results in the run
folder.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from functools import partial

from zscgan_ext.config.command_line import parse_config
from zscgan_ext.process_environment import check_environment, is_first
from zscgan_ext.program import (
    SMALLER_SIZES,
    exit_with_message,
    importing_libraries,
    program,
)


def run_program(arguments: Sequence[str]) -> int:
    """Read the arguments and run the command in one process; return its exit code."""
    try:
        config = parse_config(arguments)
        with importing_libraries():  # torch takes seconds
            from zscgan_ext.whole_run import run_configuration

        return run_configuration(config, arguments)
    except KeyboardInterrupt:
        return exit_with_message("stopped before anything was written", 130)


@partial(program, ignores_output_failure=True, if_memory_is_short=SMALLER_SIZES)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code. Of many processes the first one prints."""
    check_environment()
    given = sys.argv[1:] if arguments is None else arguments
    if is_first():
        return run_program(given)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return run_program(given)


if __name__ == "__main__":
    sys.exit(main())
