"""Boxes, the one building block of a .lnt file: type, length, two checksums, payload. See docs/bitstream.md.

Reading never trusts a length: every header carries its own CRC-32C and is compared with the end of the file before
anything is read or allocated. `walk` stops at the first damage; `scan` goes on behind it.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .core import crc32c
from .errors import InputError
from .sources import ByteSource

SIGNATURE = b"\x89LNT\r\n\x1a\n"
KINDS = (b"FRAM", b"INDX", b"TILE", b"SEAL", b"CKPT", b"TAIL", b"EXIF", b"XMP ", b"ICC ")
_HEAD = struct.Struct("<4sQI")
_CRC = struct.Struct("<I")
BOX_HEADER = _HEAD.size + _CRC.size
SCAN_CHUNK = 1 << 20
_ANY_KIND = re.compile(b"|".join(map(re.escape, KINDS)))


@dataclass(frozen=True)
class Box:
    """Where a box lies in the file. Its header was checked; its payload lies inside the file and was not read yet."""

    kind: bytes
    offset: int
    length: int
    crc: int

    @property
    def payload_offset(self) -> int:
        return self.offset + BOX_HEADER

    @property
    def end(self) -> int:
        return self.payload_offset + self.length

    def check(self, payload: bytes) -> bytes:
        """`payload` itself, once it has the right checksum."""
        if crc32c(payload) != self.crc:
            raise InputError(f"{self} fails its checksum: bytes {self.payload_offset} to {self.end} are damaged")
        return payload

    def __str__(self) -> str:
        return f"box {self.kind.decode('latin-1')!r} at byte {self.offset}"


def pack(kind: bytes, payload: bytes) -> bytes:
    head = _HEAD.pack(kind, len(payload), crc32c(payload))
    return head + _CRC.pack(crc32c(head)) + payload


def parse_header(raw: bytes, offset: int, size: int) -> Box:
    """The box whose header is `raw`, found at `offset` of a file of `size` bytes."""
    if _CRC.unpack(raw[_HEAD.size :])[0] != crc32c(raw[: _HEAD.size]):
        raise InputError(f"box header at byte {offset} fails its checksum: the file is damaged there")
    box = Box(raw[:4], offset, *_HEAD.unpack(raw[: _HEAD.size])[1:])
    if box.end > size:
        raise InputError(f"{box} ends at byte {box.end} but the file has {size}: truncated")
    return box


def box_at(source: ByteSource, offset: int) -> Box:
    if offset + BOX_HEADER > source.size:
        raise InputError(f"box header ends at byte {offset + BOX_HEADER} but the file has {source.size}: truncated")
    return parse_header(source.read(offset, BOX_HEADER), offset, source.size)


def read_payload(source: ByteSource, box: Box, limit: int) -> bytes:
    """The payload of `box`, checked; InputError where it is longer than `limit` bytes."""
    if box.length > limit:
        raise InputError(f"{box} claims {box.length} bytes: at most {limit} are allowed")
    return box.check(source.read(box.payload_offset, box.length))


def walk(source: ByteSource, offset: int) -> Iterator[Box]:
    """All boxes from `offset` to the end of the file; raises at the first damaged header."""
    while offset < source.size:
        box = box_at(source, offset)
        yield box
        offset = box.end


def scan(source: ByteSource, offset: int = 0, end: int | None = None) -> Iterator[Box | str]:
    """Every box whose header survives from `offset` to `end`, and a sentence for each stretch that is skipped.

    After a damaged header the next one is found by its type and checksum, so that one flipped bit costs one box.
    """
    end = source.size if end is None else end
    while offset < end:
        try:
            box = box_at(source, offset)
        except InputError as error:
            found = _next_box(source, offset + 1, end)
            stop = end if found is None else found.offset
            yield f"bytes {offset} to {stop} hold no whole box ({error})"
            if found is None:
                return
            box = found
        yield box
        offset = box.end


def _next_box(source: ByteSource, offset: int, end: int) -> Box | None:
    """The first whole box of a known kind that starts at `offset` or behind it."""
    while offset + BOX_HEADER <= end:
        # Chunks overlap by a header, so that none is cut at a border.
        chunk = source.read(offset, min(SCAN_CHUNK + BOX_HEADER - 1, end - offset))
        for match in _ANY_KIND.finditer(chunk, 0, len(chunk) - BOX_HEADER + 4):
            start = match.start()
            try:
                return parse_header(chunk[start : start + BOX_HEADER], offset + start, source.size)
            except InputError:
                continue
        offset += SCAN_CHUNK
    return None
