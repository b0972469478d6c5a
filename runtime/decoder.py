"""Tiles to pixels: the tiles that a window and its halo touch, strip by strip.

The synthesis sees real neighbours across tile borders, so a window equals the same crop of the full decode bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from . import core
from .bitstream import Tile
from .coding import TileCoder
from .errors import InputError
from .latents import compand_whole, quality_value, split_latent
from .levels import enlarge, halve
from .reader import Reader
from .stages import LAYOUT, stage
from .tiles import BLOCK, Rect, TileGrid, band_height, compute_tiles, view

if TYPE_CHECKING:
    from .codec import Codec

COMPUTE_WIDTH = 2048
"""Pixels across that the synthesis computes at once."""
BATCH_PIXELS = 8 * 512 * 512
"""Pixels whose tiles are entropy-decoded as one batch."""

Progress = Callable[[int, int], None]


class Opener(Protocol):
    """Decrypts tiles; raises InputError for a wrong key or a modified tile."""

    def open(self, sealed: bytes, frame: int, tile: int) -> bytes: ...


def strips(
    codec: Codec, latents_of: Callable[[Rect], np.ndarray], grid: TileGrid, quality: int, window: Rect
) -> Iterator[np.ndarray]:
    """The pixels of `window` from top to bottom in strips (rows, width, 3) uint8.

    `latents_of` gives the decoded latents (h, w, 2 C) int8 of a rectangle of whole tiles, asked for once, in order.
    """
    halo, band = codec.synthesis_halo * BLOCK, band_height(grid.tile)
    needed = window.aligned(BLOCK).grown(halo, grid.padded)
    held: dict[int, tuple[Rect, np.ndarray]] = {}
    y = window.y
    while y < window.bottom:
        strip = Rect(window.x, y, window.width, min((y // band + 1) * band, window.bottom) - y)
        seen = strip.aligned(BLOCK).grown(halo, grid.padded)
        bands = range(seen.y // band, (seen.bottom - 1) // band + 1)
        for number in bands:
            if number not in held:
                part = Rect(needed.x, number * band, needed.width, band)
                area = grid.covering(part.common(needed))
                held[number] = area, latents_of(area)
        held = {number: held[number] for number in bands}
        first, last = held[bands[0]][0], held[bands[-1]][0]
        canvas = np.concatenate([latents for _, latents in held.values()]) if len(held) > 1 else held[bands[0]][1]
        yield _synthesise(
            codec, canvas, Rect(first.x, first.y, first.width, last.bottom - first.y), strip, quality, grid
        )
        y = strip.bottom


@stage(LAYOUT)
def _synthesise(codec: Codec, canvas: np.ndarray, area: Rect, window: Rect, quality: int, grid: TileGrid) -> np.ndarray:
    """Pixels of `window` from the decoded latents `canvas` of `area`."""
    pixels = np.empty((window.height, window.width, 3), np.uint8)
    for piece in compute_tiles(window, COMPUTE_WIDTH, window.height):
        seen = piece.aligned(BLOCK).grown(codec.synthesis_halo * BLOCK, grid.padded)
        latent = np.ascontiguousarray(view(canvas, seen.scaled(1, BLOCK), area.scaled(1, BLOCK)))[None]
        channels = codec.bundle.latent_channels
        companded = np.full((*latent.shape[:3], channels + 1), quality_value(quality), np.int8)
        companded[..., :-1] = compand_whole(latent[..., :channels], codec.bundle.companding)
        planes = codec.backend.run("synthesis", {"latent": latent, "companded": companded})[0][0]
        crop = (piece.x - seen.x, piece.y - seen.y, piece.width, piece.height)
        core.planes_to_pixels(planes, crop, out=view(pixels, piece, window))
    return pixels


class LevelDecoder:
    """Windows of one stored level of one frame."""

    def __init__(
        self,
        codec: Codec,
        reader: Reader,
        frame: int,
        level: int,
        *,
        opener: Opener | None,
        conceal: bool,
        blanks: list[str],
        progress: Progress | None = None,
    ) -> None:
        self._codec, self._reader, self._frame, self._level = codec, reader, frame, level
        self.record = reader.record(frame)
        self.grid = self.record.levels[level]
        self._quality = self.record.qualities[level]
        self._first_tile = self.record.first_tile(level)
        self._coder = TileCoder(codec.bundle, codec.backend, self._quality, codec.pool)
        self._opener, self._conceal, self._blanks, self._progress = opener, conceal, blanks, progress
        self._hidden: list[Rect] = []
        self._done = 0

    def strips(self, window: Rect) -> Iterator[np.ndarray]:
        """The pixels of `window` (of this level) from top to bottom; encrypted tiles without a key are grey."""
        self._hidden, self._done = [], 0
        halo = self._codec.synthesis_halo * BLOCK
        self._total = len(self.grid.touching(window.aligned(BLOCK).grown(halo, self.grid.padded)))
        y = window.y
        for pixels in strips(self._codec, self._latents, self.grid, self._quality, window):
            strip = Rect(window.x, y, window.width, len(pixels))
            for hidden in self._hidden:
                common = hidden.common(strip)
                if common.width > 0 and common.height > 0:
                    view(pixels, common, strip)[...] = 128
            yield pixels
            y = strip.bottom

    @stage(LAYOUT)
    def _latents(self, area: Rect) -> np.ndarray:
        """Decoded latents (h, w, 2 C) int8 of the tiles in `area`."""
        numbers = self.grid.touching(area)
        payloads = self._payloads(numbers)
        shape = (area.height // BLOCK, area.width // BLOCK, 2 * self._codec.bundle.latent_channels)
        canvas = np.empty(shape, np.int8)

        def put(number: int, part: np.ndarray) -> None:
            view(canvas, self.grid.rect(number).scaled(1, BLOCK), area.scaled(1, BLOCK))[...] = part
            self._done += 1
            if self._progress:
                self._progress(self._done, self._total)

        for number in [number for number, payload in payloads.items() if payload is None]:
            del payloads[number]
            put(number, self._filled(number))
        for group in self.grid.same_shape(list(payloads), max(1, BATCH_PIXELS // self.grid.tile**2)):
            rect = self.grid.rect(group[0]).scaled(1, BLOCK)
            names = [self._name(number) for number in group]
            parts = self._coder.decode([payloads.pop(n) for n in group], names, rect.height, rect.width)
            for number, part in zip(group, parts, strict=True):
                put(number, part)
        return canvas

    def _name(self, number: int) -> str:
        return self.record.tile_name(self._first_tile + number)

    def _payloads(self, numbers: list[int]) -> dict[int, bytes | None]:
        """The entropy-coded bytes of each tile; None where it must be filled in, which `blanks` then tells."""
        stored = [self._first_tile + number for number in numbers]
        tiles: dict[int, Tile | None] = {}
        try:
            tiles.update(self._reader.tiles(self._frame, stored))
        except InputError:
            if not self._conceal:
                raise
            for number in stored:
                try:
                    tiles.update(self._reader.tiles(self._frame, [number]))
                except InputError as error:
                    tiles[number] = None
                    self._blanks.append(f"{error}: concealed")
        return {number: self._opened(number, tiles[self._first_tile + number]) for number in numbers}

    def _opened(self, number: int, tile: Tile | None) -> bytes | None:
        if tile is None or not tile.sealed:
            return tile.payload if tile else None
        if self._opener is None:
            self._hidden.append(self.grid.rect(number))
            self._blanks.append(f"{self._name(number)} is encrypted: blank without the key")
            return None
        return self._opener.open(tile.payload, self.record.number, self._first_tile + number)

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
        planes = core.pixels_to_planes(overview, 0, 0, rect.width, rect.height)
        return split_latent(self._codec.backend.run("analysis", {"planes": planes[None]})[0][0])

    def _overview(self, rect: Rect) -> np.ndarray | None:
        """`rect` of this level from the next coarser stored level; None where there is none or it is blank too."""
        coarser = next((level for level in sorted(self.record.levels) if level > self._level), None)
        if coarser is None or self.grid.tile % (1 << (coarser - self._level)):
            return None
        factor = 1 << (coarser - self._level)
        x, y = rect.x // factor, rect.y // factor
        window = Rect(x, y, -(-rect.right // factor) - x, -(-rect.bottom // factor) - y)
        decoder = LevelDecoder(
            self._codec, self._reader, self._frame, coarser, opener=self._opener, conceal=True, blanks=self._blanks
        )
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
    width, height = (-(-side >> (finer_level - stored)) for side in (grid.width, grid.height))
    right, bottom = min(2 * window.right, width), min(2 * window.bottom, height)
    finer = Rect(2 * window.x, 2 * window.y, right - 2 * window.x, bottom - 2 * window.y)
    unpaired: np.ndarray | None = None
    y = finer.y
    for pixels in window_strips(decoders, finer_level, finer):
        y += len(pixels)
        rows = pixels if unpaired is None else np.concatenate([unpaired, pixels])
        paired = len(rows) if y == finer.bottom else len(rows) // 2 * 2
        unpaired = rows[paired:] if paired < len(rows) else None
        if paired:
            yield halve(rows[:paired])
