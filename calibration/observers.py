"""Observers: from the values a tensor takes to the limit and the step of its integers.

A `Histogram` collects magnitudes batch by batch in bounded memory, per tensor (one channel) or per channel. A
*method* then chooses for each channel the limit beyond which values saturate: min-max, a percentile, the least
Kullback-Leibler divergence, or the least squared error. Quantisers here are symmetric, with zero point 0: integers
-levels..levels times a step, where 127 levels are int8 and 63 are the even int8 weights of `docs/integers.md`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

BINS = 2048
"""Per channel. TensorRT's calibrator takes as many."""
SMALLEST_WIDTH_EXP = -40
"""Bins are at least 2**-40 wide, so that a tensor of zeros has a histogram."""
PERCENTILE = 99.99
CANDIDATE_STRIDE = 8
"""Entropy and squared error try every 8th bin edge as the limit."""


class Histogram:
    """Counts of |x| per channel in BINS equal bins, whose width is a power of two that grows with the values.

    Doubling a width merges neighbouring bins without error, so the outcome depends on neither the order of the values
    nor how they were cut into batches. `low` and `high` (C,) are the exact extremes.
    """

    def __init__(self, channels: int = 1) -> None:
        self.counts = np.zeros((channels, BINS), np.int64)
        self.width_exp = np.full(channels, SMALLEST_WIDTH_EXP)
        self.low, self.high = np.full(channels, np.inf), np.full(channels, -np.inf)

    @property
    def width(self) -> np.ndarray:
        """(C,) float64: the width of each channel's bins."""
        return np.exp2(self.width_exp.astype(np.float64))

    @property
    def peak(self) -> np.ndarray:
        """(C,) float64: the largest magnitude of each channel; 0 where nothing was seen."""
        return np.where(self.high < self.low, 0.0, np.maximum(-self.low, self.high))

    def add(self, values: np.ndarray) -> None:
        """Count `values` (C, ...); for one channel any shape will do. Raises ValueError if one is not finite."""
        channels = len(self.counts)
        values = np.asarray(values, np.float64).reshape(channels, -1)
        if not values.size:
            return
        if not np.isfinite(values).all():
            raise ValueError("the values of a tensor are not all finite: the model diverges on this input")
        self.low = np.minimum(self.low, values.min(1))
        self.high = np.maximum(self.high, values.max(1))
        self._widen()
        magnitude = np.abs(values)
        bins = np.minimum((magnitude / self.width[:, None]).astype(np.int64), BINS - 1)
        index = bins + BINS * np.arange(channels)[:, None]
        self.counts += np.bincount(index.ravel(), minlength=channels * BINS).reshape(channels, BINS)

    def _widen(self) -> None:
        """Double bin widths until the peak is inside the last bin."""
        mantissa, exponent = np.frexp(self.peak / BINS)
        needed = np.where(self.peak > 0, exponent - (mantissa == 0.5), SMALLEST_WIDTH_EXP)
        for channel in np.flatnonzero(needed > self.width_exp):
            merged = 1 << min(int(needed[channel] - self.width_exp[channel]), BINS.bit_length() - 1)
            joined = self.counts[channel].reshape(-1, merged).sum(1)
            self.counts[channel] = 0
            self.counts[channel, : len(joined)] = joined
            self.width_exp[channel] = needed[channel]


def minmax(histogram: Histogram, levels: int, candidates: np.ndarray | None = None) -> np.ndarray:
    """The largest magnitude: nothing saturates, and one outlier costs everybody precision."""
    return histogram.peak


def percentile(histogram: Histogram, levels: int, candidates: np.ndarray | None = None) -> np.ndarray:
    """The upper edge of the bin below which PERCENTILE per cent of the magnitudes lie, at most the peak."""
    share = histogram.counts.cumsum(1) / np.maximum(histogram.counts.sum(1, keepdims=True), 1)
    first = (share >= PERCENTILE / 100).argmax(1)
    return np.minimum((first + 1) * histogram.width, histogram.peak)


def entropy(histogram: Histogram, levels: int, candidates: np.ndarray | None = None) -> np.ndarray:
    """The least Kullback-Leibler divergence between the values and their quantised form, as TensorRT's calibrator
    (Migacz, "8-bit inference with TensorRT", 2017) has it: outliers join the last bin, and the reference is
    compared with itself after merging into levels + 1 groups that are spread over their occupied bins.

    The first bin counts as much as the second: zeros are exact in every format and would hide the rest.
    """
    best = np.zeros(len(histogram.counts))
    for channel, stored in enumerate(histogram.counts):
        counts = stored.astype(np.float64)
        counts[0] = counts[1]
        used = np.flatnonzero(counts)
        top = int(used[-1]) + 1 if len(used) else 1
        if candidates is None:
            edges = np.unique(np.append(np.arange(levels + 1, top, CANDIDATE_STRIDE), top))
        else:
            edges = candidates[(candidates > levels) & (candidates < 2 * top)]  # in bins
        if top <= levels + 1 or not len(edges):
            best[channel] = histogram.peak[channel]  # fewer bins than levels: nothing to gain by clipping
            continue
        divergences = [_divergence(counts, int(edge), levels + 1) for edge in edges]
        # Of equal divergences the larger limit.
        chosen = len(edges) - 1 - int(np.argmin(divergences[::-1]))
        best[channel] = edges[chosen] * histogram.width[channel]
    return best


def _divergence(counts: np.ndarray, edge: int, groups: int) -> float:
    """KL divergence in nats of the first `edge` bins, outliers in the last, from their merger into `groups`."""
    edge_counts = counts[:edge]
    reference = edge_counts.copy()
    reference[-1] += counts[edge:].sum()
    group = np.minimum(np.arange(len(reference)) * groups // edge, groups - 1)
    occupied = edge_counts > 0
    sums = np.bincount(group, weights=edge_counts, minlength=groups)
    members = np.bincount(group, weights=occupied, minlength=groups)
    spread = np.where(occupied, sums[group] / np.maximum(members[group], 1), 0)
    p, q = reference / reference.sum(), spread / max(spread.sum(), 1e-300)
    inside = p > 0
    return float((p[inside] * np.log(p[inside] / np.maximum(q[inside], 1e-12))).sum())


def mse(histogram: Histogram, levels: int, candidates: np.ndarray | None = None) -> np.ndarray:
    """The least squared error of quantising and clipping, each bin standing for its centre."""
    edges = np.arange(CANDIDATE_STRIDE, BINS + 1, CANDIDATE_STRIDE) if candidates is None else candidates
    centre = np.arange(BINS) + 0.5
    step = edges[:, None] / levels
    error = np.square(np.clip(np.rint(centre / step), 0, levels) * step - centre)
    # A bin is no wider than a step where the choice matters; its own width blurs all candidates alike.
    best = edges[(histogram.counts @ error.T).argmin(1)] * histogram.width
    return np.where(histogram.peak > 0, best, 0.0)


OBSERVERS: dict[str, Callable[..., np.ndarray]] = {
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
    "mse": mse,
}


def steps(histogram: Histogram, method: str, levels: int = 127, *, power_of_two: bool = False) -> np.ndarray:
    """(C,) float64: the step of each channel's integers -levels..levels, as the observer `method` chooses it.

    With `power_of_two` entropy and squared error choose among powers of two (the bin widths are powers of two as
    well); the limits of min-max and the percentile are rounded up to the next one. 0 where a channel holds only 0.
    """
    choose = OBSERVERS[method]
    if not power_of_two:
        return choose(histogram, levels) / levels
    exponents = np.arange(-levels.bit_length(), BINS.bit_length() + 1)
    step = choose(histogram, levels, levels * np.exp2(exponents.astype(np.float64))) / levels
    return np.exp2(np.ceil(np.log2(step, where=step > 0, out=np.full_like(step, -np.inf))))
