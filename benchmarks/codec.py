"""One shape for every codec that is measured, linnet and its peers alike: a name, settings, encode and decode.

`linnet_codec` wraps the package's own codec so; `peers` has the table of the others. A codec built here can be sent to
another process, where it opens its own session.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .metrics import Picture

if TYPE_CHECKING:
    from ..runtime.codec import Codec as Opened

LINNET = "linnet"
LINNET_QUALITIES = (1, 10, 20, 40, 60, 80, 100)


@dataclass(frozen=True)
class Codec:
    """A codec under test. `encode(picture, setting)` gives the bytes of a complete file, `decode` the picture again."""

    name: str
    about: str  # the fixed settings, and what the variable one means
    version: str  # of the library that does the work
    settings: tuple[float, ...]  # in order of rising rate
    encode: Callable[[Picture, float], bytes]
    decode: Callable[[bytes], Picture]

    @property
    def fingerprint(self) -> str:
        """Results carry it: an older result counts only while name, fixed settings and version are the same."""
        return hashlib.sha256(f"{self.name}\n{self.about}\n{self.version}".encode()).hexdigest()[:16]


class LinnetSession:
    """A single-threaded `linnet.Codec`, opened on first use and again in any process this is sent to."""

    def __init__(self, bundle: str | None, backend: str, tile: int | None = None) -> None:
        self.bundle, self.backend, self.tile = bundle, backend, tile
        self._opened: Opened | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def open(self) -> Opened:
        if self._opened is None:
            import linnet

            self._opened = linnet.Codec.open(self.bundle, backend=self.backend, threads=1)
        return self._opened

    def encode(self, picture: Picture, setting: float) -> bytes:
        return self.open().encode(picture, quality=int(setting), tile=self.tile)

    def encode_to_size(self, picture: Picture, size: int) -> bytes:
        """About `size` bytes, or the smallest file there is where that is larger."""
        from ..runtime.errors import UsageError

        try:
            return self.open().encode(picture, size=size)
        except UsageError:
            return self.open().encode(picture, quality=1)

    def decode(self, data: bytes) -> Picture:
        return self.open().decode(data)


def linnet_codec(
    bundle: str | None, backend: str, *, qualities: tuple[float, ...] = LINNET_QUALITIES, tile: int | None = None
) -> Codec:
    """linnet as a codec under test; opens the bundle at once, so that a missing one is reported before any work.

    Without `tile` tiles are what `linnet encode` chooses.
    """
    import linnet

    session = LinnetSession(bundle, backend, tile)
    opened = session.open()
    version = f"linnet {linnet.__version__}, bundle {opened.bundle.identity[:16]}"
    tiles = "" if tile is None else f", tiles of {tile}"
    about = f"quality=q, backend {opened.backend.name}, 1 thread{tiles}"
    return Codec(LINNET, about, version, tuple(sorted(qualities)), session.encode, session.decode)
