"""A headless browser that shows pages at a wanted width, driven by its command line."""

import html
import io
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# A window has at least this width, so that a narrow page is shown in a frame of its width.
WINDOW = 1400  # pixels
SECONDS = 60
# Run in the page when it is there: what sticks out at its right, and what is empty.
MEASURE = """
const width = document.documentElement.clientWidth;
const wide = [...document.querySelectorAll('body *')].filter(
  element => !element.closest('.scroll') && !element.closest('svg')
    && element.getBoundingClientRect().right > width + 1);
const sized = [...document.querySelectorAll('section, img, .chart, .chart > svg, table')]
  .filter(element => !element.closest('details'));
const empty = sized.filter(element => {
  const box = element.getBoundingClientRect();
  return box.width < 8 || box.height < 8 || (element.tagName === 'IMG' && !element.naturalWidth);
});
parent.document.title = JSON.stringify({
  width: innerWidth, scroll_width: document.documentElement.scrollWidth,
  height: document.documentElement.scrollHeight,
  wide: wide.map(element => element.tagName + '.' + element.className),
  empty: empty.map(element => element.tagName + '.' + element.className),
  counts: Object.fromEntries(['section', 'img', 'svg', 'table'].map(
    name => [name, document.querySelectorAll(name).length])),
});
"""


@dataclass(frozen=True)
class Shown:
    """What a browser made of a page."""

    width: int  # pixels inside the window
    scroll_width: int  # of all that is there
    height: int
    wide: list[str]  # elements that stick out
    empty: list[str]  # elements without a size, images without a picture
    counts: dict[str, int]
    picture: Image.Image


def find_browser() -> str | None:
    """Return the path of an installed browser."""
    return next((path for path in map(shutil.which, BROWSERS) if path), None)


def show(browser: str, page: Path, width: int, folder: Path, dark: bool = False) -> Shown:
    """Show a page that is complete in itself, and take its picture from top to bottom."""
    scripted = page.read_text("utf-8") + f"<script>{MEASURE}</script>"
    frame = folder / f"frame-{width}.html"

    def run(height: int, *options: str) -> str:
        frame.write_text(
            f'<!doctype html><body style="margin:0"><iframe srcdoc="{html.escape(scripted)}" '
            f'style="border:0;width:{width}px;height:{height}px"></iframe>'
        )
        command = [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--user-data-dir={folder / 'profile'}", f"--window-size={WINDOW},{height}"),
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            *("--force-device-scale-factor=1", *options, frame.as_uri()),
        ]
        environment = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": "disabled:"}
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=SECONDS, env=environment
        ).stdout

    title = re.search(r"<title>(.*?)</title>", run(900, "--dump-dom"), re.DOTALL)
    assert title is not None, "the page did not measure itself"
    facts = json.loads(html.unescape(title[1]))
    file = folder / f"shown-{width}.png"
    run(facts["height"], f"--screenshot={file}")
    with Image.open(io.BytesIO(file.read_bytes())) as picture:
        return Shown(**facts, picture=picture.convert("RGB").crop((0, 0, width, facts["height"])))
