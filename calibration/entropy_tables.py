"""The integer entropy tables of a bundle: one for each of a geometric row of scales, frequencies that sum to 2**14.

Table i starts as a zero-mean Laplacian of standard deviation SMALLEST_SCALE * 2**(i / 8), integrated over unit
intervals as Balle et al. (2018) do with Gaussians, cut where its tail is thinner than a few counts; one frequency is
the escape's. Symbols counted on photographs then bend it to what the encoder really writes: its rounding prefers small
symbols, which makes zeros likelier than the Laplacian says. That saves 4 % of the rate.
"""

from __future__ import annotations

import math

import numpy as np

from ..runtime.core import MAX_RADIUS
from ..runtime.latents import FREQUENCY_BITS, SCALE_STEPS_PER_OCTAVE, SCALE_TABLES, SMALLEST_SCALE

SKIP_SCALE = 0.1
"""Below this scale a symbol is not coded at all: it is 0 but for one in a thousand."""
TAIL = 2.0**-12
"""Share beyond the largest symbol of a table, and the least share of the escape."""


PRIOR = 400.0
"""Symbols that the Laplacian counts for beside those that were counted."""


def laplacian_tables(trellis: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies (sum of 2 * radius + 2,) uint16, radii uint16 of SCALE_TABLES tables, or with `trellis` of as many
    for each of its two quantisers); radius 0 marks a skip."""
    return fitted_tables(np.zeros((2 if trellis else 1, SCALE_TABLES, 1)))


def fitted_tables(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `laplacian_tables`, but fitted: `counts` (quantisers, SCALE_TABLES, M) says how often |symbol| was 0, 1, ...
    per quantiser and table."""
    frequencies, radii = [], []
    for quantiser, table in np.ndindex(counts.shape[:2]):
        scale = SMALLEST_SCALE * 2.0 ** (table / SCALE_STEPS_PER_OCTAVE)
        radius = 0
        if scale >= SKIP_SCALE:
            radius = min(MAX_RADIUS, max(1, math.ceil(-math.log(TAIL) * scale / math.sqrt(2))))
            seen = np.zeros(radius + 2)  # 0..radius and beyond
            np.add.at(seen, np.minimum(np.arange(counts.shape[2]), radius + 1), counts[quantiser, table])
            share = (seen + PRIOR * _laplacian(scale, radius, quantiser)) / (seen.sum() + PRIOR)
            frequencies.append(_normalised(share))
        radii.append(radius)
    return np.concatenate(frequencies).astype(np.uint16), np.array(radii, np.uint16)


def _laplacian(scale: float, radius: int, quantiser: int) -> np.ndarray:
    """Shares of |symbol| = 0..radius and beyond, the last at least TAIL; (radius + 2,). The second quantiser's symbols
    other than 0 stand half a step nearer to it."""

    def tail(x: float) -> float:
        return math.exp(-math.sqrt(2) * x / scale)

    first, shift = (0.25, 0.5) if quantiser else (0.5, 0.0)
    tails = [1.0, tail(first), *(tail(s + 0.5 - shift) for s in range(1, radius + 1))]
    share = np.array([*-np.diff(tails), max(tails[-1], TAIL)])
    return share / share.sum()


def _normalised(share: np.ndarray) -> np.ndarray:
    """Frequencies of -radius..radius and the escape, each at least 1, summing to 2**14 exactly."""
    radius, total = len(share) - 2, 1 << FREQUENCY_BITS
    flank = share[1:-1] / 2
    probability = np.concatenate([flank[::-1], share[:1], flank, np.maximum(share[-1:], TAIL)])
    frequency = np.maximum(1, np.rint(probability / probability.sum() * total)).astype(np.int64)
    if frequency[radius] <= frequency.sum() - total:  # many ones for symbols that are all but impossible
        frequency = 1 + np.floor(probability / probability.sum() * (total - len(probability))).astype(np.int64)
    frequency[radius] += total - frequency.sum()
    return frequency
