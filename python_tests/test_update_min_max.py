"""`observe` against torch.aminmax and the moving-average observers of torch.ao."""

import math

import pytest
import torch
from tensors import DEVICES, DTYPES, LAYOUTS, SIZES, dtype_name, same_bits, same_values, sample
from torch.ao.quantization import (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
)

from zscgan_ext.ops import update_min_max

pytestmark = pytest.mark.usefixtures("implementation")

# symmetric -> what torch.ao calls it for one range in all, and for one per channel
SCHEMES = {
    False: (torch.per_tensor_affine, torch.per_channel_affine),
    True: (torch.per_tensor_symmetric, torch.per_channel_symmetric),
}


def new_state(count, device="cpu"):
    """Running minimum and maximum before the first observation, and room for a quantizer."""
    infinite = torch.full((count,), math.inf, device=device)
    return infinite, -infinite, torch.zeros(count, device=device), torch.zeros(count, device=device)


def extremes(x, axis):
    """Minimum and maximum of each channel by torch.aminmax, in float32."""
    if axis is None:
        return tuple(v.reshape(1).float() for v in torch.aminmax(x))
    rows = x.movedim(axis, 0).reshape(x.shape[axis], -1)
    return tuple(v.float() for v in torch.aminmax(rows, dim=1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("symmetric", [False, True], ids=["affine", "symmetric"])
@pytest.mark.parametrize("axis", [None, 0, 1], ids=["per-tensor", "axis-0", "axis-1"])
@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [(torch.quint8, 0, 255), (torch.qint8, -128, 127), (torch.qint8, -8, 7)],
    ids=["uint8", "int8", "int4"],
)
def test_follows_the_observers_of_torch(device, symmetric, axis, dtype, low, high):
    settings = {"averaging_constant": 0.1, "dtype": dtype, "quant_min": low, "quant_max": high}
    scheme = SCHEMES[symmetric][axis is not None]
    if axis is None:
        theirs = MovingAverageMinMaxObserver(qscheme=scheme, **settings)
    else:
        theirs = MovingAveragePerChannelMinMaxObserver(qscheme=scheme, ch_axis=axis, **settings)
    state = new_state(1 if axis is None else (3, 5)[axis], device)
    for step, shift in enumerate((0.0, 2.0, -3.0, 0.5)):
        x = sample(3, 5, 40, device=device, seed=step) + shift
        theirs(x.cpu())
        update_min_max(x, *state, 0.1, low, high, symmetric, axis)
        scale, zero_point = theirs.calculate_qparams()
        if symmetric and low == 0:  # torch halves the sum of customized bounds downwards
            zero_point = torch.full_like(zero_point, 128)
        expected = (theirs.min_val, theirs.max_val, scale, zero_point)
        for actual, value in zip(state, expected, strict=True):
            assert same_bits(actual.cpu(), value.float().reshape(-1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_first_observation_is_the_range_itself(device, dtype, layout, axis):
    x = LAYOUTS[layout](sample(3, 5, 4, 7, dtype=dtype, device=device))
    state = new_state(1 if axis is None else x.shape[axis], device)
    update_min_max(x, *state, 0.01, 0, 15, False, axis)
    assert same_bits(torch.stack(state[:2]), torch.stack(extremes(x, axis)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_vectors_and_tasks(device, size):
    for shape, axis in (((size,), None), ((size,), 0), ((size // 3 + 1, 3), 1), ((2, size), 0)):
        x = sample(*shape, device=device)
        for place in (0, -1):  # the extremes at either end are seen
            x.view(-1)[place] = 9 + place
            state = new_state(1 if axis is None else shape[axis], device)
            update_min_max(x, *state, 1.0, 0, 15, False, axis)
            assert same_bits(torch.stack(state[:2]), torch.stack(extremes(x, axis)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_range_holds_zero_and_scale_is_positive(device, symmetric):
    for x, scale, zero_point in (
        ([4.0, 6.0], 12 / 15 if symmetric else 6 / 15, 0 if symmetric else -8),
        ([-6.0, -4.0], 12 / 15 if symmetric else 6 / 15, 0 if symmetric else 7),
        ([0.0, 0.0], torch.finfo(torch.float32).eps, 0 if symmetric else -8),
        ([0.0, 1e-30], torch.finfo(torch.float32).eps, 0 if symmetric else -8),
    ):
        state = new_state(1, device)
        update_min_max(torch.tensor(x, device=device), *state, 1.0, -8, 7, symmetric)
        assert same_values(state[2], torch.tensor([scale], device=device))
        assert state[3].item() == zero_point


@pytest.mark.parametrize("device", DEVICES)
def test_symmetric_unsigned_range_has_its_zero_above_the_middle(device):
    for high, middle in ((255, 128), (15, 8), (3, 2)):
        state = new_state(1, device)
        update_min_max(sample(9, device=device), *state, 1.0, 0, high, True)
        assert state[3].item() == middle


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("place", [0, 13, 40, 5999])
@pytest.mark.parametrize("axis", [None, 0, 1], ids=["per-tensor", "rows", "columns"])
def test_nan_is_not_lost(device, dtype, place, axis):
    x = sample(2, 3000, dtype=dtype, device=device)
    x.view(-1)[place] = math.nan
    count = 1 if axis is None else x.shape[axis]
    state = new_state(count, device)
    update_min_max(x, *state, 0.1, 0, 15, False, axis)
    for values, expected in zip(state[:2], extremes(x, axis), strict=True):
        assert same_values(values, expected)
        assert values.isnan().sum() == 1
    assert torch.equal(state[2].isnan(), state[0].isnan())
    update_min_max(torch.zeros_like(x), *state, 0.1, 0, 15, False, axis)
    assert state[0].isnan().sum() == 1  # and it stays


@pytest.mark.parametrize("device", DEVICES)
def test_infinity_is_seen(device):
    state = new_state(1, device)
    update_min_max(torch.tensor([1.0, math.inf], device=device), *state, 0.1, 0, 15, False)
    assert (state[0].item(), state[1].item(), state[2].item()) == (1, math.inf, math.inf)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("sign", [-1, 1])
def test_one_bound_that_becomes_nan_is_not_lost(device, symmetric, sign):
    state, x = new_state(1, device), sign * torch.tensor([1.0, math.inf], device=device)
    for _ in range(2):  # averaging infinity with infinity gives NaN
        update_min_max(x, *state, 0.1, 0, 15, symmetric)
    assert [values.isnan().item() for values in state[:3]] == [sign < 0, sign > 0, True]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(0,), (0, 3, 4), (2, 0, 4), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("axis", [None, -1, 0])
def test_empty_changes_nothing(device, shape, axis):
    count = 1 if axis is None else shape[axis]
    state = [sample(count, device=device, seed=i) for i in range(4)]
    before = [values.clone() for values in state]
    update_min_max(torch.empty(shape, device=device), *state, 0.1, 0, 15, False, axis)
    assert all(same_bits(a, b) for a, b in zip(state, before, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_ignores_gradients(device):
    x = sample(5, device=device).requires_grad_()
    state = new_state(1, device)
    update_min_max(x, *state, 1.0, 0, 15, False)
    assert state[0].item() == x.min().item()
    assert not any(values.requires_grad for values in state)
