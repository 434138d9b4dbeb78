"""Reading a configuration from the command line and from YAML, and writing it as YAML.

All are ways to write the same options: a preset and the entries of the `--config` file become
arguments that stand before those of the command line, which therefore win.
"""

import argparse
import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml

from zscgan_ext.config.configs import OPTIONS, SECTIONS, Option, RunConfig
from zscgan_ext.config.fields import LONGEST_SHOWN, choices_of, element_of, hints_of, option_of
from zscgan_ext.errors import InputError, did_you_mean
from zscgan_ext.program import OneLineParser
from zscgan_ext.regular_file import read_regular_file, regular_file_size

CONFIG = "config.yaml"  # in the folder of a run
LARGEST_CONFIG = 1 << 16  # bytes
BOOLEAN = "tag:yaml.org,2002:bool"


def flag(option: str) -> str:
    """Return an option as the command line has it."""
    return f"--{option.replace('_', '-')}"


def boolean(text: str) -> bool:
    """Read the value of a switch."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return text.lower() == "true"


def number_or_text(text: str) -> int | str:
    """Read a whole number, or leave it as text."""
    try:
        return int(text)
    except ValueError:
        return text


def help_texts(configuration: type) -> dict[str, str]:
    """Return the text below each field of a configuration."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(configuration))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for statement, below in zip(definition.body, definition.body[1:], strict=False):
        is_field = isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
        if is_field and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            texts[statement.target.id] = " ".join(str(below.value.value).split())  # type: ignore[attr-defined]
    return texts


def make_parser() -> OneLineParser:
    """Build the command line from all options."""
    parser = OneLineParser(
        prog="python -m zscgan_ext.train",
        description="Quantize a trained image classifier without its training data.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="YAML file with any of these settings; the command line wins over it",
    )
    configurations = {option.configuration for option in OPTIONS.values()}
    texts = {each: help_texts(each) for each in configurations}
    for name, option in OPTIONS.items():
        add_option(parser, name, option, texts[option.configuration][option.field.name])
    return parser


def add_option(parser: OneLineParser, name: str, option: Option, text: str) -> None:
    """Add one option to the command line; without a default, so that only given ones are set."""
    keywords: dict[str, Any] = {
        "dest": name,
        "default": argparse.SUPPRESS,
        "help": f"{text.replace('%', '%%')} (default: {option.field.default})",
    }
    hint = hints_of(option.configuration)[option.field.name]
    alternatives = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [each for each in alternatives if each is not type(None)]
    metavar, choices = option.field.metadata["metavar"], choices_of(hint)
    if hint is bool:
        parser.add_argument(flag(name), nargs="?", const=True, type=boolean, **keywords)
        keywords |= {"help": argparse.SUPPRESS, "const": False}
        parser.add_argument(flag(f"no_{name}"), action="store_const", **keywords)
    elif choices:
        former = option.field.metadata["renamed"]
        shown = f"{{{','.join(choices)}}}"
        keywords |= {"choices": [*choices, *former], "metavar": shown}
        parser.add_argument(flag(name), **keywords)
    elif any(get_origin(kind) is tuple for kind in kinds):
        element = element_of(hint)
        if element is str:
            keywords["action"] = "extend"
        parser.add_argument(flag(name), nargs="+", type=element, metavar=metavar, **keywords)
    else:
        kind = number_or_text if kinds == [int, str] else kinds[0]
        parser.add_argument(flag(name), type=kind, metavar=metavar, **keywords)


def holds_texts(name: str) -> bool:
    """Return True if an option takes several texts."""
    option = OPTIONS[name]
    hint = hints_of(option.configuration)[option.field.name]
    return any(get_origin(kind) is tuple for kind in get_args(hint)) and element_of(hint) is str


def parse_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the options that a command line gives, by name, and `config`.

    Raises:
        InputError: if one is unknown or of another type.
    """
    parsed, unknown = make_parser().parse_known_args(list(arguments))
    if unknown:
        hint = did_you_mean(unknown[0].split("=")[0], [*map(flag, OPTIONS), "--config"])
        raise InputError(f"unknown argument {unknown[0]}{hint}; --help lists all")
    return vars(parsed)


def parse_config(arguments: Sequence[str] | None = None) -> RunConfig:
    """Read the configuration from a command line and the YAML files that it may name.

    Args:
        arguments: the command line without the name of the command; `sys.argv[1:]` for None.

    Raises:
        InputError: if an option is unknown, has the wrong type or is out of range.
    """
    given = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    file, resumed = given.pop("config"), given.get("resume")
    of_resumed = [] if resumed is None else config_arguments(resumed / CONFIG, ("output",))
    of_file = [] if file is None else config_arguments(file)
    options = parse_arguments(of_resumed) | parse_arguments(of_file) | given
    del options["config"]
    config = RunConfig.of_options(options)
    if config.resume != resumed:
        raise InputError(f"resume: {config.resume} in a file, only the command line can give it")
    if resumed is not None:
        if config.output not in (None, resumed):
            raise InputError(
                f"output: expected {resumed}, which --resume names, got {config.output}"
            )
        config = replace(config, output=resumed)
    config.execution.resolved_device()
    return config


def stored_config(run: Path) -> RunConfig:
    """Return the settings that the folder of a run holds, its place left out.

    Raises:
        InputError: as `parse_config`.
    """
    options = parse_arguments(config_arguments(run / CONFIG, ("output",)))
    del options["config"]
    return RunConfig.of_options(options)


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

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a mapping that has a key twice, of which the last would win in silence."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(keys):
            twice = next(key for index, key in enumerate(keys) if key in keys[:index])
            raise yaml.YAMLError(f"it has {twice!r} twice")
        entries: dict[Any, Any] = super().construct_mapping(node, deep)
        return entries


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
        raise InputError(f"config: {file} holds a {found}, expected a mapping of settings")
    return entries


def config_arguments(file: Path, ignored: Sequence[str] = ()) -> list[str]:
    """Turn a YAML file into the arguments that say the same, less those of ignored options.

    Raises:
        InputError: if the file cannot be read or holds an unknown setting.
    """
    arguments: list[str] = []
    found: set[str] = set()
    for name, value in options_in(file, read_config(file)):
        if name in found:
            raise InputError(f"config: {file} gives {name} twice, alone and in a section")
        found.add(name)
        if name in ignored:
            continue
        if isinstance(value, list) and name in ("mean", "std"):
            arguments += [flag(name), *(number_text(file, name, item) for item in value)]
        elif isinstance(value, list) and holds_texts(name):
            arguments += [f"{flag(name)}={scalar_text(file, name, item)}" for item in value]
        elif value is not None or OPTIONS[name].field.default is not None:
            arguments.append(f"{flag(name)}={scalar_text(file, name, value)}")
    return arguments


def options_in(file: Path, entries: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the options of a YAML file, those of a section such as `generator` by its own names."""
    for name, value in entries.items():
        if name not in SECTIONS:
            check_known(file, name, OPTIONS)
            yield name, value
            continue
        if not isinstance(value, dict):
            found = type(value).__name__
            raise InputError(
                f"config: {file} gives {name} a {found}, expected a mapping of settings"
            )
        names = {each.name: option_of(each) for each in fields(SECTIONS[name])}  # type: ignore[arg-type]
        for own, inner in value.items():
            if own not in names.values():
                check_known(file, own, names, f" in {name}")
            yield names.get(own, str(own)), inner


def check_known(file: Path, name: object, names: Collection[str], place: str = "") -> None:
    """Require the name of a setting to be one of these."""
    if name not in names:
        hint = did_you_mean(str(name), names)
        raise InputError(f"config: {file} has an unknown setting {name!r}{place}{hint}")


def scalar_text(file: Path, name: str, value: Any) -> str:
    """Write one YAML scalar as on the command line."""
    if not isinstance(value, str | int | float):
        found = type(value).__name__
        raise InputError(f"config: {file} gives {name} a {found}, which is not accepted there")
    if isinstance(value, int) and value.bit_length() > LONGEST_SHOWN:  # Python may not write it
        raise InputError(f"config: {file} gives {name} an integer of {value.bit_length()} bits")
    return str(value)


def number_text(file: Path, name: str, value: Any) -> str:
    """Write one of several numbers as on the command line, where text could be another option."""
    text = scalar_text(file, name, value)
    try:
        float(text)
    except ValueError:
        raise InputError(f"config: {file} gives {name} {text!r}, expected numbers") from None
    return text


def config_to_yaml(config: RunConfig) -> str:
    """Write every option as YAML that `--config` reads back."""
    entries = config.options()
    for name, value in entries.items():
        if isinstance(value, Path):
            entries[name] = str(value)
        elif isinstance(value, tuple):
            entries[name] = list(value)
    text: str = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
    return text
