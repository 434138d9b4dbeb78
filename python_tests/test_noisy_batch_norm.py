"""`noisy_batch_norm` against torch's functions in float64, and its noise against Philox itself."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from tensors import DEVICES, DTYPES, LAYOUTS, SIZES, channels_last, dtype_name, same_bits, sample
from torch.nn import functional

from zscgan_ext.ops import batch_norm_statistics, noisy_batch_norm
from zscgan_ext.ops.layout import compute_dtype, ensure_dense
from zscgan_ext.ops.reference import noise as reference_noise

EPS, NOISE, SLOPE = 1e-3, 0.5, 0.2
WORD = 2**32 - 1

native_and_reference = pytest.mark.usefixtures("implementation")

# Random123's kat_vectors of philox4x32 with 10 rounds: counter, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def seed_of(value, device):
    return torch.tensor([value], dtype=torch.int64, device=device)


def vectors(channels, dtype, device):
    """Weight and bias."""
    return [1 + sample(channels, dtype=dtype, device=device, seed=seed) / 4 for seed in (10, 11)]


def python_philox(counter, key):
    """Philox 4x32-10 with Python's integers, as the paper writes it."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [
            (second >> 32) ^ c[1] ^ k[0],
            second & WORD,
            (first >> 32) ^ c[3] ^ k[1],
            first & WORD,
        ]
        k = [(k[0] + 0x9E3779B9) & WORD, (k[1] + 0xBB67AE85) & WORD]
    return c


def true_cubic(byte):
    """The cubic of a byte, a fraction with 15 bits after the point, by Python's integers."""
    x = 256 * (byte - 256 if byte > 127 else byte) + 128

    def times(a, b):
        return math.floor(Fraction(a * b, 2**15) + Fraction(1, 2))

    return times(x, 1040 + times(times(x, x), 3029))


CUBICS = [true_cubic(byte) for byte in range(256)]
DEVIATION = math.sqrt(8 * sum(cubic**2 for cubic in CUBICS) / 256)


def true_noise(count, seed):
    """The numbers of the first elements, by Python's integers."""
    numbers = []
    for element in range(0, count, 8):
        vector = element // 8
        block, half = 4 * (vector // 8) + vector % 4, vector // 4 % 2
        words = python_philox((block, 0, 0, 0), (seed & WORD, seed >> 32 & WORD))
        halves = [word >> 16 * half & 0xFFFF for word in words]
        cubics = [CUBICS[byte] for each in halves for byte in (each & 0xFF, each >> 8)]
        for row in range(8):
            signs = [(-1) ** (row & column).bit_count() for column in range(8)]
            numbers.append(sum(s * c for s, c in zip(signs, cubics, strict=True)) / DEVIATION)
    return torch.tensor(numbers[:count], dtype=torch.float64)


def drawn_noise(count, seed, device, dtype=torch.float32):
    """The numbers that the op adds to zeros."""
    x = torch.zeros(1, 1, count, dtype=dtype, device=device)
    one = torch.ones(1, dtype=compute_dtype(x), device=device)
    constants = (one, one * 0, one * 0, one)
    return noisy_batch_norm(x, *constants, seed_of(seed, device), 1.0, 1.0, 0.0, False).view(-1)


def truth(x, weight, bias, noise, negative_slope, statistics=None):
    """The result in float64 from the noise that was added, differentiable."""
    given = (None, None) if statistics is None else statistics
    before = functional.batch_norm(
        x.double(), *given, weight.double(), bias.double(), statistics is None, eps=EPS
    )
    return before + noise, functional.leaky_relu(before + noise, negative_slope)


def added_noise(x, seed, amount=NOISE):
    """Noise for the elements of x in memory order."""
    wanted = true_noise(x.numel(), seed).to(x.device)
    return amount * wanted.as_strided(x.shape, ensure_dense(x, 1).stride())


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers_of_philox(counter, key, words):
    tensors = [[torch.tensor([word]) for word in part] for part in (counter, key)]
    found = reference_noise.philox(tuple(tensors[1]), tensors[0])
    assert tuple(int(word) for word in found) == words
    assert tuple(python_philox(counter, key)) == words


@native_and_reference
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**40 + 5, 2**63 - 1, -1, -(2**63)])
def test_noise_is_philox_and_sums_of_cubics(device, seed):
    found = drawn_noise(1003, seed, device)
    torch.testing.assert_close(found.double().cpu(), true_noise(1003, seed), rtol=1e-6, atol=0)
    # The same numbers, however many there are.
    assert same_bits(found[:77], drawn_noise(77, seed, device))
    assert not torch.equal(found, drawn_noise(1003, seed + 1 if seed < 0 else seed - 1, device))


@pytest.mark.parametrize("device", DEVICES)
def test_noise_has_the_bits_of_the_reference(device):
    seed = 2**62 + 12345
    found = drawn_noise(200_003, seed, device)
    numbers = reference_noise.normal_noise(200_003, seed_of(seed, "cpu"))
    unit = torch.tensor(1 / reference_noise.DEVIATION, dtype=torch.float64)
    assert same_bits(found.cpu(), unit.float() * numbers)
    wide = drawn_noise(3003, seed, device, torch.float64)
    assert same_bits(wide.cpu(), unit * numbers[:3003].double())


def distribution():
    """The values that a number may have, in units of 1 / DEVIATION, and their probabilities."""
    largest = max(CUBICS)
    one = np.bincount(np.array(CUBICS) + largest, minlength=2 * largest + 1) / 256
    sums = one
    for _ in range(7):
        sums = np.convolve(sums, one)
    return np.arange(len(sums)) - 8 * largest, sums


def test_the_distribution_in_closed_form_is_nearly_normal():
    values, probabilities = distribution()
    assert math.isclose(reference_noise.DEVIATION, DEVIATION, rel_tol=1e-12)
    moments = [np.sum(probabilities * (values / DEVIATION) ** power) for power in range(1, 7)]
    assert moments == pytest.approx([0, 1, 0, 3, 0, 15], abs=0.06)
    assert moments[:5] == pytest.approx([0, 1, 0, 3, 0], abs=1e-5)
    normal = torch.special.ndtr(torch.from_numpy((values + 0.5) / DEVIATION)).numpy()
    assert np.abs(np.cumsum(probabilities) - normal).max() < 2.1e-4
    assert 6.65 < values.max() / DEVIATION < 6.66


@native_and_reference
def test_noise_is_standard_normal_and_independent():
    x = drawn_noise(1_000_000, 7, "cpu").double()
    moments = [x.pow(power).mean().item() for power in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.02)
    for distance in (1, 2, 3, 4, 7, 8, 16, 512):
        assert (x[distance:] * x[:-distance]).mean().abs() < 0.005
        assert (x[distance:].square() * x[:-distance].square()).mean() == pytest.approx(1, abs=0.02)
    # The statistic of Kolmogorov and Smirnov is above 1.95 / sqrt(n) once in a thousand seeds.
    values, probabilities = distribution()
    counts = np.bincount((x * DEVIATION).round().long().numpy() - values[0], minlength=len(values))
    difference = np.cumsum(counts) / len(x) - np.cumsum(probabilities)
    assert np.abs(difference).max() < 1.95e-3


@native_and_reference
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("noise", [0.0, NOISE])
@pytest.mark.parametrize("is_of_batch", [True, False], ids=["batch", "stored"])
def test_values_and_gradients(device, dtype, layout, noise, is_of_batch):
    x = LAYOUTS[layout](3 * sample(4, 5, 6, 9, dtype=dtype, device=device) + 1).requires_grad_()
    weight, bias = (v.requires_grad_() for v in vectors(5, compute_dtype(x), device))
    statistics = batch_norm_statistics(x.detach(), torch.zeros_like(bias.detach()))
    if not is_of_batch:
        statistics = [v + 0.5 for v in statistics]
    y = noisy_batch_norm(
        *(x, weight, bias, *statistics, seed_of(5, device), noise, SLOPE, EPS, is_of_batch)
    )
    wanted = (x, weight, bias)
    given = sample(4, 5, 6, 9, dtype=dtype, device=device, seed=3)
    actual = torch.autograd.grad(y, wanted, given)

    exact = [v.detach().double().requires_grad_() for v in wanted]
    stored = None if is_of_batch else [v.double() for v in statistics]
    before, expected = truth(*exact, added_noise(x, 5, noise), SLOPE, stored)
    # Rounding may move a value across zero.
    given = torch.where(before.abs() > 0.01, given, 0)
    y2 = noisy_batch_norm(
        *(x, weight, bias, *statistics, seed_of(5, device), noise, SLOPE, EPS, is_of_batch)
    )
    assert same_bits(y2, y)
    actual = torch.autograd.grad(y2, wanted, given)
    true = torch.autograd.grad(expected, exact, given.double())
    eps = 1e-9 if dtype == torch.float64 else torch.finfo(dtype).eps
    assert (y.double() - expected).abs().max() <= 8 * eps + 1e-5
    assert (y.dtype, y.stride()) == (dtype, ensure_dense(x, 1).stride())
    for gradient, right, tensor in zip(actual, true, wanted, strict=True):
        assert gradient.dtype == tensor.dtype
        bound = 1e-9 if dtype == torch.float64 else 4 * eps + 4e-6
        assert (gradient.double() - right).abs().max() <= bound * (1 + right.abs().max())
    if layout in ("contiguous", "channels_last"):
        assert actual[0].stride() == x.stride()


@native_and_reference
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("noise", [0.0, NOISE])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradcheck(device, noise, layout):
    options = {"dtype": torch.float64, "device": device}
    x = LAYOUTS[layout](sample(3, 4, 2, 3, **options)).requires_grad_()
    weight, bias = (v.requires_grad_() for v in vectors(4, torch.float64, device))

    def normalized(x, weight, bias):
        statistics = batch_norm_statistics(x.detach(), torch.zeros_like(bias.detach()))
        return noisy_batch_norm(x, weight, bias, *statistics, seed_of(9, device), noise, SLOPE, EPS)

    torch.autograd.gradcheck(normalized, (x, weight, bias))


@native_and_reference
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", SIZES)
def test_sizes_around_vectors_and_tasks(device, size):
    for shape in ((1, 1, size), (size, 3), (2, 3, size)):
        x = sample(*shape, device=device).requires_grad_()
        weight, bias = vectors(shape[1], torch.float32, device)
        settings = (bias * 0, weight * 0 + 1, seed_of(2, device), NOISE, SLOPE, 0.0, False)
        y = noisy_batch_norm(x, weight, bias, *settings)
        numbers = reference_noise.normal_noise(x.numel(), seed_of(2, "cpu")).to(device)
        numbers = numbers / DEVIATION
        columns = [v.view(-1, *[1] * (x.dim() - 2)) for v in (weight, bias)]
        before = x.detach() * columns[0] + columns[1] + NOISE * numbers.float().view(shape)
        expected = functional.leaky_relu(before, SLOPE)
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
        (gradient,) = torch.autograd.grad(y, x, torch.ones_like(y))
        slopes = torch.where(y > 0, 1.0, SLOPE)
        torch.testing.assert_close(gradient, slopes * columns[0], rtol=1e-6, atol=1e-7)


@native_and_reference
@pytest.mark.parametrize("device", DEVICES)
def test_zeros_and_bad_values_are_those_of_torch(device):
    special = [0.0, -0.0, 1e-45, -1e-45, 3.0, -3.0, math.inf, -math.inf, math.nan]
    x = torch.tensor(special, device=device).repeat(2, 3, 4).requires_grad_()
    one = torch.ones(3, device=device)
    constants = (one, one * 0, one * 0, one, seed_of(0, device))
    y = noisy_batch_norm(x, *constants, 0.0, SLOPE, 0.0, False)
    expected = functional.leaky_relu(x, SLOPE)
    assert torch.equal(y.nan_to_num(7), expected.nan_to_num(7))
    given = torch.linspace(1, 2, y.numel(), device=device).view_as(y)
    (gradient,) = torch.autograd.grad(y, x, given)
    finite = x.isfinite()
    expected = torch.where(x > 0, given, given * SLOPE)
    assert torch.equal(gradient[finite], expected[finite])


@native_and_reference
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0), (2, 0, 4)], ids=str)
def test_empty(device, shape):
    x = torch.empty(shape, device=device, requires_grad=True)
    weight = torch.ones(shape[1], device=device, requires_grad=True)
    constants = (weight.detach(), weight.detach(), weight.detach(), seed_of(0, device))
    y = noisy_batch_norm(x, weight, *constants, NOISE, SLOPE, EPS, False)
    assert y.shape == shape
    gradients = torch.autograd.grad(y.sum(), (x, weight))
    assert [g.shape for g in gradients] == [x.shape, weight.shape]
    assert (gradients[1] == 0).all()


@native_and_reference
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gradient_of_any_strides(device, layout):
    x = channels_last(sample(2, 3, 4, 5, device=device)).requires_grad_()
    weight, bias = vectors(3, torch.float32, device)
    settings = (bias, weight, seed_of(4, device), NOISE, SLOPE)
    given = sample(2, 3, 4, 5, device=device, seed=1)[..., :1].expand(2, 3, 4, 5)
    outcomes = []
    for change in (torch.clone, LAYOUTS[layout]):
        y = noisy_batch_norm(x, weight, bias, *settings)
        outcomes.append(torch.autograd.grad(y, x, change(given))[0])
    assert same_bits(*outcomes)


@pytest.mark.parametrize("device", DEVICES)
def test_one_bit_is_saved_for_each_element(device):
    x = sample(2, 3, 4, 5, device=device).requires_grad_()
    weight, bias = vectors(3, torch.float32, device)
    kept = []

    def pack(tensor):
        kept.append((tensor.data_ptr(), tensor.numel(), tensor.dtype))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        noisy_batch_norm(x, weight, bias, bias, weight, seed_of(0, device), NOISE, SLOPE)
    assert kept[0][0] == x.data_ptr()
    assert kept[1][1:] == (15, torch.uint8)
    assert all(numel == 3 for _, numel, _ in kept[2:])


@native_and_reference
def test_wrong_arguments_are_told():
    x, good, seed = sample(2, 3, 4), torch.ones(3), seed_of(0, "cpu")
    with pytest.raises(ValueError, match="weight: expected shape"):
        noisy_batch_norm(x, torch.ones(2), good, good, good, seed, NOISE)
    with pytest.raises(ValueError, match="variance: expected dtype"):
        noisy_batch_norm(x, good, good, good, good.double(), seed, NOISE)
    with pytest.raises(ValueError, match=r"seed: expected dtype torch\.int64, got torch\.int32"):
        noisy_batch_norm(x, good, good, good, good, seed.int(), NOISE)
    with pytest.raises(ValueError, match="x: expected shape"):
        noisy_batch_norm(torch.ones(3), good, good, good, good, seed, NOISE)
