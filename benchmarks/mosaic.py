"""One large picture for timing, laid out from smaller ones, and a small one of the same content for choosing settings.

Without pictures of the caller it takes the photographs that come with scikit-image, or else makes a texture with the
spectrum of a photograph.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from .metrics import Picture

ASPECT = 3 / 2
SAMPLE_BLOCK = 256
SAMPLE_PIXELS = 1 << 20
SCIKIT_IMAGE_PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")
TEXTURE_SEED = 7


def build(pictures: Sequence[Picture], megapixels: float) -> Picture:
    """A picture of 3:2 at `megapixels`, filled as by `fill`."""
    width = math.ceil(math.sqrt(megapixels * 1e6 * ASPECT))
    return fill(pictures, width, math.ceil(megapixels * 1e6 / width))


def fill(pictures: Sequence[Picture], width: int, height: int) -> Picture:
    """Shelves of pictures, left to right and top to bottom, repeated mirrored until `width` x `height` is full."""
    canvas = np.empty((height, width, 3), np.uint8)
    supply = (np.flip(p, axis=turn) for turn in itertools.cycle(((), 1, 0, (0, 1))) for p in pictures)
    top = 0
    while top < height:
        left, shelf = 0, min(pictures[0].shape[0], height - top)
        while left < width:
            picture = next(supply)[:shelf, : width - left]
            missing = shelf - picture.shape[0]
            if missing:
                picture = np.pad(picture, ((0, missing), (0, 0), (0, 0)), mode="symmetric")
            canvas[top : top + shelf, left : left + picture.shape[1]] = picture
            left += picture.shape[1]
        top += shelf
    return canvas


def sample(picture: Picture) -> Picture:
    """About a megapixel of blocks spread evenly over a large picture; a smaller picture is returned as it is."""
    rows, columns = picture.shape[0] // SAMPLE_BLOCK, picture.shape[1] // SAMPLE_BLOCK
    wanted = SAMPLE_PIXELS // SAMPLE_BLOCK**2
    if rows * columns <= wanted:
        return picture
    side = math.isqrt(wanted)
    chosen = np.linspace(0, rows * columns - 1, side * side).astype(int)
    blocks = [
        picture[r * SAMPLE_BLOCK : (r + 1) * SAMPLE_BLOCK, c * SAMPLE_BLOCK : (c + 1) * SAMPLE_BLOCK]
        for r, c in (divmod(int(number), columns) for number in chosen)
    ]
    shelves = [np.concatenate(blocks[i : i + side], axis=1) for i in range(0, side * side, side)]
    return np.concatenate(shelves, axis=0)


def stand_ins() -> tuple[list[Picture], str]:
    """Pictures for when the caller gives none, and what they are."""
    try:
        from skimage import data

        pictures = [np.ascontiguousarray(getattr(data, name)()[..., :3]) for name in SCIKIT_IMAGE_PHOTOGRAPHS]
        return pictures, "photographs of scikit-image"
    except Exception:  # not installed, or its photographs are not there and cannot be had
        return [texture(1024, 1536)], "generated texture (install scikit-image or give pictures for photographs)"


def texture(height: int, width: int) -> Picture:
    """Noise whose amplitude falls with frequency as in photographs, the three channels largely alike."""
    rng = np.random.default_rng(TEXTURE_SEED)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf

    def plane() -> np.ndarray:
        noise = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency, s=(height, width))
        return noise / noise.std()

    luma = plane()
    channels = np.stack([128 + 45 * luma + 10 * plane() for _ in range(3)], axis=-1)
    return np.clip(channels.round(), 0, 255).astype(np.uint8)
