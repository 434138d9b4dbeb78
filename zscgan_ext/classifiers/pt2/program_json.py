"""The JSON of a `torch.export` program: what is accepted of it, for torch 2.6 and later.

Torch looks up what a node calls by its name, evaluates the expressions of sizes, and writes names
into Python that it runs. So names have to be identifiers, only operators of ATen and what exporting
adds to them are called, and nothing is taken that is not checked here. Text that says where a node
comes from, and what only calling a program needs, is left out.
"""

import keyword
import re
from typing import Any

import torch

from zscgan_ext.classifiers.pt2.operators import accepted_operator
from zscgan_ext.classifiers.pt2.symbolic_size import SYMBOL, symbolic_size
from zscgan_ext.json_values import (
    LARGEST_INTEGER,
    Check,
    MismatchError,
    boolean,
    integer,
    list_of,
    mapping_of,
    mismatch,
    nullable,
    number,
    one_of,
    record,
    text,
    union,
)

LONGEST_NAME = 1024  # characters
MOST_NODES = 1 << 16  # of a graph; the largest classifiers have some thousands
POSITIONAL = 1  # the kind of an argument
IDENTIFIER = re.compile(r"[A-Za-z_]\w*", re.ASCII)
TARGET = re.compile(r"torch\.ops\.aten\.([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)
# Sums, products and comparisons of sizes. Powers and shifts would give numbers without end.
SIZE_OPERATORS = (
    *(f"_operator.{name}" for name in ("eq", "ne", "le", "ge", "lt", "gt", "neg", "pos")),
    *(f"_operator.{name}" for name in ("mul", "add", "sub", "floordiv", "mod", "truediv")),
    *(f"_operator.{name}" for name in ("and_", "or_")),
    *(f"torch.sym_{name}" for name in ("not", "int", "float", "ite", "max", "min")),
    *("torch.sym_sqrt", "torch._sym_sqrt", "math.trunc"),
)
# Parts of a program that run under other settings.
HIGHER_ORDER = tuple(
    f"torch.ops.higher_order.{name}"
    for name in ("wrap_with_set_grad_enabled", "wrap_with_autocast")
)
# What torch's decompositions give for batch norm reads beyond weights that are too small.
UNCHECKED_BATCH_NORM = "torch.ops.aten._native_batch_norm_legit_no_training.default"
BATCH_NORM = "torch.ops.aten.batch_norm.default"
# The kind of argument for types that ATen takes as numbers, of which it knows a few only.
CODES = {
    "ScalarType": "as_scalar_type",
    "Layout": "as_layout",
    "MemoryFormat": "as_memory_format",
}


def identifier(value: Any) -> Any:
    """Take a name that stands for nothing else in Python."""
    if not isinstance(value, str) or len(value) > LONGEST_NAME:
        raise mismatch(value, "an identifier")
    if IDENTIFIER.fullmatch(value) is None or keyword.iskeyword(value):
        raise mismatch(value, "an identifier")
    return value


path = text(r"[\w.-]+", LONGEST_NAME, "the path of a tensor, such as layer.0.weight")
floating = nullable(number(finite=False))


def real(value: Any) -> Any:
    """Take a number, which torch writes as text where it is not finite."""
    infinite = {"Infinity", "-Infinity", "NaN"}
    return value if isinstance(value, str) and value in infinite else number(finite=False)(value)


def target(value: Any) -> Any:
    """Take what a node may call."""
    if not isinstance(value, str) or len(value) > LONGEST_NAME:
        raise mismatch(value, "the name of an operator")
    if value not in SIZE_OPERATORS and value not in HIGHER_ORDER:
        operator_of(value)
    return value


def operator_of(called: str) -> torch._ops.OpOverload:
    """Return the operator of ATen that has this name.

    Raises:
        MismatchError: if it is none, or not one that can be converted.
    """
    match = TARGET.fullmatch(called)
    if match is None:
        raise mismatch(called, "an operator of ATen")
    operator = accepted_operator(match[1], match[2])
    if operator is None:
        raise mismatch(called, "an operator of ATen that can be converted")
    return operator


# ---- sizes and tensors --------------------------------------------------------------------------

# Fields that are left out: where a node comes from, and what only calling a program needs.
hint = nullable(union({"as_int": integer(), "as_bool": boolean, "as_float": real}))
expression = record({"expr_str": symbolic_size}, {"hint": hint})
whole = integer()
device = record({"type": one_of("cpu", "cuda")}, {"index": nullable(integer(0, 127))})
tensor_meta = record(
    {
        "dtype": integer(1, 35),
        "sizes": list_of(union({"as_expr": expression, "as_int": integer(0)}), most=16),
        "requires_grad": boolean,
        "device": device,
        "strides": list_of(union({"as_expr": expression, "as_int": integer(0)}), most=16),
        "storage_offset": union({"as_expr": expression, "as_int": integer(0)}),
        "layout": one_of(7),  # strided
    }
)
stored_meta = record(
    {
        "dtype": integer(1, 35),
        "sizes": list_of(union({"as_int": integer(0)}), most=16),
        "requires_grad": boolean,
        "device": device,
        "strides": list_of(union({"as_int": integer(0)}), most=16),
        "storage_offset": union({"as_int": integer(0)}),
        "layout": one_of(7),
    }
)

# ---- arguments ----------------------------------------------------------------------------------

tensor = record({"name": identifier})
size = union({"as_name": identifier, "as_int": integer()})
fraction = union({"as_name": identifier, "as_float": real})
condition = union({"as_name": identifier, "as_bool": boolean})
optional_tensor = union({"as_tensor": tensor, "as_none": boolean})
words = text(None, LONGEST_NAME)
ARGUMENTS: dict[str, Check] = {
    "as_none": boolean,
    "as_tensor": tensor,
    "as_tensors": list_of(tensor),
    "as_int": integer(),
    "as_ints": list_of(integer()),
    "as_float": real,
    "as_floats": list_of(real),
    "as_sym_int": size,
    "as_sym_ints": list_of(size),
    "as_sym_float": fraction,
    "as_sym_floats": list_of(fraction),
    "as_sym_bool": condition,
    "as_sym_bools": list_of(condition),
    "as_scalar_type": integer(0, 35),
    "as_memory_format": integer(0, 4),
    "as_layout": one_of(7),
    "as_device": device,
    "as_bool": boolean,
    "as_bools": list_of(boolean),
    "as_optional_tensor": optional_tensor,
    "as_optional_tensors": list_of(optional_tensor),
}
argument = union(ARGUMENTS)
kind = {"kind": nullable(integer(0, 2))}
# Text is a mode, such as that of padding, or what an assertion says.
with_text = union({**ARGUMENTS, "as_string": words})
named_argument = record({"name": identifier, "arg": with_text}, kind)


def part(value: Any) -> Any:
    """Take an argument of a part of a program: its graph among others."""
    part_of_program = record({"name": identifier, "graph": graph})
    choices = {**ARGUMENTS, "as_string": one_of("cpu", "cuda"), "as_graph": part_of_program}
    return record({"name": text("|[A-Za-z_][A-Za-z0-9_]*"), "arg": union(choices)}, kind)(value)


# ---- the graph ----------------------------------------------------------------------------------


def node(value: Any) -> Any:
    """Take a node; its arguments depend on what it calls."""
    if not isinstance(value, dict):
        raise mismatch(value, "a mapping")
    called = target(value.get("target"))
    arguments = part if called in HIGHER_ORDER else named_argument
    check = record(
        {"target": target, "inputs": list_of(arguments), "outputs": list_of(argument)},
        {
            "metadata": lambda _: {},
            "is_hop_single_tensor_return": nullable(boolean),
            "name": nullable(identifier),
        },
    )
    checked = check({"metadata": {}, **value})
    if TARGET.fullmatch(called) is not None:
        check_arguments(called, checked["inputs"])
    return checked_batch_norm(checked) if called == UNCHECKED_BATCH_NORM else checked


def checked_batch_norm(node: dict[str, Any]) -> dict[str, Any]:
    """Let a node call the batch norm that checks the sizes of its weights.

    What the other gives beside, which nobody takes in evaluation mode, is left out.
    """
    given = {each["name"]: each for each in node["inputs"]}
    for name, value in (("training", False), ("cudnn_enabled", False)):
        given[name] = {**node["inputs"][0], "name": name, "arg": {"as_bool": value}}
    names = [each.name for each in operator_of(BATCH_NORM)._schema.arguments]
    normalized = node["outputs"][:1]
    changed = {**node, "target": BATCH_NORM, "outputs": normalized}
    changed["inputs"] = [given[name] for name in names if name in given]
    if changed.get("name") is not None and normalized and "as_tensor" in normalized[0]:
        changed["name"] = normalized[0]["as_tensor"]["name"]
    return changed


def check_arguments(called: str, inputs: list[Any]) -> None:
    """Require the arguments of an operator by its names; codes and text where it takes such.

    It may look up any other number in a table.
    """
    arguments = operator_of(called)._schema.arguments
    names = [each.name for each in arguments]
    for index, each in enumerate(inputs):
        name, given = each["name"], each["arg"]
        if name not in names or (each.get("kind") == POSITIONAL and names.index(name) != index):
            raise mismatch(name, f"the name of argument {index} of {called}")
        kind_of_argument = type_of(arguments[names.index(name)])
        code = CODES.get(kind_of_argument)
        if code is not None and not {code, "as_none"} & given.keys():
            raise mismatch(given, f"{code} as {name} of {called}")
        if "as_string" in given and kind_of_argument != "str":
            raise mismatch(given, f"no text as {name} of {called}")


def type_of(argument: Any) -> str:
    """Return the type of an operator's argument, of an optional one that it has if it is given."""
    return str(argument.real_type).removeprefix("Optional[").removesuffix("]")


def graph(value: Any) -> Any:
    """Take a graph of nodes."""
    return GRAPH(value)


def nothing(value: Any) -> Any:
    """Take a mapping without entries."""
    if value:
        raise mismatch(value, "none, since custom objects are unpickled")
    return {}


GRAPH = record(
    {
        "inputs": list_of(argument),
        "outputs": list_of(argument),
        "nodes": list_of(node, most=MOST_NODES),
        "tensor_values": mapping_of(tensor_meta, identifier),
        "sym_int_values": mapping_of(
            union({"as_expr": expression, "as_int": integer()}), identifier
        ),
        "sym_bool_values": mapping_of(
            union({"as_expr": expression, "as_bool": boolean}), identifier
        ),
    },
    {
        "is_single_tensor_return": boolean,
        "custom_obj_values": nothing,
        "sym_float_values": mapping_of(
            union({"as_expr": expression, "as_float": real}), identifier
        ),
    },
)
constant = union(
    {
        "as_none": boolean,
        "as_int": integer(),
        "as_float": real,
        "as_string": words,
        "as_bool": boolean,
    }
)
input_spec = union(
    {
        "user_input": record({"arg": argument}),
        "parameter": record({"arg": tensor, "parameter_name": path}),
        "buffer": record({"arg": tensor, "buffer_name": path, "persistent": boolean}),
        "tensor_constant": record({"arg": tensor, "tensor_constant_name": path}),
        "constant_input": record({"name": identifier, "value": constant}),
    }
)
output_spec = union(
    {
        "user_output": record({"arg": argument}),
        "buffer_mutation": record({"arg": tensor, "buffer_name": path}),
        "parameter_mutation": record({"arg": tensor, "parameter_name": path}),
        "user_input_mutation": record({"arg": tensor, "user_input_name": identifier}),
    }
)
signature = record({"input_specs": list_of(input_spec), "output_specs": list_of(output_spec)})
# How a classifier is called, whatever a file says: one tensor in, one tensor out.
LEAF = '{"type": null, "context": null, "children_spec": []}'
TUPLE = '{"type": "builtins.tuple", "context": "null", "children_spec": [%s]}'
NO_KEYWORDS = '{"type": "builtins.dict", "context": "[]", "children_spec": []}'
CALL = {
    "inputs": [],
    "outputs": [],
    "in_spec": f"[1, {TUPLE % f'{TUPLE % LEAF}, {NO_KEYWORDS}'}]",
    "out_spec": f"[1, {LEAF}]",
}
graph_module = record(
    {"graph": graph, "signature": signature},
    {
        # It tells how modules call each other, and names types.
        "module_call_graph": lambda _: [{"fqn": "", "signature": CALL}],
        "metadata": lambda _: {},
        "treespec_namedtuple_fields": lambda _: {},
    },
)
limit = nullable(integer(-LARGEST_INTEGER, LARGEST_INTEGER))
symbol = text(SYMBOL.pattern, expected="the name of a size, such as s0")
version = integer(0, 10**6)
PROGRAM = record(
    {
        "graph_module": graph_module,
        "opset_version": mapping_of(version, identifier),
        "range_constraints": mapping_of(record({"min_val": limit, "max_val": limit}), symbol),
        "schema_version": record({"major": version, "minor": version}),
    },
    {
        "verifiers": list_of(one_of("ATEN", "TRAINING", "")),
        "torch_version": text(r"[\w.+<=]*", LONGEST_NAME),
        "guards_code": lambda _: [],  # Python
        "dialect": one_of("ATEN", "TRAINING", ""),
    },
)


def checked_program(value: Any) -> dict[str, Any]:
    """Return the part of a program's JSON that torch is given.

    Raises:
        MismatchError: naming the first thing that is not accepted.
    """
    try:
        program: dict[str, Any] = PROGRAM(value)
        program.pop("guards_code", None)  # which earlier versions of torch do not know
    except RecursionError:
        raise MismatchError("is nested too deeply") from None
    return program
