"""The Python calls on one picture: array to bytes, bytes to array, and a `Frame` that reads windows of a file.

A codec (bundle, backend, threads) is opened once and kept; opening one loads the networks and proves them against
the bundle's known answers, which costs more than coding a small picture. Nothing here knows what is in the bytes.
"""

from __future__ import annotations

import io
import os
import threading
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from . import defaults, files
from .runtime import bitstream
from .runtime.bitstream import Info, Metadata
from .runtime.codec import Codec
from .runtime.errors import InputError

CODECS_KEPT = 4
"""Opened codecs remembered; the one that was not used for longest goes first."""


def codec(bundle: str | None = None, backend: str = defaults.BACKEND, threads: int | None = None) -> Codec:
    """The opened codec for these settings: the same object each time, another one in another thread."""
    return _codec_of_thread(threading.get_ident(), bundle, backend, threads)


@lru_cache(maxsize=CODECS_KEPT)
def _codec_of_thread(thread: int, bundle: str | None, backend: str, threads: int | None) -> Codec:
    return Codec.open(bundle, backend, threads)


def encode(
    image: np.ndarray,
    *,
    quality: int = defaults.QUALITY,
    tile: int = defaults.TILE,
    metadata: Metadata | None = None,
    digest: bool = False,
    bundle: str | Path | None = None,
    backend: str = defaults.BACKEND,
    threads: int | None = None,
) -> bytes:
    """The `.lnt` bytes of an (H, W, 3) uint8 RGB array; `digest` adds a proof of the decoded pixels (one decode)."""
    chosen = codec(_key(bundle), backend, threads)
    return chosen.encode(image, quality=quality, tile=tile, metadata=metadata, digest=digest)


def decode(
    data: bytes | BinaryIO,
    *,
    region: tuple[int, int, int, int] | None = None,
    bundle: str | Path | None = None,
    backend: str = defaults.BACKEND,
    threads: int | None = None,
) -> np.ndarray:
    """The (H, W, 3) uint8 RGB array of `.lnt` bytes or of an open file; `region` is (x, y, width, height) in pixels."""
    return codec(_key(bundle), backend, threads).decode(data, region=region)


def info(data: bytes | BinaryIO) -> Info:
    """What the header, the index and the metadata say; no pixel is decoded."""
    return bitstream.read_info(data)


class Frame:
    """One picture in a file: its size at once, its pixels window by window. Close it, or use it in a `with` block."""

    def __init__(self, source: BinaryIO, *, bundle: str | None, backend: str, threads: int | None) -> None:
        self._source = source
        self._codec_settings = (bundle, backend, threads)
        self.info = bitstream.read_info(source)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.info.width, self.info.height

    @property
    def tiles(self) -> int:
        """How many tiles the picture has."""
        return self.info.tiles

    def read(self) -> np.ndarray:
        """The whole picture, (H, W, 3) uint8 RGB."""
        return self._decode(None)

    def read_region(self, x: int, y: int, width: int, height: int) -> np.ndarray:
        """A window, (height, width, 3) uint8 RGB: the same pixels as that crop of `read()`. Reads only its tiles."""
        return self._decode((x, y, width, height))

    def close(self) -> None:
        self._source.close()

    def _decode(self, region: tuple[int, int, int, int] | None) -> np.ndarray:
        self._source.seek(0)
        return codec(*self._codec_settings).decode(self._source, region=region)

    def __enter__(self) -> Frame:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(
    path: str | os.PathLike[str],
    *,
    bundle: str | Path | None = None,
    backend: str = defaults.BACKEND,
    threads: int | None = None,
) -> Frame:
    """The picture in the `.lnt` file at `path`; nothing but its header and index is read yet."""
    try:
        source = io.open(path, "rb")  # noqa: SIM115, UP020 - the frame owns it, and `open` is this function
    except OSError as error:
        raise InputError(f"{os.fspath(path)}: {files.reason(error)}; give the path of a .lnt file") from error
    try:
        return Frame(source, bundle=_key(bundle), backend=backend, threads=threads)
    except InputError as error:
        source.close()
        raise InputError(f"{os.fspath(path)}: {error}") from error
    except BaseException:
        source.close()
        raise


def _key(bundle: str | Path | None) -> str | None:
    return None if bundle is None else os.fspath(bundle)
