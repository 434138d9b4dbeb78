"""Writing a run's content as one page that needs nothing else: no network, no other file."""

from pathlib import Path

import jinja2

from zscgan_ext.report.content import collect, decibels
from zscgan_ext.run_folder.files import REPORT, write_whole

TEMPLATES = Path(__file__).parent


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
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["decibels"] = decibels
    page = environment.get_template("page.html.jinja").render(content=collect(folder, classifier))
    file = folder / REPORT
    write_whole(file, page.encode())
    return file
