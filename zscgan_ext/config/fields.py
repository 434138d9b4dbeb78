"""Fields of configurations: what each accepts, and checking that its value is of that."""

import functools
import math
import numbers
import sys
from collections.abc import Mapping
from dataclasses import Field, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from zscgan_ext.errors import InputError, did_you_mean
from zscgan_ext.process_environment import is_first

LONGEST_INTEGER = 63  # bits
LONGEST_SHOWN = 1000  # bits of an integer that a message shows

STEPS, SIZES = 2**40, 2**20  # far more than is of use; beyond, counters and sizes would overflow


def setting(
    default: Any,
    metavar: str | None = None,
    *,
    option: str | None = None,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Any:
    """Declare a field of a configuration.

    Args:
        default: its value where nothing else is given.
        metavar: what stands for its value in `--help`; none for choices and switches.
        option: its name on the command line and in YAML, if that is another than in Python.
        above: what its value must exceed.
        at_least: its smallest value.
        at_most: its largest value.
        renamed: former names of choices, and what they are called now.
    """
    metadata = {"metavar": metavar, "option": option, "renamed": renamed or {}}
    return field(
        default=default,
        metadata={**metadata, "above": above, "at_least": at_least, "at_most": at_most},
    )


def option_of(each: Field[Any]) -> str:
    """Return the name of a field on the command line and in YAML."""
    return str(each.metadata.get("option") or each.name)


def hints_of(configuration: type) -> dict[str, Any]:
    """Return the annotations of a configuration by field."""
    return get_type_hints(configuration)


@functools.cache
def warn_of_renamed(option: str, old: str, new: str) -> None:
    """Print, once in a process, that a value of a setting has another name now."""
    if is_first():
        line = f"warning: {option}: {old} is deprecated, it is called {new} now"
        print(line, file=sys.stderr, flush=True)


def is_torch_device(value: object) -> bool:
    """Return True for a `torch.device`; there are none before torch was imported."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.device)


class Configuration:
    """A frozen dataclass whose fields are declared by `setting`, and checked when it is made."""

    def __post_init__(self) -> None:
        """Take former names and equivalent types, and check types, choices and ranges.

        A number of NumPy's becomes Python's, a list a tuple, and text a path where one is expected.

        Raises:
            InputError: naming the first setting that is of another type or out of range.
        """
        hints = hints_of(type(self))
        for each in fields(self):  # type: ignore[arg-type]
            option, value, hint = option_of(each), getattr(self, each.name), hints[each.name]
            if "renamed" not in each.metadata:
                check_section(option, value, hint)
                continue
            if isinstance(value, str) and value in each.metadata["renamed"]:
                new = each.metadata["renamed"][value]
                warn_of_renamed(option, value, new)
                value = new
            elif isinstance(value, list):
                value = tuple(value)
            elif is_torch_device(value):
                value = str(value)
            check_type(option, value, hint)
            value = plain(value, hint)
            check_range(option, value, each.metadata)
            object.__setattr__(self, each.name, value)


def check_section(name: str, value: object, kind: type) -> None:
    """Require a configuration within another one."""
    if not isinstance(value, kind):
        raise InputError(f"{name}: expected {kind.__name__}, got {type(value).__name__}")


def plain(value: Any, hint: Any) -> Any:
    """Return a value that fits an annotation as the type that the annotation names."""
    kinds = get_args(hint) or (hint,)
    if isinstance(value, tuple):
        return tuple(plain(each, element_of(hint)) for each in value)
    if Path in kinds and isinstance(value, str):
        return Path(value)
    if int in kinds and value is not None and not isinstance(value, str):
        return int(value)
    if float in kinds and value is not None:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return value


def check_type(option: str, value: object, hint: Any) -> None:
    """Require a value of the type or one of the choices that an annotation names."""
    if not fits(value, hint):
        close = did_you_mean(value, choices_of(hint)) if isinstance(value, str) else ""
        raise InputError(f"{option}: expected {described(hint)}, got {value!r}{close}")


def check_range(option: str, value: object, metadata: Mapping[str, Any]) -> None:
    """Require finite numbers within the range of a field."""
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and not math.isfinite(number):
            raise InputError(f"{option}: expected a finite number, got {number}")
    if not isinstance(value, int | float):
        return
    if isinstance(value, int) and value.bit_length() > LONGEST_SHOWN:
        bits = value.bit_length()
        raise InputError(f"{option}: expected an integer of at most 64 bits, got one of {bits}")
    above, at_least, at_most = (metadata[name] for name in ("above", "at_least", "at_most"))
    if above is not None and value <= above:
        raise InputError(f"{option}: expected a number above {above}, got {value}")
    if at_least is not None and value < at_least:
        raise InputError(f"{option}: expected {at_least} or above, got {value}")
    if at_most is not None and value > at_most:
        raise InputError(f"{option}: expected {at_most:,} or below, got {value}")
    if isinstance(value, int) and value.bit_length() > LONGEST_INTEGER:
        raise InputError(f"{option}: expected an integer of at most 64 bits, got {value}")


def fits(value: object, hint: Any) -> bool:
    """Return True if a value is of the type that a field is annotated with."""
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return isinstance(value, str) and value in get_args(hint)
    if get_origin(hint) is tuple:
        element = element_of(hint)
        return isinstance(value, tuple) and all(fits(each, element) for each in value)
    if hint in (int, float):
        number = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, str | Path if hint is Path else hint)


def element_of(hint: Any) -> Any:
    """Return the type of the elements of a tuple in an annotation."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return next(get_args(each)[0] for each in kinds if get_origin(each) is tuple)


def choices_of(hint: Any) -> tuple[str, ...]:
    """Return the choices in an annotation."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(choice for each in get_args(hint) for choice in choices_of(each))


def described(hint: Any) -> str:
    """Return what a field with an annotation accepts, in words."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(described(each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if get_origin(hint) is tuple:
        return "a number for each channel" if element_of(hint) is float else "a list of texts"
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
    return {**names, Path: "a path", type(None): "None"}[hint]
