"""The JSON of a `torch.export` program: what is accepted of it, for torch 2.6 and later.

Torch looks up what a node calls by its name, evaluates the expressions of sizes, and writes names
into Python that it runs. So names have to be identifiers, only operators of ATen and what exporting
adds to them are called, and nothing is taken that is not checked here. Text that says where a node
comes from, and what only calling a program needs, is left out.
"""

import functools
import keyword
import re
from typing import Any

import torch

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
# Internal operators that exported classifiers call; others may trust their arguments.
INTERNAL = re.compile(
    r"_(adaptive_avg_pool[23]d|assert_scalar|assert_tensor_metadata|convolution|convolution_mode"
    r"|log_softmax|softmax|native_batch_norm_legit|native_batch_norm_legit_no_training"
    r"|prelu_kernel|scaled_dot_product_\w+|shape_as_tensor|to_copy|unsafe_index|unsafe_view"
    r"|upsample_\w+|weight_norm|weight_norm_interface)",
    re.ASCII,
)
# Operators that take text, such as a mode. `save` and `from_file` take the name of a file.
WITH_TEXT = re.compile(
    r"_assert_scalar|_?conv\w*|div\w*|einsum|gelu_?|index_reduce_?|linalg_\w+|meshgrid|pad"
    r"|scatter\w*|searchsorted",
    re.ASCII,
)
# They change what memory belongs to a tensor, or what is known of it; or, with sizes that do not
# fit, reach beyond it without a check. No classifier needs them.
REFUSED = re.compile(
    r"from_file|save|set_?|resize_?|resize_as_?|record_stream|set_data|native_batch_norm"
    r"|\w+_backward\w*|(mkldnn|miopen|cudnn|fbgemm|quantized)_\w+",
    re.ASCII,
)
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


path = text(r"[\w.]+", LONGEST_NAME, "the path of a tensor, such as layer.0.weight")
floating = nullable(number(finite=False))


def real(value: Any) -> Any:
    """Take a number, which torch writes as text where it is not finite."""
    infinite = {"Infinity", "-Infinity", "NaN"}
    return value if isinstance(value, str) and value in infinite else number(finite=False)(value)


@functools.lru_cache
def has_operator(name: str, overload: str) -> bool:
    """Return True if ATen has an operator."""
    packet = getattr(torch.ops.aten, name, None)
    return isinstance(packet, torch._ops.OpOverloadPacket) and overload in packet.overloads()


def target(value: Any) -> Any:
    """Take what a node may call."""
    if not isinstance(value, str) or len(value) > LONGEST_NAME:
        raise mismatch(value, "the name of an operator")
    if value in SIZE_OPERATORS or value in HIGHER_ORDER:
        return value
    match = TARGET.fullmatch(value)
    if match is None:
        raise mismatch(value, "an operator of ATen")
    name, overload = match[1], match[2]
    is_internal = name.startswith("_") and INTERNAL.fullmatch(name) is None
    if is_internal or REFUSED.fullmatch(name) or not has_operator(name, overload):
        raise mismatch(value, "a public operator of ATen that this torch has")
    return value


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
named_argument = record({"name": identifier, "arg": argument}, kind)
with_text = record({"name": identifier, "arg": union({**ARGUMENTS, "as_string": words})}, kind)


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
    match = TARGET.fullmatch(called)
    arguments = named_argument
    if called in HIGHER_ORDER:
        arguments = part
    elif match is not None and WITH_TEXT.fullmatch(match[1]):
        arguments = with_text
    check = record(
        {"target": target, "inputs": list_of(arguments), "outputs": list_of(argument)},
        {
            "metadata": lambda _: {},
            "is_hop_single_tensor_return": nullable(boolean),
            "name": nullable(identifier),
        },
    )
    checked = check({"metadata": {}, **value})
    if match is not None:
        check_codes(match, checked["inputs"])
    return checked


def check_codes(called: re.Match[str], inputs: list[Any]) -> None:
    """Require the arguments of an operator by its names, and codes where it takes codes.

    It may look up any other number in a table.
    """
    operator = getattr(getattr(torch.ops.aten, called[1]), called[2])
    names = [each.name for each in operator._schema.arguments]
    for index, each in enumerate(inputs):
        name = each["name"]
        if name not in names or (each.get("kind") == POSITIONAL and names.index(name) != index):
            raise mismatch(name, f"the name of argument {index} of {called[0]}")
        code = CODES.get(code_of(operator._schema.arguments[names.index(name)]))
        if code is not None and not {code, "as_none"} & each["arg"].keys():
            raise mismatch(each["arg"], f"{code} as {name} of {called[0]}")


def code_of(argument: Any) -> str:
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
        "nodes": list_of(node),
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
