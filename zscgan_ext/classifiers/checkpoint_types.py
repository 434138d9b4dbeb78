"""What checkpoints of training scripts hold beside tensors, read without any class that they name.

A pickle names classes and functions, and whoever reads it calls them. Here every name of the list
stands for a class of this module that takes anything and keeps nothing: nothing of what a file
names is imported or called, whatever it hands over.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

# The names of a library's classes, each by the modules that versions of it had them in.
NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
LIGHTNING_MODULES = (
    *("pytorch_lightning.utilities.parsing", "lightning.pytorch.utilities.parsing"),
    *("lightning.fabric.utilities.data", "lightning_fabric.utilities.data"),
)
OMEGACONF_NODES = (
    *("AnyNode", "StringNode", "IntegerNode", "FloatNode", "BooleanNode", "BytesNode"),
    *("PathNode", "EnumNode", "InterpolationResultNode"),
)
PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
PLAIN_TYPES = (
    *("argparse.Namespace", "types.SimpleNamespace", "typing.Any", "uuid.UUID"),
    *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in PATHS),
    *("decimal.Decimal", "fractions.Fraction"),
    *(f"datetime.{name}" for name in ("date", "time", "datetime", "timedelta", "timezone")),
    *(f"builtins.{name}" for name in ("bool", "int", "float", "str", "bytes", "list", "dict")),
    *("builtins.tuple", "builtins.frozenset", "builtins.range", "builtins.slice"),
    *("numpy.dtype", "numpy.ndarray"),
    *(f"{module}.{name}" for module in NUMPY_MODULES for name in ("scalar", "_reconstruct")),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
    *(f"omegaconf.nodes.{name}" for name in OMEGACONF_NODES),
)
PLAIN_MAPPINGS = (
    *("collections.defaultdict", "yacs.config.CfgNode", "easydict.EasyDict", "addict.addict.Dict"),
    *(f"{module}.AttributeDict" for module in LIGHTNING_MODULES),
)
PLAIN_SEQUENCES = ("collections.deque",)


class PlainObject:
    """Stands for an object that is no tensor, of which nothing is kept."""

    def __new__(cls, *_: Any, **__: Any) -> "PlainObject":
        """Take any arguments."""
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        """Take any state."""


class PlainMapping:
    """Stands for a class of mappings: calling it gives an `OrderedDict`, whatever the arguments."""

    def __new__(cls, *_: Any) -> Any:
        """Return an empty mapping, which the items in the file then fill."""
        return OrderedDict()


class PlainSequence:
    """Stands for a class of sequences: calling it gives a list, whatever the arguments."""

    def __new__(cls, *_: Any) -> Any:
        """Return an empty list, which the items in the file then fill."""
        return []


def readable_types() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Return the list for `torch.serialization.safe_globals`: what stands for each name."""
    return [
        *((PlainObject, name) for name in PLAIN_TYPES),
        *((PlainMapping, name) for name in PLAIN_MAPPINGS),
        *((PlainSequence, name) for name in PLAIN_SEQUENCES),
    ]
