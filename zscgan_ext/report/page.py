"""Writing a run's content as one page that needs nothing else: no network, no other file."""

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from zscgan_ext.errors import printable
from zscgan_ext.report.content import collect, decibels
from zscgan_ext.run_folder.files import REPORT, write_own

TEMPLATES = Path(__file__).parent


def shown(value: Any) -> Any:
    """Escape what is not printable in text, such as marks that reorder a line; markup stays."""
    is_text = isinstance(value, str) and not isinstance(value, Markup)
    return printable(value) if is_text else value


def write_report(folder: Path, classifier: str | None = None) -> Path:
    """Write `report.html` into the folder of a finished run; return its path.

    Args:
        folder: of the run.
        classifier: as `open_run` takes it.

    Raises:
        InputError: if the run cannot be read, or the file not be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=shown,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["decibels"] = decibels
    page = environment.get_template("page.html.jinja").render(content=collect(folder, classifier))
    return write_own(folder, REPORT, page.encode(errors="backslashreplace"))
