"""The integer entropy tables: exact sums, symmetric, and within a fraction of a percent of the ideal code length."""

from __future__ import annotations

import math

import numpy as np

from linnet.calibration.entropy_tables import SKIP_SCALE, fitted_tables, laplacian_tables
from linnet.runtime.latents import SCALE_STEPS_PER_OCTAVE, SMALLEST_SCALE


def tables() -> list[tuple[float, np.ndarray]]:
    """(scale, frequencies) of each coded table."""
    frequencies, radii = laplacian_tables()
    found, start = [], 0
    for index, radius in enumerate(radii):
        if radius:
            size = 2 * int(radius) + 2
            found.append((SMALLEST_SCALE * 2 ** (index / SCALE_STEPS_PER_OCTAVE), frequencies[start : start + size]))
            start += size
    assert start == len(frequencies)
    return found


def test_every_table_is_whole_and_symmetric() -> None:
    for _, frequency in tables():
        assert frequency.sum() == 1 << 14 and frequency.min() >= 1
        np.testing.assert_array_equal(frequency[:-1], frequency[:-1][::-1])


def test_tables_code_laplacian_residuals_near_the_entropy() -> None:
    rng = np.random.default_rng(5)
    for scale, frequency in tables()[::5]:
        radius = len(frequency) // 2 - 1
        symbols = np.rint(rng.laplace(0, scale / math.sqrt(2), 200_000)).astype(int)
        share = np.unique(symbols, return_counts=True)[1] / len(symbols)
        entropy = -(share * np.log2(share)).sum()
        escaped = np.abs(symbols) > radius
        index = np.where(escaped, len(frequency) - 1, np.clip(symbols + radius, 0, 2 * radius))
        bits = (14 - np.log2(frequency[index])).mean() + 10 * escaped.mean()
        assert bits < entropy * 1.02 + 0.004, scale


def test_only_scales_that_are_all_but_zero_are_skipped() -> None:
    assert tables()[0][0] >= SKIP_SCALE
    assert math.exp(-math.sqrt(2) * 0.5 / SKIP_SCALE) < 1e-3


def test_counted_symbols_bend_the_tables() -> None:
    """Fewer ones and more escapes than a Laplacian has: the fitted table says so, others stay as they were."""
    plain, radii = laplacian_tables()
    counts = np.zeros((len(radii), 512))
    table = 24
    radius, start = int(radii[table]), int(sum(2 * r + 2 for r in radii[:table].astype(int) if r))
    counts[table, :2], counts[table, 511] = (970_000, 20_000), 10_000
    fitted, same_radii = fitted_tables(counts)
    np.testing.assert_array_equal(radii, same_radii)
    changed = np.flatnonzero(fitted != plain)
    assert start <= changed.min() and changed.max() < start + 2 * radius + 2
    frequency = fitted[start : start + 2 * radius + 2] / 2**14
    np.testing.assert_allclose(frequency[radius : radius + 2], [0.97, 0.01], atol=2e-3)
    np.testing.assert_allclose(frequency[-1], 0.01, atol=2e-3)
    assert fitted[start : start + 2 * radius + 2].sum() == 1 << 14
    np.testing.assert_array_equal(frequency[:-1], frequency[:-1][::-1])


def test_any_counts_give_a_whole_table() -> None:
    rng = np.random.default_rng(8)
    _, radii = laplacian_tables()
    for spread in (1, 30, 600):
        counts = rng.integers(0, 2, (len(radii), 512)) * rng.geometric(1 / spread, (len(radii), 512)) ** 2
        counts[:, :2] *= int(spread == 30)  # also tables that never see a zero
        frequencies, _ = fitted_tables(counts)
        start = 0
        for radius in radii.astype(int):
            if radius:
                table = frequencies[start : start + 2 * radius + 2]
                assert table.sum() == 1 << 14 and table.min() >= 1
                np.testing.assert_array_equal(table[:-1], table[:-1][::-1])
                start += 2 * radius + 2
