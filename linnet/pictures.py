"""The Python calls: array to bytes, bytes to array, and a `File` whose frames are read window by window.

A codec (bundle, backend, threads) is opened once and kept; opening one loads the networks and proves them against
the bundle's known answers, which costs more than coding a small picture. Nothing here knows what is in the bytes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from . import defaults
from .runtime import inspection
from .runtime.bitstream import Metadata
from .runtime.bundle import shipped_identities
from .runtime.codec import Codec
from .runtime.encoder import Favoured, Protection
from .runtime.errors import InputError
from .runtime.inspection import Info
from .runtime.reader import Reader
from .runtime.sources import ByteSource, as_source

CODECS_KEPT = 4
"""Opened codecs remembered; the one that was not used for longest goes first."""


_opening = threading.Lock()


def codec(bundle: str | None = None, backend: str = defaults.BACKEND, threads: int | None = None) -> Codec:
    """The opened codec for these settings, the same object each time and for all threads, which may use it at once."""
    with _opening:
        return _opened(bundle, backend, threads)


@lru_cache(maxsize=CODECS_KEPT)
def _opened(bundle: str | None, backend: str, threads: int | None) -> Codec:
    return Codec.open(bundle, backend, threads)


def codec_of(
    reader: Reader,
    frame: int = 0,
    bundle: str | None = None,
    backend: str = defaults.BACKEND,
    threads: int | None = None,
) -> Codec:
    """The opened codec for a frame of a file: where no `bundle` is named, the one in the package that encoded it."""
    if bundle is None:
        bundle = shipped_identities().get(reader.record(frame).bundle.hex())
    return codec(bundle, backend, threads)


def encode(
    image: np.ndarray,
    *,
    quality: int = defaults.QUALITY,
    size: int | None = None,
    favoured: Sequence[Favoured] = (),
    tile: int | None = None,
    levels: int = 0,
    metadata: Metadata | None = None,
    digest: bool = False,
    protection: Protection | None = None,
    bundle: str | Path | None = None,
    backend: str = defaults.BACKEND,
    threads: int | None = None,
) -> bytes:
    """The `.lnt` bytes of an (H, W, 3) uint8 RGB array.

    `size` asks for a file of about that many bytes instead of a quality. `favoured`: rectangles that are coded better,
    ((x, y, width, height), steps of quality) each. `levels`: how many times the overview pyramid halves the picture.
    `digest` adds a proof of the decoded pixels (one decode). `protection` (`linnet.Protection`) encrypts tiles.
    """
    return codec(_key(bundle), backend, threads).encode(
        image, quality=quality, size=size, favoured=favoured, tile=tile, levels=levels, metadata=metadata,
        digest=digest, protection=protection,
    )  # fmt: skip


def decode(
    data: bytes | BinaryIO,
    *,
    region: tuple[int, int, int, int] | None = None,
    frame: int = 0,
    level: int = 0,
    key: bytes | None = None,
    conceal: bool = False,
    bundle: str | Path | None = None,
    backend: str = defaults.BACKEND,
    threads: int | None = None,
) -> np.ndarray:
    """The (H, W, 3) uint8 RGB array of `.lnt` bytes or of an open file.

    `region` is (x, y, width, height) in pixels of `level`, which has 1 / 2**level of the width and height. `key` opens
    encrypted tiles; `conceal` fills lost ones from the overview instead of raising InputError.
    """
    reader = Reader(data)
    return codec_of(reader, frame, _key(bundle), backend, threads).decode(
        reader, region=region, frame=frame, level=level, key=key, conceal=conceal
    )


def info(data: bytes | BinaryIO) -> Info:
    """What the frame records, the indices and the metadata say; no pixel is decoded."""
    return inspection.read_info(data)


class Frame:
    """One frame of a file: its size at once, its pixels window by window."""

    def __init__(self, file: File, number: int) -> None:
        self._file, self.number = file, number
        self._index = file.reader.index(number)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        grid = self._index.record.grid
        return grid.width, grid.height

    @property
    def tiles(self) -> int:
        """How many tiles the frame has at full size."""
        return self._index.record.grid.count

    @property
    def quality(self) -> int:
        return self._index.record.quality

    @property
    def timestamp(self) -> int:
        """Nanoseconds since 1970, 0 where unknown."""
        return self._index.record.timestamp

    @property
    def levels(self) -> list[int]:
        """The stored levels, 0 first. Others can be read too, from the next finer stored one."""
        return list(self._index.record.levels)

    @property
    def metadata(self) -> Metadata:
        return self._file.reader.metadata(self.number)

    def read(self, level: int = 0, **options: Any) -> np.ndarray:
        """The whole frame, (H, W, 3) uint8 RGB, at 1 / 2**level of its size. Options as in `read_region`."""
        return self._file._decode(frame=self.number, level=level, **options)

    def read_region(self, x: int, y: int, width: int, height: int, level: int = 0, **options: Any) -> np.ndarray:
        """A window, (height, width, 3) uint8 RGB: the same pixels as that crop of `read(level)`. Reads only its tiles.

        `conceal=True` fills lost or damaged tiles from the overview instead of raising InputError; a list given as
        `blanks` gets a sentence about each tile that is not what was recorded.
        """
        return self._file._decode(frame=self.number, level=level, region=(x, y, width, height), **options)

    def strips(self, level: int = 0, **options: Any) -> Iterator[np.ndarray]:
        """The whole frame from top to bottom in strips (rows, W, 3), in memory that grows with its width only."""
        return self._file._strips(frame=self.number, level=level, **options)


class File(Sequence[Frame]):
    """An open file: a sequence of frames, and for pictures also the one frame itself. Use it in a `with` block.

    Several threads may read from it at once.
    """

    def __init__(
        self, source: ByteSource, *, bundle: str | None, backend: str, threads: int | None, key: bytes | None
    ) -> None:
        self._source = source
        self._codec_settings = (bundle, backend, threads)
        self._key = key
        self.reader = Reader(source)

    @property
    def damage(self) -> list[str]:
        """What is missing or was repaired while reading, in sentences."""
        return self.reader.damage

    @property
    def info(self) -> Info:
        return inspection.read_info(self.reader)

    def __len__(self) -> int:
        return self.reader.frame_count

    def __getitem__(self, number: int) -> Frame:  # type: ignore[override]
        if not -len(self) <= number < len(self):
            raise IndexError(f"frame {number}: the file has {len(self)}")
        return Frame(self, number % len(self))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of the first frame."""
        return self[0].size

    @property
    def tiles(self) -> int:
        """Tiles of the first frame."""
        return self[0].tiles

    def read(self, level: int = 0, **options: Any) -> np.ndarray:
        """The first frame (of a picture: the picture), as `Frame.read`."""
        return self[0].read(level, **options)

    def read_region(self, x: int, y: int, width: int, height: int, level: int = 0, **options: Any) -> np.ndarray:
        """A window of the first frame, as `Frame.read_region`."""
        return self[0].read_region(x, y, width, height, level, **options)

    def _decode(self, **options: Any) -> np.ndarray:
        return self._codec(options).decode(self.reader, key=self._key, **options)

    def _strips(self, **options: Any) -> Iterator[np.ndarray]:
        return self._codec(options).strips(self.reader, key=self._key, **options)

    def _codec(self, options: dict[str, Any]) -> Codec:
        return codec_of(self.reader, options.get("frame", 0), *self._codec_settings)

    def close(self) -> None:
        self._source.close()

    def __enter__(self) -> File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(
    path: str | os.PathLike[str],
    *,
    key: bytes | None = None,
    bundle: str | Path | None = None,
    backend: str = defaults.BACKEND,
    threads: int | None = None,
) -> File:
    """The `.lnt` file at `path`, or at an URL (http, https, or what fsspec knows); only its index is read yet.

    `key` (32 bytes) opens encrypted tiles. Raises InputError for what is not there or not a `.lnt` file.
    """
    name = os.fspath(path)
    if "://" in name:
        from .remote import open_remote

        source = open_remote(name)
        name = source.name  # without passwords and signatures
    else:
        source = as_source(name)
    try:
        return File(source, bundle=_key(bundle), backend=backend, threads=threads, key=key)
    except InputError as error:
        source.close()
        raise InputError(f"{name}: {error}") from error
    except BaseException:
        source.close()
        raise


def _key(bundle: str | Path | None) -> str | None:
    return None if bundle is None else os.fspath(bundle)
