"""One frame to tiles: row by row through the analysis, then the entropy coder, overview levels beside it.

Works in bands of whole rows of tiles, so that memory grows with the frame's width and not with its area. Only a frame
that is to have a given size is analysed as a whole first, and its latents kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from . import core
from .bitstream import FrameRecord, Metadata, TilePlace
from .coding import TileCoder
from .decoder import strips
from .errors import UsageError
from .latents import quality_value
from .levels import level_qualities
from .rate import RateCurve, SizeTarget, first_guess
from .rows import FrameRows, LevelRows
from .sealing import Protection, Sealer, sealed_tiles
from .stages import LAYOUT, stage
from .tiles import BLOCK, Rect, TileGrid, band_height, compute_tiles, view
from .writer import write_picture

if TYPE_CHECKING:
    from .codec import Codec

COMPUTE_WIDTH = 2048
"""Pixels across that the analysis computes at once: bounds memory, amortises the halo."""

MAX_SIZED_PIXELS = 1 << 27
"""Pixels of a frame that can be encoded to a given size: its latents take five bytes for each."""

Progress = Callable[[int, int], None]
Favoured = tuple[tuple[int, int, int, int], int]
"""A rectangle (x, y, width, height) in pixels of the frame, and by how many steps of quality it is coded better."""


class FrameWriter(Protocol):
    """Where a frame's boxes go: `writer.PictureWriter` or `writer.RecordingWriter`."""

    def begin(self, record: FrameRecord, metadata: Metadata | None = None, *, digest: bool = False) -> None: ...
    def tile(self, number: int, payload: bytes, *, quality: int, sealed: bool = False) -> None: ...
    def end(self, digest: bytes | None = None) -> None: ...


def encode_frame(
    codec: Codec,
    writer: FrameWriter,
    frame: FrameRows,
    record: FrameRecord,
    *,
    size: int | None = None,
    favoured: Sequence[Favoured] = (),
    metadata: Metadata | None = None,
    digest: bool = False,
    protection: Protection | None = None,
    progress: Progress | None = None,
) -> None:
    """Encode `frame` as `record` says into `writer`; `progress` is called with (tiles done, tiles).

    With `size` the qualities of `record` only say how many levels there may be, and are replaced by those that give a
    file of about that many bytes.
    """
    encoder = _FrameEncoder(codec, frame, record, favoured)
    if size is not None:
        record = encoder.meet_size(size, metadata)
    sealer, sealed = None, frozenset()
    if protection is not None:
        sealer = Sealer(protection.key)
        record = replace(record, salt=sealer.salt)
        sealer.record = record.pack()
        sealed = sealed_tiles(record, protection.rectangles, codec.analysis_halo * BLOCK)
    done = 0

    def put(number: int, payload: bytes, quality: int) -> None:
        nonlocal done
        if sealer is not None and number in sealed:
            payload = sealer.seal(payload, TilePlace(record.number, number, quality))
        writer.tile(number, payload, quality=quality, sealed=number in sealed)
        done += 1
        if progress:
            progress(done, record.tile_count)

    writer.begin(record, metadata, digest=digest)
    encoder.start(record, put)
    proof = None
    if digest:
        whole, hashing = Rect(0, 0, record.grid.width, record.grid.height), hashlib.sha256()
        for pixels in strips(codec, encoder.band, record.grid, whole):
            hashing.update(pixels)
        proof = hashing.digest()
    else:
        for area in encoder.finest.bands():
            encoder.band(area, decoded=False)
    writer.end(proof)


Put = Callable[[int, bytes, int], None]
"""Takes a tile's number through all stored levels, its payload and its quality."""


class _FrameEncoder:
    """The levels of a frame that are stored, their row buffers chained through those that are not."""

    def __init__(self, codec: Codec, frame: FrameRows, record: FrameRecord, favoured: Sequence[Favoured]) -> None:
        self._codec, self._frame, self._record = codec, frame, record
        self._coarser: dict[int, _LevelEncoder] = {}
        buffer: LevelRows | None = None
        for level in reversed(range(len(record.qualities))):
            buffer = LevelRows(-(-record.grid.height >> level), buffer, kept=level in record.levels)
            if level in record.levels:
                steps = favoured_tiles(record, level, favoured)
                self._coarser[level] = _LevelEncoder(codec, record.levels[level], buffer, steps)
        self.finest = self._coarser.pop(0)
        if not self._coarser and hasattr(frame, "planes"):
            self.finest.planes = frame.planes
        self._target: SizeTarget | None = None
        self._held = False

    def start(self, record: FrameRecord, put: Put, curve: RateCurve | None = None) -> None:
        """Code as `record` says, from the first band on."""
        coarser = {level: self._coarser[level] for level in sorted(record.levels) if level}
        for level, encoder in {0: self.finest, **coarser}.items():
            encoder.start(record.qualities[level], record.first_tile(level), put, curve)
        self.finest.target = self._target
        self._started = list(coarser.values())
        if self._held:
            taken = sum(encoder.encode_all() for encoder in self._started)
            if self._target is not None:
                self._target.reserve(taken)

    def band(self, area: Rect, *, decoded: bool = True) -> np.ndarray | None:
        """Code the band `area` of level 0, and what becomes ready of the others; its result is that of `encode`."""
        if self._held:
            return self.finest.encode(area, decoded=decoded)
        self._read(area)
        latents = self.finest.encode(area, decoded=decoded)
        for encoder in self._started:
            for ready in encoder.ready():
                encoder.encode(ready, decoded=False)
        return latents

    def _read(self, area: Rect) -> None:
        """Fetch the rows that the analysis of `area` sees."""
        rows = self.finest.rows
        if self.finest.planes is not None:
            return
        missing = min(area.bottom + self.finest.halo, self._frame.height) - rows.bottom
        if missing > 0:
            rows.append(self._frame.rows(rows.bottom, missing))

    def meet_size(self, size: int, metadata: Metadata | None) -> FrameRecord:
        """Analyse the whole frame and code it once; returns the record with the right qualities for `size` bytes."""
        record = self._record
        pixels = record.grid.width * record.grid.height
        if pixels > MAX_SIZED_PIXELS:
            raise UsageError(
                f"a frame of {pixels} pixels is too large to be encoded to a size (at most {MAX_SIZED_PIXELS}): "
                "choose a quality"
            )
        budget = size - len(write_picture(record, [b""] * record.tile_count, metadata))
        if budget <= 0:
            raise UsageError(f"{size} bytes do not even hold the metadata and the index: ask for a larger size")
        for area in self.finest.bands():
            self._read(area)
            self.finest.hold(area)
            for encoder in self._coarser.values():
                for ready in encoder.ready():
                    encoder.hold(ready)
        self._held = True
        guess = first_guess(self._codec.bundle, self.finest.held, 8 * budget / pixels)
        trial = self._at_quality(guess)
        curve, sizes = RateCurve(self._codec.bundle, pixels // BLOCK**2), dict[int, int]()

        def note(number: int, payload: bytes, _: int) -> None:
            sizes[number] = len(payload)

        self.start(trial, note, curve)
        self.finest.encode_all()
        finest = {number: size for number, size in sizes.items() if number < record.grid.count}
        beside = sum(sizes.values()) - sum(finest.values())
        self._target = SizeTarget(curve, finest, beside, trial.quality, budget)
        return self._at_quality(self._target.quality)

    def _at_quality(self, quality: int) -> FrameRecord:
        return replace(self._record, qualities=level_qualities(quality, len(self._record.qualities) - 1))


class _LevelEncoder:
    """Encodes one level band by band, from its rows as they arrive or from latents that were computed before."""

    def __init__(self, codec: Codec, grid: TileGrid, rows: LevelRows, steps: Mapping[int, int]) -> None:
        """`steps` of quality by which some tiles are coded better."""
        self._codec, self._grid, self.rows, self._steps = codec, grid, rows, steps
        self.halo = codec.analysis_halo * BLOCK
        self.target: SizeTarget | None = None
        self._bytes = 0
        self._held: dict[Rect, np.ndarray] = {}
        self.planes: Callable[[Rect], Any] | None = None
        """What gives a region's planes (1, h, w, 12) where they do not come from `rows`."""
        self._waiting = self.bands()
        self._next: Rect | None = next(self._waiting)

    def start(self, quality: int, first_tile: int, put: Put, curve: RateCurve | None) -> None:
        """What the calls of `encode` that follow use; `curve` is shown the symbols."""
        self._quality, self._first_tile, self._put, self._curve = quality, first_tile, put, curve

    def bands(self) -> Iterator[Rect]:
        """The padded frame cut into bands of whole rows of tiles."""
        padded = self._grid.padded
        return compute_tiles(padded, padded.width, band_height(self._grid.tile))

    def ready(self) -> Iterator[Rect]:
        """Every band whose rows have all arrived, once."""
        while self._next is not None and self.rows.bottom >= min(self._next.bottom + self.halo, self.rows.height):
            yield self._next
            self._next = next(self._waiting, None)

    def _pieces(self, area: Rect) -> Iterator[Rect]:
        return compute_tiles(area, max(1, COMPUTE_WIDTH // self._grid.tile) * self._grid.tile, area.height)

    @stage(LAYOUT)
    def hold(self, area: Rect) -> None:
        """Compute the latents of the band `area` and keep them."""
        for piece in self._pieces(area):
            self._held[piece] = self._analyse(piece).copy()
        self.rows.forget(area.bottom - self.halo)

    @property
    def held(self) -> list[np.ndarray]:
        """The latents that are kept, (h, w, C) each."""
        return list(self._held.values())

    def encode_all(self) -> int:
        """Code every band; returns how many bytes the payloads have."""
        self._bytes = 0
        for area in self.bands():
            self.encode(area, decoded=False)
        return self._bytes

    @stage(LAYOUT)
    def encode(self, area: Rect, *, decoded: bool) -> np.ndarray | None:
        """Code the tiles of the band `area`.

        Returns the `decoded` latents and quality values (h, w, 2 C + 1) int8, which are larger than the pixels.
        """
        shape = (area.height // BLOCK, area.width // BLOCK, 2 * self._codec.bundle.latent_channels + 1)
        canvas = np.empty(shape, np.int8) if decoded else None
        for piece in self._pieces(area):
            latents = self._held[piece] if piece in self._held else self._analyse(piece)
            numbers = self._grid.touching(piece)
            for steps in sorted({self._steps.get(number, 0) for number in numbers}):
                alike = [number for number in numbers if self._steps.get(number, 0) == steps]
                for group in self._grid.same_shape(alike, len(alike)):
                    self._code(group, steps, piece, latents, area, canvas)
        if not self._held:
            self.rows.forget(area.bottom - self.halo)
        return canvas

    def _code(
        self, group: list[int], steps: int, piece: Rect, latents: np.ndarray, area: Rect, canvas: np.ndarray | None
    ) -> None:
        """Code tiles of one shape, `steps` better than the others, out of the `latents` of `piece`."""
        base = self._quality if self.target is None else self.target.next()
        quality = min(max(base + steps, 1), 100)
        rects = [self._grid.rect(number) for number in group]
        parts = np.stack([view(latents, rect.scaled(1, BLOCK), piece.scaled(1, BLOCK)) for rect in rects])
        coder = TileCoder(self._codec.bundle, self._codec.backend, quality, self._codec.pool)
        payloads, coded = coder.encode(parts, self._curve)
        for number, rect, payload, part in zip(group, rects, payloads, coded, strict=True):
            self._put(self._first_tile + number, payload, quality)
            if canvas is not None:
                place = view(canvas, rect.scaled(1, BLOCK), area.scaled(1, BLOCK))
                place[..., :-1], place[..., -1] = part, quality_value(quality)
        self._bytes += sum(map(len, payloads))
        if self.target is not None:
            self.target.spent(base, zip(group, map(len, payloads), strict=True))

    def _analyse(self, piece: Rect) -> np.ndarray:
        """Latents (h, w, C) float32 of `piece`."""
        return self._codec.analyse(piece, self.planes or self._planes)

    def _planes(self, region: Rect) -> np.ndarray:
        """The planes of a region, from the rows that are here."""
        inside = region.common(Rect(0, 0, self._grid.width, self._grid.height))
        left, top = region.x - inside.x, region.y - inside.y
        return core.pixels_to_planes(self.rows.get(inside), left, top, region.width, region.height)[None]


def favoured_tiles(record: FrameRecord, level: int, favoured: Sequence[Favoured]) -> dict[int, int]:
    """Steps of quality by tile of `level`, for the tiles that show a pixel of a favoured rectangle; the most counts."""
    grid, frame = record.levels[level], Rect(0, 0, record.grid.width, record.grid.height)
    result: dict[int, int] = {}
    for rectangle, steps in favoured:
        inside = Rect(*rectangle).common(frame)
        if inside.width <= 0 or inside.height <= 0:
            raise UsageError(f"rectangle {tuple(rectangle)} has no pixel in the frame of {frame.width}x{frame.height}")
        for number in grid.touching(inside.aligned(1 << level).scaled(1, 1 << level)):
            result[number] = max(steps, result.get(number, steps))
    return result
