"""Each observer against its definition, computed the slow way from all values; histograms against numpy's."""

from __future__ import annotations

import math

import numpy as np
import pytest

from linnet.calibration.observers import BINS, CANDIDATE_STRIDE, OBSERVERS, PERCENTILE, Histogram, steps

RNG = np.random.default_rng(3)
SAMPLES = {
    "normal": RNG.normal(0, 0.3, 20000),
    "outlier": np.append(RNG.laplace(0, 0.05, 20000), [3.7]),
    "relu": np.maximum(RNG.normal(0, 1, 20000), 0),
    "uniform": RNG.uniform(-1, 1, 5000),
}


def histogram(values: np.ndarray) -> Histogram:
    collected = Histogram()
    collected.add(values)
    return collected


@pytest.mark.parametrize("name", SAMPLES)
def test_histogram_counts_magnitudes_whatever_the_batches(name: str) -> None:
    values = SAMPLES[name]
    whole, pieces = histogram(values), Histogram()
    for piece in np.array_split(values[np.abs(values).argsort()], 7):  # the range grows with every batch
        pieces.add(piece)
    np.testing.assert_array_equal(whole.counts, pieces.counts)
    np.testing.assert_array_equal(whole.width_exp, pieces.width_exp)
    assert whole.low == values.min() and whole.high == values.max()
    edges = np.arange(BINS + 1) * whole.width[0]
    np.testing.assert_array_equal(whole.counts[0], np.histogram(np.abs(values), edges)[0])
    assert BINS / 2 <= np.abs(values).max() / whole.width[0] <= BINS


def test_channels_are_independent() -> None:
    values = np.stack([SAMPLES["normal"][:5000], 1e-9 * SAMPLES["uniform"], np.zeros(5000), 1e4 * SAMPLES["uniform"]])
    together = Histogram(4)
    for piece in np.array_split(values, 3, axis=1):
        together.add(piece)
    for method in OBSERVERS:
        for power_of_two in (False, True):
            alone = [steps(histogram(row), method, power_of_two=power_of_two)[0] for row in values]
            np.testing.assert_array_equal(steps(together, method, power_of_two=power_of_two), alone)
            assert alone[2] == 0


def test_values_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not all finite"):
        histogram(np.array([1.0, np.nan]))


def test_minmax_is_the_largest_magnitude() -> None:
    for values in SAMPLES.values():
        assert steps(histogram(values), "minmax", 63)[0] == np.abs(values).max() / 63


def test_percentile_is_within_a_bin_of_the_sorted_values() -> None:
    for values in SAMPLES.values():
        collected = histogram(values)
        true = np.sort(np.abs(values))[math.ceil(PERCENTILE / 100 * len(values)) - 1]
        got = OBSERVERS["percentile"](collected, 127)[0]
        assert true <= got <= true + collected.width[0]


@pytest.mark.parametrize("levels", [127, 63])
@pytest.mark.parametrize("name", SAMPLES)
def test_mse_is_the_least_squared_error(name: str, levels: int) -> None:
    """Over the true values, the chosen limit is as good as the best of all candidates, but for the bins' width."""
    values = np.abs(SAMPLES[name])
    collected = histogram(values)

    def error(limit: float) -> float:
        step = limit / levels
        return float(np.square(np.clip(np.rint(values / step), 0, levels) * step - values).mean())

    candidates = np.arange(CANDIDATE_STRIDE, BINS + 1, CANDIDATE_STRIDE) * collected.width[0]
    best = min(error(limit) for limit in candidates)
    assert error(OBSERVERS["mse"](collected, levels)[0]) <= 1.02 * best


def brute_force_entropy(counts: np.ndarray, levels: int) -> int:
    """The procedure of Migacz's slides 38 and following, bin by bin; the limit in bins."""
    counts = [float(count) for count in counts]
    counts[0] = counts[1]
    top = max(i for i, count in enumerate(counts) if count) + 1
    groups, best, chosen = levels + 1, math.inf, 0
    for edge in [*range(levels + 1, top, CANDIDATE_STRIDE), top]:
        reference = counts[:edge]
        reference[-1] += sum(counts[edge:])
        quantised = [0.0] * edge
        for group in range(groups):
            members = [i for i in range(edge) if i * groups // edge == group]
            occupied = [i for i in members if counts[i]]
            for i in occupied:
                quantised[i] = sum(counts[j] for j in members) / len(occupied)
        p_sum, q_sum = sum(reference), sum(quantised)
        shares = [(p / p_sum, q / q_sum) for p, q in zip(reference, quantised, strict=True) if p]
        divergence = sum(p * math.log(p / max(q, 1e-12)) for p, q in shares)
        if divergence <= best + 1e-15:
            best, chosen = divergence, edge
    return chosen


@pytest.mark.parametrize("name", ["outlier", "relu"])
def test_entropy_follows_the_published_procedure(name: str) -> None:
    values = SAMPLES[name][-1500:] * 0.4  # few enough for the slow way
    collected = histogram(values)
    expected = brute_force_entropy(collected.counts[0], 127) * collected.width[0]
    assert OBSERVERS["entropy"](collected, 127)[0] == pytest.approx(expected)


def test_entropy_and_mse_cut_an_outlier_that_minmax_keeps() -> None:
    collected = histogram(SAMPLES["outlier"])
    assert OBSERVERS["entropy"](collected, 127) < 1
    assert OBSERVERS["mse"](collected, 7) < 1 < OBSERVERS["mse"](collected, 127), "it depends on the levels"
    assert OBSERVERS["minmax"](collected, 127) == 3.7


@pytest.mark.parametrize("method", OBSERVERS)
@pytest.mark.parametrize("name", SAMPLES)
def test_power_of_two_steps_are_the_best_powers_of_two(name: str, method: str) -> None:
    values = np.abs(SAMPLES[name])
    collected = histogram(values)
    step = steps(collected, method, power_of_two=True)[0]
    assert np.log2(step) == np.rint(np.log2(step))
    free = steps(collected, method)[0]
    if method in ("minmax", "percentile"):
        assert free <= step < 2 * free
    if method == "mse":
        errors = {
            e: np.square(np.clip(np.rint(values / 2.0**e), 0, 127) * 2.0**e - values).mean() for e in range(-20, 5)
        }
        assert errors[int(np.log2(step))] <= 1.02 * min(errors.values())
