"""The .lnt container, version 1: pictures and recordings as frames of tiles. See docs/bitstream.md.

A *picture* is one frame with its index in front. A *recording* is appended to, frame after frame, each with its index
behind it; checkpoints list the frames, and without the last one a scan of the boxes finds every whole tile. This module
knows bytes, not pixels: payloads go to `codec`.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import BinaryIO

from . import boxes
from .boxes import BOX_HEADER, SIGNATURE, Box
from .errors import InputError, UsageError
from .sources import ByteSource, as_source
from .tiles import MAX_TILES, TileGrid

VERSION = 1
SUFFIX = ".lnt"
MAX_METADATA = 1 << 26
"""Bytes one metadata box may hold (64 MiB)."""
MAX_TILE_PAYLOAD = 1 << 28
MAX_LEVELS = 16
MAX_CHECKPOINT_FRAMES = 1 << 20
INDICES_KEPT = 64
"""Frame indices that a reader remembers."""
SALT_SIZE = 16
_DIGEST_SIZE = 32
_SEALED = 1
_HAS_DIGEST = 1

_RECORD = struct.Struct("<HHIqIIHBB32s")
_TILE = struct.Struct("<II")
_LENGTH = struct.Struct("<H")
_COUNT = struct.Struct("<I")
_ENTRY = struct.Struct("<QI")
_CHECKPOINT = struct.Struct("<QII")
_PLACE = struct.Struct("<QQq")
_TAIL = struct.Struct("<QI")
TAIL_SIZE = BOX_HEADER + _TAIL.size
LOST = (0, 0)
"""The index entry of a tile that is not in the file."""
_METADATA_BOXES = {b"EXIF": "exif", b"XMP ": "xmp", b"ICC ": "icc"}


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

    `qualities` (1..100) are those of level 0, 1, 2, ... of the overview pyramid, 0 where a level is not stored.
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

    def tile_name(self, number: int) -> str:
        """How a message calls a tile: "tile 3", with its level and frame where they are not 0."""
        level = max(level for level in self.levels if self.first_tile(level) <= number)
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
        flags = payload[at] if at < len(payload) else 0xFF
        digest = payload[at + 1 : at + 1 + _DIGEST_SIZE] if flags & _HAS_DIGEST else None
        at += 1 + len(digest or b"")
        expected = at + _COUNT.size + record.tile_count * _ENTRY.size
        if flags & ~_HAS_DIGEST or len(payload) != expected:
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
    sealed: bool = False


class _Writer:
    """Shared by pictures and recordings: appends boxes and remembers where the current frame's tiles are."""

    def __init__(self, output: BinaryIO) -> None:
        self._output, self._offset = output, 0
        self._record: FrameRecord | None = None
        self._entries: list[tuple[int, int]] = []
        self._append(SIGNATURE)

    def _append(self, data: bytes) -> None:
        self._output.write(data)
        self._offset += len(data)

    def _start(self, record: FrameRecord) -> None:
        self._record, self._entries = record, [LOST] * record.tile_count
        self._append(boxes.pack(b"FRAM", record.pack()))

    def _metadata(self, metadata: Metadata | None) -> None:
        for kind, name in _METADATA_BOXES.items():
            content = getattr(metadata, name) if metadata else None
            if content is not None:
                if len(content) > MAX_METADATA:
                    raise UsageError(f"{name.upper()} metadata has {len(content)} bytes: at most {MAX_METADATA} fit")
                self._append(boxes.pack(kind, content))

    def tile(self, number: int, payload: bytes, *, sealed: bool = False) -> None:
        """Append tile `number` (through all stored levels) of the current frame."""
        assert self._record is not None
        box = boxes.pack(b"SEAL" if sealed else b"TILE", _TILE.pack(self._record.number, number) + payload)
        self._entries[number] = (self._offset, len(box))
        self._append(box)


class PictureWriter(_Writer):
    """Writes one frame with its index in front into a seekable `output` at its position 0."""

    def begin(self, record: FrameRecord, metadata: Metadata | None = None, *, digest: bool = False) -> None:
        """`digest` keeps room for one, which must then be given to `end`."""
        self._start(record)
        self._index_at = self._offset
        unfinished = FrameIndex(record, self._entries, bytes(_DIGEST_SIZE) if digest else None)
        self._append(bytes(BOX_HEADER + len(unfinished.pack())))
        self._metadata(metadata)

    def end(self, digest: bytes | None = None) -> None:
        """The frame is complete: put the index in its place."""
        assert self._record is not None
        self._output.seek(self._index_at)
        self._output.write(boxes.pack(b"INDX", FrameIndex(self._record, self._entries, digest).pack()))
        self._output.seek(self._offset)


class RecordingWriter(_Writer):
    """Appends frames to `output`, which is never read nor rewound. What was written stays readable at any stop."""

    def __init__(self, output: BinaryIO) -> None:
        super().__init__(output)
        self._places: list[tuple[int, int, int]] = []
        self._frames = self._checkpoint_at = self._frame_at = 0

    @property
    def bytes_written(self) -> int:
        return self._offset

    def begin(self, record: FrameRecord, metadata: Metadata | None = None, *, digest: bool = False) -> None:
        self._frame_at = self._offset
        self._start(record)
        self._metadata(metadata)

    def end(self, digest: bytes | None = None) -> None:
        """The frame is complete: write its index."""
        assert self._record is not None
        self._places.append((self._frame_at, self._offset, self._record.timestamp))
        self._append(boxes.pack(b"INDX", FrameIndex(self._record, self._entries, digest).pack()))
        self._record = None
        if len(self._places) == MAX_CHECKPOINT_FRAMES:
            self.checkpoint()

    def checkpoint(self) -> None:
        """List the frames since the last checkpoint; the caller makes it durable."""
        if self._places:
            head = _CHECKPOINT.pack(self._checkpoint_at, self._frames, len(self._places))
            self._frames, self._checkpoint_at = self._frames + len(self._places), self._offset
            self._append(boxes.pack(b"CKPT", head + b"".join(_PLACE.pack(*place) for place in self._places)))
            self._places = []

    def close(self) -> None:
        """Write what lets a reader open the file with two small reads. Does not close `output`."""
        self.checkpoint()
        self._append(boxes.pack(b"TAIL", _TAIL.pack(self._checkpoint_at, self._frames)))


def write_picture(
    record: FrameRecord, tiles: Sequence[bytes], metadata: Metadata | None = None, digest: bytes | None = None
) -> bytes:
    """One whole picture file. `tiles` are the entropy-coded payloads in tile order."""
    output = io.BytesIO()
    writer = PictureWriter(output)
    writer.begin(record, metadata, digest=digest is not None)
    for number, payload in enumerate(tiles):
        writer.tile(number, payload)
    writer.end(digest)
    return output.getvalue()


@dataclass(frozen=True)
class _Place:
    """Where a frame lies; an offset is None where that box was not found."""

    frame: int | None
    index: int | None
    timestamp: int


class Reader:
    """A file's frames; tiles and metadata are read when asked for. `source` is bytes, a seekable file or a ByteSource.

    A recording that was interrupted opens too: `complete` is False then and `damage` says in sentences what is missing.
    """

    def __init__(self, source: bytes | BinaryIO | ByteSource, *, scan: bool = False) -> None:
        """`scan` believes no index and no signature: every box is looked at (`recovery` uses it)."""
        self.source = as_source(source)
        self.damage: list[str] = []
        self.recording = False
        self._indices: dict[int, FrameIndex] = {}
        self._built: dict[int, FrameIndex] = {}
        if scan:
            self._adopt_scan(None)
            return
        signature = self.source.read(0, min(len(SIGNATURE), self.source.size))
        if signature != SIGNATURE:
            what = "ends within the signature: truncated" if SIGNATURE.startswith(signature) else "is not a linnet file"
            raise InputError(f"the file {what} ({self.source.size} bytes)")
        try:
            self._open_picture()
        except UnknownVersionError:
            raise
        except InputError as error:
            self._open_recording(error)

    @property
    def complete(self) -> bool:
        return not self.damage

    @property
    def frame_count(self) -> int:
        return len(self._places)

    def timestamp(self, frame: int) -> int:
        """Nanoseconds since 1970 of frame `frame`, 0 where unknown."""
        return self._place(frame).timestamp

    def _open_picture(self) -> None:
        head = boxes.box_at(self.source, len(SIGNATURE))
        index = boxes.box_at(self.source, head.end)
        if (head.kind, index.kind) != (b"FRAM", b"INDX"):
            raise InputError(f"{head} and {index}: a version-{VERSION} picture starts with FRAM and INDX")
        record = FrameRecord.unpack(boxes.read_payload(self.source, head, 1 << 16), head)
        self._indices[0] = self._read_index(index, FrameIndex.limit(record.tile_count))
        if self._indices[0].record != record:
            raise InputError(f"{head} and {index} describe different frames: the file is damaged")
        self._places = [_Place(head.offset, index.offset, record.timestamp)]

    def _read_index(self, box: Box, limit: int | None = None) -> FrameIndex:
        limit = min(FrameIndex.limit() if limit is None else limit, FrameIndex.limit())
        return FrameIndex.unpack(boxes.read_payload(self.source, box, limit), box)

    def _open_recording(self, cause: InputError) -> None:
        try:
            self._places = self._footer()
            self.recording = True
        except InputError as no_footer:
            if self.source.remote:
                raise InputError(f"{cause}; no footer either ({no_footer}): fetch the file and recover it") from None
            self._adopt_scan(cause)
            self.damage.insert(0, str(no_footer if self.recording else cause))

    def _adopt_scan(self, cause: InputError | None) -> None:
        """The frames that a scan of all boxes finds; raises `cause` where there are none."""
        from .recovery import find_frames

        found = find_frames(self.source)
        if cause is not None and not found.frames:
            raise cause
        self.recording, self.damage = found.recording, found.damage
        self._places = [_Place(f.frame, f.index, f.timestamp) for f in found.frames]
        self._built = {number: f.built for number, f in enumerate(found.frames) if f.built is not None}

    def _footer(self) -> list[_Place]:
        """All frames by the checkpoints, from the last one back to the first."""
        source = self.source
        tail: Box | None = None
        with suppress(InputError):
            tail = boxes.box_at(source, max(0, source.size - TAIL_SIZE))
        if tail is None or tail.kind != b"TAIL" or tail.length != _TAIL.size:
            raise InputError("the recording has no footer: it was interrupted")
        offset, frames = _TAIL.unpack(boxes.read_payload(source, tail, _TAIL.size))
        places: list[_Place] = []
        while frames > len(places):
            box = boxes.box_at(source, offset)
            payload = boxes.read_payload(source, box, _CHECKPOINT.size + _PLACE.size * MAX_CHECKPOINT_FRAMES)
            if box.kind != b"CKPT" or (len(payload) - _CHECKPOINT.size) % _PLACE.size or box.offset >= tail.offset:
                raise InputError(f"{box} is not the checkpoint that the footer names")
            previous, first, count = _CHECKPOINT.unpack_from(payload)
            listed = [_Place(*place) for place in _PLACE.iter_unpack(payload[_CHECKPOINT.size :])]
            if count != len(listed) or first + count != frames - len(places) or not count:
                raise InputError(f"{box} lists frames {first} to {first + count}: not those that are missing")
            places = listed + places
            offset = previous
        return places

    def _place(self, frame: int) -> _Place:
        if not self._places:
            raise InputError("the recording has no frames: it ended before the first was complete")
        if not 0 <= frame < len(self._places):
            raise UsageError(f"frame {frame} is not in the file: it has {len(self._places)}, counted from 0")
        return self._places[frame]

    def index(self, frame: int = 0) -> FrameIndex:
        """The index of a frame. Where it is damaged it is built again from the frame's boxes, which `damage` tells."""
        place = self._place(frame)
        if frame not in self._indices:
            if frame in self._built:
                return self._built[frame]
            if len(self._indices) >= INDICES_KEPT:
                self._indices.clear()
            try:
                assert place.index is not None
                box = boxes.box_at(self.source, place.index)
                if box.kind != b"INDX":
                    raise InputError(f"{box} is not the index of frame {frame}, which a checkpoint says is there")
                self._indices[frame] = self._read_index(box)
            except InputError as error:
                self._built[frame] = self._rebuild(frame, error)
                return self._built[frame]
        return self._indices[frame]

    def _rebuild(self, frame: int, cause: InputError) -> FrameIndex:
        from .recovery import find_frames

        start = self._places[frame].frame or len(SIGNATURE)
        end = self._places[frame + 1].frame if frame + 1 < len(self._places) else self.source.size
        for found in find_frames(self.source, start, end).frames:
            if found.built is not None:
                self.damage.append(f"{cause}: built again from the tiles")
                return found.built
        raise cause

    def record(self, frame: int = 0) -> FrameRecord:
        return self.index(frame).record

    def tiles(self, frame: int, numbers: Sequence[int]) -> dict[int, Tile]:
        """The checked payloads of tiles `numbers`, neighbours read together. InputError names the first bad tile."""
        index = self.index(frame)
        for number in numbers:
            offset, length = index.entries[number]
            name = index.record.tile_name(number)
            if (offset, length) == LOST:
                why = self.damage[0] if self.damage else "it was lost when the file was made"
                raise InputError(f"{name} is not in the file: {why}")
            if length < BOX_HEADER + _TILE.size or length - BOX_HEADER > MAX_TILE_PAYLOAD:
                raise InputError(f"{name} has {length} bytes in the index, which is damaged")
            if offset + length > self.source.size:
                raise InputError(
                    f"{name} ends at byte {offset + length} but the file has {self.source.size}: truncated"
                )
        raw = self.source.read_many([index.entries[number] for number in numbers])
        return {number: self._parse_tile(index, number, data) for number, data in zip(numbers, raw, strict=True)}

    def _parse_tile(self, index: FrameIndex, number: int, data: bytes) -> Tile:
        offset, name = index.entries[number][0], index.record.tile_name(number)
        try:
            box = boxes.parse_header(data[:BOX_HEADER], offset, self.source.size)
            if box.kind not in (b"TILE", b"SEAL") or box.end != offset + len(data):
                raise InputError(f"{box} is not the tile that the index says is there")
            payload = box.check(data[BOX_HEADER:])
            if _TILE.unpack_from(payload) != (index.record.number, number):
                raise InputError(f"{box} holds tile {_TILE.unpack_from(payload)[1]} of another place")
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        return Tile(payload[_TILE.size :], box.kind == b"SEAL")

    def tile(self, number: int, frame: int = 0) -> bytes:
        """The payload of one tile, checked."""
        return self.tiles(frame, [number])[number].payload

    def metadata(self, frame: int = 0) -> Metadata:
        """EXIF, XMP and ICC of a frame; they stand between its FRAM and its first tile."""
        start = self._place(frame).frame
        found: dict[str, bytes] = {}
        if start is not None:
            for number, box in enumerate(boxes.walk(self.source, start)):
                if box.kind in (b"TILE", b"SEAL") or (number and box.kind == b"FRAM"):
                    break
                if box.kind in _METADATA_BOXES:
                    found[_METADATA_BOXES[box.kind]] = boxes.read_payload(self.source, box, MAX_METADATA)
        return Metadata(**found)


def tile_place(payload_start: bytes) -> tuple[int, int]:
    """(frame number, tile number) from the first bytes of a TILE or SEAL payload."""
    frame, tile = _TILE.unpack(payload_start[: _TILE.size])
    return frame, tile


TILE_HEADER = BOX_HEADER + _TILE.size
