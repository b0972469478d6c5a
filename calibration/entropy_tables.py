"""The integer entropy tables of a bundle: Laplacians over geometric scales, as frequencies that sum to 2**14.

Table i holds a zero-mean Laplacian of standard deviation SMALLEST_SCALE * 2**(i / 8), integrated over unit intervals as
Balle et al. (2018) do with Gaussians, cut where its tail is thinner than a few counts; one frequency is the escape's.
"""

from __future__ import annotations

import math

import numpy as np

from ..runtime.latents import SCALE_STEPS_PER_OCTAVE, SCALE_TABLES, SMALLEST_SCALE

PROBABILITY_BITS = 14
MAX_RADIUS = 255
SKIP_SCALE = 0.1
"""Below this scale a symbol is not coded at all: it is 0 but for one in a thousand."""
TAIL = 2.0**-12
"""Share beyond the largest symbol of a table, and the least share of the escape."""


def laplacian_tables() -> tuple[np.ndarray, np.ndarray]:
    """(frequencies (sum of 2 * radius + 2,) uint16, radii (SCALE_TABLES,) uint16); radius 0 marks a skip."""
    frequencies, radii = [], []
    for table in range(SCALE_TABLES):
        scale = SMALLEST_SCALE * 2.0 ** (table / SCALE_STEPS_PER_OCTAVE)
        radius = 0
        if scale >= SKIP_SCALE:
            radius = min(MAX_RADIUS, max(1, math.ceil(-math.log(TAIL) * scale / math.sqrt(2))))
            frequencies.append(_normalised(scale, radius))
        radii.append(radius)
    return np.concatenate(frequencies).astype(np.uint16), np.array(radii, np.uint16)


def _normalised(scale: float, radius: int) -> np.ndarray:
    """Frequencies of -radius..radius and the escape, each at least 1, summing to 2**14 exactly."""

    def tail(x: float) -> float:
        """Share above x >= 0."""
        return 0.5 * math.exp(-math.sqrt(2) * x / scale)

    flank = [tail(s - 0.5) - tail(s + 0.5) for s in range(1, radius + 1)]
    probability = np.array([*flank[::-1], 1 - 2 * tail(0.5), *flank, max(2 * tail(radius + 0.5), TAIL)])
    total = 1 << PROBABILITY_BITS
    frequency = np.maximum(1, np.rint(probability / probability.sum() * total)).astype(np.int64)
    frequency[radius] += total - frequency.sum()
    if frequency.min() < 1:
        raise AssertionError(f"a Laplacian of scale {scale} does not fit {total} counts")
    return frequency
