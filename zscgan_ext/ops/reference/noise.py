"""Normal numbers from a counter in plain torch: Philox 4x32-10 and the Box-Muller transform.

They have the bits of `csrc/normal_noise.h`, which says what they are.
"""

import torch
from torch import Tensor

NUMBERS_PER_BLOCK = 8
WORD = 0xFFFFFFFF  # the bits of a word; words are kept in int64
ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
SQRT_HALF_BITS = 0x3F3504F3  # of sqrt(1/2) in float32
LOGARITHM = (1.2085285438e-1, -1.8484226553e-1, 2.0398901584e-1, -2.4937617605e-1, 3.3322458160e-1)


def philox(key: tuple[Tensor, Tensor], counter: list[Tensor]) -> list[Tensor]:
    """Return the four words, int64 [n] each, of counters of four words and a key of two."""
    a, b, c, d = counter
    low, high = key
    for _ in range(ROUNDS):
        # Products of two words fill 64 bits: they wrap, and the shifted sign is cut off.
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (
            ((second >> 32) & WORD) ^ b ^ low,
            second & WORD,
            ((first >> 32) & WORD) ^ d ^ high,
            first & WORD,
        )
        low, high = (low + WEYL[0]) & WORD, (high + WEYL[1]) & WORD
    return [a, b, c, d]


def natural_logarithm(x: Tensor) -> Tensor:
    """Return the logarithm of normal positive numbers, float32."""
    shifted = x.view(torch.int32) - SQRT_HALF_BITS
    exponent = (shifted >> 23).float()
    f = ((shifted & 0x007FFFFF) + SQRT_HALF_BITS).view(torch.float32) - 1
    square = f * f
    p = torch.full_like(f, LOGARITHM[0])
    for coefficient in LOGARITHM[1:]:
        p = p * f + coefficient
    return exponent * 0.693147180559945 + (p * f * square - 0.5 * square + f)


def box_muller(words: Tensor) -> tuple[Tensor, Tensor]:
    """Return two normal numbers, float32, for each word, int64."""
    uniform = ((words >> 16 << 1) | 1).float() * 2**-17
    # torch's square root of float32 may be off by a bit on a CPU.
    radius = (-2 * natural_logarithm(uniform)).double().sqrt().float()
    angle = (((words & 0x3FFF) << 1 | 1) - 0x4000).float() * 4.7936899621426287e-5
    square = angle * angle
    sine = (8.1646086733e-3 * square - 1.6663458531e-1) * square * angle + angle
    cosine = (4.1661278619e-2 - 1.3652450089e-3 * square) * square * square - 0.5 * square + 1
    radius = torch.where((words & 0x8000) != 0, -radius, radius)
    swapped = (words & 0x4000) != 0
    return radius * torch.where(swapped, sine, cosine), radius * torch.where(swapped, cosine, sine)


def normal_noise(count: int, seed: Tensor) -> Tensor:
    """Return the numbers of so many elements in memory order, float32 [count]."""
    blocks = torch.arange(-(-count // NUMBERS_PER_BLOCK), device=seed.device)
    zero = torch.zeros_like(blocks)
    key = seed & WORD, (seed >> 32) & WORD
    words = philox(key, [blocks & WORD, blocks >> 32, zero, zero])
    pairs = box_muller(torch.stack(words, 1))  # [blocks, 4] each
    return torch.stack(pairs, 2).view(-1)[:count]
