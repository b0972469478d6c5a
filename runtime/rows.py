"""Frames that arrive by rows, so that a frame larger than memory can be encoded."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .errors import UsageError
from .levels import halve


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


class RowBuffer:
    """The rows of one level that are still needed; what is appended also goes, halved, to the `coarser` level.

    Not `kept`: the level is not stored and its rows only pass through.
    """

    def __init__(self, height: int, coarser: RowBuffer | None, *, kept: bool) -> None:
        self.height, self.bottom = height, 0
        self._coarser, self._kept = coarser, kept
        self._chunks: list[tuple[int, np.ndarray]] = []
        self._unpaired: np.ndarray | None = None

    def append(self, rows: np.ndarray) -> None:
        if self._kept:
            self._chunks.append((self.bottom, rows))
        self.bottom += len(rows)
        if self._coarser is not None:
            if self._unpaired is not None:
                rows = np.concatenate([self._unpaired, rows])
            paired = len(rows) if self.bottom == self.height else len(rows) // 2 * 2
            self._unpaired = rows[paired:] if paired < len(rows) else None
            if paired:
                self._coarser.append(halve(rows[:paired]))

    def get(self, top: int, bottom: int) -> np.ndarray:
        """Rows `top` .. `bottom`, which must be here: a view where they came in one piece."""
        parts = [rows[max(0, top - y) : bottom - y] for y, rows in self._chunks if y < bottom and y + len(rows) > top]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def forget(self, top: int) -> None:
        """Rows above `top` are not needed any more."""
        self._chunks = [(y, rows) for y, rows in self._chunks if y + len(rows) > top]
