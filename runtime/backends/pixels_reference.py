"""Frames to the networks' planes and back, in numpy: the specification of the kernels in `pixels.cu`, bit by bit.

NV12 is 8-bit 4:2:0: a plane of luma, and half as wide and high a plane of pairs (U, V). Between it and RGB everything
is integer arithmetic with coefficients of 14 fractional bits; a right shift is a floor. The matrices and ranges are
those of ITU-R BT.601-7 and BT.709-6 (limited range: luma 16..235, chroma 16..240) and of JFIF (full range: 0..255).

Chroma is centred: a sample belongs to the middle of its 2 x 2 pixels, as in JPEG and MPEG-1. Going to RGB each of the
four takes it as it is, going to NV12 it is the mean of the four. (Video that puts chroma at the left pixels, as MPEG-2
does, is read with its colours shifted by half a pixel.)
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from ..core import MIRRORED
from ..errors import UsageError

FRACTION_BITS = 14
WEIGHTS = {"bt601": (Fraction(299, 1000), Fraction(114, 1000)), "bt709": (Fraction(2126, 10000), Fraction(722, 10000))}
"""Name -> what red and blue weigh in luma; green weighs the rest."""


@dataclass(frozen=True)
class Colour:
    """How NV12 stands for RGB: `matrix` "bt601" or "bt709", `full_range` False for video, True for JFIF."""

    matrix: str = "bt709"
    full_range: bool = False

    def __post_init__(self) -> None:
        if self.matrix not in WEIGHTS:
            raise UsageError(f"colour matrix {self.matrix!r} is not known: use one of {', '.join(WEIGHTS)}")

    @property
    def _spans(self) -> tuple[Fraction, Fraction]:
        """How far luma and chroma go for 0..255 of RGB, as shares."""
        return (Fraction(1), Fraction(1)) if self.full_range else (Fraction(219, 255), Fraction(224, 255))

    @property
    def y_offset(self) -> int:
        return 0 if self.full_range else 16

    @property
    def to_rgb(self) -> tuple[int, int, int, int, int]:
        """y_gain, r_v, g_u, g_v, b_u."""
        red, blue = WEIGHTS[self.matrix]
        green = 1 - red - blue
        luma, chroma = self._spans
        r_v, b_u = 2 * (1 - red) / chroma, 2 * (1 - blue) / chroma
        return _fixed(1 / luma), _fixed(r_v), _fixed(b_u * blue / green), _fixed(r_v * red / green), _fixed(b_u)

    @property
    def from_rgb(self) -> tuple[int, ...]:
        """y_r, y_g, y_b, u_r, u_g, u_b, v_r, v_g, v_b; those of green make grey come out exactly grey."""
        red, blue = WEIGHTS[self.matrix]
        luma, chroma = self._spans
        y_r, y_b, half = _fixed(red * luma), _fixed(blue * luma), _fixed(chroma / 2)
        u_r, v_b = -_fixed(chroma / 2 * red / (1 - blue)), -_fixed(chroma / 2 * blue / (1 - red))
        return y_r, _fixed(luma) - y_r - y_b, y_b, u_r, -half - u_r, half, half, -half - v_b, v_b


def _fixed(value: Fraction) -> int:
    """To the nearest in 14 fractional bits; half goes up."""
    return int(value * 2 ** (FRACTION_BITS + 1) + 1) // 2


def nv12_to_rgb(luma: np.ndarray, chroma: np.ndarray, colour: Colour) -> np.ndarray:
    """(H, W, 3) uint8 of luma (H, W) and chroma (H / 2, W / 2, 2) uint8; H and W are even."""
    y_gain, r_v, g_u, g_v, b_u = colour.to_rgb
    grey = y_gain * (luma.astype(np.int32) - colour.y_offset) + (1 << (FRACTION_BITS - 1))
    u, v = np.moveaxis(chroma.astype(np.int32).repeat(2, 0).repeat(2, 1) - 128, 2, 0)
    rgb = np.stack([grey + r_v * v, grey - g_u * u - g_v * v, grey + b_u * u], axis=2)
    return np.clip(rgb >> FRACTION_BITS, 0, 255).astype(np.uint8)


def rgb_to_nv12(rgb: np.ndarray, colour: Colour) -> tuple[np.ndarray, np.ndarray]:
    """Luma (H, W) and chroma (H / 2, W / 2, 2) uint8 of (H, W, 3) uint8; H and W are even."""
    y, u, v = np.array(colour.from_rgb, np.int32).reshape(3, 3)
    wide = rgb.astype(np.int32)
    luma = colour.y_offset + ((wide @ y + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS)
    blocks = wide.reshape(rgb.shape[0] // 2, 2, rgb.shape[1] // 2, 2, 3).sum(axis=(1, 3))
    bits = FRACTION_BITS + 2  # of a sum of four
    chroma = 128 + ((blocks @ np.stack([u, v], axis=1) + (1 << (bits - 1))) >> bits)
    return luma.astype(np.uint8), np.clip(chroma, 0, 255).astype(np.uint8)


def rgb_to_planes(rgb: np.ndarray, x0: int, y0: int, width: int, height: int) -> np.ndarray:
    """A region of (H, W, 3) uint8, mirrored outside (`core.pixels_to_planes`), as planes (height / 2, width / 2, 12)
    int8."""
    rows, columns = _seen(y0, height, rgb.shape[0]), _seen(x0, width, rgb.shape[1])
    blocks = rgb[rows[:, None], columns].reshape(height // 2, 2, width // 2, 2, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(blocks).reshape(height // 2, width // 2, 12).view(np.int8) ^ np.int8(-128)


def _seen(start: int, count: int, length: int) -> np.ndarray:
    """The places in [0, length) that are seen at `count` places from `start` on."""
    places = np.arange(start, start + count)
    outside = np.where(places < 0, -1 - places, places - length)  # how far outside, 0 next to the border
    outside = np.minimum(outside, min(MIRRORED, length) - 1)
    return np.where(places < 0, outside, np.where(places < length, places, length - 1 - outside))


def planes_to_rgb(planes: np.ndarray, x: int, y: int, width: int, height: int) -> np.ndarray:
    """The crop (x, y, width, height), in pixels, of planes (h, w, 12) int8 as (height, width, 3) uint8."""
    h, w = planes.shape[:2]
    blocks = (planes ^ np.int8(-128)).view(np.uint8).reshape(h, w, 3, 2, 2).transpose(0, 3, 1, 4, 2)
    return blocks.reshape(2 * h, 2 * w, 3)[y : y + height, x : x + width]
