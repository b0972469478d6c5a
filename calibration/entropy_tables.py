"""The integer entropy tables of a bundle: Gaussians over geometric scales, as frequencies that sum to 2**14.

Table i holds a zero-mean Gaussian of scale SMALLEST_SCALE * 2**(i / 8) integrated over unit intervals (Balle et al.,
2018), cut where its tail is thinner than one count, with one frequency left for the escape.
"""

from __future__ import annotations

import math

import numpy as np

from ..runtime.latents import SCALE_STEPS_PER_OCTAVE, SCALE_TABLES, SMALLEST_SCALE

PROBABILITY_BITS = 14
MAX_RADIUS = 255
SKIP_TABLES = 4
"""Tables whose symbol is practically always 0 (a non-zero one is rarer than 1 in 2000): not coded at all."""
ESCAPE_SHARE = 2.0**-11
"""Least probability of the escape: real residuals have heavier tails than Gaussians."""


def gaussian_tables() -> tuple[np.ndarray, np.ndarray]:
    """(frequencies (sum of 2 * radius + 2,) uint16, radii (SCALE_TABLES,) uint16); radius 0 marks a skip."""
    frequencies, radii = [], []
    for table in range(SCALE_TABLES):
        scale = SMALLEST_SCALE * 2.0 ** (table / SCALE_STEPS_PER_OCTAVE)
        radius = 0 if table < SKIP_TABLES else min(MAX_RADIUS, max(1, math.ceil(3.6 * scale)))
        radii.append(radius)
        if radius:
            frequencies.append(_normalised(scale, radius))
    return np.concatenate(frequencies).astype(np.uint16), np.array(radii, np.uint16)


def _normalised(scale: float, radius: int) -> np.ndarray:
    """Frequencies of -radius..radius and the escape, each at least 1, summing to 2**14 exactly."""
    tail = lambda x: 0.5 * math.erfc(x / scale / math.sqrt(2))  # noqa: E731
    inner = [tail(abs(s) - 0.5) - tail(abs(s) + 0.5) for s in range(-radius, radius + 1)]
    probability = np.array([*inner, max(2 * tail(radius + 0.5), ESCAPE_SHARE)])
    total = 1 << PROBABILITY_BITS
    frequency = np.maximum(1, np.floor(probability / probability.sum() * (total - len(probability))) + 1).astype(
        np.int64
    )
    frequency[radius] += total - frequency.sum()
    assert frequency.min() >= 1 and frequency.sum() == total
    return frequency
