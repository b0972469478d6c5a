"""Frames that arrive by rows, so that a frame larger than memory can be encoded."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .errors import UsageError
from .levels import halve
from .tiles import Rect


class FrameRows(Protocol):
    """A frame to encode: its size, and its rows from top to bottom, each asked for once.

    One that also has `planes(region)` is asked for the networks' planes (1, h / 2, w / 2, 12) int8 of regions instead,
    in any order, unless overviews are wanted: `backends.tensorrt.GpuFrame` is such a frame.
    """

    width: int
    height: int

    def rows(self, y: int, count: int) -> np.ndarray:
        """Rows y .. y + count as (count, width, 3) uint8 RGB."""
        ...


class ArrayRows:
    """An (H, W, 3) uint8 RGB array as a frame; its rows are views."""

    def __init__(self, image: np.ndarray) -> None:
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UsageError(
                f"image has shape {image.shape} and type {image.dtype}: an (H, W, 3) uint8 RGB array is needed"
            )
        self._image = image if image.strides[1:] == (3, 1) else np.ascontiguousarray(image)
        self.height, self.width = image.shape[:2]

    def rows(self, y: int, count: int) -> np.ndarray:
        return self._image[y : y + count]


class RowHalver:
    """Halves `height` rows that arrive from top to bottom in pieces: a row waits for the one it is averaged with."""

    def __init__(self, height: int) -> None:
        self._missing = height
        self._unpaired: np.ndarray | None = None

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """The next (n, W, 3) uint8 rows to the rows of the coarser level that they complete, maybe none."""
        self._missing -= len(rows)
        if self._unpaired is not None:
            rows = np.concatenate([self._unpaired, rows])
        paired = len(rows) if not self._missing else len(rows) // 2 * 2
        self._unpaired = rows[paired:].copy() if paired < len(rows) else None  # a view would keep all the rows
        return halve(rows[:paired])


class RowBuffer:
    """Rows (n, W, C) that arrive from top to bottom and are forgotten from the top; what is between stays.

    Places are those of the frame, of which the rows may be a part: the first one starts at (`left`, `top`).
    """

    def __init__(self, left: int = 0, top: int = 0) -> None:
        self._left, self.bottom = left, top
        self._chunks: list[tuple[int, np.ndarray]] = []

    def append(self, rows: np.ndarray) -> None:
        self._chunks.append((self.bottom, rows))
        self.bottom += len(rows)

    def get(self, rect: Rect) -> np.ndarray:
        """What `rect` covers, whose rows must be here: a view where they came in one piece."""
        left, right = rect.x - self._left, rect.right - self._left
        parts = [
            rows[max(0, rect.y - y) : rect.bottom - y, left:right]
            for y, rows in self._chunks
            if y < rect.bottom and y + len(rows) > rect.y
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def forget(self, top: int) -> None:
        """Rows above `top` are not needed any more. Of a piece that is cut the rest is copied: a view keeps it all."""
        kept = [(y, rows) for y, rows in self._chunks if y + len(rows) > top]
        self._chunks = [(max(y, top), rows if y >= top else rows[top - y :].copy()) for y, rows in kept]


class LevelRows(RowBuffer):
    """The rows of one level of `height` rows that are still needed; they also go, halved, to the `coarser` level.

    Not `kept`: the level is not stored and its rows only pass through.
    """

    def __init__(self, height: int, coarser: LevelRows | None, *, kept: bool) -> None:
        super().__init__()
        self.height = height
        self._coarser, self._kept, self._halved = coarser, kept, RowHalver(height)

    def append(self, rows: np.ndarray) -> None:
        if self._kept:
            super().append(rows)
        if self._coarser is not None:
            coarser = self._halved(rows)
            if len(coarser):
                self._coarser.append(coarser)
