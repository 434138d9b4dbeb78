"""The expressions of sizes in a `torch.export` program.

Torch gives their text to sympy, which turns it into Python and runs it. So only text of a small
grammar is let through, and not as it stands, but written anew from what was parsed here.
"""

import ast
import re
from collections.abc import Iterator

from zscgan_ext.json_values import MismatchError, mismatch

LONGEST = 4096  # characters
MOST_PARTS = 128  # of one expression
LARGEST_INTEGER = 2**63 - 1
LARGEST_EXPONENT = 8
SYMBOL = re.compile(r"(?:s|u|i)\d{1,4}", re.ASCII)
ASSUMPTIONS = ("integer", "positive", "nonnegative")
NAMES = ("true", "false")
# Of sympy and torch.utils._sympy.functions; all compute on numbers and symbols only.
FUNCTIONS = (
    *("Add", "Mul", "Max", "Min", "Mod", "Abs", "floor", "ceiling"),
    *("FloorDiv", "CleanDiv", "CeilDiv", "PythonMod", "ModularIndexing", "Where", "Identity"),
    *("CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt", "ToFloat", "IntTrueDiv"),
    *("Equality", "Unequality", "StrictLessThan", "LessThan"),
    *("StrictGreaterThan", "GreaterThan", "And", "Or", "Not"),
)
POWERS = ("Pow", "PowByNatural")


def symbolic_size(value: object) -> str:
    """Return the text of an expression, written anew.

    The grammar is that of sympy's `srepr`: calls of known functions on integers and symbols, such
    as `Mul(Integer(2), Symbol('s0', positive=True, integer=True))`.

    Raises:
        MismatchError: if the text is of another grammar.
    """
    if not isinstance(value, str) or len(value) > LONGEST or not value.isascii():
        raise mismatch(value, f"an expression of sizes, of at most {LONGEST} characters")
    try:
        expression = ast.parse(value, mode="eval").body
        parts = sum(1 for _ in ast.walk(expression))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise refusal(value) from None
    if parts > MOST_PARTS * 4:
        raise mismatch(value, f"an expression of at most {MOST_PARTS} parts")
    return written(expression, value)


def refusal(whole: str) -> MismatchError:
    """Return the error for an expression of another grammar."""
    return mismatch(whole, "an expression of sizes: sums, products and the like of symbols")


def written(node: ast.expr, whole: str) -> str:
    """Write an expression of the grammar, and all inside it.

    Raises:
        MismatchError: if it is of another grammar.
    """
    if isinstance(node, ast.Name) and node.id in NAMES:
        return node.id
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise refusal(whole)
    function, arguments = node.func.id, node.args
    if function == "Symbol":
        return symbol(node, whole)
    if node.keywords:
        raise refusal(whole)
    if function in ("Integer", "Rational"):
        numbers = [integer(argument, whole) for argument in arguments]
        if len(numbers) != (1 if function == "Integer" else 2) or numbers[1:] == [0]:
            raise refusal(whole)
        return f"{function}({', '.join(map(str, numbers))})"
    if function in POWERS:
        return power(function, arguments, whole)
    if function not in FUNCTIONS or not arguments:
        raise refusal(whole)
    return f"{function}({', '.join(written(argument, whole) for argument in arguments)})"


def power(function: str, arguments: list[ast.expr], whole: str) -> str:
    """Write a small power of a symbol; powers of powers would have digits without end."""
    if len(arguments) != 2 or not is_call_of(arguments[0], "Symbol"):
        raise refusal(whole)
    exponent = arguments[1]
    if not is_call_of(exponent, "Integer") or len(exponent.args) != 1:  # type: ignore[attr-defined]
        raise refusal(whole)
    count = integer(exponent.args[0], whole)  # type: ignore[attr-defined]
    if not -1 <= count <= LARGEST_EXPONENT:
        raise refusal(whole)
    return f"{function}({written(arguments[0], whole)}, Integer({count}))"


def is_call_of(node: ast.expr, name: str) -> bool:
    """Return True if an expression calls the function of this name."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def symbol(node: ast.Call, whole: str) -> str:
    """Write a symbol, such as `Symbol('s0', integer=True)`."""
    name = text_of(node.args[0]) if len(node.args) == 1 else ""
    if SYMBOL.fullmatch(name) is None:
        raise refusal(whole)
    return f"Symbol({', '.join([repr(name), *assumptions(node, whole)])})"


def assumptions(node: ast.Call, whole: str) -> Iterator[str]:
    """Write what is known of a symbol."""
    for keyword in node.keywords:
        known = keyword.arg in ASSUMPTIONS and isinstance(keyword.value, ast.Constant)
        if not known or type(keyword.value.value) is not bool:  # type: ignore[attr-defined]
            raise refusal(whole)
        yield f"{keyword.arg}={keyword.value.value}"  # type: ignore[attr-defined]


def text_of(node: ast.expr) -> str:
    """Return the value of a text, nothing for another expression."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def integer(node: ast.expr, whole: str) -> int:
    """Return the value of an integer, which may have a minus."""
    sign = -1 if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) else 1
    inner = node.operand if isinstance(node, ast.UnaryOp) and sign < 0 else node
    if not isinstance(inner, ast.Constant) or type(inner.value) is not int:
        raise refusal(whole)
    if inner.value > LARGEST_INTEGER:
        raise refusal(whole)
    return sign * inner.value
