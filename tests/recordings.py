"""Recordings without pixels: frames of small tiles that say where they belong, for tests of the container."""

from __future__ import annotations

import io

from linnet.runtime.bitstream import FrameRecord, Metadata
from linnet.runtime.reader import Reader
from linnet.runtime.tiles import TileGrid
from linnet.runtime.writer import RecordingWriter

METADATA = Metadata(exif=b"II*\0exif", xmp=b"<x:xmpmeta/>", icc=b"profile")
TILES = 6


def record(number: int) -> FrameRecord:
    return FrameRecord(TileGrid(300, 150, 128), (50,), bytes(32), number, 1000 + number)


def tile_payload(frame: int, tile: int) -> bytes:
    return bytes([frame, tile]) * 10 + bytes(tile)


def write_recording(frames: int, *, checkpoint_every: int = 2, close: bool = True) -> bytes:
    """Frames of TILES tiles of 20 to 25 bytes each; the first has metadata."""
    output = io.BytesIO()
    writer = RecordingWriter(output)
    for number in range(frames):
        writer.begin(record(number), None if number else METADATA)
        for tile in range(TILES):
            writer.tile(tile, tile_payload(number, tile))
        writer.end()
        if number % checkpoint_every == checkpoint_every - 1:
            writer.checkpoint()
    if close:
        writer.close()
    return output.getvalue()


def tile_spans(data: bytes) -> dict[tuple[int, int], tuple[int, int]]:
    """(frame, tile) to (first byte, end) of its box in a whole recording."""
    reader = Reader(data)
    return {
        (frame, tile): (offset, offset + length)
        for frame in range(reader.frame_count)
        for tile, (offset, length) in enumerate(reader.index(frame).entries)
    }
