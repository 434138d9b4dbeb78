"""Reading settings from the command line and from YAML, and writing them as YAML.

All are ways to write the same settings: a preset and the entries of the `--config` file become
arguments that stand before those of the command line, which therefore win.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import simple_parsing
import yaml
from simple_parsing.wrappers.field_wrapper import ArgumentGenerationMode, DashVariant

from zscgan_ext.errors import InputError, did_you_mean
from zscgan_ext.program import OneLineParser
from zscgan_ext.regular_file import read_regular_file, regular_file_size
from zscgan_ext.settings.config import PRESETS, Settings, check_settings

CONFIG = "config.yaml"  # in the folder of a run
LARGEST_CONFIG = 1 << 16  # bytes
BOOLEAN = "tag:yaml.org,2002:bool"


class Parser(OneLineParser, simple_parsing.ArgumentParser):
    """A parser of dataclasses."""


def make_parser() -> Parser:
    """Build the command line from `Settings`."""
    parser = Parser(
        prog="python -m zscgan_ext.train",
        description="Quantize a trained image classifier without its training data.",
        allow_abbrev=False,
        add_option_string_dash_variants=DashVariant.DASH,
        argument_generation_mode=ArgumentGenerationMode.FLAT,
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML file with any of these settings; the command line wins over it",
    )
    parser.add_arguments(Settings, dest="settings")
    return parser


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Read the settings from a command line and the YAML file that it may name.

    Args:
        arguments: the command line without the program's name; `sys.argv[1:]` for None.

    Raises:
        InputError: if a setting is unknown, has the wrong type or is out of range.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parsed, unknown = make_parser().parse_known_args(given)
    resumed: Path | None = parsed.settings.resume
    if not unknown and (parsed.config is not None or resumed is not None):
        from_files = [] if resumed is None else config_arguments(resumed / CONFIG, ("output",))
        from_files += [] if parsed.config is None else config_arguments(parsed.config)
        given = [*from_files, *given]
        parsed, unknown = make_parser().parse_known_args(given)
    if not unknown:
        given = [*preset_arguments(parsed.settings.preset), *given]
        parsed, unknown = make_parser().parse_known_args(given)
    if unknown:
        options = [f"--{field.name.replace('_', '-')}" for field in fields(Settings)]
        hint = did_you_mean(unknown[0].split("=")[0], [*options, "--config"])
        raise InputError(f"unknown argument {unknown[0]}{hint}; --help lists all")
    settings: Settings = parsed.settings
    if settings.resume != resumed:
        raise InputError(f"resume: {settings.resume} in a file, accepted on the command line alone")
    if resumed is not None:
        if settings.output not in (None, resumed):
            raise InputError(f"output: {settings.output}, but --resume goes on in {resumed}")
        settings = replace(settings, output=resumed)
    check_settings(settings)
    return settings


def preset_arguments(preset: str) -> list[str]:
    """Turn a preset into the arguments that say the same."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in PRESETS[preset].items()]


class PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which could make a small file expand without bound.

    Only true and false are booleans; on, off, yes and no are text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != BOOLEAN]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse an alias, compose everything else."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not accepted")
        return super().compose_node(parent, index)


PlainLoader.add_implicit_resolver(BOOLEAN, re.compile("^(?:true|false)$", re.IGNORECASE), [*"tTfF"])


def read_config(file: Path) -> dict[Any, Any]:
    """Read a YAML file that holds one mapping."""
    try:
        if regular_file_size(file) > LARGEST_CONFIG:
            raise InputError(f"config: {file} is larger than {LARGEST_CONFIG} bytes")
        data = read_regular_file(file, LARGEST_CONFIG)
        entries = yaml.load(data.decode(), PlainLoader)
    except OSError as error:
        raise InputError(f"config: {file} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"config: {file} is not UTF-8 text") from None
    except InputError:
        raise
    except Exception as error:  # wrong tags make PyYAML raise nearly anything
        problem = " ".join(str(error).split())
        raise InputError(f"config: {file} is not valid YAML ({problem})") from None
    if not isinstance(entries, dict):
        found = type(entries).__name__
        raise InputError(f"config: {file} holds a {found}, needed is a mapping of settings")
    return entries


def config_arguments(file: Path, ignored: Sequence[str] = ()) -> list[str]:
    """Turn a YAML file into the arguments that say the same, less those of ignored settings.

    Raises:
        InputError: if the file cannot be read or holds an unknown setting.
    """
    defaults = {field.name: field.default for field in fields(Settings)}
    arguments: list[str] = []
    for name, value in read_config(file).items():
        if name not in defaults:
            hint = did_you_mean(str(name), list(defaults))
            raise InputError(f"config: {file} has an unknown setting {name!r}{hint}")
        if name in ignored:
            continue
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, list) and name in ("mean", "std"):
            arguments += [option, *(number_text(file, name, item) for item in value)]
        elif value is not None or defaults[name] is not None:
            arguments.append(f"{option}={scalar_text(file, name, value)}")
    return arguments


def scalar_text(file: Path, name: str, value: Any) -> str:
    """Write one YAML scalar as on the command line."""
    if not isinstance(value, str | int | float):
        found = type(value).__name__
        raise InputError(f"config: {file} gives {name} a {found}, which is not accepted there")
    return str(value)


def number_text(file: Path, name: str, value: Any) -> str:
    """Write one of several numbers as on the command line, where text could be another option."""
    text = scalar_text(file, name, value)
    try:
        float(text)
    except ValueError:
        raise InputError(f"config: {file} gives {name} {text!r}, expected numbers") from None
    return text


def settings_to_yaml(settings: Settings) -> str:
    """Write every setting as YAML that `--config` reads back."""
    entries = asdict(settings)
    for name, value in entries.items():
        if isinstance(value, Path):
            entries[name] = str(value)
        elif isinstance(value, tuple):
            entries[name] = list(value)
    text: str = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
    return text
