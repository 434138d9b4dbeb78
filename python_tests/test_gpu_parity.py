"""Every kernel on every device against plain torch on the CPU.

The shapes are small and reach every branch of the CUDA kernels, so that this file is also what
`benchmarks/checks/gpu_check.sh` runs under the sanitizers.
"""

from types import SimpleNamespace

import pytest
import torch
from kernel_results import all_results, make_inputs, statistics_results
from tensors import DEVICES, HALF_DTYPES, dtype_name, relative_error, same_bits

from zscgan_ext.ops import native, reference

# [N, C, H, W]; what the reductions make of them by rows (NCHW) and by columns (channels_last).
SHAPES = {
    "few": (3, 20, 7, 7),  # a warp for a channel; two rows joined to be whole octets
    "odd": (2, 3, 60, 61),  # a block for a channel; eight rows joined, and split over blocks
    "split": (4, 16, 48, 48),  # a channel split over blocks; the same
    "wide": (2, 200, 6, 6),  # octets that cross rows; several tiles, the last one octet wide
}
SUMMED = ("grad_scale", "grad_zero_point", "many_grad_scale", "many_grad_zero_point")
SUMMED += ("fused_grad_scale", "fused_grad_zero_point", "fused_grad_bias")
SUMMED += ("noisy_sum", "noisy_product_sum")
# What differs from the reference by the rounding of the last operation.
ROUNDED = ("statistics_grad_x", "gaussian_kl", "mse", "std_mse", "l2", "frozen_grad_x")
WIDE = ("mean", "variance", *ROUNDED)  # compared with float64


def is_one_of(name, prefixes):
    """Return True if a result's name is one of these, or one of these and what follows."""
    return name in prefixes or any(name.startswith(f"{prefix}_") for prefix in prefixes)


def assert_like_plain_torch(inputs, found):
    """Compare results with those of the reference on the CPU."""
    on_cpu = inputs.mapped(torch.Tensor.cpu)
    expected = all_results(on_cpu, reference)
    if inputs.x.dim() > 1:
        expected |= statistics_results(on_cpu.mapped(torch.Tensor.double), reference)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        actual, wanted = values.cpu(), expected[name]
        if is_one_of(name, SUMMED) or name in ("mean", "variance"):
            assert relative_error(actual, wanted) < 1e-6, name
        elif is_one_of(name, ROUNDED):
            tolerance = 2 * torch.finfo(actual.dtype).eps
            limit = tolerance * wanted.abs().max().item()
            torch.testing.assert_close(actual.double(), wanted.double(), rtol=tolerance, atol=limit)
        else:
            assert same_bits(actual, wanted), name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES], ids=dtype_name)
def test_per_channel(device, layout, shape, dtype):
    inputs = make_inputs(SHAPES[shape], 1, layout, dtype, device)
    assert_like_plain_torch(inputs, all_results(inputs))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "misaligned"])
@pytest.mark.parametrize("size", [2307, 70001])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF_DTYPES], ids=dtype_name)
def test_per_tensor(device, layout, size, dtype):
    inputs = make_inputs((size,), None, layout, dtype, device)
    assert_like_plain_torch(inputs, all_results(inputs))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", ["few", "odd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_misaligned_rows(device, shape, dtype):
    inputs = make_inputs(SHAPES[shape], 1, "misaligned", dtype, device)
    assert_like_plain_torch(inputs, all_results(inputs))


def test_no_kernel_is_forgotten():
    called = set()

    def recorded(name):
        called.add(name)
        return getattr(native, name)

    module = type("Recorder", (SimpleNamespace,), {"__getattr__": lambda _, name: recorded(name)})()
    all_results(make_inputs(SHAPES["few"], 1), module)
    assert called == set(native.__all__) == set(reference.__all__)
