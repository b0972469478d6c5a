"""Frames to .lnt bytes and back: the session that ties networks, tile coding and the container together.

Encoding walks the frame by rows of tiles: analysis over a strip with its halo, then the tiles of the strip as one
batch. Decoding entropy-decodes the tiles that a window and its halo touch and runs the synthesis over compute tiles.
Networks see real neighbours across tile borders, so a window equals the same crop of the full decode bit for bit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from . import backends, core
from .bitstream import Header, Metadata, Picture, write_picture
from .bundle import Bundle
from .coding import TileCoder
from .errors import InputError, UsageError
from .latents import quality_value
from .tiles import BLOCK, Rect, TileGrid, compute_tiles

DEFAULT_TILE = 512
MAX_OUTPUT_PIXELS = 1 << 29
"""Pixels one decode call may return (512 megapixels, 1.5 GB), so that a forged header cannot take all memory."""
COMPUTE_SIDE = 2048, 1024
"""Width and height in pixels of what the networks compute at once: bounds memory, amortises the halo."""
BATCH_PIXELS = 8 * 512 * 512
"""Pixels whose tiles are entropy-coded as one batch."""

Progress = Callable[[int, int], None]


class Codec:
    """A bundle on a backend. Not for concurrent calls: use one codec per thread."""

    def __init__(self, bundle: Bundle, backend: backends.Backend, threads: int | None = None) -> None:
        self.bundle, self.backend = bundle, backend
        self._pool = ThreadPoolExecutor(threads) if threads != 1 else None
        networks = bundle.manifest["halo"]
        self._analysis_halo: int = networks["analysis"]
        self._synthesis_halo: int = networks["synthesis"]

    @classmethod
    def open(cls, bundle: str | Path | None = None, backend: str = "auto", threads: int | None = None) -> Codec:
        """Open `bundle` (None: the shipped one) on `backend`; `threads` None uses all cores, 1 exactly one."""
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}: use 1 or more")
        opened = Bundle.open(bundle)
        return cls(opened, backends.select(backend, opened, threads), threads)

    def encode(
        self,
        image: np.ndarray,
        *,
        quality: int = 60,
        tile: int = DEFAULT_TILE,
        metadata: Metadata | None = None,
        digest: bool = False,
        progress: Progress | None = None,
    ) -> bytes:
        """Encode an (H, W, 3) uint8 RGB array to .lnt bytes.

        quality 1..100; `tile` is the side in pixels of the random-access unit, a multiple of 64. `digest` decodes the
        frame here and stores the SHA-256 of its pixels as the decode proof (costs one decode). `progress` is called
        with (tiles done, tiles). Raises UsageError for arguments out of range.
        """
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UsageError(
                f"image has shape {image.shape} and type {image.dtype}: an (H, W, 3) uint8 RGB array is needed"
            )
        if not (isinstance(quality, int | np.integer) and 1 <= quality <= 100):
            raise UsageError(f"quality is {quality!r}: use a whole number from 1 to 100")
        grid = TileGrid(image.shape[1], image.shape[0], tile)
        if image.strides[1:] != (3, 1):
            image = np.ascontiguousarray(image)
        coder = TileCoder(self.bundle, self.backend, int(quality), self._pool)
        payloads: list[bytes] = [b""] * grid.count
        canvas = self._canvas(grid.padded) if digest else None
        done = 0
        for batch in _row_batches(grid):
            area = _bounding(grid, batch)
            latents = self._analyse(image, area, grid)
            for group in grid.same_shape(batch, len(batch)):
                rects = [grid.rect(number).scaled(1, BLOCK) for number in group]
                parts = np.stack([_view(latents, rect, area.scaled(1, BLOCK)) for rect in rects])
                coded, decoded = coder.encode(parts)
                for number, payload, rect, part in zip(group, coded, rects, decoded, strict=True):
                    payloads[number] = payload
                    if canvas is not None:
                        _view(canvas, rect, grid.padded.scaled(1, BLOCK))[...] = part
                done += len(group)
                if progress:
                    progress(done, grid.count)
        proof = None
        if canvas is not None:
            frame = Rect(0, 0, grid.width, grid.height)
            pixels = self._synthesise(canvas, grid.padded, frame, int(quality), grid)
            proof = hashlib.sha256(pixels).digest()
        header = Header(grid, int(quality), bytes.fromhex(self.bundle.identity), proof)
        return write_picture(header, payloads, metadata)

    def decode(
        self,
        data: bytes | BinaryIO | Picture,
        *,
        region: tuple[int, int, int, int] | None = None,
        progress: Progress | None = None,
        max_pixels: int = MAX_OUTPUT_PIXELS,
    ) -> np.ndarray:
        """Decode .lnt bytes, a seekable file or a parsed Picture to (H, W, 3) uint8 RGB.

        `region` (x, y, width, height) in pixels decodes only that window, reading only the tiles that it and the
        halo touch. Raises InputError for damaged data or an unknown bundle, UsageError for a region outside the frame.
        """
        picture = data if isinstance(data, Picture) else Picture(data)
        header, grid = picture.header, picture.header.grid
        if header.bundle.hex() != self.bundle.identity:
            raise InputError(
                f"the file was encoded with bundle {header.bundle.hex()[:16]}..., this is {self.bundle.name} "
                f"{self.bundle.identity[:16]}...: pass the right one with --bundle"
            )
        frame = Rect(0, 0, grid.width, grid.height)
        window = frame if region is None else Rect(*(int(v) for v in region))
        inside = 0 <= window.x < window.right <= frame.width and 0 <= window.y < window.bottom <= frame.height
        if not inside:
            raise UsageError(
                f"region {','.join(map(str, window))} is not inside the frame of {frame.width}x{frame.height}"
            )
        if window.width * window.height > max_pixels:
            raise UsageError(
                f"{window.width}x{window.height} pixels are more than the limit of {max_pixels}: "
                "decode it by regions or raise max_pixels"
            )
        needed = window.aligned(BLOCK).grown(self._synthesis_halo * BLOCK, grid.padded)
        numbers = grid.touching(needed)
        payloads = {number: picture.tile(number) for number in numbers}
        area = _bounding(grid, numbers)
        canvas = self._canvas(area)
        coder = TileCoder(self.bundle, self.backend, header.quality, self._pool)
        done = 0
        for group in grid.same_shape(numbers, max(1, BATCH_PIXELS // grid.tile**2)):
            rects = [grid.rect(number).scaled(1, BLOCK) for number in group]
            decoded = coder.decode([payloads.pop(n) for n in group], group, rects[0].height, rects[0].width)
            for rect, part in zip(rects, decoded, strict=True):
                _view(canvas, rect, area.scaled(1, BLOCK))[...] = part
            done += len(group)
            if progress:
                progress(done, len(numbers))
        return self._synthesise(canvas, area, window, header.quality, grid)

    def verify_pixels(self, data: bytes | BinaryIO | Picture, **options: object) -> bool:
        """Decode the frame here and compare with its decode proof. Raises InputError where the file carries none."""
        picture = data if isinstance(data, Picture) else Picture(data)
        if picture.header.digest is None:
            raise InputError("the file carries no digest of its pixels: encode with --digest to have one")
        return hashlib.sha256(self.decode(picture, **options)).digest() == picture.header.digest  # type: ignore[arg-type]

    def _canvas(self, area: Rect) -> np.ndarray:
        """Decoded latents of `area` (pixels), (h, w, C) int8."""
        return np.zeros((area.height // BLOCK, area.width // BLOCK, self.bundle.latent_channels), np.int8)

    def _analyse(self, image: np.ndarray, area: Rect, grid: TileGrid) -> np.ndarray:
        """Latents (h, w, C) float32 of `area`, computed with the neighbours that the analysis sees."""
        latents = np.empty((area.height // BLOCK, area.width // BLOCK, self.bundle.latent_channels), np.float32)
        for piece in compute_tiles(area, *COMPUTE_SIDE):
            seen = piece.grown(self._analysis_halo * BLOCK, grid.padded)
            planes = core.pixels_to_planes(image, seen.x, seen.y, seen.width, seen.height)
            result = self.backend.run("analysis", {"planes": planes[None]})[0][0]
            target = _view(latents, piece.scaled(1, BLOCK), area.scaled(1, BLOCK))
            target[...] = _view(result, piece.scaled(1, BLOCK), seen.scaled(1, BLOCK))
        return latents

    def _synthesise(self, canvas: np.ndarray, area: Rect, window: Rect, quality: int, grid: TileGrid) -> np.ndarray:
        """Pixels of `window` from the decoded latents `canvas` of `area`."""
        pixels = np.empty((window.height, window.width, 3), np.uint8)
        for piece in compute_tiles(window, *COMPUTE_SIDE):
            seen = piece.aligned(BLOCK).grown(self._synthesis_halo * BLOCK, grid.padded)
            latent = np.ascontiguousarray(_view(canvas, seen.scaled(1, BLOCK), area.scaled(1, BLOCK)))[None]
            companded = np.full((*latent.shape[:3], latent.shape[3] + 1), quality_value(quality), np.int8)
            np.take(self.bundle.companding, latent.view(np.uint8) ^ 128, out=companded[..., :-1])
            planes = self.backend.run("synthesis", {"latent": latent, "companded": companded})[0][0]
            crop = (piece.x - seen.x, piece.y - seen.y, piece.width, piece.height)
            core.planes_to_pixels(planes, crop, out=_view(pixels, piece, window))
        return pixels


def _view(array: np.ndarray, rect: Rect, origin: Rect) -> np.ndarray:
    """The part of `array`, which covers `origin`, that covers `rect` (same units)."""
    x, y = rect.x - origin.x, rect.y - origin.y
    return array[y : y + rect.height, x : x + rect.width]


def _bounding(grid: TileGrid, numbers: list[int]) -> Rect:
    """The rectangle of whole tiles from the first to the last of `numbers` (a block of rows and columns)."""
    first, last = grid.rect(numbers[0]), grid.rect(numbers[-1])
    return Rect(first.x, first.y, last.right - first.x, last.bottom - first.y)


def _row_batches(grid: TileGrid) -> list[list[int]]:
    """Tile numbers in batches of neighbours within a row of tiles, about BATCH_PIXELS each."""
    per_batch = max(1, math.ceil(BATCH_PIXELS / grid.tile**2))
    return [
        list(range(row * grid.columns + start, row * grid.columns + min(start + per_batch, grid.columns)))
        for row in range(grid.rows)
        for start in range(0, grid.columns, per_batch)
    ]
