"""Every entry of the native core refuses what would make it touch memory that is not there."""

import re

import pytest
import torch
from tensors import same_bits, sample

from zscgan_ext.ops.implementation import NATIVE

SHAPE = (2, 3, 4)
NUMEL, CHANNELS = 24, 3
BUFFERS = {
    "x": NUMEL,
    "grad": NUMEL,
    "y": NUMEL,
    "grad_x": NUMEL,
    "residual": NUMEL,
    "grad_residual": NUMEL,
    "mask": (NUMEL + 7) // 8 // 4 + 1,
    "positive": (NUMEL + 7) // 8 // 4 + 1,
    "seed": 2,
    "result": 1,
}
QUANTIZER = ("scale", "zero_point")
RUNNING = ("running_min", "running_max", *QUANTIZER)
LAYER = ("mean", "variance", "running_mean", "running_var", "grad_mean", "grad_variance")

# Each argument by its name, in order; those without a value in PLAIN are addresses.
ENTRIES = {
    "fake_quantize": (
        "type",
        "shape",
        "x",
        *QUANTIZER,
        "quant_min",
        "quant_max",
        "y",
        "mask",
        "threads",
    ),
    "fake_quantize_backward": ("type", "numel", "grad", "mask", "grad_x", "threads"),
    "update_min_max": (
        *(
            "type",
            "shape",
            "x",
            *RUNNING,
            "averaging_constant",
            "quant_min",
            "quant_max",
            "symmetric",
            "threads",
        ),
    ),
    "batch_norm_statistics": ("type", "shape", "x", "mean_hint", "mean", "variance", "threads"),
    "batch_norm_statistics_backward": (
        ("type", "shape", "x", "mean", "grad_mean", "grad_variance", "grad_x", "threads")
    ),
    "lsq_fake_quantize": ("type", "tensors", "threads"),
    "lsq_fake_quantize_backward": ("type", "tensors", "threads"),
    "frozen_batch_norm": (
        *("type", "shape", "x", "multiplier", "offset", "mean_hint", "residual", "activation"),
        *("y", "mean", "variance", "threads"),
    ),
    "frozen_batch_norm_backward": (
        *("type", "shape", "grad", "x", "y", "multiplier", "offset", "mean", "grad_mean"),
        *("grad_variance", "activation", "grad_x", "grad_residual", "threads"),
    ),
    "noisy_batch_norm": (
        *("type", "shape", "x", "multiplier", "offset", "seed", "noise", "negative_slope"),
        *("y", "positive", "threads"),
    ),
    "noisy_batch_norm_sums": (
        *("type", "shape", "grad", "x", "positive", "mean", "negative_slope", "sum"),
        *("product_sum", "threads"),
    ),
    "noisy_batch_norm_backward": (
        *("type", "shape", "grad", "x", "positive", "multiplier", "constant", "slope"),
        *("negative_slope", "grad_x", "threads"),
    ),
    "batch_norm_distance": ("type", "layers", "distance", "result", "threads"),
}
LSQ = (
    *("shape", "x", *QUANTIZER, "quant_min", "quant_max", "quantizer_stride", "gradient_scale"),
    *("activation", "bias", "y"),
)
LSQ_GRADIENTS = ("grad", "grad_x", "grad_scale", "grad_zero_point", "grad_bias")
ROWS = {"tensors": (*LSQ, *LSQ_GRADIENTS), "layers": ("channels", "eps", *LAYER)}
STRUCTS = {"tensors": NATIVE.LsqTensor, "layers": NATIVE.BatchNormLayer}
PLAIN = {"type": 0, "shape": SHAPE, "quant_min": -8, "quant_max": 7, "numel": NUMEL, "threads": 1}
PLAIN |= {"averaging_constant": 0.1, "noise": 0.5, "negative_slope": 0.2}
PLAIN |= {"symmetric": False, "gradient_scale": 1.0, "distance": 0}
PLAIN |= {"channels": CHANNELS, "eps": 1e-5, "activation": 1, "quantizer_stride": 1}

# Both backends check arguments in the same code, before anything of a GPU is touched.
BACKENDS = [name for name in ("cpu", "cuda") if hasattr(NATIVE, name)]
WORKSPACE = 16  # an address that no check of arguments follows
SCRATCH_ENTRIES = (
    *("lsq_fake_quantize_backward", "update_min_max", "batch_norm_statistics", "frozen_batch_norm"),
    *("batch_norm_distance", "noisy_batch_norm_sums"),
)


def flat_names(entry):
    """Names of all arguments, those inside a list of tensors or layers too."""
    for name in ENTRIES[entry]:
        yield from ROWS.get(name, (name,))


def addresses(entry):
    """Names of the addresses that this entry cannot do without."""
    optional = {"fake_quantize": ("mask",), "lsq_fake_quantize": ("bias", *LSQ_GRADIENTS)}
    optional["lsq_fake_quantize_backward"] = ("bias", "y")
    optional["frozen_batch_norm"] = ("residual", "mean")  # no mean: no statistics
    optional["frozen_batch_norm_backward"] = ("y", "mean", "grad_residual")
    skipped = (*PLAIN, *optional.get(entry, ()))
    return [name for name in flat_names(entry) if name not in skipped]


class Call:
    """A good call of one entry, whose arguments can be changed by name."""

    def __init__(self, entry, changes=()):
        names = [name for name in flat_names(entry) if name not in PLAIN]
        self.buffers = {name: sample(BUFFERS.get(name, CHANNELS)).abs() + 0.5 for name in names}
        values = PLAIN | {name: buffer.data_ptr() for name, buffer in self.buffers.items()}
        self.values = values | dict(changes)
        self.entry = entry

    def __call__(self, backend="cpu", where=None):
        arguments = []
        for name in ENTRIES[self.entry]:
            if name in ROWS:
                fields = {inner: self.values[inner] for inner in ROWS[name]}
                arguments.append([STRUCTS[name](**fields)])
            else:
                arguments.append(self.values[name])
        if where is not None:
            arguments[-1] = where
        return getattr(getattr(NATIVE, backend), self.entry)(*arguments)


def changes(name, values):
    """One case for every entry that has the argument."""
    return [
        pytest.param(entry, {name: value}, id=f"{entry}-{name}={value}")
        for entry in ENTRIES
        for value in values
        if name in flat_names(entry)
    ]


def refused(entry, change):
    """Run the call, which must fail and leave every buffer as it was; return the error's text."""
    call = Call(entry, change)
    before = {name: buffer.clone() for name, buffer in call.buffers.items()}
    for backend in ("cpu",) if "threads" in change else reversed(BACKENDS):
        with pytest.raises((ValueError, TypeError)) as caught:
            call(backend, (0, 0, WORKSPACE) if backend == "cuda" else None)
    assert all(same_bits(call.buffers[name], values) for name, values in before.items())
    return str(caught.value)


def test_no_entry_is_forgotten():
    settings = {"instruction_set", "instruction_sets", "select_instruction_set"}
    assert {name for name in dir(NATIVE.cpu) if name[0] != "_"} - settings == set(ENTRIES)
    sizes = {"reduction_workspace", "lsq_backward_workspace", "distance_workspace"}
    for backend in BACKENDS[1:]:
        entries = {name for name in dir(getattr(NATIVE, backend)) if name[0] != "_"}
        assert entries - sizes == set(ENTRIES)


def test_null_workspaces_where_blocks_share_a_channel():
    for entry in SCRATCH_ENTRIES if "cuda" in BACKENDS else ():
        with pytest.raises(ValueError, match="workspace: null pointer"):
            Call(entry, {"shape": (2, 3, 10**6)})("cuda", (0, 0, 0))


def test_small_tensors_need_no_workspace():
    for backend in BACKENDS[1:]:
        workspace_of = getattr(NATIVE, backend).reduction_workspace
        assert workspace_of(SHAPE) == 0 < workspace_of((2, 3, 10**6))


@pytest.mark.parametrize("value", [-1, 2**64, 0.5, None, "0"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_addresses_that_are_none(entry, value):
    for name in addresses(entry):
        error = refused(entry, {name: value})
        assert re.search("incompatible (function|constructor) arguments", error)


@pytest.mark.parametrize("entry", ENTRIES)
def test_number_of_arguments(entry):
    good = [Call(entry).values.get(name, []) for name in ENTRIES[entry]]
    for arguments in ([], good[:-1], [*good, 0]):
        for backend in BACKENDS:
            with pytest.raises(TypeError):
                getattr(getattr(NATIVE, backend), entry)(*arguments)


@pytest.mark.parametrize("entry", ENTRIES)
def test_good_call_writes_its_results(entry):
    call = Call(entry)
    before = {name: buffer.clone() for name, buffer in call.buffers.items()}
    call()
    assert any(not torch.equal(call.buffers[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("entry", "name"), [(entry, name) for entry in ENTRIES for name in addresses(entry)]
)
def test_null_pointers(entry, name):
    assert refused(entry, {name: 0}) == f"{name}: null pointer"


@pytest.mark.parametrize(("entry", "change"), changes("type", [-1, 4, 2**31, "float32", None]))
def test_dtype_codes(entry, change):
    assert refused(entry, change)


@pytest.mark.parametrize(
    ("entry", "change"),
    changes(
        "shape",
        [
            (-1, 3, 4),
            (2, -3, 4),
            (2, 3, -4),
            (-2, -3, 4),
            (2**31, 2**31, 2**31),
            (2, 3),
            (2**64, 1, 1),
        ],
    )
    + changes("numel", [-1, -(2**63), 2**60, 2**63 - 1, 2**64])
    + changes("channels", [0, -1, 2**60, 2**63 - 1, 2**64]),
)
def test_sizes(entry, change):
    assert refused(entry, change)


@pytest.mark.parametrize(
    ("entry", "change"),
    changes("threads", [0, -1, 4097, 2**31 - 1, 2**31, (), (1,), (1, 1, 1), None]),
)
def test_threads(entry, change):
    assert refused(entry, change)


@pytest.mark.parametrize(
    ("entry", "change"),
    changes("quant_min", [7, 8, float("nan")]) + changes("quant_max", [float("nan")]),
)
def test_bounds(entry, change):
    assert refused(entry, change) == "quant_min: expected a value below quant_max"


@pytest.mark.parametrize(("entry", "change"), changes("distance", [-1, 4]))
def test_distance_codes(entry, change):
    assert refused(entry, change) == "distance: expected a code from 0 to 3"


@pytest.mark.parametrize(("entry", "change"), changes("activation", [-1, 3]))
def test_activation_codes(entry, change):
    assert refused(entry, change) == "activation: expected a code from 0 to 2"


@pytest.mark.parametrize(("entry", "change"), changes("quantizer_stride", [-1, 2]))
def test_quantizer_strides(entry, change):
    assert refused(entry, change) == "quantizer_stride: expected 0 or 1"


def test_without_a_bias_its_gradient_needs_no_address():
    call = Call("lsq_fake_quantize_backward", {"bias": 0, "grad_bias": 0})
    untouched = call.buffers["grad_bias"].clone()
    call()
    assert same_bits(call.buffers["grad_bias"], untouched)


@pytest.mark.parametrize(
    ("entry", "absent"),
    [
        ("frozen_batch_norm", ("mean_hint", "mean", "variance")),
        ("frozen_batch_norm", ("residual",)),
        ("frozen_batch_norm_backward", ("mean", "grad_mean", "grad_variance")),
        ("frozen_batch_norm_backward", ("x", "mean", "grad_mean", "grad_variance")),
        ("frozen_batch_norm_backward", ("y", "grad_residual")),
    ],
)
def test_optional_addresses_are_absent_together(entry, absent):
    call = Call(entry, dict.fromkeys(absent, 0))
    before = {name: buffer.clone() for name, buffer in call.buffers.items()}
    call()
    changed = {n for n, values in before.items() if not same_bits(call.buffers[n], values)}
    assert changed
    assert changed.isdisjoint(absent)


def test_a_mask_needs_x_or_y():
    change = dict.fromkeys(("x", "y", "mean", "grad_mean", "grad_variance"), 0)
    assert refused("frozen_batch_norm_backward", change) == "x: null pointer"


@pytest.mark.parametrize("entry", [name for name in ENTRIES if "shape" in flat_names(name)])
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (0, 0, 0)], ids=str)
def test_empty_tensors_need_no_address(entry, shape):
    names = [name for name in addresses(entry) if BUFFERS.get(name) == NUMEL]
    call = Call(entry, {"shape": shape} | dict.fromkeys(names, 0))
    before = {name: call.buffers[name].clone() for name in names}
    call()
    assert all(same_bits(call.buffers[name], values) for name, values in before.items())


def test_distance_needs_a_layer():
    result = torch.zeros(1)
    with pytest.raises(ValueError, match="layers: expected at least one"):
        NATIVE.cpu.batch_norm_distance(0, [], 0, result.data_ptr(), 1)


@pytest.mark.parametrize("name", ["", "sse", "AVX2"])
def test_unknown_instruction_set(name):
    before = NATIVE.cpu.instruction_set()
    with pytest.raises(ValueError, match="instruction set: expected avx512, avx2 or portable"):
        NATIVE.cpu.select_instruction_set(name)
    assert NATIVE.cpu.instruction_set() == before
