"""The ops as torch sees them: opcheck, torch.compile, autocast, inference mode."""

import pytest
import torch
from tensors import DEVICES, channels_last, same_bits, same_values, sample

from zscgan_ext.ops import (
    batch_norm_distance,
    batch_norm_statistics,
    fake_quantize,
    frozen_batch_norm,
    frozen_batch_norm_with_stats,
    lsq_fake_quantize,
    lsq_fake_quantize_foreach,
    noisy_batch_norm,
    update_min_max,
)
from zscgan_ext.ops.registration import OPS

LAYOUTS = {
    "contiguous": torch.clone,
    "channels_last": channels_last,
    "transposed": lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
}


def quantizer(device, gradient=False):
    """Scales and zero points of three channels."""
    scale = torch.tensor([0.1, 0.2, 0.3], device=device, requires_grad=gradient)
    return scale, torch.tensor([0.0, 1.0, 2.0], device=device, requires_grad=gradient)


def activations(device, layout="contiguous", seed=0, gradient=False):
    """[N, C, H, W] with three channels."""
    x = LAYOUTS[layout](sample(2, 3, 4, 5, device=device, seed=seed))
    return x.requires_grad_(gradient)


def state(device):
    """Running minimum, maximum, scale and zero point of three channels."""
    return [torch.full((3,), v, device=device) for v in (torch.inf, -torch.inf, 0.0, 0.0)]


def statistics(device, gradient=False):
    """Means, variances and stored ones of two layers."""
    columns = [[sample(n, device=device, seed=k).abs() + 0.1 for n in (3, 5)] for k in range(4)]
    return *([v.requires_grad_(gradient) for v in column] for column in columns[:2]), *columns[2:]


def many(device, gradient=False):
    """Two weights with their scales and zero points."""
    xs = [sample(3, 4, device=device), channels_last(sample(2, 3, 5, 2, device=device))]
    scales = [torch.full((n,), 0.2, device=device) for n in (3, 1)]
    columns = (xs, scales, [scale * 3 for scale in scales])
    return tuple([v.requires_grad_(gradient) for v in column] for column in columns)


def normalization(device, with_shift=True):
    """Multiplier, offset and shift of three channels."""
    return [sample(3, device=device, seed=seed) for seed in range(3 if with_shift else 2)]


def affine(device, gradient=False):
    """Weight, bias, mean and variance of three channels, of which the first two learn."""
    values = [sample(3, device=device, seed=seed).abs() + 0.1 for seed in range(4)]
    return [v.requires_grad_(gradient) for v in values[:2]] + values[2:]


def seed(device):
    """A seed of noise."""
    return torch.tensor([7], device=device)


NOISE_SETTINGS = (1e-5, 0.5, 0.2, True)  # eps, noise, negative_slope, is_of_batch

FUSED_SETTINGS = (-8, 7, None, 0.5, "relu6")  # one scale in all


def one_quantizer(device, gradient=False):
    """One scale and zero point."""
    scale = torch.tensor([0.2], device=device, requires_grad=gradient)
    return scale, torch.tensor([1.0], device=device, requires_grad=gradient)


MANY_SETTINGS = ([-8, -8], [7, 7], [1.0, 0.5])

# Arguments of each registered op, for a device and a layout.
OPCHECK_CASES = {
    "fake_quantize": lambda d, m: (activations(d, m, 0, True), *quantizer(d), -8, 7, 1, True),
    "fake_quantize_backward": lambda d, m: (
        *(activations(d, m), torch.zeros(15, dtype=torch.uint8, device=d), [60, 1, 15, 3]),
    ),
    "lsq_fake_quantize": lambda d, m: (
        *(activations(d, m, 0, True), *quantizer(d, True), -8, 7, 1, 0.5),
    ),
    "lsq_fake_quantize_backward": lambda d, m: (
        *(activations(d), activations(d, m), *quantizer(d), -8, 7, 1, 0.5),
    ),
    "lsq_fake_quantize with an activation": lambda d, m: (
        *(activations(d, m, 0, True), *one_quantizer(d, True), *FUSED_SETTINGS),
    ),
    "lsq_fake_quantize with a bias": lambda d, m: (
        *(activations(d, m, 0, True), *one_quantizer(d, True), *FUSED_SETTINGS),
        sample(3, device=d, seed=2).requires_grad_(),
    ),
    "lsq_fake_quantize_backward with a bias": lambda d, m: (
        *(activations(d), activations(d, m), *one_quantizer(d), *FUSED_SETTINGS),
        sample(3, device=d, seed=2),
    ),
    "lsq_fake_quantize_foreach": lambda d, m: (*many(d, True), *MANY_SETTINGS),
    "lsq_fake_quantize_foreach_backward": lambda d, m: (many(d)[0], *many(d), *MANY_SETTINGS),
    "update_min_max": lambda d, m: (activations(d, m), *state(d), 0.1, -8, 7, False, 1),
    "batch_norm_statistics": lambda d, m: (activations(d, m, 0, True), torch.zeros(3, device=d)),
    "batch_norm_statistics_backward": lambda d, m: (
        *(activations(d, m), *(sample(3, device=d, seed=k) for k in range(3))),
    ),
    "frozen_batch_norm": lambda d, m: (
        *(activations(d, m, 0, True), *normalization(d, False), activations(d, m, 1, True)),
        "relu",
    ),
    "frozen_batch_norm_with_stats": lambda d, m: (
        *(activations(d, m, 0, True), *normalization(d), activations(d, "contiguous", 1, True)),
        "relu6",
    ),
    "frozen_batch_norm_backward": lambda d, m: (
        *(activations(d), activations(d, m, 1), activations(d, "contiguous", 2)),
        *(*normalization(d), *normalization(d, False), "relu", True),
    ),
    "noisy_batch_norm": lambda d, m: (
        *(activations(d, m, 0, True), *affine(d, True), seed(d), *NOISE_SETTINGS),
    ),
    "noisy_batch_norm_sums": lambda d, m: (
        *(activations(d), activations(d, m, 1), torch.arange(15, dtype=torch.uint8, device=d)),
        *(sample(3, device=d), 0.2),
    ),
    "noisy_batch_norm_backward": lambda d, m: (
        *(activations(d), activations(d, m, 1), torch.arange(15, dtype=torch.uint8, device=d)),
        *(*(sample(3, device=d, seed=k) for k in range(3)), 0.2),
    ),
    "batch_norm_distance": lambda d, m: (*statistics(d, True), [1e-5, 1e-3], "gaussian_kl"),
}


def registered():
    """Names of all ops of the library."""
    names = torch._C._dispatch_get_all_op_names()
    return {name.split("::")[1] for name in names if name.startswith("zscgan_ext::")}


def test_no_op_is_forgotten():
    assert registered() == {case.split()[0] for case in OPCHECK_CASES}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", OPCHECK_CASES)
@pytest.mark.usefixtures("implementation")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # its own
def test_opcheck(device, layout, case):
    op = getattr(OPS, case.split()[0])
    checked = torch.library.opcheck(op, OPCHECK_CASES[case](device, layout))
    assert set(checked.values()) == {"SUCCESS"}


def distances(x, shift, running_var):
    """Statistics and distance of a layer together."""
    mean, variance = batch_norm_statistics(x, shift)
    return batch_norm_distance([mean], [variance], [shift], [running_var], [1e-5])


def matched(x, multiplier, offset, shift):
    """Every output of a frozen batch norm with and without a residual."""
    stored = (multiplier, offset, shift)
    y, mean, variance = frozen_batch_norm_with_stats(x, *stored, "relu")
    z, *_ = frozen_batch_norm_with_stats(y, *stored, "relu", x)
    return torch.cat([y.flatten(), z.flatten(), mean, variance])


def observed(x, running_min, running_max, scale, zero_point):
    """A mutating op between two others."""
    update_min_max(2 * x, running_min, running_max, scale, zero_point, 0.1, -8, 7, False, 1)
    return fake_quantize(x, scale, zero_point, -8, 7, 1)


COMPILED_CASES = {
    "fake_quantize": (
        lambda *v: fake_quantize(*v, -8, 7, 1),
        lambda d: (activations(d, "channels_last", 0, True), *quantizer(d)),
    ),
    "lsq_fake_quantize": (
        lambda *v: lsq_fake_quantize(*v, -8, 7, 1, 0.5),
        lambda d: (activations(d, "channels_last", 0, True), *quantizer(d, True)),
    ),
    "lsq_fake_quantize with a bias": (
        lambda x, scale, zero_point, bias: lsq_fake_quantize(
            x, scale, zero_point, *FUSED_SETTINGS, bias
        ),
        lambda d: (
            *(activations(d, "channels_last", 0, True), *one_quantizer(d, True)),
            sample(3, device=d, seed=2).requires_grad_(),
        ),
    ),
    "lsq_fake_quantize_foreach": (
        lambda *v: torch.cat(
            [y.flatten() for y in lsq_fake_quantize_foreach(v[:2], v[2:4], v[4:], *MANY_SETTINGS)]
        ),
        lambda d: [v for column in many(d, True) for v in column],
    ),
    "update_min_max": (observed, lambda d: (activations(d, gradient=True), *state(d))),
    "frozen_batch_norm": (
        lambda x, *v: frozen_batch_norm(x, *v, "relu6", 2 * x),
        lambda d: (activations(d, "channels_last", 0, True), *normalization(d, False)),
    ),
    "frozen_batch_norm_with_stats": (
        matched,
        lambda d: (activations(d, "channels_last", 0, True), *normalization(d)),
    ),
    "noisy_batch_norm": (
        lambda x, weight, bias, mean, variance: noisy_batch_norm(
            2 * x, weight, bias, mean, variance, seed(x.device), 0.5, 0.2
        ),
        lambda d: (activations(d, "channels_last", 0, True), *affine(d, True)),
    ),
    "batch_norm": (
        distances,
        lambda d: (
            *(activations(d, gradient=True), torch.zeros(3, device=d), torch.ones(3, device=d)),
        ),
    ),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", COMPILED_CASES)
def test_compiles_without_a_graph_break(device, name):
    function, arguments = COMPILED_CASES[name]
    outcomes = []
    for run in (function, torch.compile(function, fullgraph=True, backend="aot_eager")):
        inputs = arguments(device)
        y = run(*inputs)
        wanted = [v for v in inputs if v.requires_grad]
        outcomes.append([y, *torch.autograd.grad(y.sum(), wanted), *inputs])
    for eager, compiled in zip(*outcomes, strict=True):
        assert same_bits(compiled, eager)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.usefixtures("implementation")
def test_autocast_keeps_the_dtype_of_the_activations(device, dtype):
    x, weight = sample(4, 3, device=device), sample(3, 3, device=device).requires_grad_()
    with torch.autocast(device, dtype):
        activations = torch.nn.functional.linear(x, weight)
        y = fake_quantize(activations, *quantizer(device), -8, 7, 1)
        learned = lsq_fake_quantize(activations, *quantizer(device, True), -8, 7, 1)
        mean, variance = batch_norm_statistics(activations, torch.zeros(3, device=device))
        noisy = noisy_batch_norm(activations, *affine(device), seed(device), 0.5, 0.2)
        matched_y, *_ = frozen_batch_norm_with_stats(activations, *normalization(device), "relu")
        loss = batch_norm_distance([mean], [variance], [mean * 0], [variance * 0 + 1], [1e-5])
    assert {v.dtype for v in (y, learned, matched_y, noisy)} == {dtype}
    assert (mean.dtype, loss.dtype) == (torch.float32, torch.float32)
    (grad,) = torch.autograd.grad(y.sum() + learned.sum() + matched_y.sum() + loss, weight)
    assert grad.dtype == torch.float32
    assert (grad != 0).any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("implementation")
def test_inference_mode(device):
    x = activations(device)
    normal = fake_quantize(x, *quantizer(device), -8, 7, 1)
    mean, variance = batch_norm_statistics(x, torch.zeros(3, device=device))
    frozen = frozen_batch_norm_with_stats(x, *normalization(device), "relu")
    with torch.inference_mode():
        again = frozen_batch_norm_with_stats(x, *normalization(device), "relu")
        assert all(same_bits(*values) for values in zip(again, frozen, strict=True))
        running = state(device)
        update_min_max(x, *running, 0.1, -8, 7, False, 1)
        assert same_bits(fake_quantize(x, *quantizer(device), -8, 7, 1), normal)
        assert same_bits(lsq_fake_quantize(x, *quantizer(device), -8, 7, 1), normal)
        again = batch_norm_statistics(x, torch.zeros(3, device=device))
    assert same_bits(again[0], mean)
    assert same_bits(again[1], variance)
    assert same_values(running[0], x.amin((0, 2, 3)))


@pytest.mark.parametrize("device", DEVICES)
def test_observe_tells_autograd_what_it_changed(device):
    x, running = activations(device), state(device)
    versions = [values._version for values in running]
    update_min_max(x, *running, 0.1, -8, 7, False, 1)
    assert all(v._version > before for v, before in zip(running, versions, strict=True))
    scale = running[2].requires_grad_()
    y = lsq_fake_quantize(x, scale, running[3], -8, 7, 1)
    update_min_max(x, *running[:2], scale, running[3], 0.1, -8, 7, False, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("dispatched", [False, True], ids=["direct", "dispatched"])
def test_gradients_have_no_gradient_and_say_so(dispatched):
    x = activations("cpu", gradient=True)
    op = OPS.batch_norm_statistics if dispatched else batch_norm_statistics
    mean, variance = op(x, torch.zeros(3))
    (gradient,) = torch.autograd.grad((mean * variance).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        gradient.sum().backward()
