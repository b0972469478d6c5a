"""The integer glue between the networks: quality gains, quantisation, scale tables and companding.

A latent is coded in quarters, an integer v in -512..509. A quality maps each channel to a step `gain / 64 >= 1` in
quarters. The symbol `s` codes v around its predicted mean, by a level in half steps: v = clamp((mean << mean_shift) +
round(level * gain / 128)). With scalar quantisation the level is 2 s. With a trellis (dependent quantisation: Schwarz
et al., 2019) it is 2 s or 2 s - sign(s), which the symbols before it tell, each with entropy tables of its own. The
networks see the whole part w = (v + 2) >> 2, an int8 number, and the synthesis also the quarters v - 4 w that are left.
Whole latents alone would cost a tenth of the rate at high quality. This module owns those definitions and their
constants; the float twin that trains is `export.models.latent_codec`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FINE_EXP = 2
"""Latents are coded in units of 2**-FINE_EXP of what the networks see as 1."""
GAIN_EXP = 6
"""Gains are integers in units of 2**-GAIN_EXP quarters."""
SCALE_STEPS_PER_OCTAVE = 8
"""Entropy tables per doubling of the scale; also the unit of the networks' log-scale outputs."""
SCALE_TABLES = 80
SMALLEST_SCALE = 0.06
"""Standard deviation, in symbols, of entropy table 0; table i has SMALLEST_SCALE * 2**(i / 8)."""
FREQUENCY_BITS = 14
"""The frequencies of an entropy table add up to 2**FREQUENCY_BITS."""
ESCAPE_BITS = 10
"""Of a symbol beyond its table's radius, after the escape."""
UNCODABLE = 1e6
"""Bits, in place of infinitely many, of what a table cannot code: finite, so that no count times it is not a number."""
COMPANDING_KNEE = 3.0
BIT_WORTH = 0.08
"""Squared error, in squared quantisation steps, that the encoder accepts to save one bit, where each symbol is chosen
by itself. High-rate theory gives 2 ln 2 / 12 = 0.116 where steps and rate are in balance."""
TRELLIS_STATES = 64
"""Of the trellis of new bundles. Earlier ones have 8."""
TRELLIS_BIT_WORTH = 0.05
"""The same along a trellis, whose steps are longer."""
TRELLIS_STEP = 1.3
"""Steps of a trellis in steps of the scalar quantiser that has about its error and rate."""


@dataclass(frozen=True)
class CodingStep:
    """Latent channels [first, last) that are coded together, at every position or at those of one checkerboard parity.

    `context` is how many leading channels, companded, the step's network sees (0: only the hyper features).
    """

    first: int
    last: int
    parity: int | None
    context: int

    @property
    def channels(self) -> int:
        return self.last - self.first


def companding_table() -> np.ndarray:
    """(256,) int8: what the networks see for the latent -128 + i, an inverse hyperbolic sine over the int8 range."""
    latent = np.arange(-128, 128)
    return np.rint(127 * np.arcsinh(latent / COMPANDING_KNEE) / np.arcsinh(128 / COMPANDING_KNEE)).astype(np.int8)


def compand_whole(latent: np.ndarray, companding: np.ndarray) -> np.ndarray:
    """Whole latents, int8 of any shape, by the bundle's table `companding`.

    Bytes are looked up by bytes: numpy would make a 64-bit index of each first, and take three times as long.
    """
    by_byte = np.roll(companding, 128).tobytes()
    return np.frombuffer(latent.tobytes().translate(by_byte), np.int8).reshape(latent.shape)


def split_latent(latent: np.ndarray) -> np.ndarray:
    """Latents (..., C) in full-scale units (1.0 is 128 whole latents) to (..., 2 C) int8: wholes, then quarters."""
    fine = np.clip(np.rint(latent * (128 << FINE_EXP)), -128 << FINE_EXP, (127 << FINE_EXP) + 1).astype(np.int32)
    whole = (fine + (1 << (FINE_EXP - 1))) >> FINE_EXP
    return np.concatenate([whole, fine - (whole << FINE_EXP)], axis=-1).astype(np.int8)


def quality_value(quality: int) -> int:
    """The int8 value of the quality plane that the networks see, -127 at quality 1 to 127 at 100."""
    return round((quality - 1) * 254 / 99) - 127


def code_lengths(frequencies: np.ndarray, radii: np.ndarray, count: int) -> np.ndarray:
    """(tables, count) float64: bits of the symbols 0, 1, ... `count` - 1 under each entropy table, escapes included.

    A negative symbol takes what the positive one takes. UNCODABLE stands for what a skip table (radius 0) cannot code.
    """
    lengths = np.full((len(radii), count), UNCODABLE)
    lengths[:, 0] = 0
    start = 0
    for table, radius in enumerate(radii.astype(int)):
        if radius:
            bits = -np.log2(frequencies[start + radius : start + 2 * radius + 2] / 2**FREQUENCY_BITS)
            coded = min(radius + 1, count)
            lengths[table, :coded] = bits[:coded]
            lengths[table, coded:] = bits[-1] + ESCAPE_BITS
            start += 2 * radius + 2
    return lengths


def rounding_offsets(lengths: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """(tables, 2) float32: what to add to a residual's magnitude before the fraction is cut off. `lengths` are
    `code_lengths`, of the largest radius at least.

    Rate-distortion-optimised quantisation without a search: the larger of two symbols is worth its extra bits only
    if it saves enough squared error, so the threshold between n and n + 1 moves up from n + 0.5 by half of
    BIT_WORTH times the difference of their code lengths. The first column is for n = 0, the second for n >= 1. A
    skip table (radius 0) always gives 0.
    """
    offsets = np.full((len(radii), 2), -np.inf, np.float32)
    for table, radius in enumerate(radii.astype(int)):
        if radius:
            steps = np.diff(lengths[table, : radius + 1])
            offsets[table] = 0.5 - BIT_WORTH / 2 * np.array(
                [steps[0], np.median(steps[1:]) if radius > 1 else steps[0]]
            )
    return np.clip(offsets, None, 0.5)
