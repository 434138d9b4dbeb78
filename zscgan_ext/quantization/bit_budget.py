"""Widths of layers with the least loss in all, given how many bits all weights may take.

Losses of layers are taken to add up. Then this is a knapsack with one choice for each layer, which
dynamic programming solves exactly.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

MOST_UNITS = 1 << 16  # that a budget is divided into; up to as many bits it is exact


def choose_widths(
    counts: Sequence[int], losses: Sequence[Mapping[int, float]], budget: int
) -> list[int]:
    """Choose a width for each layer.

    Args:
        counts: weights of each layer.
        losses: of each layer, by width.
        budget: bits that all weights may take, enough for the narrowest widths.

    Returns:
        A width for each layer.
    """
    unit = max(1, math.ceil(budget / MOST_UNITS))
    capacity = budget // unit
    tables = [never_more_with_more_bits(each) for each in losses]
    least = np.zeros(capacity + 1)  # the least loss of the layers so far, by units at most
    chosen = []
    for count, table in zip(counts, tables, strict=True):
        options = np.full((len(table), capacity + 1), np.inf)
        for row, (width, loss) in zip(options, table.items(), strict=True):
            cost = math.ceil(count * width / unit)
            if cost <= capacity:
                row[cost:] = least[: capacity + 1 - cost] + loss
        best = options.argmin(0)
        chosen.append(best.astype(np.uint8))
        least = options.min(0)
    if not math.isfinite(least[capacity]):
        # Rounding to units took what the narrowest widths need.
        widths = [min(table) for table in tables]
    else:
        widths = traced_back(counts, tables, chosen, unit, capacity)
    return filled(counts, tables, widths, budget)


def never_more_with_more_bits(losses: Mapping[int, float]) -> dict[int, float]:
    """Return losses by width, narrowest first, none above that of a narrower width.

    What measuring them leaves of noise is not to speak against bits.
    """
    table: dict[int, float] = {}
    for width in sorted(losses):
        table[width] = min([losses[width], *table.values()])
    return table


def traced_back(
    counts: Sequence[int],
    tables: Sequence[Mapping[int, float]],
    chosen: Sequence[np.ndarray],
    unit: int,
    capacity: int,
) -> list[int]:
    """Return the widths that led to the least loss, from the last layer to the first."""
    widths = []
    left = capacity
    for count, table, best in reversed(list(zip(counts, tables, chosen, strict=True))):
        width = list(table)[best[left]]
        left -= math.ceil(count * width / unit)
        widths.append(width)
    return widths[::-1]


def filled(
    counts: Sequence[int],
    tables: Sequence[Mapping[int, float]],
    widths: Sequence[int],
    budget: int,
) -> list[int]:
    """Spend what is left of a budget where a bit more gains the most for the bits that it takes."""
    widths = list(widths)
    left = budget - sum(count * width for count, width in zip(counts, widths, strict=True))
    while True:
        gains = [
            ((table[width] - table[wider]) / (count * (wider - width)), layer, wider)
            for layer, (count, table, width) in enumerate(zip(counts, tables, widths, strict=True))
            for wider in table
            if wider > width and count * (wider - width) <= left
        ]
        gain, layer, wider = max(gains, default=(0.0, 0, 0))
        if gain <= 0:
            return widths
        left -= counts[layer] * (wider - widths[layer])
        widths[layer] = wider
