"""Geometry: how a frame is cut into entropy tiles, and which region a network must see for exact pixels.

Everything is a rectangle (x, y, width, height). The frame is padded at its right and bottom edge to whole hyper-blocks
of 64 pixels; tiles are squares of `tile` pixels from the top left corner, clipped to the padded frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .errors import UsageError

BLOCK = 16
"""Pixels per latent position."""
HYPER_BLOCK = 64
"""Pixels per hyper-latent position; frames are padded to its multiples."""
MAX_SIDE = 1 << 20
MAX_TILE = 4096
MAX_TILES = 1 << 24
TILE = 512
"""Side of tiles where nothing else is said, in frames of more than SMALL_FRAME pixels."""
SMALL_FRAME = 1 << 20


class Rect(NamedTuple):
    x: int
    y: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.x + self.width

    @property
    def bottom(self) -> int:
        return self.y + self.height

    def scaled(self, numerator: int, denominator: int) -> Rect:
        """The same rectangle in other units; the division must be exact."""
        return Rect(*(value * numerator // denominator for value in self))

    def grown(self, margin: int, bounds: Rect) -> Rect:
        """Grown by `margin` on every side, but not beyond `bounds`."""
        x, y = max(self.x - margin, bounds.x), max(self.y - margin, bounds.y)
        right, bottom = min(self.right + margin, bounds.right), min(self.bottom + margin, bounds.bottom)
        return Rect(x, y, right - x, bottom - y)

    def surrounded(self, margin: int) -> Rect:
        """Grown by `margin` on every side."""
        return Rect(self.x - margin, self.y - margin, self.width + 2 * margin, self.height + 2 * margin)

    def common(self, other: Rect) -> Rect:
        """What both cover; width or height is not positive where that is nothing."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        return Rect(x, y, min(self.right, other.right) - x, min(self.bottom, other.bottom) - y)

    def aligned(self, step: int) -> Rect:
        """The smallest rectangle around this one whose edges are multiples of `step`."""
        x, y = self.x // step * step, self.y // step * step
        return Rect(x, y, -(-self.right // step) * step - x, -(-self.bottom // step) * step - y)


def usual_tile(width: int, height: int) -> int:
    """The side of tiles where nothing is said: TILE, or what makes one tile of a frame of up to SMALL_FRAME pixels.

    Each tile costs 56 bytes beside its symbols and knows nothing of its neighbours' symbols: of a picture of 768 x 512
    pixels a second tile is 1.9 % at the lowest quality and 0.2 % at 60.
    """
    side = -(-max(width, height, TILE) // HYPER_BLOCK) * HYPER_BLOCK
    return side if width * height <= SMALL_FRAME and side <= MAX_TILE else TILE


@dataclass(frozen=True)
class TileGrid:
    """Entropy tiles of a frame of `width` x `height` pixels, numbered row by row."""

    width: int
    height: int
    tile: int

    def __post_init__(self) -> None:
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            raise UsageError(f"frame is {self.width}x{self.height} pixels: sides must be 1 to {MAX_SIDE}")
        if not HYPER_BLOCK <= self.tile <= MAX_TILE or self.tile % HYPER_BLOCK:
            raise UsageError(f"tile size {self.tile}: use a multiple of {HYPER_BLOCK} from {HYPER_BLOCK} to {MAX_TILE}")
        if self.count > MAX_TILES:
            raise UsageError(
                f"frame of {self.width}x{self.height} has {self.count} tiles of {self.tile}: use larger tiles"
            )

    @property
    def padded(self) -> Rect:
        return Rect(0, 0, self.width, self.height).aligned(HYPER_BLOCK)

    @property
    def columns(self) -> int:
        return -(-self.width // self.tile)

    @property
    def rows(self) -> int:
        return -(-self.height // self.tile)

    @property
    def count(self) -> int:
        return self.columns * self.rows

    def rect(self, number: int) -> Rect:
        """Tile `number` in pixels of the padded frame."""
        row, column = divmod(number, self.columns)
        x, y = column * self.tile, row * self.tile
        padded = self.padded
        return Rect(x, y, min(self.tile, padded.width - x), min(self.tile, padded.height - y))

    def touching(self, rect: Rect) -> list[int]:
        """Numbers of the tiles that share a pixel with `rect` (inside the padded frame), ascending."""
        columns = range(rect.x // self.tile, (rect.right - 1) // self.tile + 1)
        rows = range(rect.y // self.tile, (rect.bottom - 1) // self.tile + 1)
        return [row * self.columns + column for row in rows for column in columns]

    def covering(self, rect: Rect) -> Rect:
        """The whole tiles that share a pixel with `rect` (inside the padded frame)."""
        return rect.aligned(self.tile).common(self.padded)

    def same_shape(self, numbers: list[int], limit: int) -> Iterator[list[int]]:
        """`numbers` in batches of at most `limit` tiles of one shape, so that a batch is one tensor."""
        shapes: dict[tuple[int, int], list[int]] = {}
        for number in numbers:
            rect = self.rect(number)
            shapes.setdefault((rect.width, rect.height), []).append(number)
        for group in shapes.values():
            for start in range(0, len(group), limit):
                yield group[start : start + limit]


def compute_tiles(rect: Rect, width: int, height: int) -> Iterator[Rect]:
    """`rect` cut into pieces of at most `width` x `height` from its top left corner."""
    for y in range(rect.y, rect.bottom, height):
        for x in range(rect.x, rect.right, width):
            yield Rect(x, y, min(width, rect.right - x), min(height, rect.bottom - y))


BAND_HEIGHT = 1024
"""Rows of pixels that are computed at once, about: bounds memory, amortises the halo."""


def band_height(tile: int) -> int:
    """The height of a band: whole rows of tiles, BAND_HEIGHT or one row where that is higher."""
    return max(1, BAND_HEIGHT // tile) * tile


def view(array: np.ndarray, rect: Rect, origin: Rect) -> np.ndarray:
    """The part of `array`, which covers `origin`, that covers `rect` (same units)."""
    x, y = rect.x - origin.x, rect.y - origin.y
    return array[y : y + rect.height, x : x + rect.width]
