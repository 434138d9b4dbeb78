"""Resizing and warping of images as ONNX nodes."""

from typing import Any

import numpy as np

from zscgan_ext.export.onnx.call import Call, known, preserving_qparams, reshaped
from zscgan_ext.export.onnx.graph import Value
from zscgan_ext.export.onnx.pooling import adaptive_average_pool

# Modes of torch that take the nearest pixel, as ONNX describes them.
NEAREST = {
    "nearest": {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    "nearest-exact": {
        "coordinate_transformation_mode": "half_pixel",
        "nearest_mode": "round_prefer_ceil",
    },
}
SMOOTH = {"linear": "linear", "bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}
GRID_MODES = {"bilinear": "linear", "nearest": "nearest", "bicubic": "cubic"}


def resize(call: Call) -> Value:
    """Resize images: to the nearest pixel, which keeps integers, or smoothly."""
    mode = call.option("mode", "nearest")
    corners = call.option("align_corners", None)
    smooths = call.module is None and call.argument("antialias", False)
    if mode == "area":
        return adaptive_average_pool(len(call.shape()) - 2)(call)
    if mode not in (*NEAREST, *SMOOTH) or smooths:
        raise call.unsupported(f"resizes in the mode {mode!r} with antialias={bool(smooths)}")
    scales = np.array([1, 1, *resizing_factors(call)], np.float32)
    inputs = ["", call.graph.initializer(f"{call.name}_scales", scales)]
    if mode in NEAREST:
        return preserving_qparams(
            call, lambda x: call.add("Resize", [x, *inputs], mode="nearest", **NEAREST[mode])
        )
    options: dict[str, Any] = {"mode": SMOOTH[mode]}
    if mode == "bicubic":
        options["cubic_coeff_a"] = -0.75
    transformation = "align_corners" if corners else "half_pixel"
    options["coordinate_transformation_mode"] = transformation
    return call.add("Resize", [call.floating(), *inputs], **options)


def resizing_factors(call: Call) -> list[float]:
    """Return how much higher and wider images become: as given, else by the trial run's sizes."""
    before, after = call.input_shape()[2:], call.shape()[2:]
    given = call.option("scale_factor", None)
    if given is not None and not call.option("recompute_scale_factor", None):
        several = isinstance(given, tuple | list)
        return [float(f) for f in (given if several else (given,) * len(after))]
    return [known(b) / known(a) for a, b in zip(before, after, strict=True)]


def grid_sample(call: Call) -> Value:
    """Take pixels at the places that a grid names."""
    mode, corners = call.argument("mode", "bilinear"), call.argument("align_corners", False)
    if len(call.input_shape()) != 4:
        raise call.unsupported("takes volumes")
    grid = call.as_floating(call.raw("grid"))
    return call.add(
        "GridSample",
        [call.floating(), grid],
        mode=GRID_MODES[mode],
        padding_mode=call.argument("padding_mode", "zeros"),
        align_corners=int(bool(corners)),
    )


def affine_grid(call: Call) -> Value:
    """Make the grid of an affine map, for `grid_sample`."""
    _, *sizes, two = call.shape()
    if two != 2:
        raise call.unsupported("makes a grid of volumes")
    height, width = map(known, sizes)
    corners = call.argument("align_corners", False)
    rows, columns = (centers(size, bool(corners)) for size in (height, width))
    points = np.ones((height, width, 3), np.float32)
    points[..., 0], points[..., 1] = columns[None], rows[:, None]
    base = call.graph.initializer(f"{call.name}_points", points.reshape(-1, 3))
    theta = call.add("Transpose", [call.as_floating(call.raw("theta"))], "theta", perm=[0, 2, 1])
    return reshaped(call, call.add("MatMul", [base, theta], "places"), call.shape())


def centers(size: int, corners: bool) -> np.ndarray:
    """Return where pixels lie between -1 and 1, their centers or the corners of the image."""
    if corners:
        return np.linspace(-1, 1, size, dtype=np.float32) if size > 1 else np.zeros(1, np.float32)
    return ((2 * np.arange(size, dtype=np.float32) + 1) / size - 1).astype(np.float32)
