"""The index space of the kernels: which memory fits, and what is copied."""

import pytest
import torch
from tensors import DTYPES, LAYOUTS, dtype_name

from zscgan_ext.ops.layout import (
    Shape3,
    broadcast_per_channel,
    compute_dtype,
    ensure_dense,
    fits,
    is_channels_last,
    is_dense,
    shape3_of,
    with_strides,
)

SHAPES = [(6,), (4, 5), (1, 5), (5, 1), (2, 3, 4), (2, 3, 4, 5), (2, 3, 1, 1), (2, 3, 2, 4, 5)]


def counted(shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_extent_gives_every_element_its_channel(shape, layout):
    for axis in range(len(shape)):
        x = ensure_dense(LAYOUTS[layout](counted(shape)), axis)
        extent = shape3_of(x, axis)
        channel_of = torch.empty_strided(shape, x.stride(), dtype=torch.int64)
        channel_of.copy_(broadcast_per_channel(torch.arange(shape[axis]), x, axis).expand(shape))
        in_memory = channel_of.as_strided((x.numel(),), (1,))
        places = torch.arange(x.numel())
        assert torch.equal(in_memory, places // extent.inner % extent.channels)
        assert extent.outer * extent.channels * extent.inner == x.numel()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_keeps_the_values(shape, layout):
    x = LAYOUTS[layout](counted(shape))
    for axis in (None, *range(len(shape))):
        y = ensure_dense(x, axis)
        assert torch.equal(y, x)
        assert fits(y, axis)
        assert (y is x) == fits(x, axis)


def test_the_stride_of_one_channel_does_not_matter():
    x = counted((2, 3, 4, 5)).to(memory_format=torch.channels_last)[0::2]
    assert x.stride(0) == 120
    assert ensure_dense(x, 0) is x
    arguments = (x, torch.tensor([0.5]), torch.zeros(1), -8, 7, 0, True)
    torch.library.opcheck(torch.ops.zscgan_ext.fake_quantize.default, arguments)


@pytest.mark.parametrize(
    ("shape", "layout", "axis", "expected"),
    [
        ((2, 3, 4, 5), "contiguous", 1, (2, 3, 20)),
        ((2, 3, 4, 5), "channels_last", 1, (40, 3, 1)),
        ((2, 3, 4, 5), "contiguous", 0, (1, 2, 60)),
        ((2, 3, 4, 5), "contiguous", 3, (24, 5, 1)),
        ((2, 3, 4, 5), "channels_last", None, (1, 1, 120)),
        ((2, 3), "contiguous", 1, (2, 3, 1)),
        ((6,), "contiguous", 0, (1, 6, 1)),
        ((0, 3, 4), "contiguous", 1, (0, 3, 0)),
        ((2, 0, 4), "contiguous", 1, (0, 0, 0)),
        ((), "contiguous", None, (1, 1, 1)),
    ],
    ids=str,
)
def test_extents(shape, layout, axis, expected):
    assert shape3_of(LAYOUTS[layout](counted(shape)), axis) == Shape3(*expected)


def test_what_is_dense():
    x = counted((2, 3, 4, 5))
    assert is_dense(x)
    assert is_dense(x.permute(3, 0, 2, 1))
    assert is_dense(x[:, 1:2].contiguous())
    assert is_dense(x[1:])
    assert not is_dense(x[:, 1:])
    assert not is_dense(x[:1, :1].expand(2, 3, 4, 5))
    assert not is_dense(x[..., ::2])


def test_what_is_channels_last():
    x = counted((2, 3, 4, 5))
    assert is_channels_last(LAYOUTS["channels_last"](x))
    assert is_channels_last(LAYOUTS["channels_last"](counted((2, 3, 4))))
    assert is_channels_last(LAYOUTS["channels_last"](counted((2, 3, 2, 4, 5))))
    assert not is_channels_last(x)
    assert not is_channels_last(x.transpose(0, 1))
    assert not is_channels_last(counted((3, 2)).t())


def test_channels_last_survives_a_copy():
    wide = LAYOUTS["channels_last"](counted((2, 3, 4, 10)))
    copy = ensure_dense(wide[..., ::2], 1)
    assert is_channels_last(copy)
    assert torch.equal(copy, wide[..., ::2])


def test_with_strides_copies_only_what_differs():
    x = counted((2, 3, 4, 5))
    assert with_strides(x, x.stride()) is x
    y = with_strides(x, (60, 1, 15, 3))
    assert y.stride() == (60, 1, 15, 3)
    assert torch.equal(x, y)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_compute_dtype(dtype):
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert compute_dtype(torch.empty(0, dtype=dtype)) == expected
