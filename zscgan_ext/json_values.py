"""JSON that somebody else may have written: read with bounds, its values checked by type.

A check takes a value and returns it, or raises `MismatchError`. Checks are made of others:
`record(name=text(), sizes=list_of(integer(0)))` takes a mapping with exactly these entries.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zscgan_ext.errors import InputError, first_line
from zscgan_ext.regular_file import read_regular_file

Check = Callable[[Any], Any]
LARGEST_INTEGER = 2**63 - 1
LONGEST_TEXT = 1 << 16  # characters
SHOWN = 60  # characters of a value that a message quotes
# Bounds of JSON, which takes up to thirty times as much memory when it is parsed.
LARGEST_JSON = 1 << 26  # bytes
MOST_VALUES = 1 << 22
TOO_DEEP = "is nested too deeply"
DEEPEST = 64  # lists and mappings inside each other


class MismatchError(ValueError):
    """A value that is not what was expected; the message is one line and begins with its place."""

    def __init__(self, problem: str, place: tuple[str, ...] = ()) -> None:
        self.problem = problem
        self.place = place
        where = ".".join(part[:SHOWN] for part in place)
        super().__init__(f"{where}: {problem}" if where else problem)


def shown(value: Any) -> str:
    """Write a value for a message, in few characters whatever it is."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return f"a mapping of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 64:  # long ones cannot be written as text
        return "an integer of more than 64 bits"
    quoted = repr(value[: SHOWN + 1] if isinstance(value, str) else value)
    return quoted if len(quoted) <= SHOWN else f"{quoted[:SHOWN]}..."


def mismatch(value: Any, expected: str) -> MismatchError:
    """Return the error for a value that is something else."""
    return MismatchError(f"expected {expected}, got {shown(value)}")


def inside(place: str, check: Check, value: Any) -> Any:
    """Check a value that stands inside another, at a place that messages name."""
    try:
        return check(value)
    except MismatchError as error:
        raise MismatchError(error.problem, (place, *error.place)) from None


# ---- checks of single values --------------------------------------------------------------------


def integer(least: int = -LARGEST_INTEGER, most: int = LARGEST_INTEGER) -> Check:
    """Take an integer in a range, and neither a boolean nor `4.0`."""

    def check(value: Any) -> Any:
        if type(value) is not int or not least <= value <= most:
            between = f" from {least:,} to {most:,}" if most < LARGEST_INTEGER else ""
            above = f" of {least:,} or above" if not between and least > -LARGEST_INTEGER else ""
            raise mismatch(value, f"an integer{between}{above}")
        return value

    return check


def number(least: float = -math.inf, most: float = math.inf, finite: bool = True) -> Check:
    """Take an integer or a floating-point number, and no boolean."""
    kind = "a finite number" if finite else "a number"

    def check(value: Any) -> Any:
        is_number = type(value) is float or (type(value) is int and abs(value) <= LARGEST_INTEGER)
        if not is_number or (finite and not math.isfinite(value)):
            raise mismatch(value, kind)
        if not math.isnan(value) and not least <= value <= most:
            raise mismatch(value, f"{kind} from {least:g} to {most:g}")
        return value

    return check


def text(pattern: str | None = None, longest: int = LONGEST_TEXT, expected: str = "") -> Check:
    """Take text, which a regular expression may have to match as a whole."""
    compiled = None if pattern is None else re.compile(pattern, re.ASCII)

    def check(value: Any) -> Any:
        if not isinstance(value, str) or len(value) > longest:
            raise mismatch(value, expected or f"text of at most {longest:,} characters")
        if compiled is not None and compiled.fullmatch(value) is None:
            raise mismatch(value, expected or f"text like {pattern}")
        return value

    return check


def boolean(value: Any) -> Any:
    """Take true or false."""
    if type(value) is not bool:
        raise mismatch(value, "true or false")
    return value


def one_of(*values: Any) -> Check:
    """Take one of these texts, numbers, booleans or None."""

    def check(value: Any) -> Any:
        if not any(type(value) is type(each) and value == each for each in values):
            raise mismatch(value, " or ".join(map(repr, values)))
        return value

    return check


def anything(value: Any) -> Any:
    """Take whatever it is."""
    return value


# ---- checks made of others ----------------------------------------------------------------------


def nullable(check: Check) -> Check:
    """Take None too."""
    return lambda value: None if value is None else check(value)


def list_of(check: Check, length: int | None = None, most: int | None = None) -> Check:
    """Take a list of values that a check takes."""

    def check_list(value: Any) -> Any:
        if not isinstance(value, list):
            raise mismatch(value, "a list")
        if length is not None and len(value) != length:
            raise mismatch(value, f"a list of {length}")
        if most is not None and len(value) > most:
            raise mismatch(value, f"a list of at most {most}")
        return [inside(str(index), check, each) for index, each in enumerate(value)]

    return check_list


def mapping_of(check: Check, key: Check | None = None, most: int | None = None) -> Check:
    """Take a mapping whose keys and values checks take."""
    check_key = text() if key is None else key

    def check_mapping(value: Any) -> Any:
        if not isinstance(value, dict):
            raise mismatch(value, "a mapping")
        if most is not None and len(value) > most:
            raise mismatch(value, f"a mapping of at most {most:,}")
        return {check_key(name): inside(name, check, each) for name, each in value.items()}

    return check_mapping


def record(
    required: dict[str, Check], optional: dict[str, Check] | None = None, strict: bool = True
) -> Check:
    """Take a mapping with certain entries.

    Args:
        required: entries that it must have.
        optional: entries that it may have.
        strict: whether to refuse entries of other names, unless they are empty (None, false, [],
            {}, ""), which says nothing. All that are not refused are left out.
    """
    optional = optional or {}

    def check_record(value: Any) -> Any:
        if not isinstance(value, dict):
            raise mismatch(value, "a mapping")
        for name in required:
            if name not in value:
                raise MismatchError(f"lacks {name}")
        checks = {**required, **optional}
        for name, entry in value.items():
            if strict and name not in checks and entry not in (None, False, [], {}, ""):
                raise MismatchError(f"has an entry {shown(name)} that is not known")
        known = {name: entry for name, entry in value.items() if name in checks}
        return {name: inside(name, checks[name], entry) for name, entry in known.items()}

    return check_record


def union(choices: dict[str, Check]) -> Check:
    """Take a mapping with one of these entries and no other."""

    def check_union(value: Any) -> Any:
        if not isinstance(value, dict) or len(value) != 1:
            raise mismatch(value, f"a mapping with one of {', '.join(choices)}")
        ((name, entry),) = value.items()
        if name not in choices:
            raise MismatchError(f"holds {shown(name)}, accepted are {', '.join(choices)}")
        return {name: inside(name, choices[name], entry)}

    return check_union


# ---- reading ------------------------------------------------------------------------------------


def parse_json(data: str | bytes, check: Check = anything) -> Any:
    """Parse JSON and check it.

    Raises:
        MismatchError: if it is no JSON, beyond the bounds, or not what the check takes.
    """
    check_bounds(data)
    try:
        value = json.loads(data)
    except RecursionError:
        raise MismatchError(TOO_DEEP) from None
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError, integers without end
        raise MismatchError(f"is not JSON ({first_line(error)})") from None
    if depth(value) > DEEPEST:
        raise MismatchError(TOO_DEEP)
    return check(value)


def check_bounds(data: str | bytes) -> None:
    """Require that JSON is small enough to be parsed.

    Raises:
        MismatchError: if it has too many bytes, or could have too many values.
    """
    if len(data) > LARGEST_JSON:
        raise MismatchError(f"has {len(data):,} bytes, accepted are at most {LARGEST_JSON:,}")
    content = data if isinstance(data, bytes) else data.encode(errors="surrogatepass")
    values = content.count(b",") + content.count(b"[") + content.count(b"{")
    if values > MOST_VALUES:
        raise MismatchError(f"has up to {values:,} values, accepted are at most {MOST_VALUES:,}")


def depth(value: Any) -> int:
    """Return how many lists and mappings are inside each other, at most one beyond the bound."""
    level: list[Any] = [value]
    deep = 0
    while level and deep <= DEEPEST:
        inner: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inner.extend(v for v in each.values() if isinstance(v, dict | list))
            elif isinstance(each, list):
                inner.extend(v for v in each if isinstance(v, dict | list))
        deep += any(isinstance(each, dict | list) for each in level)
        level = inner
    return deep


def read_json(file: Path, check: Check) -> Any:
    """Read a JSON file and check it.

    Raises:
        InputError: if it is missing, not a regular file, or not what the check takes.
    """
    try:
        return parse_json(read_regular_file(file), check)
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise InputError(f"{file}: {error}") from None


def read_json_lines(file: Path, check: Check, most: int) -> list[Any]:
    """Read a file with one JSON value in each line, and check each.

    Args:
        file: its path.
        check: of each value.
        most: lines that are read; of a file with more, about so many from all over it.

    Raises:
        InputError: as `read_json`, naming the line.
    """
    try:
        content = read_regular_file(file)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{file}: cannot be read ({reason})") from None
    values = []
    for start, line in lines_of(content, most):
        if not line.strip():
            continue
        try:
            values.append(parse_json(line, check))
        except MismatchError as error:
            number_of_line = content.count(b"\n", 0, start) + 1
            raise InputError(f"{file}: line {number_of_line}: {error}") from None
    return values


def lines_of(content: bytes, most: int) -> Iterator[tuple[int, bytes]]:
    """Yield lines and where they start: all, or of more than so many those at even distances."""
    step = 1 if content.count(b"\n") <= most else math.ceil(len(content) / most)
    start = 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        yield start, content[start:end]
        if end < start + step:  # the first line that starts a step further
            end = content.find(b"\n", start + step - 1)
            end = len(content) if end < 0 else end
        start = end + 1
