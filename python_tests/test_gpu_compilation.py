"""All ops in one function under torch.compile, on a GPU by its default compiler."""

import pytest
import torch
from kernel_results import BOUNDS, GRADIENT_SCALE, make_inputs
from tensors import CUDA, same_bits

from zscgan_ext.ops import (
    batch_norm_distance,
    batch_norm_statistics,
    fake_quantize,
    lsq_fake_quantize,
    lsq_fake_quantize_foreach,
)

SHAPE = (4, 16, 48, 48)
COMPILERS = [
    pytest.param("cpu", {"backend": "aot_eager"}, id="cpu"),
    pytest.param(CUDA, {}, marks=pytest.mark.cuda, id="cuda"),
    # Records CUDA graphs, and refuses memory that outlives a call.
    pytest.param(CUDA, {"mode": "reduce-overhead"}, marks=pytest.mark.cuda, id="cuda-graphs"),
]


def all_ops(x, scale, zero_point, shift, running_var):
    """Apply every differentiable op; `observe` changes its arguments, which no graph may."""
    y = fake_quantize(x, scale, zero_point.round(), *BOUNDS, 1)
    learned = lsq_fake_quantize(x, scale, zero_point, *BOUNDS, 1, GRADIENT_SCALE)
    many = lsq_fake_quantize_foreach(
        [x, y], [scale[:4], scale[:4]], [zero_point[:4]] * 2, [-8] * 2, [7] * 2, [1.0] * 2
    )
    mean, variance = batch_norm_statistics(x, shift)
    distance = batch_norm_distance([mean], [variance], [shift], [running_var], [1e-5])
    return y, learned, *many, mean, variance, distance


def values_and_gradients(function, inputs):
    """Return all results and the gradients of x, scale and zero point, copied."""
    tensors = [inputs.x, inputs.scale, inputs.zero_point]
    wanted = [values.detach().clone().requires_grad_() for values in tensors]
    results = function(*wanted, *inputs.vectors[:2])
    incoming = [torch.ones_like(result) for result in results]
    found = [*results, *torch.autograd.grad(results, wanted, incoming)]
    return [values.detach().clone() for values in found]


@pytest.mark.parametrize(("device", "options"), COMPILERS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_all_ops_compile_to_one_graph(device, options, layout):
    compiled = torch.compile(all_ops, fullgraph=True, dynamic=False, **options)
    for seed in (0, 10, 20, 30):  # with CUDA graphs: to warm up, to record, to replay
        inputs = make_inputs(SHAPE, 1, layout, device=device, seed=seed)
        expected = values_and_gradients(all_ops, inputs)
        torch.compiler.cudagraph_mark_step_begin()
        found = values_and_gradients(compiled, inputs)
        for actual, wanted in zip(found[:-3], expected[:-3], strict=True):
            assert same_bits(actual, wanted)
        # Gradients of several ops are added up, in an order that is the compiler's.
        for actual, wanted in zip(found[-3:], expected[-3:], strict=True):
            torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)
