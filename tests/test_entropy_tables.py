"""The integer entropy tables: exact sums, symmetric, and within a fraction of a percent of the ideal code length."""

from __future__ import annotations

import math

import numpy as np
import pytest

from linnet.calibration.entropy_tables import SKIP_SCALE, fitted_tables, laplacian_tables
from linnet.runtime.latents import SCALE_STEPS_PER_OCTAVE, SCALE_TABLES, SMALLEST_SCALE


def tables(trellis: bool = False) -> list[tuple[float, int, np.ndarray]]:
    """(scale, quantiser, frequencies) of each coded table."""
    frequencies, radii = laplacian_tables(trellis)
    assert len(radii) == SCALE_TABLES * (1 + trellis)
    found, start = [], 0
    for index, radius in enumerate(radii):
        if radius:
            quantiser, number = divmod(index, SCALE_TABLES)
            size = 2 * int(radius) + 2
            scale = SMALLEST_SCALE * 2 ** (number / SCALE_STEPS_PER_OCTAVE)
            found.append((scale, quantiser, frequencies[start : start + size]))
            start += size
    assert start == len(frequencies)
    return found


def test_every_table_is_whole_and_symmetric() -> None:
    for _, _, frequency in tables() + tables(trellis=True):
        assert frequency.sum() == 1 << 14 and frequency.min() >= 1
        np.testing.assert_array_equal(frequency[:-1], frequency[:-1][::-1])


def test_a_trellis_begins_with_the_scalar_tables_and_has_as_many_again() -> None:
    scalar, both = laplacian_tables(), laplacian_tables(trellis=True)
    for own, all_of_them in zip(scalar, both, strict=True):
        np.testing.assert_array_equal(own, all_of_them[: len(own)])
    np.testing.assert_array_equal(np.tile(scalar[1], 2), both[1])


def nearest_symbols(residual: np.ndarray, quantiser: int) -> np.ndarray:
    """Levels are whole steps, or with the second quantiser 0 and the halves: 0.5, 1.5, ..."""
    if not quantiser:
        return np.rint(residual).astype(int)
    levels = np.array([0.0, *np.arange(0.5, 600)])
    symbols = np.searchsorted((levels[1:] + levels[:-1]) / 2, np.abs(residual))
    return np.where(residual < 0, -symbols, symbols)


def test_the_second_quantiser_codes_halves() -> None:
    residual = np.array([0.2, -0.2, 0.3, -0.9, 1.1, -1.9, 2.1, 250.4])
    assert nearest_symbols(residual, 1).tolist() == [0, 0, 1, -1, 2, -2, 3, 251]


@pytest.mark.parametrize("quantiser", [0, 1])
def test_tables_code_laplacian_residuals_near_the_entropy(quantiser: int) -> None:
    rng = np.random.default_rng(5)
    own = [(scale, frequency) for scale, number, frequency in tables(trellis=True) if number == quantiser]
    assert len(own) == sum(radius > 0 for radius in laplacian_tables()[1])
    for scale, frequency in own[::5]:
        radius = len(frequency) // 2 - 1
        symbols = nearest_symbols(rng.laplace(0, scale / math.sqrt(2), 200_000), quantiser)
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
    fitted, same_radii = fitted_tables(counts[None])
    np.testing.assert_array_equal(radii, same_radii)
    changed = np.flatnonzero(fitted != plain)
    assert start <= changed.min() and changed.max() < start + 2 * radius + 2
    frequency = fitted[start : start + 2 * radius + 2] / 2**14
    np.testing.assert_allclose(frequency[radius : radius + 2], [0.97, 0.01], atol=2e-3)
    np.testing.assert_allclose(frequency[-1], 0.01, atol=2e-3)
    assert fitted[start : start + 2 * radius + 2].sum() == 1 << 14
    np.testing.assert_array_equal(frequency[:-1], frequency[:-1][::-1])


def test_counts_bend_the_tables_of_their_quantiser_only() -> None:
    plain, radii = laplacian_tables(trellis=True)
    first, starts = len(plain) // 2, np.cumsum(np.where(radii, 2 * radii.astype(int) + 2, 0))
    assert starts[SCALE_TABLES - 1] == first
    for quantiser in (0, 1):
        counts = np.zeros((2, SCALE_TABLES, 300))
        counts[quantiser, 40, 1] = 1e6
        fitted, same_radii = fitted_tables(counts)
        np.testing.assert_array_equal(radii, same_radii)
        changed = np.flatnonzero(fitted != plain)
        table = quantiser * SCALE_TABLES + 40
        assert starts[table - 1] <= changed.min() and changed.max() < starts[table]


def test_any_counts_give_a_whole_table() -> None:
    rng = np.random.default_rng(8)
    _, radii = laplacian_tables(trellis=True)
    for spread in (1, 30, 600):
        shape = (2, SCALE_TABLES, 512)
        counts = rng.integers(0, 2, shape) * rng.geometric(1 / spread, shape) ** 2
        counts[..., :2] *= int(spread == 30)  # also tables that never see a zero
        frequencies, same_radii = fitted_tables(counts)
        np.testing.assert_array_equal(radii, same_radii)
        start = 0
        for radius in radii.astype(int):
            if radius:
                table = frequencies[start : start + 2 * radius + 2]
                assert table.sum() == 1 << 14 and table.min() >= 1
                np.testing.assert_array_equal(table[:-1], table[:-1][::-1])
                start += 2 * radius + 2
        assert start == len(frequencies)
