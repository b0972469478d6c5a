"""Overview levels: a frame at 1/2, 1/4, 1/8, ... of its width and height, each the average of the one before."""

from __future__ import annotations

import numpy as np

from .bitstream import MAX_LEVELS
from .errors import UsageError

COARSER_BY = {2: 20, 3: 16}
"""Steps of quality that a stored level gives up, by level; `COARSER_ELSE` from level 4 on. All levels together then add
4 % (quality 15) to 9 % (quality 95) to a file on average, 14 % at most; measured on photographs of 0.4 and 1.6
megapixels."""
COARSER_ELSE = 8

HALVED_ROWS = 16
"""Rows averaged at once: their 16-bit sums would be five times a band of a wide frame."""


def level_qualities(quality: int, levels: int) -> tuple[int, ...]:
    """The quality of level 0, 1, ... `levels`; 0 where a level is not stored and comes from a finer one when asked for.

    Level 1 would cost a quarter of the frame: it is never stored, nor is one whose quality would be 0.
    """
    if not 0 <= levels <= MAX_LEVELS:
        raise UsageError(f"levels is {levels}: use 0 to {MAX_LEVELS}")
    coarser = (
        max(0, quality - COARSER_BY.get(level, COARSER_ELSE)) if level > 1 else 0 for level in range(1, levels + 1)
    )
    qualities = [quality, *coarser]
    while not qualities[-1]:  # a pyramid ends with a stored level
        qualities.pop()
    return tuple(qualities)


def level_size(width: int, height: int, level: int) -> tuple[int, int]:
    """Width and height in pixels of a level of a frame of `width` x `height`."""
    return -(-width >> level), -(-height >> level)


def halve(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 to (ceil(H / 2), ceil(W / 2), 3): the rounded mean of 2 x 2 pixels, edge pixels repeated."""
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    halved = np.empty((len(pixels) // 2, pixels.shape[1] // 2, 3), np.uint8)
    for top in range(0, len(halved), HALVED_ROWS):
        part = pixels[2 * top : 2 * (top + HALVED_ROWS)]
        rows = part[::2].astype(np.uint16) + part[1::2]
        halved[top : top + HALVED_ROWS] = (rows[:, ::2] + rows[:, 1::2] + 2) >> 2
    return halved


def enlarge(pixels: np.ndarray, factor: int, width: int, height: int) -> np.ndarray:
    """(h, w, 3) uint8 to (height, width, 3) by linear interpolation, each pixel standing for `factor` x `factor`."""
    result = pixels.astype(np.float32)
    for axis, length in ((0, height), (1, width)):
        position = np.clip((np.arange(length) + 0.5) / factor - 0.5, 0, result.shape[axis] - 1)
        low = np.minimum(position.astype(np.int64), max(0, result.shape[axis] - 2))
        high = np.minimum(low + 1, result.shape[axis] - 1)
        share = np.expand_dims((position - low).astype(np.float32), tuple(a for a in range(3) if a != axis))
        result = result.take(low, axis) * (1 - share) + result.take(high, axis) * share
    return np.rint(result).astype(np.uint8)
