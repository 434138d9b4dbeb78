"""Nearly normal numbers from a counter in plain torch: Philox 4x32-10 and sums of cubics.

They are those of `csrc/normal_noise.h`, which says what they are.
"""

import torch
from torch import Tensor

NUMBERS_PER_VECTOR = 8
BLOCKS_PER_GROUP = 4
NUMBERS_PER_GROUP = 64
WORD = 0xFFFFFFFF  # the bits of a word; words are kept in int64
ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
LINEAR, CUBIC = 1040, 3029
DEVIATION = 4842.275175472786  # of the numbers


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


def fraction_product(a: Tensor, b: Tensor | int) -> Tensor:
    """Return the product of fractions with 15 bits after the point, rounded."""
    return (a * b + 0x4000) >> 15


def cubics_of_bytes() -> Tensor:
    """Return the cubic of each byte, int64 [256]; bytes are signed."""
    centered = (torch.arange(256) ^ 0x80) * 256 - 0x8000 + 0x80
    square = fraction_product(centered, centered)
    return fraction_product(centered, LINEAR + fraction_product(square, CUBIC))


def hadamard(count: int) -> Tensor:
    """Return the Hadamard matrix of a power of two in Sylvester's order, int64."""
    matrix = torch.ones(1, 1, dtype=torch.int64)
    while len(matrix) < count:
        matrix = torch.kron(matrix, torch.tensor([[1, 1], [1, -1]]))
    return matrix


def normal_noise(count: int, seed: Tensor) -> Tensor:
    """Return the numbers of so many elements in memory order, in units of 1 / DEVIATION.

    They are whole, int64 [count].
    """
    groups = -(-count // NUMBERS_PER_GROUP)
    blocks = torch.arange(groups * BLOCKS_PER_GROUP, device=seed.device)
    zero = torch.zeros_like(blocks)
    key = seed & WORD, (seed >> 32) & WORD
    words = torch.stack(philox(key, [blocks & WORD, blocks >> 32, zero, zero]), 1)  # [blocks, 4]
    shifts = torch.arange(0, 32, 8, device=seed.device)
    numbers = cubics_of_bytes().to(seed.device)[words[:, :, None] >> shifts & 0xFF]
    # Two bytes of each word belong to a half of the block.
    halves = numbers.view(groups, BLOCKS_PER_GROUP, 4, 2, 2).permute(0, 3, 1, 2, 4)
    vectors = halves.reshape(-1, NUMBERS_PER_VECTOR)  # the order of vectors in memory
    signs = hadamard(NUMBERS_PER_VECTOR).to(seed.device)
    return (vectors[:, :, None] * signs).sum(1).view(-1)[:count]
