"""Reads .lnt files: opens them by index, footer or scan; tiles and metadata when asked for. See docs/bitstream.md."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

from . import boxes
from .bitstream import (
    CHECKPOINT,
    FRAME_PLACE,
    LOST,
    MAX_CHECKPOINT_FRAMES,
    MAX_METADATA,
    MAX_RECORD,
    MAX_TILE_PAYLOAD,
    METADATA_BOXES,
    TAIL,
    TAIL_SIZE,
    TILE_PLACE,
    VERSION,
    FrameIndex,
    FrameRecord,
    Metadata,
    Tile,
    TilePlace,
    UnknownVersionError,
)
from .boxes import BOX_HEADER, SIGNATURE, Box
from .errors import InputError, UsageError
from .sources import ByteSource, as_source
from .tiles import MAX_TILES

INDICES_KEPT = 64
"""Frame indices that a reader remembers."""


@dataclass(frozen=True)
class _Place:
    """Where a frame lies; an offset is None where that box was not found."""

    frame: int | None
    index: int | None
    timestamp: int


class Reader:
    """A file's frames; tiles and metadata are read when asked for. `source` is bytes, a seekable file or a ByteSource.

    Several threads may read from it at once. A recording that was interrupted opens too: `complete` is False then and
    `damage` says in sentences what is missing.
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
        first = index = boxes.box_at(self.source, len(SIGNATURE))
        record: FrameRecord | None = None
        if first.kind == b"FRAM":
            record = FrameRecord.unpack(boxes.read_payload(self.source, first, MAX_RECORD), first)
            index = boxes.box_at(self.source, first.end)
        if index.kind != b"INDX":
            raise InputError(f"{first} and {index}: a version-{VERSION} picture starts with FRAM and INDX or with INDX")
        self._indices[0] = self._read_index(index, FrameIndex.limit(record.tile_count if record else MAX_TILES))
        if record not in (None, self._indices[0].record):
            raise InputError(f"{first} and {index} describe different frames: the file is damaged")
        self._places = [_Place(first.offset, index.offset, self._indices[0].record.timestamp)]

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
        if tail is None or tail.kind != b"TAIL" or tail.length != TAIL.size:
            raise InputError("the recording has no footer: it was interrupted")
        offset, frames = TAIL.unpack(boxes.read_payload(source, tail, TAIL.size))
        places: list[_Place] = []
        while frames > len(places):
            box = boxes.box_at(source, offset)
            payload = boxes.read_payload(source, box, CHECKPOINT.size + FRAME_PLACE.size * MAX_CHECKPOINT_FRAMES)
            if box.kind != b"CKPT" or (len(payload) - CHECKPOINT.size) % FRAME_PLACE.size or box.offset >= tail.offset:
                raise InputError(f"{box} is not the checkpoint that the footer names")
            previous, first, count = CHECKPOINT.unpack_from(payload)
            listed = [_Place(*place) for place in FRAME_PLACE.iter_unpack(payload[CHECKPOINT.size :])]
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
        index = self._indices.get(frame) or self._built.get(frame)  # one look each: other threads forget indices
        if index is not None:
            return index
        try:
            assert place.index is not None
            box = boxes.box_at(self.source, place.index)
            if box.kind != b"INDX":
                raise InputError(f"{box} is not the index of frame {frame}, which a checkpoint says is there")
            index = self._read_index(box)
        except InputError as error:
            index = self._built[frame] = self._rebuild(frame, error)
            return index
        if len(self._indices) >= INDICES_KEPT:
            self._indices.clear()
        self._indices[frame] = index
        return index

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
            if length < BOX_HEADER + TILE_PLACE.size or length - BOX_HEADER > MAX_TILE_PAYLOAD:
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
            place = TilePlace.unpack(payload)
            if (place.frame, place.tile) != (index.record.number, number):
                raise InputError(f"{box} holds tile {place.tile} of another place")
            if not 1 <= place.quality <= 100:
                raise InputError(f"{box} has quality {place.quality}: 1 to 100 are possible")
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        return Tile(payload[TILE_PLACE.size :], place.quality, box.kind == b"SEAL")

    def tile(self, number: int, frame: int = 0) -> bytes:
        """The payload of one tile, checked."""
        return self.tiles(frame, [number])[number].payload

    def metadata(self, frame: int = 0) -> Metadata:
        """EXIF, XMP and ICC of a frame; they stand between its FRAM and its first tile."""
        place = self._place(frame)
        start = place.index if place.frame is None else place.frame
        found: dict[str, bytes] = {}
        if start is not None:
            for number, box in enumerate(boxes.walk(self.source, start)):
                if box.kind in (b"TILE", b"SEAL") or (number and box.kind == b"FRAM"):
                    break
                if box.kind in METADATA_BOXES:
                    found[METADATA_BOXES[box.kind]] = boxes.read_payload(self.source, box, MAX_METADATA)
        return Metadata(**found)
