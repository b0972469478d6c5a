"""Tiles to pixels: the tiles that a window and its halo touch, strip by strip.

The synthesis sees real neighbours across tile borders, so a window equals the same crop of the full decode bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from . import core
from .bitstream import Tile, TilePlace
from .coding import TileCoder
from .errors import InputError
from .latents import compand_whole, quality_value, split_latent
from .levels import enlarge, level_size
from .reader import Reader
from .rows import RowBuffer, RowHalver
from .stages import LAYOUT, stage
from .tiles import BLOCK, Rect, TileGrid, band_height, compute_tiles, view

if TYPE_CHECKING:
    from .bundle import Bundle
    from .codec import Codec

COMPUTE_WIDTH = 2048
"""Pixels across that the synthesis computes at once."""
BATCH_PIXELS = 8 * 512 * 512
"""Pixels whose tiles are entropy-decoded as one batch."""

Progress = Callable[[int, int], None]


class Opener(Protocol):
    """Decrypts tiles; raises InputError for a wrong key or a modified tile."""

    def open(self, sealed: bytes, place: TilePlace) -> bytes: ...


def strips(
    codec: Codec, latents_of: Callable[[Rect], np.ndarray], grid: TileGrid, window: Rect
) -> Iterator[np.ndarray]:
    """The pixels of `window` from top to bottom in strips (rows, width, 3) uint8.

    `latents_of` gives the decoded latents of a rectangle of whole tiles, (h, w, 2 C + 1) int8 with the quality's value
    as the last channel; it is asked once for each, in order.
    """
    halo, band = codec.synthesis_halo * BLOCK, band_height(grid.tile)
    needed = window.aligned(BLOCK).grown(halo, grid.padded)
    whole_tiles = grid.covering(needed)
    latents = RowBuffer(whole_tiles.x // BLOCK, whole_tiles.y // BLOCK)
    y = window.y
    while y < window.bottom:
        strip = Rect(window.x, y, window.width, min((y // band + 1) * band, window.bottom) - y)
        seen = strip.aligned(BLOCK).grown(halo, grid.padded)
        latents.forget(seen.y // BLOCK)
        while latents.bottom * BLOCK < seen.bottom:
            top = latents.bottom * BLOCK
            part = Rect(needed.x, top, needed.width, (top // band + 1) * band - top)
            latents.append(latents_of(grid.covering(part.common(needed))))
        yield _synthesise(codec, latents, strip, grid)
        y = strip.bottom


@stage(LAYOUT)
def _synthesise(codec: Codec, latents: RowBuffer, window: Rect, grid: TileGrid) -> np.ndarray:
    """Pixels of `window` from decoded latents and quality values that cover it and its halo.

    The network uses all threads; meanwhile one of the pool turns the planes of the piece before into pixels.
    """
    pixels = np.empty((window.height, window.width, 3), np.uint8)
    written: list[Future[np.ndarray]] = []
    for piece in compute_tiles(window, COMPUTE_WIDTH, window.height):
        seen = piece.aligned(BLOCK).grown(codec.synthesis_halo * BLOCK, grid.padded)
        part = latents.get(seen.scaled(1, BLOCK))[None]
        inputs = {"latent": np.ascontiguousarray(part[..., :-1])}
        if "companded" in codec.bundle.inputs("synthesis"):
            inputs["companded"] = _companded(part, codec.bundle)
        planes = codec.backend.run("synthesis", inputs)[0][0]
        crop, out = (piece.x - seen.x, piece.y - seen.y, piece.width, piece.height), view(pixels, piece, window)
        if codec.pool is None:
            core.planes_to_pixels(planes, crop, out=out)
        else:
            written.append(codec.pool.submit(core.planes_to_pixels, planes, crop, out))
    for job in written:
        job.result()
    return pixels


@dataclass(frozen=True)
class DecodeOptions:
    """What to decode of a file, and how."""

    region: tuple[int, int, int, int] | None = None
    """(x, y, width, height) in pixels of `level`: only the tiles that it and the halo touch are read and decoded."""
    frame: int = 0
    level: int = 0
    """Level l has 1 / 2**l of the width and height; one that is not stored comes from the next finer one."""
    key: bytes | None = None
    """32 bytes that open encrypted tiles, which are grey otherwise."""
    conceal: bool = False
    """Fill damaged or lost tiles from the overview; they are an InputError otherwise."""
    blanks: list[str] = field(default_factory=list)
    """Gets a sentence for each tile that is not what was encoded."""
    progress: Progress | None = None
    """Called with (tiles done, tiles)."""


def _companded(latents: np.ndarray, bundle: Bundle) -> np.ndarray:
    """What the synthesis sees beside `latents` and quality values (N, h, w, 2 C + 1): (N, h, w, C + 1) int8."""
    channels = bundle.latent_channels
    companded = np.empty((*latents.shape[:3], channels + 1), np.int8)
    companded[..., :-1] = compand_whole(latents[..., :channels], bundle.companding)
    companded[..., -1] = latents[..., -1]
    return companded


class LevelDecoder:
    """Windows of one stored level of one frame."""

    def __init__(self, codec: Codec, reader: Reader, level: int, options: DecodeOptions, opener: Opener | None) -> None:
        self._codec, self._reader, self._level, self._options, self._opener = codec, reader, level, options, opener
        self.record = reader.record(options.frame)
        self.grid = self.record.levels[level]
        self._quality = self.record.qualities[level]
        self._first_tile = self.record.first_tile(level)
        self._hidden: list[Rect] = []
        self._done = 0

    def strips(self, window: Rect) -> Iterator[np.ndarray]:
        """The pixels of `window` (of this level) from top to bottom; encrypted tiles without a key are grey."""
        self._hidden, self._done = [], 0
        halo = self._codec.synthesis_halo * BLOCK
        self._total = len(self.grid.touching(window.aligned(BLOCK).grown(halo, self.grid.padded)))
        y = window.y
        for pixels in strips(self._codec, self._latents, self.grid, window):
            strip = Rect(window.x, y, window.width, len(pixels))
            for hidden in self._hidden:
                common = hidden.common(strip)
                if common.width > 0 and common.height > 0:
                    view(pixels, common, strip)[...] = 128
            yield pixels
            y = strip.bottom

    @stage(LAYOUT)
    def _latents(self, area: Rect) -> np.ndarray:
        """Decoded latents and quality values (h, w, 2 C + 1) int8 of the tiles in `area`."""
        tiles = self._tiles(self.grid.touching(area))
        channels = 2 * self._codec.bundle.latent_channels
        canvas = np.empty((area.height // BLOCK, area.width // BLOCK, channels + 1), np.int8)

        def put(number: int, latents: np.ndarray, quality: int) -> None:
            part = view(canvas, self.grid.rect(number).scaled(1, BLOCK), area.scaled(1, BLOCK))
            part[..., :-1], part[..., -1] = latents, quality_value(quality)
            self._done += 1
            if self._options.progress:
                self._options.progress(self._done, self._total)

        by_quality: dict[int, list[int]] = {}
        for number, tile in tiles.items():
            if tile is None:
                put(number, self._filled(number), self._quality)
            else:
                by_quality.setdefault(tile.quality, []).append(number)
        for quality, numbers in by_quality.items():
            coder = TileCoder(self._codec.bundle, self._codec.backend, quality, self._codec.pool)
            for group in self.grid.same_shape(numbers, max(1, BATCH_PIXELS // self.grid.tile**2)):
                rect = self.grid.rect(group[0]).scaled(1, BLOCK)
                names = [self._name(number) for number in group]
                parts = coder.decode([tiles.pop(number).payload for number in group], names, rect.height, rect.width)
                for number, part in zip(group, parts, strict=True):
                    put(number, part, quality)
        return canvas

    def _name(self, number: int) -> str:
        return self.record.tile_name(self._first_tile + number)

    def _tiles(self, numbers: list[int]) -> dict[int, Tile | None]:
        """Each tile, opened; None where it must be filled in, which `blanks` then tells."""
        stored = [self._first_tile + number for number in numbers]
        tiles: dict[int, Tile | None] = {}
        try:
            tiles.update(self._reader.tiles(self._options.frame, stored))
        except InputError:
            if not self._options.conceal:
                raise
            for number in stored:
                try:
                    tiles.update(self._reader.tiles(self._options.frame, [number]))
                except InputError as error:
                    tiles[number] = None
                    self._options.blanks.append(f"{error}: concealed")
        return {number: self._opened(number, tiles[self._first_tile + number]) for number in numbers}

    def _opened(self, number: int, tile: Tile | None) -> Tile | None:
        if tile is None or not tile.sealed:
            return tile
        if self._opener is None:
            self._hidden.append(self.grid.rect(number))
            self._options.blanks.append(f"{self._name(number)} is encrypted: blank without the key")
            return None
        place = TilePlace(self.record.number, self._first_tile + number, tile.quality)
        return Tile(self._opener.open(tile.payload, place), tile.quality)

    def _filled(self, number: int) -> np.ndarray:
        """Latents (h, w, 2 C) int8 for a tile that is not there: those of the enlarged overview, else of plain grey.

        Filling in latents and not pixels keeps the seams to the neighbouring tiles smooth.
        """
        rect = self.grid.rect(number)
        inside = rect.common(Rect(0, 0, self.grid.width, self.grid.height))
        overview = None if rect in self._hidden else self._overview(inside)
        if overview is None:
            if rect not in self._hidden:
                self._hidden.append(rect)
            shape = (rect.height // BLOCK, rect.width // BLOCK, 2 * self._codec.bundle.latent_channels)
            return np.zeros(shape, np.int8)

        def planes(region: Rect) -> np.ndarray:
            left, top = region.x - rect.x, region.y - rect.y
            return core.pixels_to_planes(overview, left, top, region.width, region.height)[None]

        return split_latent(self._codec.analyse(rect, planes))

    def _overview(self, rect: Rect) -> np.ndarray | None:
        """`rect` of this level from the next coarser stored level; None where there is none or it is blank too."""
        coarser = next((level for level in sorted(self.record.levels) if level > self._level), None)
        if coarser is None or self.grid.tile % (1 << (coarser - self._level)):
            return None
        factor = 1 << (coarser - self._level)
        x, y = rect.x // factor, rect.y // factor
        window = Rect(x, y, -(-rect.right // factor) - x, -(-rect.bottom // factor) - y)
        options = replace(self._options, conceal=True, progress=None)
        decoder = LevelDecoder(self._codec, self._reader, coarser, options, self._opener)
        pixels = np.concatenate(list(decoder.strips(window)))
        return None if decoder._hidden else enlarge(pixels, factor, rect.width, rect.height)


def window_strips(decoders: dict[int, LevelDecoder], level: int, window: Rect) -> Iterator[np.ndarray]:
    """`window` of `level` from top to bottom; a level that is not stored is averaged from the next finer one that is.

    `decoders` are those of the stored levels.
    """
    if level in decoders:
        yield from decoders[level].strips(window)
        return
    finer_level = level - 1
    stored = max(stored for stored in decoders if stored < level)
    grid = decoders[stored].grid
    width, height = level_size(grid.width, grid.height, finer_level - stored)
    right, bottom = min(2 * window.right, width), min(2 * window.bottom, height)
    finer = Rect(2 * window.x, 2 * window.y, right - 2 * window.x, bottom - 2 * window.y)
    halver = RowHalver(finer.height)
    for pixels in window_strips(decoders, finer_level, finer):
        halved = halver(pixels)
        if len(halved):
            yield halved
