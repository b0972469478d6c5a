"""What a file says about itself, and whether every byte of it is as it was written. Decodes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import BinaryIO

from . import boxes
from .bitstream import LOST, VERSION, FrameRecord, Metadata
from .boxes import SIGNATURE, Box
from .core import crc32c
from .errors import InputError
from .reader import Reader
from .sources import ByteSource

CHUNK = 1 << 20
SHOWN_PROBLEMS = 5


@dataclass(frozen=True)
class Info:
    """A file described by its first frame, indices and checkpoints."""

    width: int
    height: int
    quality: int
    tile: int
    tiles: int
    """Tiles of the first frame, all its levels together."""
    version: int
    bundle: str
    digest: str | None
    metadata: Metadata
    levels: tuple[int, ...]
    """Overview levels that are stored besides level 0."""
    frames: int
    recording: bool
    timestamps: tuple[int, int]
    """Of the first and the last frame, nanoseconds since 1970."""
    damage: tuple[str, ...]
    sealed: int
    """Encrypted tiles of the first frame (0 where the file was not looked through)."""
    tile_sizes: list[int] = field(repr=False)
    boxes: list[tuple[str, int, int]] = field(repr=False)
    """(type, offset, length) of every box of a picture; empty for a recording."""


def read_info(source: bytes | BinaryIO | ByteSource | Reader) -> Info:
    """Describe a file without decoding it. Raises InputError where header, index or metadata are damaged."""
    reader = source if isinstance(source, Reader) else Reader(source)
    index, last = reader.index(0), reader.frame_count - 1
    record = index.record
    listed = [] if reader.recording else list(boxes.walk(reader.source, len(SIGNATURE)))
    return Info(
        width=record.grid.width,
        height=record.grid.height,
        quality=record.quality,
        tile=record.grid.tile,
        tiles=record.tile_count,
        version=VERSION,
        bundle=record.bundle.hex(),
        digest=index.digest.hex() if index.digest else None,
        metadata=reader.metadata(0),
        levels=tuple(level for level in record.levels if level),
        frames=reader.frame_count,
        recording=reader.recording,
        timestamps=(reader.timestamp(0), reader.timestamp(last)),
        damage=tuple(reader.damage),
        sealed=sum(box.kind == b"SEAL" for box in listed),
        tile_sizes=[length for _, length in index.entries],
        boxes=[(box.kind.decode("latin-1"), box.offset, box.length) for box in listed],
    )


def verify(source: bytes | BinaryIO | ByteSource) -> Info:
    """Check every byte of a file against its checksums. Raises InputError naming the first damages."""
    reader = Reader(source)
    problems = list(reader.damage)
    tiles: set[tuple[int, int]] = set()
    for item in boxes.scan(reader.source, len(SIGNATURE)):
        if isinstance(item, str):
            problems.append(item)
            continue
        try:
            _check_payload(reader.source, item)
        except InputError as error:
            problems.append(str(error))
        if item.kind in (b"TILE", b"SEAL"):
            tiles.add((item.offset, item.end - item.offset))
    for frame in range(reader.frame_count):
        try:
            record = reader.record(frame)
            missing = [n for n, entry in enumerate(reader.index(frame).entries) if entry not in tiles]
        except InputError as error:
            problems.append(str(error))
            continue
        problems += [_lost(reader, frame, record, number) for number in missing]
    if problems:
        shown = list(dict.fromkeys([*problems, *reader.damage]))
        more = f"; and {len(shown) - SHOWN_PROBLEMS} more" if len(shown) > SHOWN_PROBLEMS else ""
        raise InputError("; ".join(shown[:SHOWN_PROBLEMS]) + more)
    return read_info(reader)


def _lost(reader: Reader, frame: int, record: FrameRecord, number: int) -> str:
    name = record.tile_name(number)
    if reader.index(frame).entries[number] == LOST:
        return f"{name} is not in the file"
    return f"{name} is not where the index says"


def _check_payload(source: ByteSource, box: Box) -> None:
    """In pieces, since a box of a type that is not known may have any length."""
    crc = 0
    for offset in range(box.payload_offset, box.end, CHUNK):
        crc = crc32c(source.read(offset, min(CHUNK, box.end - offset)), crc)
    if crc != box.crc:
        raise InputError(f"{box} fails its checksum: bytes {box.payload_offset} to {box.end} are damaged")
