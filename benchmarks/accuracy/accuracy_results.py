"""The figures of `bench_accuracy` in a JSON file that grows row by row."""

import json
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from benchmarks.accuracy.accuracy_cells import Cell
from zscgan_ext.config.configs import RunConfig
from zscgan_ext.errors import InputError
from zscgan_ext.run_folder.whole_file import write_whole
from zscgan_ext.stages.variants import FLOAT

Row = dict[str, Any]
KEY = ("classifier", "scheme", "bits", "seed", "row")


def key_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells a row from all others."""
    return tuple(row[name] for name in KEY)


def described(cell: Cell, row: str) -> Row:
    """Return the part of a row that names it; the float one has no scheme, width or seed."""
    if row == FLOAT.key:
        return {"classifier": cell.classifier, "scheme": None, "bits": None, "seed": None} | {
            "row": row
        }
    names = {name: getattr(cell, name) for name in KEY[:-1]}
    return {**names, "row": row}


def read_file(file: Path) -> dict[str, Any]:
    """Read a file of this benchmark.

    Raises:
        InputError: if it is none.
    """
    try:
        content = json.loads(file.read_text())
        for name in ("settings", "made_with", "rows"):
            content[name]
        for row in content["rows"]:
            key_of(row)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"json: {file} is no result of this benchmark ({error!r})") from None
    return dict(content)


class Results:
    """The rows that a file holds, and those measured now.

    Args:
        file: to go on with, or to create.
        settings: how all of its rows are measured.
        made_with: commit, machine and command of this process.

    Raises:
        InputError: if the file holds rows that were measured with other settings.
    """

    def __init__(self, file: Path, settings: dict[str, Any], made_with: dict[str, Any]) -> None:
        self.file = file
        self.content: dict[str, Any] = {"settings": settings, "made_with": [], "rows": []}
        if file.exists():
            self.content = read_file(file)
            require_same_settings(file, self.content["settings"], settings)
        self.content["made_with"].append(made_with)
        self.rows: dict[tuple[Any, ...], Row] = {key_of(row): row for row in self.content["rows"]}
        self.write()

    def has(self, cell: Cell, row: str) -> bool:
        """Return True if a row was measured."""
        return key_of(described(cell, row)) in self.rows

    def add(self, cell: Cell, row: str, figures: dict[str, Any]) -> None:
        """Add a row and write the file."""
        added = {**described(cell, row), **figures}
        added["made_with"] = len(self.content["made_with"]) - 1
        self.rows[key_of(added)] = added
        self.content["rows"].append(added)
        self.write()

    def write(self) -> None:
        """Write the file, whole or not at all."""
        write_whole(self.file, (json.dumps(self.content, indent=1) + "\n").encode())


def shared_settings(config: RunConfig, own: AbstractSet[str], **more: str) -> dict[str, Any]:
    """Return, as JSON has them, the settings that all rows of a file have in common.

    Args:
        config: of any row.
        own: names of settings in which rows differ, or that say nothing about what is measured.
        more: what else all rows have in common.
    """
    values = {name: value for name, value in config.options().items() if name not in own}
    return {n: str(v) if isinstance(v, Path) else v for n, v in values.items()} | more


def discard_old_generators(file: Path) -> None:
    """Delete generators beside a file that is not there any more: their settings may differ."""
    if not file.exists():
        for generator in file.with_suffix("").glob("*.safetensors"):
            generator.unlink()


def require_same_settings(file: Path, present: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Require that rows are measured alike.

    Raises:
        InputError: naming the first setting that differs.
    """
    for name in present.keys() | wanted.keys():
        if present.get(name) != wanted.get(name):
            raise InputError(
                f"json: {file} was measured with {name} {present.get(name)}, not {wanted.get(name)}"
            )


def merged(files: Iterable[Path]) -> dict[str, Any]:
    """Read files of several processes as if one had written them.

    Raises:
        InputError: if their settings differ, or the accuracy of a row that several hold.
    """
    first, *others = [(file, read_file(file)) for file in files]
    content = first[1]
    rows = {key_of(row): row for row in content["rows"]}
    for file, other in others:
        require_same_settings(file, other["settings"], content["settings"])
        for row in other["rows"]:
            known = rows.setdefault(key_of(row), row)
            if known["top1"] != row["top1"]:
                raise InputError(f"json: {file} has another accuracy of {key_of(row)}")
        content["made_with"] += other["made_with"]
    content["rows"] = list(rows.values())
    return content
