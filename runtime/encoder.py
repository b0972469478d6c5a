"""One frame to tiles: row by row through the analysis, then the entropy coder, overview levels beside it.

Works in bands of whole rows of tiles, so that memory grows with the frame's width and not with its area.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from . import core
from .bitstream import FrameRecord, Metadata
from .coding import TileCoder
from .decoder import strips
from .rows import FrameRows, RowBuffer
from .sealing import Protection, Sealer, sealed_tiles
from .stages import LAYOUT, stage
from .tiles import BLOCK, Rect, TileGrid, band_height, compute_tiles, view

if TYPE_CHECKING:
    from .codec import Codec

COMPUTE_WIDTH = 2048
"""Pixels across that the analysis computes at once: bounds memory, amortises the halo."""

Progress = Callable[[int, int], None]


class FrameWriter(Protocol):
    """Where a frame's boxes go: `writer.PictureWriter` or `writer.RecordingWriter`."""

    def begin(self, record: FrameRecord, metadata: Metadata | None = None, *, digest: bool = False) -> None: ...
    def tile(self, number: int, payload: bytes, *, sealed: bool = False) -> None: ...
    def end(self, digest: bytes | None = None) -> None: ...


def encode_frame(
    codec: Codec,
    writer: FrameWriter,
    frame: FrameRows,
    record: FrameRecord,
    *,
    metadata: Metadata | None = None,
    digest: bool = False,
    protection: Protection | None = None,
    progress: Progress | None = None,
) -> None:
    """Encode `frame` as `record` says into `writer`; `progress` is called with (tiles done, tiles)."""
    sealer, sealed = None, frozenset()
    if protection is not None:
        sealer = Sealer(protection.key)
        record = replace(record, salt=sealer.salt)
        sealer.record = record.pack()
        sealed = sealed_tiles(record, protection.rectangles, codec.analysis_halo * BLOCK)
    done = 0

    def put(number: int, payload: bytes) -> None:
        nonlocal done
        if sealer is not None and number in sealed:
            writer.tile(number, sealer.seal(payload, record.number, number), sealed=True)
        else:
            writer.tile(number, payload)
        done += 1
        if progress:
            progress(done, record.tile_count)

    writer.begin(record, metadata, digest=digest)
    levels = _level_encoders(codec, record, put)
    finest, coarser = levels[0], levels[1:]

    def band(area: Rect) -> np.ndarray:
        """Decoded latents of the band `area`, coded on the way."""
        needed = min(area.bottom + finest.halo, frame.height)
        while finest.rows.bottom < needed:
            count = min(band_height(record.grid.tile), frame.height - finest.rows.bottom)
            finest.rows.append(frame.rows(finest.rows.bottom, count))
        latents = finest.encode(area)
        for level in coarser:
            level.encode_ready()
        return latents

    proof = None
    if digest:
        whole, hashing = Rect(0, 0, record.grid.width, record.grid.height), hashlib.sha256()
        for pixels in strips(codec, band, record.grid, record.quality, whole):
            hashing.update(pixels)
        proof = hashing.digest()
    else:
        for area in finest.bands():
            band(area)
    writer.end(proof)


def _level_encoders(codec: Codec, record: FrameRecord, put: Callable[[int, bytes], None]) -> list[_LevelEncoder]:
    """The stored levels, finest first, their row buffers chained through the levels that are not stored."""
    buffer: RowBuffer | None = None
    buffers: dict[int, RowBuffer] = {}
    for level in reversed(range(len(record.qualities))):
        height = -(-record.grid.height >> level)
        buffer = buffers[level] = RowBuffer(height, buffer, kept=level in record.levels)
    return [
        _LevelEncoder(codec, grid, record.qualities[level], buffers[level], record.first_tile(level), put)
        for level, grid in record.levels.items()
    ]


class _LevelEncoder:
    """Encodes one level band by band as its rows arrive."""

    def __init__(
        self,
        codec: Codec,
        grid: TileGrid,
        quality: int,
        rows: RowBuffer,
        first_tile: int,
        put: Callable[[int, bytes], None],
    ) -> None:
        self._codec, self._grid, self.rows = codec, grid, rows
        self._coder = TileCoder(codec.bundle, codec.backend, quality, codec.pool)
        self._first_tile, self._put = first_tile, put
        self.halo = codec.analysis_halo * BLOCK
        self._waiting = self.bands()
        self._next: Rect | None = next(self._waiting)

    def bands(self) -> Iterator[Rect]:
        """The padded frame cut into bands of whole rows of tiles."""
        padded = self._grid.padded
        return compute_tiles(padded, padded.width, band_height(self._grid.tile))

    def encode_ready(self) -> None:
        """Encode every band whose rows have all arrived."""
        while self._next is not None and self.rows.bottom >= min(self._next.bottom + self.halo, self.rows.height):
            self.encode(self._next)
            self._next = next(self._waiting, None)

    @stage(LAYOUT)
    def encode(self, area: Rect) -> np.ndarray:
        """Code the tiles of the band `area`; returns its decoded latents (h, w, 2 C) int8."""
        grid, tile = self._grid, self._grid.tile
        shape = (area.height // BLOCK, area.width // BLOCK, 2 * self._codec.bundle.latent_channels)
        decoded = np.empty(shape, np.int8)
        for piece in compute_tiles(area, max(1, COMPUTE_WIDTH // tile) * tile, area.height):
            latents = self._analyse(piece)
            numbers = grid.touching(piece)
            for group in grid.same_shape(numbers, len(numbers)):
                rects = [grid.rect(number) for number in group]
                parts = np.stack([view(latents, rect.scaled(1, BLOCK), piece.scaled(1, BLOCK)) for rect in rects])
                for number, rect, payload, part in zip(group, rects, *self._coder.encode(parts), strict=True):
                    self._put(self._first_tile + number, payload)
                    view(decoded, rect.scaled(1, BLOCK), area.scaled(1, BLOCK))[...] = part
        self.rows.forget(area.bottom - self.halo)
        return decoded

    def _analyse(self, piece: Rect) -> np.ndarray:
        """Latents (h, w, C) float32 of `piece`, computed with the neighbours that the analysis sees."""
        seen = piece.grown(self.halo, self._grid.padded)
        rows = self.rows.get(seen.y, min(seen.bottom, self.rows.height))
        planes = core.pixels_to_planes(rows, seen.x, 0, seen.width, seen.height)
        result = self._codec.backend.run("analysis", {"planes": planes[None]})[0][0]
        return view(result, piece.scaled(1, BLOCK), seen.scaled(1, BLOCK))
