"""Wrong arguments: the error is one line that names the argument."""

import pytest
import torch

from zscgan_ext.ops import (
    batch_norm_distance,
    batch_norm_statistics,
    fake_quantize,
    frozen_batch_norm,
    frozen_batch_norm_with_stats,
    lsq_fake_quantize,
    lsq_fake_quantize_foreach,
    update_min_max,
)
from zscgan_ext.ops.checks import check_per_channel

X = torch.zeros(2, 3, 4)
ONE, THREE = torch.ones(1), torch.ones(3)

# (axis, scale, zero_point, bounds, x) that differ from good ones -> the argument that is named
QUANTIZER_CASES = {
    "x-integers": (
        {"x": X.int()},
        "x: expected float32, float16, bfloat16 or float64, got torch.int32",
    ),
    "x-complex": (
        {"x": X.to(torch.complex64)},
        "x: expected float32, float16, bfloat16 or float64, got torch.complex64",
    ),
    "axis-above": ({"axis": 3}, "axis: expected one of 3 dimensions, got 3"),
    "axis-below": ({"axis": -4}, "axis: expected one of 3 dimensions, got -4"),
    "scale-too-long": ({"scale": torch.ones(4)}, r"scale: expected shape \(3,\), got \(4,\)"),
    "scale-too-short": ({"scale": ONE}, r"scale: expected shape \(3,\), got \(1,\)"),
    "scale-two-dimensions": ({"scale": torch.ones(3, 1)}, r"scale: expected shape \(\d,\), got \("),
    "scale-half": (
        {"scale": THREE.half()},
        "scale: expected dtype torch.float32, got torch.float16",
    ),
    "scale-of-double": (
        {"x": X.double()},
        "scale: expected dtype torch.float64, got torch.float32",
    ),
    "scale-device": (
        {"scale": torch.ones(3, device="meta")},
        "scale: expected on cpu like x, got on meta",
    ),
    "scale-strided": (
        {"scale": torch.ones(6)[::2]},
        r"scale: expected contiguous memory, got strides \(2,\)",
    ),
    "zero-point-length": ({"zero_point": ONE}, r"zero_point: expected shape \(\d,\), got \("),
    "zero-point-integers": (
        {"zero_point": THREE.int()},
        "zero_point: expected dtype torch.float32, got torch.int32",
    ),
    "zero-point-device": (
        {"zero_point": torch.ones(3, device="meta")},
        "zero_point: expected on cpu like x, got on meta",
    ),
    "zero-point-expanded": (
        {"zero_point": ONE.expand(3)},
        r"zero_point: expected contiguous memory, got strides \(0,\)",
    ),
    "bounds-equal": ({"quant_min": 7}, "quant_min: expected a value below quant_max, 7, got 7"),
    "bounds-swapped": ({"quant_min": 8}, "quant_min: expected a value below quant_max, 7, got 8"),
}


@pytest.mark.parametrize("op", [fake_quantize, lsq_fake_quantize], ids=lambda op: op.__name__)
@pytest.mark.parametrize("case", QUANTIZER_CASES)
def test_quantizers(op, case):
    change, message = QUANTIZER_CASES[case]
    good = {"x": X, "scale": THREE, "zero_point": THREE, "axis": 1, "quant_min": -8, "quant_max": 7}
    op(**good)
    with pytest.raises(ValueError, match=f"^{message}"):
        op(**(good | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "gelu"}, "activation: expected one of none, relu, relu6, got 'gelu'"),
        ({"bias": torch.ones(2)}, r"bias: expected shape \(3,\), got \(2,\)"),
        ({"bias": THREE.half()}, "bias: expected dtype torch.float32, got torch.float16"),
        ({"bias": torch.ones(3, device="meta")}, "bias: expected on cpu like x, got on meta"),
        ({"bias": torch.ones(6)[::2]}, r"bias: expected contiguous memory, got strides \(2,\)"),
        (
            {"x": THREE},
            r"bias: expected x of \[N, C, ...\] and axis None or 1, got \(3,\) and None",
        ),
        (
            {"axis": 2, "scale": torch.ones(4), "zero_point": torch.ones(4)},
            r"bias: expected x of \[N, C, ...\] and axis None or 1, got",
        ),
    ],
    ids=["activation", "length", "half", "device", "strided", "one-dimension", "axis"],
)
def test_activation_and_bias(change, message):
    good = {"x": X, "scale": ONE, "zero_point": ONE, "axis": None, "quant_min": -8, "quant_max": 7}
    good |= {"activation": "relu", "bias": THREE}
    lsq_fake_quantize(**good)
    with pytest.raises(ValueError, match=f"^{message}"):
        lsq_fake_quantize(**(good | change))


@pytest.mark.parametrize("axis", [None, -1, 0, 2])
def test_scale_counts_the_channels_of_its_axis(axis):
    count = 1 if axis is None else X.shape[axis]
    fake_quantize(X, torch.ones(count), torch.zeros(count), -8, 7, axis)
    with pytest.raises(ValueError, match=rf"^scale: expected shape \({count},\), got \(7,\)"):
        fake_quantize(X, torch.ones(7), torch.zeros(count), -8, 7, axis)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("running_min", torch.zeros(4), r"running_min: expected shape \(\d,\), got \("),
        (
            "running_max",
            torch.zeros(3, dtype=torch.float64),
            "running_max: expected dtype torch.float32, got torch",
        ),
        ("scale", torch.zeros(3, device="meta"), "scale: expected on cpu like x, got on meta"),
        ("zero_point", torch.zeros(3).int(), "zero_point: expected dtype torch.float32, got torch"),
        (
            "running_min",
            torch.zeros(6)[::2],
            "running_min: expected contiguous memory, got strides",
        ),
        ("axis", 5, "axis: expected one of 3 dimensions, got 5"),
        ("x", X.int(), "x: expected float32, float16"),
        ("quant_max", -8, "quant_min: expected a value below quant_max, -8, got -8"),
    ],
)
def test_observe(name, values, message):
    good = {name: torch.zeros(3) for name in ("running_min", "running_max", "scale", "zero_point")}
    good |= {"x": X, "averaging_constant": 0.1, "quant_min": -8, "quant_max": 7}
    good |= {"symmetric": False, "axis": 1}
    update_min_max(**good)
    with pytest.raises(ValueError, match=f"^{message}"):
        update_min_max(**(good | {name: values}))


@pytest.mark.parametrize(
    ("x", "mean_hint", "message"),
    [
        (X.long(), THREE, "x: expected float32, float16, bfloat16 or float64, got torch.int64"),
        (torch.zeros(3), THREE, r"x: expected shape \[N, C, ...\], got \(3,\)"),
        (X, ONE, r"mean_hint: expected shape \(3,\), got \(1,\)"),
        (X, THREE.double(), "mean_hint: expected dtype torch.float32, got torch.float64"),
        (X.double(), THREE, "mean_hint: expected dtype torch.float64, got torch.float32"),
        (X, torch.ones(3, device="meta"), "mean_hint: expected on cpu like x, got on meta"),
        (X, torch.ones(6)[::2], "mean_hint: expected contiguous memory, got strides"),
    ],
    ids=["integers", "one-dimension", "length", "double", "single", "device", "strided"],
)
def test_batch_norm_statistics(x, mean_hint, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        batch_norm_statistics(x, mean_hint)


FROZEN_CASES = {
    "integers": (
        {"x": X.int()},
        "x: expected float32, float16, bfloat16 or float64, got torch.int32",
    ),
    "one-dimension": ({"x": THREE}, r"x: expected shape \[N, C, ...\], got \(3,\)"),
    "multiplier-length": ({"multiplier": ONE}, r"multiplier: expected shape \(3,\), got \(1,\)"),
    "multiplier-half": (
        {"multiplier": THREE.half()},
        "multiplier: expected dtype torch.float32, got torch.float16",
    ),
    "offset-double": (
        {"offset": THREE.double()},
        "offset: expected dtype torch.float32, got torch.float64",
    ),
    "offset-device": (
        {"offset": torch.ones(3, device="meta")},
        "offset: expected on cpu like x, got on meta",
    ),
    "activation": (
        {"activation": "gelu"},
        "activation: expected one of none, relu, relu6, got 'gelu'",
    ),
    "residual-shape": ({"residual": X[:1]}, "residual: expected the shape of x"),
    "residual-dtype": (
        {"residual": X.half()},
        "residual: expected the dtype of x, torch.float32, got torch.float16",
    ),
    "residual-device": (
        {"residual": X.to("meta")},
        "residual: expected on cpu like x, got on meta",
    ),
}


@pytest.mark.parametrize(
    "op", [frozen_batch_norm, frozen_batch_norm_with_stats], ids=["plain", "stats"]
)
@pytest.mark.parametrize("case", FROZEN_CASES)
def test_frozen_batch_norm(op, case):
    change, message = FROZEN_CASES[case]
    good = {"x": X, "multiplier": THREE, "offset": THREE, "activation": "relu", "residual": X}
    good |= {"mean_hint": THREE} if op is frozen_batch_norm_with_stats else {}
    op(**good)
    with pytest.raises(ValueError, match=f"^{message}"):
        op(**(good | change))


def test_frozen_batch_norm_mean_hint():
    with pytest.raises(ValueError, match=r"^mean_hint: expected shape \(3,\), got \(1,\)"):
        frozen_batch_norm_with_stats(X, THREE, THREE, ONE)


def test_frozen_batch_norm_under_autocast_needs_one_dtype():
    convolution = torch.nn.Conv1d(3, 3, 1)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(ValueError, match=r"^residual: expected the dtype of x"),
    ):
        frozen_batch_norm_with_stats(convolution(X), THREE, THREE, THREE, "relu", X)


def distance_arguments():
    """Two layers of three channels."""
    names = ("means", "variances", "running_means", "running_vars")
    return {name: [THREE, THREE] for name in names} | {"eps": [1e-5, 1e-5], "distance": "mse"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distance": "kl"}, "distance: expected one of gaussian_kl, mse, std_mse, l2, got 'kl'"),
        ({"eps": [1e-5]}, r"expected lists of one length above 0, got \[2, 2, 2, 2, 1\] entries"),
        (
            {"means": [THREE]},
            r"expected lists of one length above 0, got \[1, 2, 2, 2, 2\] entries",
        ),
        (
            {"variances": [THREE, ONE]},
            r"statistics: expected one shape \[C\], got \[\(3,\), \(1,\), \(3,\), \(3,\)\]",
        ),
        ({"means": [X, X]}, r"statistics: expected one shape \[C\], got"),
        (
            {"running_vars": [THREE, THREE.half()]},
            "statistics: expected float32 or float64 for all, got torch.float16",
        ),
        (
            {"running_means": [THREE, THREE.double()]},
            "statistics: expected float32 or float64 for all, got torch.float64",
        ),
        (
            {"running_vars": [THREE, torch.ones(3, device="meta")]},
            "statistics: expected one device, got cpu and meta",
        ),
    ],
    ids=["name", "eps", "count", "channels", "dimensions", "half", "mixed", "device"],
)
def test_batch_norm_distance(change, message):
    batch_norm_distance(**distance_arguments())
    with pytest.raises(ValueError, match=f"^{message}"):
        batch_norm_distance(**(distance_arguments() | change))


@pytest.mark.parametrize("count", [0, 1])
def test_batch_norm_distance_needs_a_layer_with_channels(count):
    column = [torch.ones(0)] * count
    with pytest.raises(ValueError, match=r"above 0|expected one shape"):
        batch_norm_distance(column, column, column, column, [1e-5] * count)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"quant_mins": [-8]},
            r"expected lists of one length above 0, got \[2, 2, 2, 1, 2, 2\] entries",
        ),
        ({"xs": []}, r"expected lists of one length above 0, got \[0, "),
        ({"scales": [torch.ones(2), torch.ones(5)]}, r"scale: expected shape \(\d,\), got \("),
        (
            {"zero_points": [torch.ones(2), torch.ones(3)]},
            r"zero_point: expected shape \(\d,\), got \(",
        ),
        ({"quant_maxs": [7, -8]}, "quant_min: expected a value below quant_max, -8, got -8"),
        (
            {"xs": [X.int(), X.int()]},
            "x: expected float32, float16, bfloat16 or float64, got torch.int32",
        ),
        ({"xs": [X, X.half()]}, "xs: expected one dtype, got torch.float32 and torch.float16"),
        ({"xs": [X, X.to("meta")]}, "xs: expected one device, got cpu and meta"),
        ({"xs": [X, ONE[0]]}, "axis: expected one of 0 dimensions, got 0"),
    ],
    ids=["count", "none", "scale", "zero-point", "bounds", "integers", "mixed", "device", "scalar"],
)
def test_lsq_fake_quantize_foreach(change, message):
    columns = {"xs": [X, X], "scales": [torch.ones(2)] * 2, "zero_points": [torch.ones(2)] * 2}
    columns |= {"quant_mins": [-8] * 2, "quant_maxs": [7] * 2, "gradient_scales": [1.0] * 2}
    lsq_fake_quantize_foreach(**columns)
    with pytest.raises(ValueError, match=f"^{message}"):
        lsq_fake_quantize_foreach(**(columns | change))


def test_scalars_count_as_one_channel():
    check_per_channel("scale", torch.tensor(1.0), 1, X, torch.float32)
    assert fake_quantize(X, torch.tensor(1.0), torch.tensor(0.0), -8, 7).shape == X.shape


# What only the functions of the package checked would be read beyond its end, or as other numbers.
SHORT, STRIDED, HALF = torch.ones(2), torch.ones(6)[::2], torch.ones(3).half()
RAW = {
    "fake_quantize": lambda bad: (X, bad, THREE, -8, 7, 1, False),
    "lsq_fake_quantize": lambda bad: (X, THREE, bad, -8, 7, 1, 1.0),
    "lsq_fake_quantize_foreach": lambda bad: ([torch.ones(3, 4)], [THREE], [bad], [0], [7], [1.0]),
    "update_min_max": lambda bad: (X, *(THREE.clone() for _ in range(3)), bad, 0.1, 0, 7, False, 1),
    "batch_norm_statistics": lambda bad: (X, bad),
    "frozen_batch_norm": lambda bad: (X, THREE, bad, None, "none"),
    "frozen_batch_norm_with_stats": lambda bad: (X, THREE, THREE, bad, None, "none"),
    "batch_norm_distance": lambda bad: ([THREE], [THREE], [THREE], [bad], [1e-5], "mse"),
}


@pytest.mark.parametrize("bad", [SHORT, STRIDED, HALF], ids=["short", "strided", "half"])
@pytest.mark.parametrize("name", RAW)
def test_ops_that_are_called_as_torch_registers_them_check_too(name, bad):
    op = getattr(torch.ops.zscgan_ext, name)
    op(*RAW[name](THREE.clone()))
    if name == "batch_norm_distance" and bad is STRIDED:
        bad = STRIDED[:2]  # strides do not matter there
    expected = "one shape|shape|float32 or float64|dtype|contiguous memory"
    with pytest.raises(ValueError, match=f"expected ({expected})"):
        op(*RAW[name](bad))


def test_registered_ops_count_dimensions_from_the_start():
    for name, rest in (("fake_quantize", (False,)), ("lsq_fake_quantize", (1.0,))):
        op = getattr(torch.ops.zscgan_ext, name)
        with pytest.raises(ValueError, match=r"^axis: expected 1, got -2$"):
            op(X, THREE, THREE, -8, 7, -2, *rest)
