"""Calls that somebody observes go through torch's dispatcher, all others around it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zscgan_ext import ops
from zscgan_ext.ops import fake_quantize, lsq_fake_quantize
from zscgan_ext.ops.frozen_batch_norm import FROZEN_BATCH_NORM_WITH_STATS
from zscgan_ext.ops.registration import OPS


class Recorder(TorchDispatchMode):
    """Records the names of the ops that pass the dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    """A tensor subclass that records the functions it takes part in."""

    seen: list = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None) -> object:
        cls.seen.append(function)
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.fixture
def tensors():
    x = torch.linspace(-3, 3, 24).view(2, 3, 4).requires_grad_()
    scale = torch.tensor([0.1, 0.2, 0.3], requires_grad=True)
    return x, scale, torch.tensor([0.0, 1.0, 2.0], requires_grad=True)


def test_a_dispatch_mode_sees_both_passes(tensors):
    with Recorder() as recorder:
        lsq_fake_quantize(*tensors, -8, 7, 1).sum().backward()
    assert "zscgan_ext::lsq_fake_quantize" in recorder.names
    assert "zscgan_ext::lsq_fake_quantize_backward" in recorder.names


def test_a_subclass_sees_the_op(tensors):
    x = tensors[0].detach().as_subclass(Subclass)
    Subclass.seen = []
    y = fake_quantize(x, *(v.detach() for v in tensors[1:]), -8, 7, 1)
    assert type(y) is Subclass
    assert any(getattr(f, "__name__", "").startswith("fake_quantize") for f in Subclass.seen)


def test_a_direct_call_gives_the_bits_of_the_registered_op(tensors):
    outcomes = []
    for op in (lsq_fake_quantize, OPS.lsq_fake_quantize):
        y = op(*tensors, -8, 7, 1, 0.5)
        outcomes.append((y, *torch.autograd.grad(y.square().sum(), tensors)))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_a_bias_alone_gets_its_gradient(tensors):
    x, scale, zero_point = (v.detach() for v in tensors)
    bias = torch.tensor([0.1, 0.2, 0.3], requires_grad=True)
    settings = (-8, 7, 1, 0.5, "relu")
    outcomes = []
    for op in (lsq_fake_quantize, OPS.lsq_fake_quantize):
        y = op(x, scale, zero_point, *settings, bias)
        outcomes.append((y, *torch.autograd.grad(y.sum(), bias)))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


@pytest.mark.parametrize("has_residual", [False, True])
def test_an_absent_tensor_makes_no_difference(tensors, has_residual):
    x, multiplier, offset = (v.detach() for v in tensors)
    residual = x.flip(0).requires_grad_() if has_residual else None
    wanted = [x.requires_grad_(), *([residual] if has_residual else [])]
    outcomes = []
    for op in (FROZEN_BATCH_NORM_WITH_STATS, OPS.frozen_batch_norm_with_stats):
        outputs = op(x, multiplier, offset, offset, residual, "relu")
        loss = sum(v.square().sum() for v in outputs)
        outcomes.append((*outputs, *torch.autograd.grad(loss, wanted)))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_a_fixed_scale_gets_no_gradient(tensors):
    x, scale, zero_point = tensors
    assert not fake_quantize(x.detach(), scale, zero_point, -8, 7, 1).requires_grad
    fake_quantize(x, scale, zero_point, -8, 7, 1).sum().backward()
    assert x.grad is not None
    assert scale.grad is None


PRIVATE = ("_len_torch_dispatch_stack", "_are_functorch_transforms_active", "_get_tracing_state")


@pytest.mark.parametrize("name", PRIVATE)
def test_without_a_private_function_of_torch_calls_take_the_dispatcher(tensors, monkeypatch, name):
    def outcome():
        y = lsq_fake_quantize(*tensors, -8, 7, 1, 0.5)
        return y, *torch.autograd.grad(y.square().sum(), tensors)

    direct = outcome()
    assert "GeneratedBackward" not in type(direct[0].grad_fn).__name__
    monkeypatch.delattr(torch._C, name)
    dispatched = outcome()
    assert "GeneratedBackward" in type(dispatched[0].grad_fn).__name__
    assert all(torch.equal(a, b) for a, b in zip(direct, dispatched, strict=True))


DEPRECATED = {
    "batch_norm_eval": "frozen_batch_norm",
    "batch_norm_eval_matched": "frozen_batch_norm_with_stats",
    "fake_quantize_learned": "lsq_fake_quantize",
    "fake_quantize_learned_many": "lsq_fake_quantize_foreach",
    "observe": "update_min_max",
}


@pytest.mark.parametrize("old", DEPRECATED)
def test_old_names_warn_and_are_the_same_functions(old):
    with pytest.warns(DeprecationWarning, match=f"ops.{old} is deprecated, use {DEPRECATED[old]}$"):
        function = getattr(ops, old)
    assert function is getattr(ops, DEPRECATED[old])
    assert not hasattr(torch.ops.zscgan_ext, old)


def test_unknown_names_of_ops_are_no_attributes():
    with pytest.raises(AttributeError, match=r"'zscgan_ext\.ops' has no attribute 'unknown'"):
        _ = ops.unknown
