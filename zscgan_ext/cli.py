"""The console command `zscgan-ext`: the programs of the package under one name."""

import importlib
import sys
from collections.abc import Sequence

from zscgan_ext import __version__
from zscgan_ext.errors import (
    CURRENT_FOLDER_IS_GONE,
    InputError,
    current_folder_is_gone,
    did_you_mean,
)
from zscgan_ext.output import OutputError, safe_outputs

COMMANDS = {  # name -> module with a function `main`
    "train": "zscgan_ext.train",
    "evaluate": "zscgan_ext.evaluate.__main__",
    "export": "zscgan_ext.export.__main__",
    "generate": "zscgan_ext.generate.__main__",
    "report": "zscgan_ext.report.__main__",
    "info": "zscgan_ext.info",
}
HELP = """\
usage: zscgan-ext [--help] [--version] COMMAND ...

Quantize image classifiers without their training data.

commands:
  train     quantize a classifier: learn a generator, calibrate, fine-tune
  evaluate  measure a run or an exported file
  export    write a finished run as ONNX and safetensors files
  generate  write labelled synthetic images for other quantizers
  report    write the report of a finished run
  info      show what is installed, built and in use

zscgan-ext COMMAND --help lists the arguments of a command."""


def help_or_version(argument: str) -> str:
    """Return the text that an argument asks for.

    Raises:
        InputError: if it asks for none, since a command was expected.
    """
    if argument in ("-h", "--help"):
        return HELP
    if argument == "--version":
        return f"zscgan-ext {__version__}"
    hint = did_you_mean(argument, COMMANDS)
    raise InputError(f"expected a command ({', '.join(COMMANDS)}), got {argument or 'none'}{hint}")


def answer(argument: str) -> int:
    """Print the help or the version, or what is wrong; return the exit code."""
    with safe_outputs(False):
        try:
            print(help_or_version(argument))
            sys.stdout.flush()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except OutputError as error:
            print(f"error: standard output: {error.strerror}", file=sys.stderr)
            return 2
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that is named first with the arguments behind it; return its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    name = given[0] if given else ""
    if name not in COMMANDS:
        return answer(name)
    if current_folder_is_gone():  # where torch may end the process without a reason
        print(f"error: {CURRENT_FOLDER_IS_GONE}", file=sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[name])
    code: int = module.main(given[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
