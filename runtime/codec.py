"""Frames to .lnt bytes and back: a bundle on a backend, ready to encode frames and to decode windows of them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import backends, encoder
from .bitstream import FrameRecord, Metadata
from .bundle import Bundle
from .decoder import DecodeOptions, LevelDecoder, Opener, window_strips
from .encoder import Favoured, FrameWriter, Progress
from .errors import InputError, UsageError
from .levels import level_qualities, level_size
from .reader import Reader
from .rows import ArrayRows, FrameRows
from .sealing import Protection, Sealer
from .sources import ByteSource
from .tiles import BLOCK, TILE, Rect, TileGrid, usual_tile, view
from .writer import PictureWriter

MAX_OUTPUT_PIXELS = 1 << 29
"""Pixels one decode call may return (512 megapixels, 1.5 GB), so that a forged header cannot take all memory."""

Source = bytes | BinaryIO | ByteSource | Reader


class Codec:
    """A bundle on a backend. Calls may come from several threads at once.

    Within a call `threads` cores are used by the backend inside each network, and by `pool` for what releases Python's
    lock: the entropy coding of a batch's tiles, and the pixels of one piece while the network computes the next. Of
    the CPU time of 12 megapixels on one thread the networks took 73 % decoding and 64 % encoding, the pool's work
    17 % and 27 %.
    """

    def __init__(self, bundle: Bundle, backend: backends.Backend, threads: int | None = None) -> None:
        self.bundle, self.backend = bundle, backend
        self.pool = ThreadPoolExecutor(threads) if threads != 1 else None
        self.analysis_halo: int = bundle.manifest["halo"]["analysis"]
        self.synthesis_halo: int = bundle.manifest["halo"]["synthesis"]

    @classmethod
    def open(cls, bundle: str | Path | None = None, backend: str = "auto", threads: int | None = None) -> Codec:
        """Open `bundle` (None: the shipped one) on `backend`; `threads` None uses all cores, 1 exactly one."""
        if threads is not None and threads < 1:
            raise UsageError(f"threads is {threads}: use 1 or more")
        opened = Bundle.open(bundle)
        return cls(opened, backends.select(backend, opened, threads), threads)

    def analyse(self, piece: Rect, planes_of: Callable[[Rect], np.ndarray]) -> np.ndarray:
        """Latents (h, w, C) float32 of `piece` in full-scale units, computed with the neighbours that it sees.

        `planes_of` gives the planes (1, h, w, 12) of a region, also beyond the frame, which is mirrored there: anything
        else would be an edge, which costs bits.
        """
        seen = piece.surrounded(self.analysis_halo * BLOCK)
        latents = self.backend.run("analysis", {"planes": planes_of(seen)})[0][0]
        return view(latents, piece.scaled(1, BLOCK), seen.scaled(1, BLOCK))

    def encode(
        self,
        image: np.ndarray,
        *,
        quality: int = 60,
        size: int | None = None,
        favoured: Sequence[Favoured] = (),
        tile: int | None = None,
        levels: int = 0,
        metadata: Metadata | None = None,
        digest: bool = False,
        protection: Protection | None = None,
        progress: Progress | None = None,
    ) -> bytes:
        """Encode an (H, W, 3) uint8 RGB array to a picture file's bytes; the arguments are those of `encode_frame`."""
        output = io.BytesIO()
        self.encode_frame(
            PictureWriter(output), ArrayRows(image), quality=quality, size=size, favoured=favoured, tile=tile,
            levels=levels, metadata=metadata, digest=digest, protection=protection, progress=progress,
        )  # fmt: skip
        return output.getvalue()

    def encode_frame(
        self,
        writer: FrameWriter,
        frame: np.ndarray | FrameRows,
        *,
        quality: int = 60,
        size: int | None = None,
        favoured: Sequence[Favoured] = (),
        tile: int | None = None,
        levels: int = 0,
        number: int = 0,
        timestamp: int = 0,
        metadata: Metadata | None = None,
        digest: bool = False,
        protection: Protection | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Encode one frame into `writer`, in memory that grows with its width only.

        quality 1..100, or with `size` the one that gives a picture file of about that many bytes (by a second entropy
        pass, in five bytes of memory per pixel). `favoured` are rectangles that are coded better, each with a number of
        steps of quality; negative ones are coded worse. `tile` is the side in pixels of the random-access unit, a
        multiple of 64 (None: `usual_tile`, or TILE with `size`, `favoured` or parts that are protected); `levels` how
        many times the overview pyramid halves the frame. `digest` decodes the frame here and stores the SHA-256 of its
        pixels as the decode proof (costs one decode). `progress` is called with (tiles done, tiles). Raises UsageError
        for arguments out of range.
        """
        rows = ArrayRows(frame) if isinstance(frame, np.ndarray) else frame
        if not (isinstance(quality, int | np.integer) and 1 <= quality <= 100):
            raise UsageError(f"quality is {quality!r}: use a whole number from 1 to 100")
        if protection is not None and digest:
            raise UsageError(
                "a digest would let others check their guesses at encrypted pixels: leave one of the two out"
            )
        if tile is None:
            # Tiles differ where parts of the frame are treated apart, or where together they are to have a size.
            apart = favoured or size is not None or (protection is not None and protection.rectangles is not None)
            tile = TILE if apart else usual_tile(rows.width, rows.height)
        record = FrameRecord(
            TileGrid(rows.width, rows.height, tile), level_qualities(int(quality) if size is None else 100, levels),
            bytes.fromhex(self.bundle.identity), number, timestamp,
        )  # fmt: skip
        encoder.encode_frame(
            self, writer, rows, record, size=size, favoured=favoured, metadata=metadata, digest=digest,
            protection=protection, progress=progress,
        )  # fmt: skip

    def decode(self, data: Source, *, max_pixels: int = MAX_OUTPUT_PIXELS, **options: Any) -> np.ndarray:
        """Decode .lnt bytes, a file or a Reader to (H, W, 3) uint8 RGB; `options` are the fields of `DecodeOptions`."""
        window, strips = self.window(data, **options)
        if window.width * window.height > max_pixels:
            raise UsageError(
                f"{window.width}x{window.height} pixels are more than the limit of {max_pixels}: "
                "decode it by regions, to a .tif (which is written by rows), or raise max_pixels"
            )
        pixels: np.ndarray | None = None
        y = 0
        for strip in strips:
            if len(strip) == window.height:
                return strip
            if pixels is None:  # not before the first strip decoded: a forged header allocates nothing
                pixels = np.empty((window.height, window.width, 3), np.uint8)
            pixels[y : y + len(strip)] = strip
            y += len(strip)
        assert pixels is not None
        return pixels

    def strips(self, data: Source, **options: Any) -> Iterator[np.ndarray]:
        """The decoded pixels from top to bottom in strips (rows, W, 3) uint8, in memory that grows with the width only.

        `options` are the fields of `DecodeOptions`. InputError for damaged or lost tiles unless they are concealed,
        for a wrong key and for an unknown bundle; UsageError for a region outside the frame.
        """
        return self.window(data, **options)[1]

    def window(self, data: Source, **fields: Any) -> tuple[Rect, Iterator[np.ndarray]]:
        """The window in pixels of its level, and what `strips` gives; nothing is decoded yet."""
        options = DecodeOptions(**fields)
        reader = data if isinstance(data, Reader) else Reader(data)
        record = reader.record(options.frame)
        if record.bundle.hex() != self.bundle.identity:
            raise InputError(
                f"the file was encoded with bundle {record.bundle.hex()[:16]}..., this is {self.bundle.name} "
                f"{self.bundle.identity[:16]}...: pass the right one with --bundle"
            )
        most = max(record.grid.width, record.grid.height).bit_length()
        if not 0 <= options.level <= most:
            raise UsageError(f"level is {options.level}: use 0 (full size) to {most}")
        width, height = level_size(record.grid.width, record.grid.height, options.level)
        window = Rect(0, 0, width, height) if options.region is None else Rect(*(int(v) for v in options.region))
        inside = 0 <= window.x < window.right <= width and 0 <= window.y < window.bottom <= height
        if not inside:
            raise UsageError(f"region {','.join(map(str, window))} is not inside the frame of {width}x{height}")
        opener: Opener | None = None
        if options.key is not None and record.salt is not None:
            opener = Sealer(options.key, record.salt, record.pack())
        decoders = {stored: LevelDecoder(self, reader, stored, options, opener) for stored in record.levels}
        return window, window_strips(decoders, options.level, window)

    def verify_pixels(self, data: Source, frame: int = 0, progress: Progress | None = None) -> bool:
        """Decode a frame here and compare with its decode proof. Raises InputError where the file carries none."""
        reader = data if isinstance(data, Reader) else Reader(data)
        digest = reader.index(frame).digest
        if digest is None:
            raise InputError("the file carries no digest of its pixels: encode with --digest to have one")
        found = hashlib.sha256()
        for strip in self.strips(reader, frame=frame, progress=progress):
            found.update(strip)
        return found.digest() == digest
