"""What stands in the boxes of a .lnt file, version 1: frame records, indices, tiles. See docs/bitstream.md.

A *picture* is one frame with its index in front. A *recording* is appended to, frame after frame, each with its index
behind it; checkpoints list the frames, and without the last one a scan of the boxes finds every whole tile. `writer`
writes both, `reader` reads them. They know bytes, not pixels: payloads go to `codec`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from .boxes import BOX_HEADER, Box
from .errors import InputError, UsageError
from .tiles import MAX_TILES, TileGrid

VERSION = 1
MAX_METADATA = 1 << 26
"""Bytes one metadata box may hold (64 MiB)."""
MAX_TILE_PAYLOAD = 1 << 28
MAX_RECORD = 1 << 16
MAX_LEVELS = 16
MAX_CHECKPOINT_FRAMES = 1 << 20
SALT_SIZE = 16
DIGEST_SIZE = 32
_SEALED = 1
_HAS_DIGEST = 1

_RECORD = struct.Struct("<HHIqIIHBB32s")
TILE_PLACE = struct.Struct("<II")
_TILE_BITS = 24
_LENGTH = struct.Struct("<H")
_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<QI")
CHECKPOINT = struct.Struct("<QII")
FRAME_PLACE = struct.Struct("<QQq")
TAIL = struct.Struct("<QI")
TAIL_SIZE = BOX_HEADER + TAIL.size
LOST = (0, 0)
"""The index entry of a tile that is not in the file."""
METADATA_BOXES = {b"EXIF": "exif", b"XMP ": "xmp", b"ICC ": "icc"}


class UnknownVersionError(InputError):
    """The file is from a later linnet."""


@dataclass(frozen=True)
class Metadata:
    """What travels beside the pixels, byte for byte: EXIF (TIFF structure), XMP packet, ICC profile."""

    exif: bytes | None = None
    xmp: bytes | None = None
    icc: bytes | None = None


@dataclass(frozen=True)
class FrameRecord:
    """What a decoder must know before a frame's first tile.

    `qualities` (1..100) are those of level 0, 1, 2, ... of the overview pyramid, 0 where a level is not stored; single
    tiles may have others.
    `bundle` is the codec's identity (32 bytes), `number` counts the frames of a recording, `timestamp` is in
    nanoseconds since 1970 (0: unknown), `salt` (16 bytes) is there when tiles are encrypted.
    """

    grid: TileGrid
    qualities: tuple[int, ...]
    bundle: bytes
    number: int = 0
    timestamp: int = 0
    salt: bytes | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.qualities) <= MAX_LEVELS + 1:
            raise UsageError(f"{len(self.qualities) - 1} overview levels: at most {MAX_LEVELS} are possible")
        for level, quality in enumerate(self.qualities):
            if not (0 if level else 1) <= quality <= 100:
                raise UsageError(f"quality of level {level} is {quality}: use 1 to 100")
        if self.tile_count > MAX_TILES:
            raise UsageError(f"frame of {self.grid.width}x{self.grid.height} has {self.tile_count} tiles: too many")

    @property
    def quality(self) -> int:
        return self.qualities[0]

    @cached_property
    def levels(self) -> dict[int, TileGrid]:
        """The stored levels and their tiles; level l has 1 / 2**l of the frame's width and height, rounded up."""
        width, height, tile = self.grid.width, self.grid.height, self.grid.tile
        return {
            level: TileGrid(-(-width >> level), -(-height >> level), tile)
            for level, quality in enumerate(self.qualities)
            if quality
        }

    @property
    def tile_count(self) -> int:
        """Tiles of all stored levels; they are numbered level by level."""
        return sum(grid.count for grid in self.levels.values())

    def first_tile(self, level: int) -> int:
        """The number of the first tile of a stored level."""
        return sum(grid.count for stored, grid in self.levels.items() if stored < level)

    def level_of(self, number: int) -> int:
        """The level of tile `number`."""
        return max(level for level in self.levels if self.first_tile(level) <= number)

    def tile_name(self, number: int) -> str:
        """How a message calls a tile: "tile 3", with its level and frame where they are not 0."""
        level = self.level_of(number)
        name = f"tile {number - self.first_tile(level)}"
        return name + (f" of level {level}" if level else "") + (f" of frame {self.number}" if self.number else "")

    def pack(self) -> bytes:
        grid, flags = self.grid, _SEALED if self.salt else 0
        levels = len(self.qualities) - 1
        head = (VERSION, flags, self.number, self.timestamp, grid.width, grid.height, grid.tile, levels, 0, self.bundle)
        return _RECORD.pack(*head) + bytes(self.qualities) + (self.salt or b"")

    @classmethod
    def unpack(cls, payload: bytes, box: Box) -> FrameRecord:
        """Raises InputError, naming `box`, for unknown versions and values out of range."""
        version = int.from_bytes(payload[:2], "little")
        if len(payload) >= 2 and version != VERSION:
            raise UnknownVersionError(f"format version {version} is not known here (only {VERSION}): update linnet")
        if len(payload) < _RECORD.size:
            raise InputError(f"{box} has {len(payload)} bytes: a frame record needs {_RECORD.size}")
        _, flags, number, timestamp, width, height, tile, levels, _, bundle = _RECORD.unpack(payload[: _RECORD.size])
        qualities_end = _RECORD.size + levels + 1
        salt = payload[qualities_end : qualities_end + SALT_SIZE] if flags & _SEALED else None
        if flags & ~_SEALED or len(payload) < qualities_end or (salt is not None and len(salt) != SALT_SIZE):
            raise InputError(f"{box} has flags {flags:#x} and {len(payload)} bytes: not a version-{VERSION} frame")
        try:
            grid, qualities = TileGrid(width, height, tile), tuple(payload[_RECORD.size : qualities_end])
            return cls(grid, qualities, bundle, number, timestamp, salt)
        except UsageError as error:
            raise InputError(f"{box}: {error}") from None


@dataclass(frozen=True)
class FrameIndex:
    """Where a frame's tiles are: (offset, length) of each box, LOST where there is none; `digest` proves the decode."""

    record: FrameRecord
    entries: Sequence[tuple[int, int]] = field(repr=False)
    digest: bytes | None = None

    def pack(self) -> bytes:
        record = self.record.pack()
        head = _LENGTH.pack(len(record)) + record + bytes([_HAS_DIGEST if self.digest else 0]) + (self.digest or b"")
        return head + _COUNT.pack(len(self.entries)) + b"".join(_ENTRY.pack(*entry) for entry in self.entries)

    @classmethod
    def unpack(cls, payload: bytes, box: Box) -> FrameIndex:
        if len(payload) < _LENGTH.size:
            raise InputError(f"{box} has {len(payload)} bytes: too few for an index")
        at = _LENGTH.size + _LENGTH.unpack_from(payload)[0]
        record = FrameRecord.unpack(payload[_LENGTH.size : at], box)
        flags = payload[at] if at < len(payload) else 0
        if flags & ~_HAS_DIGEST:
            raise InputError(f"{box} has index flags {flags:#x}: not a version-{VERSION} index")
        digest = payload[at + 1 : at + 1 + DIGEST_SIZE] if flags & _HAS_DIGEST else None
        at += 1 + len(digest or b"")
        expected = at + _COUNT.size + record.tile_count * _ENTRY.size
        if len(payload) != expected:
            raise InputError(f"{box} has {len(payload)} bytes: {record.tile_count} tiles need {expected}")
        if _COUNT.unpack_from(payload, at)[0] != record.tile_count:
            raise InputError(f"{box} lists {_COUNT.unpack_from(payload, at)[0]} tiles, not {record.tile_count}")
        first = at + _COUNT.size
        return cls(record, list(_ENTRY.iter_unpack(payload[first:])), digest)

    @staticmethod
    def limit(count: int = MAX_TILES) -> int:
        """The largest payload that an index of `count` tiles can have."""
        return 256 + _ENTRY.size * count


@dataclass(frozen=True)
class Tile:
    payload: bytes = field(repr=False)
    quality: int
    sealed: bool = False


@dataclass(frozen=True)
class TilePlace:
    """What stands before a tile's payload: the frame's number, the tile's through all stored levels, its quality."""

    frame: int
    tile: int
    quality: int

    @property
    def word(self) -> int:
        """Tile number and quality as the one 32-bit number that the file holds."""
        return self.tile | self.quality << _TILE_BITS

    def pack(self) -> bytes:
        return TILE_PLACE.pack(self.frame, self.word)

    @classmethod
    def unpack(cls, payload: bytes) -> TilePlace:
        """From the first bytes of a TILE or SEAL payload; the quality is not checked."""
        frame, word = TILE_PLACE.unpack_from(payload)
        return cls(frame, word & (1 << _TILE_BITS) - 1, word >> _TILE_BITS)


TILE_HEADER = BOX_HEADER + TILE_PLACE.size
