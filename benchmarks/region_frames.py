"""The frames and windows of `linnet bench region`: where a window lies, and a larger frame around the same pixels."""

from __future__ import annotations

import math

import numpy as np

from ..runtime.errors import UsageError
from ..runtime.tiles import Rect
from .metrics import Picture
from .mosaic import ASPECT

WINDOW = 512
TILE = 512
"""Side of the tiles of every format here; the peers' names say it too."""
OFF_GRID = 5
"""The unaligned window lies this far from a tile's middle: across four tiles and on no block boundary."""


def crop(picture: Picture, window: Rect) -> Picture:
    return picture[window.y : window.bottom, window.x : window.right]


def place(width: int, height: int, side: int) -> dict[str, Rect]:
    """The windows in the middle of a frame: one that starts on a tile, one across four tiles."""
    if width < TILE + side or height < TILE + side:
        raise UsageError(
            f"a frame of {width}x{height} has no room for a window of {side} across tiles of {TILE}: "
            "use more --megapixels or a smaller --window"
        )
    x, y = ((length - side) // 2 // TILE * TILE for length in (width, height))
    aside = TILE - side // 2 - OFF_GRID
    return {"aligned": Rect(x, y, side, side), "unaligned": Rect(x + aside, y + aside, side, side)}


def size(megapixels: float) -> tuple[int, int]:
    """Width and height of a frame."""
    width = math.ceil(math.sqrt(megapixels * 1e6 * ASPECT))
    return width, math.ceil(megapixels * 1e6 / width)


def surround(picture: Picture, megapixels: float) -> tuple[Picture, int, int]:
    """A larger frame with the picture in its middle and mirrored around it, and where the picture lies in it.

    It lies on whole tiles, so that a window of it meets the same pixels and the same tile borders in both frames.
    """
    width, height = size(megapixels)
    sides = []
    for length, inner in ((height, picture.shape[0]), (width, picture.shape[1])):
        more = max(0, length - inner)
        before = round(more / 2 / TILE) * TILE
        sides.append((before, more - before))
    return np.pad(picture, (*sides, (0, 0)), mode="symmetric"), sides[1][0], sides[0][0]
