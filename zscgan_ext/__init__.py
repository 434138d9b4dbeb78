"""Data-free quantization of image classifiers with a conditional generator."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zscgan_ext.errors import CURRENT_FOLDER_IS_GONE, current_folder_is_gone

if TYPE_CHECKING:
    from zscgan_ext.api import (
        evaluate,
        export,
        fine_tune,
        generate_images,
        load_classifier,
        quantize,
        train_generator,
    )
    from zscgan_ext.config.configs import (
        ExecutionConfig,
        FineTuningConfig,
        GeneratorConfig,
        QuantizationConfig,
        RunConfig,
    )
    from zscgan_ext.errors import InputError
    from zscgan_ext.export.quantized_file import load_quantized

__version__ = "0.1.0"

__all__ = [
    "ExecutionConfig",
    "FineTuningConfig",
    "GeneratorConfig",
    "InputError",
    "QuantizationConfig",
    "RunConfig",
    "evaluate",
    "export",
    "fine_tune",
    "generate_images",
    "load_classifier",
    "load_quantized",
    "quantize",
    "train_generator",
]
CONFIGS = "zscgan_ext.config.configs"
HOMES = {  # all others are in the API
    "ExecutionConfig": CONFIGS,
    "FineTuningConfig": CONFIGS,
    "GeneratorConfig": CONFIGS,
    "QuantizationConfig": CONFIGS,
    "RunConfig": CONFIGS,
    "InputError": "zscgan_ext.errors",
    "load_quantized": "zscgan_ext.export.quantized_file",
}


class Package(ModuleType):
    """The package, whose `evaluate` and `export` are functions.

    There are programs of these names too, and importing one sets it as an attribute here.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, but no program in the place of a function."""
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is asked for: programs start without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(HOMES.get(name, "zscgan_ext.api")), name)
    setattr(sys.modules[__name__], name, value)
    return value


sys.modules[__name__].__class__ = Package

# A program of the package is about to start, which is when torch may end the process without a word
# of the reason.
if sys.argv[:1] == ["-m"] and current_folder_is_gone():
    print(f"error: {CURRENT_FOLDER_IS_GONE}", file=sys.stderr)
    sys.exit(2)
