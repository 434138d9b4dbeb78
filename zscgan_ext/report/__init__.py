"""One page about a finished run: what was lost, where, and what the images look like."""

import importlib

from zscgan_ext.errors import InputError, first_line


def require_matplotlib() -> None:
    """Require the package that draws the charts, which reads the environment and may refuse it.

    Raises:
        InputError: if it cannot be imported.
    """
    try:
        importlib.import_module("matplotlib")
    except Exception as error:  # MPLBACKEND of no backend is a ValueError
        raise InputError(f"report: matplotlib cannot be imported ({first_line(error)})") from None
