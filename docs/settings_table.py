"""Writes the table of settings.md from `config/configs.py`: `python docs/settings_table.py`."""

from pathlib import Path
from typing import Any

from zscgan_ext.config.command_line import flag, help_texts
from zscgan_ext.config.configs import OPTIONS, PRESETS, Option
from zscgan_ext.config.fields import choices_of, hints_of

DOCUMENT = Path(__file__).parent / "reference" / "settings.md"
BEGIN, END = "<!-- settings:begin -->", "<!-- settings:end -->"


def accepted(name: str, option: Option) -> str:
    """Return what a setting accepts: its choices, its metavar, or that it is a switch."""
    hint = hints_of(option.configuration)[option.field.name]
    if hint is bool:
        texts: tuple[str, ...] = (flag(name), flag(f"no_{name}"))
    else:
        texts = choices_of(hint) or (str(option.field.metadata["metavar"]),)
    return ", ".join(f"`{text}`" for text in texts)


def default(value: Any) -> str:
    """Return a default as the command line would say it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else f"`{value}`"


def in_python(option: Option) -> str:
    """Return where the configurations of Python have a setting."""
    return f"`{option.configuration.__name__}.{option.field.name}`"


def table() -> str:
    """Return a row for each setting, and one for each preset."""
    lines = ["| setting | accepted | default | in Python | |", "|---|---|---|---|---|"]
    for name, option in OPTIONS.items():
        meaning = help_texts(option.configuration)[option.field.name].replace("<", "&lt;")
        facts = accepted(name, option), default(option.field.default), in_python(option)
        lines.append(f"| `{flag(name)}` | {' | '.join(facts)} | {meaning} |")
    names = list(PRESETS["default"])
    lines += ["", f"| preset | {' | '.join(f'`{name}`' for name in names)} |"]
    lines.append("|---|" + "--:|" * len(names))
    for preset, values in PRESETS.items():
        lines.append(
            f"| `{preset}` | {' | '.join(str(values.get(name, 'none')) for name in names)} |"
        )
    return "\n".join(lines)


def written(document: str) -> str:
    """Return a document with its table written anew."""
    before, _, rest = document.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text()))
