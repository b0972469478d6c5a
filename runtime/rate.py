"""A frame into a given number of bytes: the quality is found with one more entropy pass, and no more analysis.

The first pass codes the frame at a quality that is guessed from the magnitudes of its latents, and keeps what the
networks predicted for a sample of the symbols: means, entropy tables, values. From these follows what the same frame
would take at any other quality, to a few percent over the whole range and to one percent nearby, because predictions
hardly depend on it. The second pass is the file; as its tiles come out, those still to come make up for the error.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from . import core
from .bundle import Bundle
from .errors import UsageError
from .latents import GAIN_EXP, code_lengths, rounding_offsets
from .tiles import BLOCK

SAMPLED_POSITIONS = 4096
"""Latent positions whose symbols are kept, spread over the frame in whole rows."""
GUESSING_POSITIONS = 256
"""Latent positions, spread over the frame, from which the first pass' quality is guessed."""
STEP_SHARE = 1 / 3
"""Of a quantisation step: latents below it take few bits, whatever is predicted of them."""
USUAL_RATE = 1.55, 1.14
"""Photographs take a * s**b bits per pixel, within a sixth of that, where s is `_magnitude_bits`. The package's codecs
on 25 training pictures, at qualities 5 to 100: a is 1.54 to 1.61, b 1.09 to 1.16."""
CONTEXT_LOSS = 0.0015, 60
"""Predictions are worse from coarser contexts: by this share of the rate per step of quality, below this quality."""
LARGEST_CORRECTION = 4
"""Steps of quality by which a tile may differ from the others to meet the size."""
TRUST = 0.05
"""Share of the frame that must have come out before the estimate is corrected by half of what it was wrong so far."""


@dataclass(frozen=True)
class _Sample:
    """Symbols of one coding step: residuals (n,) float32 in quarters, log-scales (n,) int8, channels (n,)."""

    residual: np.ndarray
    log_scale: np.ndarray
    channel: np.ndarray


class RateCurve:
    """Estimates a frame's size at every quality from a sample of its symbols, taken during a pass at one quality.

    Everything is counted in whole numbers, so that the estimate does not depend on the order in which threads finish.
    """

    def __init__(self, bundle: Bundle, positions: int) -> None:
        """`positions` is how many latent positions the frame has."""
        self._bundle = bundle
        tables = bundle.entropy_tables
        lengths = code_lengths(tables.frequencies, tables.radii, core.MAX_RADIUS + 2)
        self._bits = np.rint(256 * lengths).astype(np.int32)
        """1/256 bits of each magnitude under each table. A trellis' first quantiser stands for both."""
        self._rounding = rounding_offsets(lengths, tables.radii)
        self._every = max(1, -(-positions // SAMPLED_POSITIONS))
        self._samples: list[_Sample] = []
        self._estimates: dict[int, float] = {}

    def observe(self, step: core.Step, value: np.ndarray, parameters: np.ndarray, *, hyper: bool) -> None:
        """Keep some rows of one tile's step: values (h, w, C) in full-scale units, parameters (h, w, 2 n) int8.

        `hyper` says that it is the hyper-latent. Threads may call this side by side.
        """
        count, first = step.last - step.first, step.first + (self._bundle.latent_channels if hyper else 0)
        rows = np.arange(min(self._every // 2, step.height - 1), step.height, self._every)
        mean, log_scale = parameters[rows, :, :count], parameters[rows, :, count:]
        residual = value[rows, :, step.first : step.last] * 512.0 - mean * np.exp2(step.mean_shift.astype(np.float32))
        channel = np.broadcast_to(np.arange(first, first + count), residual.shape)
        here = np.ones(residual.shape[:2], bool)
        if step.parity >= 0:
            here = (rows[:, None] + np.arange(step.width)) % 2 == step.parity
        self._samples.append(
            _Sample(residual[here].ravel().astype(np.float32), log_scale[here].ravel(), channel[here].ravel())
        )

    def relative(self, quality: int) -> float:
        """The frame's size at `quality`, in a unit that is the same for all qualities."""
        if quality not in self._estimates:
            slope, knee = CONTEXT_LOSS
            bits = sum(self._sample_bits(sample, quality) for sample in self._samples)
            self._estimates[quality] = max(bits, 1) * math.exp(-slope * min(quality, knee))
        return self._estimates[quality]

    def _sample_bits(self, sample: _Sample, quality: int) -> int:
        bundle = self._bundle
        gain = bundle.gains[quality - 1].astype(np.float32)[sample.channel] / 2**GAIN_EXP
        table = sample.log_scale + bundle.table_offsets[quality - 1][sample.channel]
        table = np.clip(table, 0, bundle.scale_tables - 1)
        magnitude = np.abs(sample.residual) / gain
        offset = np.where(magnitude < 1, self._rounding[table, 0], self._rounding[table, 1])
        symbol = np.clip(np.floor(magnitude + np.maximum(offset, -magnitude)), 0, self._bits.shape[1] - 1)
        return int(self._bits[table, symbol.astype(np.intp)].sum(dtype=np.int64))

    def quality_for(self, factor: float, quality: int) -> int:
        """The quality at which the frame takes about `factor` times the bytes that it takes at `quality`."""
        wanted = factor * self.relative(quality)
        low, high = 1, 100
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.relative(middle) <= wanted else (low, middle)
        return low if wanted / self.relative(low) < self.relative(high) / wanted else high


def first_guess(bundle: Bundle, latents: Sequence[np.ndarray], bits_per_pixel: float) -> int:
    """The quality at which a frame of these latents (h, w, C), in full-scale units, takes about `bits_per_pixel`: from
    their magnitudes alone."""
    positions = [values.reshape(-1, values.shape[-1]) for values in latents]
    every = max(1, sum(map(len, positions)) // GUESSING_POSITIONS)
    magnitude = 512 * np.abs(np.concatenate([values[every // 2 :: every] for values in positions]))
    factor, power = USUAL_RATE

    def takes_more(quality: int) -> bool:
        return bool(factor * _magnitude_bits(bundle, magnitude, quality) ** power > bits_per_pixel)

    return bisect.bisect_left(range(2, 100), True, key=takes_more) + 2


def _magnitude_bits(bundle: Bundle, magnitude: np.ndarray, quality: int) -> float:
    """Bits per pixel that say magnitudes (n, C), in quarters, to within STEP_SHARE of the quality's steps."""
    step = STEP_SHARE / 2**GAIN_EXP * bundle.gains[quality - 1, : magnitude.shape[1]].astype(np.float32)
    return 0.5 * float(np.log2(1 + np.square(magnitude / step)).sum()) / (len(magnitude) * BLOCK**2)


class SizeTarget:
    """Hands out the quality of each group of tiles of level 0 so that the frame takes `budget` bytes.

    `sizes` are their bytes in a pass at `quality`, `beside` those of the other levels together.
    """

    def __init__(self, curve: RateCurve, sizes: dict[int, int], beside: int, quality: int, budget: int) -> None:
        self._curve, self._sizes, self._beside, self._tried = curve, dict(sizes), beside, quality
        self._left, self._bias = float(budget), 1.0
        self._spent = self._expected = TRUST * budget
        self.quality = self._best()
        smallest = (sum(sizes.values()) + beside) * curve.relative(1) / curve.relative(quality)
        if budget < 0.8 * smallest:
            raise UsageError(
                f"the tiles would have to fit in {budget} bytes, but take about {smallest:.0f} at quality 1: "
                "ask for a larger size"
            )

    def _best(self) -> int:
        remaining = (sum(self._sizes.values()) + self._beside) * self._bias
        return self._curve.quality_for(max(self._left, 1.0) / max(remaining, 1.0), self._tried)

    def reserve(self, size: int) -> None:
        """The other levels took `size` bytes."""
        self._beside, self._left = 0, self._left - size

    def next(self) -> int:
        """The quality for the tiles that are coded next."""
        return min(max(self._best(), self.quality - LARGEST_CORRECTION), self.quality + LARGEST_CORRECTION)

    def spent(self, quality: int, taken: Iterable[tuple[int, int]]) -> None:
        """(tile, bytes) of tiles that were coded at `quality`."""
        for tile, size in taken:
            self._left -= size
            self._spent += size
            self._expected += self._sizes.pop(tile) * self._curve.relative(quality) / self._curve.relative(self._tried)
        self._bias = self._spent / self._expected
