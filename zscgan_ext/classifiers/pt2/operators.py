"""The operators of ATen that a program may call: those that can be converted, and a few more.

ATen has some 3,000 operators. Several of them trust their arguments, or do something beside
computing: they write files, or change what memory belongs to a tensor. So only known ones are
accepted: those that the normal form has a function or a rule for, and those below.
"""

import functools
import re

import torch

from zscgan_ext.classifiers.aten_operators import CALLS
from zscgan_ext.classifiers.normal_form.operators import ASSERTIONS, OPERATORS, name_of
from zscgan_ext.classifiers.normal_form.rules import RULES

# Not converted, but computed in advance where they depend on no image, or left as they are.
ALSO_ACCEPTED = {
    # ---- sizes and numbers
    *("sym_size", "sym_numel", "item", "_local_scalar_dense", "scalar_tensor"),
    # ---- tables of positions and the like
    *("arange", "linspace", "eye", "zeros", "ones", "full", "zeros_like", "ones_like"),
    *("full_like", "new_zeros", "new_ones", "new_full", "meshgrid", "tril", "triu"),
    # ---- elements and parts
    *("index", "_unsafe_index", "gather"),
    # ---- what torch's decompositions give for layers
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_convolution", "_prelu_kernel"),
    *("native_layer_norm", "native_group_norm", "log_sigmoid_forward"),
    *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
    "_scaled_dot_product_flash_attention_for_cpu",
    # ---- mathematics of single numbers
    *("trunc", "fmod", "isnan", "isinf", "tan", "atan", "atan2", "sinh", "cosh", "exp2"),
    *("logical_xor", "bitwise_xor", "rsqrt", "hypot", "frac", "nan_to_num"),
}
# Converted, but not checked by ATen: sizes and strides reach beyond the tensor.
REFUSED = ("_reshape_alias",)
# What arguments may be, each also optional or a list; a program cannot give any other generator
# of random numbers than the default. Operators of the same names take dictionaries, say.
KINDS = re.compile(
    r"(Optional\[|List\[)*(Tensor|int|SymInt|float|bool|number|str|ScalarType|Layout|Device"
    r"|MemoryFormat|Generator)\]*"
)


@functools.lru_cache
def accepted_operator(name: str, overload: str) -> torch._ops.OpOverload | None:
    """Return an operator of ATen by its name, None if it is not accepted or there is none."""
    packet = getattr(torch.ops.aten, name, None)
    if not isinstance(packet, torch._ops.OpOverloadPacket) or overload not in packet.overloads():
        return None
    operator: torch._ops.OpOverload = getattr(packet, overload)
    return operator if is_known(name, operator) and is_computing(name, operator) else None


def is_known(name: str, operator: torch._ops.OpOverload) -> bool:
    """Return True if an operator can be converted, or is one of the others that are accepted."""
    called = name_of(operator)
    convertible = called in RULES or called in OPERATORS or called in ASSERTIONS or name in CALLS
    return (convertible and name not in REFUSED) or name in ALSO_ACCEPTED


def is_computing(name: str, operator: torch._ops.OpOverload) -> bool:
    """Return True if an operator computes tensors or numbers from those that it is given.

    Others of the same name work on text and lists, or write into a tensor that they are given.
    """
    arguments = operator._schema.arguments
    kinds = [str(argument.real_type) for argument in arguments]
    takes_any_number = "..." in str(operator._schema)
    is_of_scripts = operator._overloadname.startswith("prim_")  # they trust their arguments
    if takes_any_number or is_of_scripts or any(argument.is_out for argument in arguments):
        return False
    if not all(KINDS.fullmatch(kind) for kind in kinds):
        return False
    return name in (*ALSO_ACCEPTED, *ASSERTIONS) or any("Tensor" in kind for kind in kinds)
