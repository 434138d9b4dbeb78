"""Tensors of more than 2^31 elements: copies of one sample, whose results are known.

On the CPU a few copies show that the comparison holds.
"""

import pytest
import torch
from kernel_results import Inputs, make_inputs, quantization_results, statistics_results
from tensors import DEVICES, NO_GPU, relative_error, same_bits

from zscgan_ext.ops import reference

SAMPLE = (1, 16, 64, 64)
COPIES = {"cpu": 3, "cuda": 2**31 // (16 * 64 * 64) + 1}
NEEDED_BYTES = 32 * 2**30
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(params=DEVICES)
def device(request):
    """Name the device, where a GPU has memory enough."""
    if request.param == "cuda":
        if torch.cuda.mem_get_info()[0] < NEEDED_BYTES:
            pytest.skip(f"{NO_GPU} with {NEEDED_BYTES} bytes free")
        yield request.param
        torch.cuda.empty_cache()
    else:
        yield request.param


def repeated(sample: Inputs, device: str, layout: str) -> Inputs:
    """Return many copies of the sample as one batch."""

    def batch(values):
        if values.dim() == 1:
            return values.to(device)
        copies = values.to(device).expand(COPIES[device], *values.shape[1:])
        return copies.contiguous(memory_format=FORMATS[layout])

    return sample.mapped(batch)


def assert_copies(values, one):
    """Require every sample of a batch to have the bits of the only one."""
    first = values[:1].cpu()
    assert same_bits(first, one)
    assert bool((values == first.to(values.device)).all())


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("axis", [1, None], ids=["per-channel", "per-tensor"])
def test_quantization(device, layout, axis):
    one = make_inputs(SAMPLE, axis, layout, torch.bfloat16)
    expected = quantization_results(one, reference)
    found = quantization_results(repeated(one, device, layout))
    for name in ("y", "learned", "masked", "grad_x"):
        assert_copies(found.pop(name), expected[name])
    mask = expected["mask"].to(device)
    assert bool((found["mask"].view(COPIES[device], -1) == mask).all())
    assert same_bits(found["state"].cpu(), expected["state"])
    for name in ("grad_scale", "grad_zero_point"):
        wanted = COPIES[device] * expected[name].double()
        assert relative_error(found[name].cpu(), wanted) < 1e-5, name


@pytest.mark.parametrize("layout", FORMATS)
def test_statistics(device, layout):
    one = make_inputs(SAMPLE, 1, layout, torch.bfloat16)
    expected = statistics_results(one.mapped(torch.Tensor.double), reference)
    found = statistics_results(repeated(one, device, layout))
    for name in ("mean", "variance"):
        assert relative_error(found[name].cpu(), expected[name]) < 1e-5, name
    gradient = found["statistics_grad_x"]
    first = gradient[:1].cpu()
    wanted = expected["statistics_grad_x"] / COPIES[device]
    limit = 2 * torch.finfo(torch.bfloat16).eps * wanted.abs().max().item()
    torch.testing.assert_close(first.double(), wanted, rtol=0, atol=limit)
    assert bool((gradient == first.to(device)).all())
