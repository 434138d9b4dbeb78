"""Data-free quantization of image classifiers with a conditional generator."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zscgan_ext.export.quantized_file import load_quantized

__all__ = ["load_quantized"]


def __getattr__(name: str) -> Any:
    """Import what the package offers when it is asked for: programs start without it."""
    if name == "load_quantized":
        from zscgan_ext.export.quantized_file import load_quantized

        return load_quantized
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
