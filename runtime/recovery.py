"""Frames found without an index, and files written again from what is whole: power cuts, full disks, flipped bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import BinaryIO

from . import bitstream, boxes
from .bitstream import LOST, TILE_HEADER, FrameIndex, FrameRecord, TilePlace
from .boxes import BOX_HEADER, SIGNATURE, Box
from .errors import InputError
from .reader import Reader
from .sources import ByteSource
from .writer import PictureWriter, RecordingWriter


@dataclass
class FoundFrame:
    """A frame that a scan found: where its FRAM and INDX are (None: missing or damaged), and what they would say."""

    frame: int | None
    index: int | None
    timestamp: int
    built: FrameIndex | None
    """The index, from the tiles that were found; None where the file's own is whole."""


@dataclass
class Found:
    frames: list[FoundFrame] = field(default_factory=list)
    recording: bool = False
    damage: list[str] = field(default_factory=list)


@dataclass
class _Open:
    """A frame whose index has not been met yet."""

    offset: int | None = None
    record: FrameRecord | None = None
    tiles: dict[int, tuple[int, int]] = field(default_factory=dict)
    finished: bool = False


def find_frames(source: ByteSource, start: int = len(SIGNATURE), end: int | None = None) -> Found:
    """Every frame between `start` and `end` with every tile whose box header is whole. Payloads of tiles are not read.

    Reads each box header once, and of tiles the 8 bytes behind it.
    """
    found, open_frames = Found(), {}
    places: dict[int, FoundFrame] = {}

    def frame_of(number: int) -> _Open:
        return open_frames.setdefault(number, _Open())

    for item in boxes.scan(source, start, end):
        if isinstance(item, str):
            found.damage.append(item)
            continue
        try:
            if item.kind == b"FRAM":
                record = FrameRecord.unpack(boxes.read_payload(source, item, bitstream.MAX_RECORD), item)
                opened = frame_of(record.number)
                opened.offset, opened.record = item.offset, record
            elif item.kind == b"INDX":
                index = FrameIndex.unpack(boxes.read_payload(source, item, FrameIndex.limit()), item)
                number = index.record.number
                opened = frame_of(number)
                places[number] = FoundFrame(opened.offset, item.offset, index.record.timestamp, None)
                open_frames[number] = _Open(finished=True)  # its tiles need not be remembered
            elif item.kind in (b"TILE", b"SEAL"):
                _note_tile(source, item, frame_of, found)
            elif item.kind in (b"CKPT", b"TAIL"):
                found.recording = True
        except InputError as error:
            found.damage.append(str(error))
    for number, opened in open_frames.items():
        if opened.finished:
            continue
        if opened.record is None:
            found.damage.append(f"{len(opened.tiles)} tiles of frame {number} have no frame record and no place")
        else:
            places[number] = _built(opened, opened.record, found)
    found.frames = [places[number] for number in sorted(places)]
    found.recording = found.recording or len(found.frames) > 1
    return found


def _note_tile(source: ByteSource, box: Box, frame_of, found: Found) -> None:  # type: ignore[no-untyped-def]
    if box.length < TILE_HEADER - BOX_HEADER:
        raise InputError(f"{box} has {box.length} bytes: too few for a tile")
    place = TilePlace.unpack(source.read(box.payload_offset, TILE_HEADER - BOX_HEADER))
    opened, tile = frame_of(place.frame), place.tile
    if opened.finished:
        return
    if tile in opened.tiles:  # one of the two has a damaged number; the checksum says which
        try:
            boxes.read_payload(source, box, bitstream.MAX_TILE_PAYLOAD)
        except InputError as error:
            found.damage.append(str(error))
            return
    opened.tiles[tile] = (box.offset, BOX_HEADER + box.length)


class _FoundEntries(Sequence[tuple[int, int]]):
    """The entries of an index of which only some are known; a forged record of a huge frame costs nothing."""

    def __init__(self, found: dict[int, tuple[int, int]], count: int) -> None:
        self._found, self._count = found, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> tuple[int, int]:  # type: ignore[override]
        if not 0 <= number < self._count:
            raise IndexError(number)
        return self._found.get(number, LOST)

    def present(self) -> list[int]:
        return sorted(number for number in self._found if number < self._count)


def _built(opened: _Open, record: FrameRecord, found: Found) -> FoundFrame:
    entries = _FoundEntries(opened.tiles, record.tile_count)
    present = len(entries.present())
    if present < len(entries):
        found.damage.append(f"frame {record.number} has {present} of its {len(entries)} tiles")
    return FoundFrame(opened.offset, None, record.timestamp, FrameIndex(record, entries))


@dataclass
class Recovery:
    """What `recover` saved: whole tiles, sentences about the lost ones, and about what else was damaged."""

    frames: int = 0
    tiles: int = 0
    lost_tiles: int = 0
    """Of the recovered frames."""
    lost: list[str] = field(default_factory=list)
    """One sentence for each damaged tile and for each run of missing ones."""
    damage: list[str] = field(default_factory=list)


def recover(source: bytes | BinaryIO | ByteSource, output: BinaryIO) -> Recovery:
    """Write a well-formed file with every whole tile of `source` into `output` (seekable).

    A frame without any whole tile is left out. Raises InputError where there is no whole tile at all.
    """
    reader = Reader(source, scan=True)
    report = Recovery(damage=reader.damage)
    writer: PictureWriter | RecordingWriter | None = None
    for frame in range(reader.frame_count):
        index = reader.index(frame)
        present = _present(index.entries)
        whole = [number for number in present if _is_whole(reader, frame, number, report)]
        if not whole:
            continue
        report.lost += _missing(index.record, present)
        report.lost_tiles += len(index.entries) - len(whole)
        metadata = _metadata(reader, frame, report)
        writer = writer or (RecordingWriter if reader.recording else PictureWriter)(output)
        writer.begin(index.record, metadata, digest=index.digest is not None)
        for number in whole:
            tile = reader.tiles(frame, [number])[number]
            writer.tile(number, tile.payload, quality=tile.quality, sealed=tile.sealed)
        writer.end(index.digest)
        report.frames += 1
        report.tiles += len(whole)
    if writer is None:
        raise InputError("the file holds no whole tile: there is nothing to recover")
    if isinstance(writer, RecordingWriter):
        writer.close()
    return report


def _present(entries: Sequence[tuple[int, int]]) -> list[int]:
    if isinstance(entries, _FoundEntries):
        return entries.present()
    return [number for number, entry in enumerate(entries) if entry != LOST]


def _missing(record: FrameRecord, present: list[int]) -> Iterator[str]:
    """A sentence for each run of tiles that are not in the file."""
    for before, after in pairwise([-1, *present, record.tile_count]):
        first, count = before + 1, after - before - 1
        if count == 1:
            yield f"{record.tile_name(first)} is not in the file"
        elif count:
            yield f"{record.tile_name(first)} to {record.tile_name(after - 1)}: {count} tiles are not in the file"


def _is_whole(reader: Reader, frame: int, number: int, report: Recovery) -> bool:
    try:
        reader.tiles(frame, [number])
    except InputError as error:
        report.lost.append(str(error))
        return False
    return True


def _metadata(reader: Reader, frame: int, report: Recovery) -> bitstream.Metadata:
    try:
        return reader.metadata(frame)
    except InputError as error:
        report.damage.append(f"metadata of frame {frame}: {error}")
        return bitstream.Metadata()
