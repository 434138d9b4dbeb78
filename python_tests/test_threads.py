"""Same bits for any number of threads, and for every instruction set where nothing is summed."""

import pytest
import torch
from tensors import DTYPES, LAYOUTS, dtype_name, same_bits, sample

from zscgan_ext.ops import native
from zscgan_ext.ops.implementation import NATIVE
from zscgan_ext.ops.layout import compute_dtype

CASES = {
    "nchw": ((9, 17, 31, 33), 1, "contiguous"),
    "channels_last": ((9, 17, 31, 33), 1, "channels_last"),
    "per-tensor": ((150001,), None, "contiguous"),
    "long-rows": ((2, 2, 50001), 1, "contiguous"),
    "weights": ((40, 4001), 0, "misaligned"),
}
# Absolute errors of sums, which each instruction set adds up in its own order.
SUMMED = {"grad_scale": 1e-3, "grad_zero_point": 1e-3, "mean": 1e-6, "variance": 2e-6}
SUMMED |= {"fused_grad_scale": 5e-3, "fused_grad_zero_point": 5e-3, "fused_grad_bias": 1e-3}


def available_instruction_sets():
    """Names of the instruction sets that this machine and this build have."""
    before, names = NATIVE.cpu.instruction_set(), []
    for name in ("avx512", "avx2", "portable"):
        try:
            NATIVE.cpu.select_instruction_set(name)
            names.append(name)
        except ValueError:
            pass
    NATIVE.cpu.select_instruction_set(before)
    return names


SETS = available_instruction_sets()


@pytest.fixture(autouse=True)
def restored():
    """Put back the number of threads and the instruction set."""
    threads, name = torch.get_num_threads(), NATIVE.cpu.instruction_set()
    yield
    torch.set_num_threads(threads)
    NATIVE.cpu.select_instruction_set(name)


def quantization_results(x, grad, axis):
    """Everything that the quantization kernels compute for a tensor."""
    count = 1 if axis is None else x.shape[axis]
    scale = torch.linspace(0.05, 0.4, count, dtype=compute_dtype(x))
    zero_point = torch.linspace(-3.6, 3.3, count, dtype=compute_dtype(x))
    bounds = ([-8], [7])
    y, mask = native.fake_quantize(x, scale, zero_point.round(), -8, 7, axis, True)
    (learned,) = native.lsq_fake_quantize(
        [x], [scale], [zero_point], *bounds, [axis], ["none"], [None]
    )
    gradients = native.lsq_fake_quantize_backward(
        [grad], [x], [scale], [zero_point], *bounds, [axis], [0.5], ["none"], [None]
    )
    state = [torch.full((count,), v) for v in (torch.inf, -torch.inf, 0.0, 0.0)]
    native.update_min_max(x, *state, 0.1, -8, 7, False, axis)
    names = ("grad_x", "grad_scale", "grad_zero_point")
    return {
        "y": y,
        "mask": mask,
        "masked": native.fake_quantize_backward(grad, mask),
        "learned": learned,
        "state": torch.stack(state),
        **{name: values for name, (values,) in zip(names, gradients[:3], strict=True)},
    }


def fused_results(x, grad):
    """What the kernels compute with a bias, an activation and one scale in all."""
    bias = sample(x.shape[1], dtype=compute_dtype(x), seed=5)
    scale = torch.full((1,), 0.1, dtype=bias.dtype)
    quantizer = ([scale], [scale * 3], [-8], [7])
    (y,) = native.lsq_fake_quantize([x], *quantizer, [None], ["relu6"], [bias])
    gradients = native.lsq_fake_quantize_backward(
        [grad], [x], *quantizer, [None], [0.5], ["relu6"], [bias]
    )
    names = ("fused_grad_x", "fused_grad_scale", "fused_grad_zero_point", "fused_grad_bias")
    return {"fused": y} | {name: values for name, (values,) in zip(names, gradients, strict=True)}


def statistics_results(x):
    """Everything that the batch-norm kernels compute for a tensor."""
    shift = torch.zeros(x.shape[1], dtype=compute_dtype(x))
    given = [sample(x.shape[1], dtype=shift.dtype, seed=seed) for seed in range(3)]
    mean, variance = native.batch_norm_statistics(x, shift)
    grad_x = native.batch_norm_statistics_backward(x, *given)
    return {"mean": mean, "variance": variance, "statistics_grad_x": grad_x}


def frozen_batch_norm_results(x, residual, grad):
    """Everything that the kernels of frozen batch norm compute for a tensor."""
    given = [sample(x.shape[1], dtype=compute_dtype(x), seed=seed) for seed in range(6)]
    given[2].zero_()  # the shift: near the mean, as it is meant to be
    found = {}
    for activation, added in (("relu6", None), ("relu", residual)):
        outputs = native.frozen_batch_norm_with_stats(x, *given[:3], added, activation)
        y = None if added is None else outputs[0]
        gradient = (grad, x, y, *given[:2], *given[3:], activation, True)
        results = (*outputs, *native.frozen_batch_norm_backward(*gradient))
        names = ("y", "mean", "variance", "grad_x", "grad_residual")
        found |= {f"{activation}_{name}": v for name, v in zip(names, results, strict=True)}
    found["eval"] = native.frozen_batch_norm(x, *given[:2], None, "none")
    return found


def results(case, dtype, threads=1):
    """All results of one tensor, by this number of threads; everything else by one."""
    shape, axis, layout = CASES[case]
    x, grad = (LAYOUTS[layout](sample(*shape, dtype=dtype, seed=seed)) for seed in range(2))
    torch.set_num_threads(threads)
    found = quantization_results(x, grad, axis)
    if x.dim() > 1:
        found |= statistics_results(x)
        if axis == 1:
            residual = LAYOUTS[layout](sample(*shape, dtype=dtype, seed=2))
            found |= fused_results(x, grad)
            found |= frozen_batch_norm_results(x, residual, grad)
    torch.set_num_threads(1)
    return found


def many_results():
    """The multi-tensor kernels, with tensors of very different sizes."""
    xs = [sample(*shape) for shape in ((3, 5), (40, 5000), (7, 1), (2, 70000), (64, 300))]
    scales = [torch.linspace(0.05, 0.4, len(x)) for x in xs]
    settings = (xs, scales, [scale * 0 for scale in scales], [-8] * 5, [7] * 5)
    plain = (["none"] * 5, [None] * 5)
    ys = native.lsq_fake_quantize(*settings, [0] * 5, *plain)
    gradients = native.lsq_fake_quantize_backward(xs, *settings, [0] * 5, [1.0] * 5, *plain)
    return [*ys, *(values for column in gradients[:3] for values in column)]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in SETS] + [(SETS[0], dtype) for dtype in DTYPES[1:]],
    ids=dtype_name,
)
@pytest.mark.parametrize("case", CASES)
def test_threads_change_no_bit(name, case, dtype):
    NATIVE.cpu.select_instruction_set(name)
    expected = results(case, dtype)
    for threads in (2, 3, 8):
        for key, values in results(case, dtype, threads).items():
            assert same_bits(values, expected[key]), (key, threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", SETS)
def test_instruction_sets_change_no_bit_but_of_sums(name, case, dtype):
    NATIVE.cpu.select_instruction_set("portable")
    expected = results(case, dtype)
    NATIVE.cpu.select_instruction_set(name)
    assert NATIVE.cpu.instruction_set() == name
    for key, values in results(case, dtype).items():
        summed = key.removeprefix("relu_").removeprefix("relu6_")
        if summed in SUMMED:
            torch.testing.assert_close(values, expected[key], rtol=1e-5, atol=SUMMED[summed])
        else:
            assert same_bits(values, expected[key]), key


def test_threads_change_no_bit_of_many_tensors():
    torch.set_num_threads(1)
    expected = many_results()
    for threads in (2, 3, 8):
        torch.set_num_threads(threads)
        for values, wanted in zip(many_results(), expected, strict=True):
            assert same_bits(values, wanted)


@pytest.mark.parametrize("case", ["nchw", "channels_last"])
def test_runs_change_no_bit(case):
    expected = results(case, torch.float32, 2)
    for _ in range(3):
        found = results(case, torch.float32, 2)
        assert all(same_bits(found[key], expected[key]) for key in expected)
