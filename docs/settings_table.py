"""Writes the table of settings.md from `settings/config.py`: `python docs/settings_table.py`."""

from dataclasses import Field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from simple_parsing.docstring import get_attribute_docstring
from zscgan_ext.settings.config import PRESETS, Settings

DOCUMENT = Path(__file__).parent / "reference" / "settings.md"
BEGIN, END = "<!-- settings:begin -->", "<!-- settings:end -->"


def accepted(field: Field[Any], hint: Any) -> str:
    """Return what a setting accepts: its choices, its metavar, or that it is a switch."""
    choices = get_args(hint) if "Literal" in str(get_origin(hint) or hint) else ()
    texts = [str(choice) for choice in choices if isinstance(choice, str)]
    if hint is bool:
        name = field.name.replace("_", "-")
        return f"`--{name}`, `--no-{name}`"
    if not texts:
        arguments = field.metadata.get("custom_args", {})
        texts = list(arguments.get("choices") or [str(arguments.get("metavar"))])
    return ", ".join(f"`{text}`" for text in texts)


def default(value: Any) -> str:
    """Return a default as the command line would say it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else f"`{value}`"


def table() -> str:
    """Return a row for each setting, and one for each preset."""
    hints = get_type_hints(Settings)
    lines = ["| setting | accepted | default | |", "|---|---|---|---|"]
    for field in fields(Settings):
        text = get_attribute_docstring(Settings, field.name).docstring_below
        meaning = " ".join(text.split()).replace("<", "&lt;")
        option = f"`--{field.name.replace('_', '-')}`"
        values = accepted(field, hints[field.name])
        lines.append(f"| {option} | {values} | {default(field.default)} | {meaning} |")
    names = list(next(iter(PRESETS.values())))
    lines += ["", f"| preset | {' | '.join(f'`{name}`' for name in names)} |"]
    lines.append("|---|" + "--:|" * len(names))
    for preset, values in PRESETS.items():
        lines.append(f"| `{preset}` | {' | '.join(str(values[name]) for name in names)} |")
    return "\n".join(lines)


def written(document: str) -> str:
    """Return a document with its table written anew."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
