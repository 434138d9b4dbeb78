"""`.pt2` files that a hostile person could make: each wants to run code or to use up memory."""

import copy
import functools
import io
import json
import pickle
import struct
import warnings
import zipfile
from importlib.util import find_spec

import torch
from hostile_files import MARKER, RunsCode
from networks import small_residual
from torch._export.serde.serialize import serialize

from zscgan_ext.classifiers.pt2.program_json import MOST_NODES
from zscgan_ext.json_values import DEEPEST, LARGEST_JSON, MOST_VALUES

RUN = f"__import__('os').mkdir('{MARKER}')"
MODEL = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
EXAMPLES = "data/sample_inputs/model.pt"
FLAT = "serialized_exported_program.json"


@functools.cache
def program():
    """A small program with any number of images."""
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    images = torch.zeros(3, 3, 8, 8)
    return torch.export.export(small_residual(), (images,), dynamic_shapes=shapes, strict=False)


# Since when archives have a folder.
HAS_FOLDERS = find_spec("torch.export.pt2_archive") is not None


@functools.cache
def folder_members():
    """The members of an archive of torch 2.8 and later."""
    buffer = io.BytesIO()
    torch.export.save(program(), buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


@functools.cache
def flat_members():
    """The members of an archive of torch up to 2.7, which later ones read too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        artifact = serialize(program())
    return {
        "version": b"8.2",
        FLAT: artifact.exported_program,
        "serialized_state_dict.pt": artifact.state_dict,
        "serialized_constants.pt": artifact.constants,
        "serialized_example_inputs.pt": artifact.example_inputs,
    }


def archive(members, compression=zipfile.ZIP_STORED, folder=""):
    """Write an archive."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as file:
        warnings.simplefilter("ignore")  # members of the same name
        for name, content in members.items() if isinstance(members, dict) else members:
            file.writestr(folder + name, content)
    return buffer.getvalue()


GOOD = {"flat": lambda: archive(flat_members())}
if HAS_FOLDERS:
    GOOD["folder"] = lambda: archive(folder_members(), folder="m/")


def with_member(name, content, base=folder_members):
    """Replace or add a member."""
    return lambda: archive({**base(), name: content}, folder="m/" if base is folder_members else "")


def with_json(name, change, base=folder_members):
    """Change the JSON of a member."""

    def make():
        value = json.loads(base()[name])
        change(value)
        text = json.dumps(value).encode()
        return with_member(name, text, base)()

    return make


def constant(path_name, content, use_pickle=True):
    """Add a constant of some kind."""

    def make():
        facts = {"path_name": path_name, "is_param": False, "use_pickle": use_pickle}
        config = {"config": {"constant": {**facts, "tensor_meta": None}}}
        members = {**folder_members(), CONSTANTS: json.dumps(config).encode()}
        return archive({**members, f"data/constants/{path_name}": content}, folder="m/")

    return make


def weight(**facts):
    """Change what is said of one weight."""
    return with_json(WEIGHTS, lambda value: value["config"]["stem.weight"].update(facts))


def weight_meta(**facts):
    """Change what is said of one weight's tensor."""
    return with_json(
        WEIGHTS, lambda value: value["config"]["stem.weight"]["tensor_meta"].update(facts)
    )


def in_graph(change, name=FLAT, base=flat_members):
    """Change the graph of a program."""
    return with_json(name, lambda value: change(value["graph_module"]["graph"]), base)


def expression(text):
    """Put the text of an expression where sizes of images are."""

    def change(graph):
        image = graph["tensor_values"][graph["inputs"][-1]["as_tensor"]["name"]]
        image["sizes"][0] = {"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}

    return in_graph(change)


def offset(text):
    """Put the text of an expression where the offset of a tensor is."""

    def change(graph):
        meta = graph["tensor_values"][graph["nodes"][0]["outputs"][0]["as_tensor"]["name"]]
        meta["sizes"][1] = {"as_expr": {"expr_str": text}}

    return in_graph(change)


def calling(target, *arguments, name="filename"):
    """Let the first node that gives one tensor call something else before it."""

    def change(graph):
        made = copy.deepcopy(graph["nodes"][0])
        made["target"], made["name"] = target, "made"
        made["outputs"] = [{"as_none": True}]
        made["inputs"] = [
            {
                "name": f"a{i}" if isinstance(argument, dict) else name,
                "arg": argument if isinstance(argument, dict) else {"as_string": argument},
                "kind": 1,
            }
            for i, argument in enumerate(arguments)
        ]
        graph["nodes"].insert(0, made)

    return in_graph(change)


def code(name, shown=None):
    """Call an operator with a number that is no dtype or layout, which torch does not check."""

    def change(graph):
        made = copy.deepcopy(graph["nodes"][0])
        images = {"as_tensor": {"name": graph["inputs"][-1]["as_tensor"]["name"]}}
        made["target"] = "torch.ops.aten.zeros_like.default"
        made["inputs"] = [
            {"name": "self", "arg": images, "kind": 1},
            {"name": shown or name, "arg": {"as_int": 64}, "kind": 2},
        ]
        graph["nodes"].insert(0, made)

    return in_graph(change)


def renamed(new):
    """Rename the images, everywhere in a program."""

    def change(value):
        old = value["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"]
        text = json.dumps(value).replace(json.dumps(old), json.dumps(new))
        value.update(json.loads(text))

    return with_json(FLAT, change, flat_members)


def argument(**value):
    """Put an argument of another kind into the first node."""
    return in_graph(lambda graph: graph["nodes"][0]["inputs"][0].update(arg=value))


def top(**values):
    """Change the entries of a program."""
    return with_json(FLAT, lambda value: value.update(values), flat_members)


def nested(depth=100_000):
    """JSON that is nested without end."""
    return with_member(FLAT, b"[" * depth, flat_members)


def larger_than_it_is():
    """An archive one of whose members announces more than there is."""
    good = bytearray(archive(flat_members()))
    place = good.rindex(b"PK\x01\x02")
    good[place + 20 : place + 28] = struct.pack("<II", 2**31, 2**31)
    return bytes(good)


# Operators that reach beyond tensors, or that the package cannot convert.
UNACCEPTED = {
    name: (
        calling(f"torch.ops.aten.{name}"),
        f"that can be converted.*got 'torch.ops.aten.{name}'",
        0,
    )
    for name in (
        "_native_batch_norm_legit.no_stats",
        "_weight_norm_interface.default",
        "_reshape_alias.default",
        "_unsafe_masked_index.default",
        "to.prim_dtype",
        "native_batch_norm.default",
        "fft_fft.default",
        "relu.out",
        "add.str",
        "copy.Dict_Tensor",
        "mul.left_t",
        "einsum.sublist",
    )
}


def nested_value(depth):
    """Lists inside each other."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


CODE = pickle.dumps(RunsCode())
# What it is called: what makes it, what the line says, whether it needs torch 2.8.
CASES = {
    "opaque object": (
        constant("opaque_obj_0", CODE),
        "plain tensor.*got 'opaque_obj_0'",
        1,
    ),
    "custom object": (
        constant("custom_obj_0", CODE),
        "plain tensor.*got 'custom_obj_0'",
        1,
    ),
    "pickled constant": (constant("tensor_0", CODE), "use_pickle: expected False.*got True", 1),
    "pickled weight": (weight(use_pickle=True), "use_pickle: expected False.*got True", 1),
    "weight elsewhere": (weight(path_name="../../x"), "expected a plain tensor, such as", 1),
    "pickled weights": (with_member("data/weights/model.pt", CODE), "archive is damaged", 1),
    "compiled library": (
        with_member("data/aotinductor/model/x.so", b"\x7fELF"),
        "x.so, accepted are plain",
        1,
    ),
    "second model": (with_member("models/other.json", b"{}"), "other.json, accepted are", 1),
    "huge weight": (
        weight_meta(sizes=[{"as_int": 2**40}], strides=[{"as_int": 0}]),
        "needs more than the",
        1,
    ),
    "weight behind its bytes": (
        weight_meta(storage_offset={"as_int": 2**40}),
        "needs more than the",
        1,
    ),
    "sparse weight": (weight_meta(layout=1), "layout: expected 7.*got 1", 1),
    "pickled state dict": (
        with_member("serialized_state_dict.pt", CODE, flat_members),
        "archive is damaged",
        0,
    ),
    "pickle in a state dict": (
        with_member(
            "serialized_state_dict.pt",
            archive({"data.pkl": CODE, "version": b"3", "byteorder": b"little"}, folder="a/"),
            flat_members,
        ),
        "is damaged, or holds more than plain tensors",
        0,
    ),
    "member of a stranger": (with_member("x.so", b"", flat_members), "x.so, accepted are", 0),
    "state dict as JSON": (
        with_member("serialized_state_dict.json", b"{}", flat_members),
        "accepted are plain",
        0,
    ),
    "expression that runs code": (expression(RUN), "expected an expression of sizes", 0),
    "expression in a call": (
        expression(f"Mul(Integer(2), {RUN})"),
        "expected an expression of sizes",
        0,
    ),
    "expression in a name": (
        expression(f"Symbol({RUN!r}, integer=True)"),
        "expected an expression of sizes",
        0,
    ),
    "expression in an assumption": (
        expression(f"Symbol('s0', integer={RUN})"),
        "expected an expression of sizes",
        0,
    ),
    "lambda": (expression(f"(lambda: {RUN})()"), "expected an expression of sizes", 0),
    "attributes": (
        expression("Symbol('s0').__class__.__base__"),
        "expected an expression of sizes",
        0,
    ),
    "expression of another node": (offset(RUN), "expected an expression of sizes", 0),
    "power without end": (
        expression("Pow(Integer(9), Integer(999999999))"),
        "expected an expression of sizes",
        0,
    ),
    "expression nested without end": (
        expression("Abs(" * 900 + "Integer(1)" + ")" * 900),
        "an expression",
        0,
    ),
    "function of the system": (
        calling("torch.os.mkdir", MARKER),
        "expected an operator of ATen",
        0,
    ),
    "function of torch": (calling("torch.load", "x"), "expected an operator of ATen", 0),
    "method of a name": (
        calling("torch.ops.aten.name.format", "x"),
        "an operator of ATen that can be converted, got 'torch.ops.aten",
        0,
    ),
    "operator that writes a file": (
        calling("torch.ops.aten.save.default", {"as_int": 1}, MARKER),
        "an operator of ATen that can be converted, got 'torch.ops.aten",
        0,
    ),
    "operator that opens a file": (
        calling("torch.ops.aten.from_file.default", MARKER),
        "an operator of ATen that can be converted, got 'torch.ops.aten",
        0,
    ),
    "text for an operator": (
        calling("torch.ops.aten.relu.default", MARKER, name="self"),
        "expected no text as self of torch.ops.aten.relu.default",
        0,
    ),
    "internal operator": (
        calling("torch.ops.aten._cufft_clear_plan_cache.default"),
        "an operator of ATen that can be converted, got 'torch.ops.aten",
        0,
    ),
    "operator that checks no sizes": (
        calling("torch.ops.aten.reflection_pad1d_backward.default"),
        "an operator of ATen that can be converted, got 'torch.ops.aten",
        0,
    ),
    **{f"operator {name}": case for name, case in UNACCEPTED.items()},
    "number for a dtype": (code("dtype"), "expected as_scalar_type as dtype", 0),
    "number for a layout": (code("layout"), "expected as_layout as layout", 0),
    "number by another name": (code("dtype", "a0"), "expected the name of argument 1", 0),
    "operator of others": (
        calling("torch.ops.inductor.resize_storage_bytes_.default"),
        "an operator of ATen",
        0,
    ),
    "name that runs code": (renamed(f"x={RUN}"), "expected an identifier", 0),
    "keyword as a name": (renamed("class"), "expected an identifier", 0),
    "custom object in a node": (
        argument(as_custom_obj={"name": "x", "class_fqn": "y"}),
        "holds 'as_custom_obj'",
        0,
    ),
    "operator in a node": (argument(as_operator="torch.os.system"), "holds 'as_operator'", 0),
    "custom object in the graph": (
        in_graph(lambda graph: graph.update(custom_obj_values={"x": {"name": "x"}})),
        "since custom objects are unpickled",
        0,
    ),
    "symbol without end": (
        top(range_constraints={"u99999999999": {"min_val": 0, "max_val": 1}}),
        "expected the name of a size",
        0,
    ),
    "verifier": (top(verifiers=["os.system"]), "verifiers.0: expected .*got 'os.system'", 0),
    "unknown entry": (top(hooks=["os.system"]), "has an entry 'hooks' that is not known", 0),
    "floating-point version": (
        top(schema_version={"major": 8.0, "minor": 2}),
        "expected .*got 8.0",
        0,
    ),
    "nested without end": (nested(), "is nested too deeply", 0),
    "number without end": (
        with_member(FLAT, b'{"x": ' + b"9" * 5000 + b"}", flat_members),
        "is not JSON|lacks",
        0,
    ),
    "larger JSON than accepted": (
        with_member(FLAT, b" " * (LARGEST_JSON + 1), flat_members),
        "bytes, accepted are at most",
        0,
    ),
    "JSON of more values than accepted": (
        with_member(FLAT, b"[" + b"[]," * MOST_VALUES + b"[]]", flat_members),
        "values, accepted are at most",
        0,
    ),
    "JSON deeper than accepted": (
        with_json(FLAT, lambda value: value.update(deep=nested_value(DEEPEST)), flat_members),
        "is nested too deeply",
        0,
    ),
    "more nodes than accepted": (
        in_graph(lambda graph: graph.update(nodes=[{}] * (MOST_NODES + 1))),
        "expected a list of at most",
        0,
    ),
    "list": (with_member(FLAT, b"[]", flat_members), "expected a mapping.*got a list of 0", 0),
    "not UTF-8": (with_member(FLAT, b"\xff\xfe{", flat_members), "is not JSON|lacks", 0),
    "compressed": (
        lambda: archive(flat_members(), zipfile.ZIP_DEFLATED),
        "its archive is compressed",
        0,
    ),
    "members of one name": (
        lambda: archive([*flat_members().items(), (FLAT, b"{}")]),
        "of the same name",
        0,
    ),
    "larger than it is": (larger_than_it_is, "would unpack to", 0),
    "cut off": (lambda: archive(flat_members())[:-40], "its archive", 0),
    "no program": (lambda: archive({"x": b""}), "is not laid out as torch.export.save", 0),
}


USABLE = {name: case[:2] for name, case in CASES.items() if HAS_FOLDERS or not case[2]}
