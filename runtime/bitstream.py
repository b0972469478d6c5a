"""The .lnt container, version 1: boxes with checksums, the index first, one box per tile. See docs/bitstream.md.

Reading never trusts a length: every box header carries its own CRC-32C, and sizes are compared with the file before
anything is read or allocated. This module knows bytes, not pixels: payloads go to `codec`.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from .core import crc32c
from .errors import InputError, UsageError
from .tiles import TileGrid

SIGNATURE = b"\x89LNT\r\n\x1a\n"
VERSION = 1
SUFFIX = ".lnt"
MAX_METADATA = 1 << 26
"""Bytes one metadata box may hold (64 MiB)."""
MAX_TILE_PAYLOAD = 1 << 28

_BOX = struct.Struct("<4sQI")
_CRC = struct.Struct("<I")
BOX_HEADER = _BOX.size + _CRC.size
_HEADER = struct.Struct("<HHIIHBB32s")
_ENTRY = struct.Struct("<QI")
_NUMBER = struct.Struct("<I")
_HAS_DIGEST = 1
_DIGEST_SIZE = 32
_METADATA_BOXES = {b"EXIF": "exif", b"XMP ": "xmp", b"ICC ": "icc"}


@dataclass(frozen=True)
class Metadata:
    """What travels beside the pixels, byte for byte: EXIF (TIFF structure), XMP packet, ICC profile."""

    exif: bytes | None = None
    xmp: bytes | None = None
    icc: bytes | None = None


@dataclass(frozen=True)
class Header:
    """What a decoder must know before the first tile. `bundle` is the codec's identity, `digest` the decode proof."""

    grid: TileGrid
    quality: int
    bundle: bytes
    digest: bytes | None = None


@dataclass(frozen=True)
class Info:
    """A file described without decoding it."""

    width: int
    height: int
    quality: int
    tile: int
    tiles: int
    version: int
    bundle: str
    digest: str | None
    metadata: Metadata
    tile_sizes: list[int] = field(repr=False)
    boxes: list[tuple[str, int, int]] = field(repr=False)


@dataclass(frozen=True)
class _Box:
    kind: bytes
    offset: int
    length: int
    crc: int

    @property
    def payload(self) -> int:
        return self.offset + BOX_HEADER

    @property
    def end(self) -> int:
        return self.payload + self.length

    def __str__(self) -> str:
        return f"box {self.kind.decode('latin-1')!r} at byte {self.offset}"


def _box(kind: bytes, payload: bytes) -> bytes:
    head = _BOX.pack(kind, len(payload), crc32c(payload))
    return head + _CRC.pack(crc32c(head)) + payload


def write_picture(header: Header, tiles: Sequence[bytes], metadata: Metadata | None = None) -> bytes:
    """One whole file. `tiles` are the entropy-coded payloads in tile order."""
    flags = _HAS_DIGEST if header.digest else 0
    grid = header.grid
    head = _HEADER.pack(VERSION, flags, grid.width, grid.height, grid.tile, header.quality, 0, header.bundle)
    front = SIGNATURE + _box(b"HEAD", head + (header.digest or b""))
    extras = b""
    for kind, name in _METADATA_BOXES.items():
        content = getattr(metadata, name) if metadata else None
        if content is not None:
            if len(content) > MAX_METADATA:
                raise UsageError(
                    f"{name.upper()} metadata has {len(content)} bytes: at most {MAX_METADATA} can be kept"
                )
            extras += _box(kind, content)
    boxes = [_box(b"TILE", _NUMBER.pack(number) + payload) for number, payload in enumerate(tiles)]
    offset = len(front) + BOX_HEADER + _NUMBER.size + _ENTRY.size * len(boxes) + len(extras)
    index = _NUMBER.pack(len(boxes))
    for box in boxes:
        index += _ENTRY.pack(offset, len(box))
        offset += len(box)
    return b"".join([front, _box(b"INDX", index), extras, *boxes])


class Picture:
    """A parsed header and index over a seekable source; tiles and metadata are read when asked for."""

    def __init__(self, source: bytes | BinaryIO) -> None:
        self._file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else source
        self.size = self._file.seek(0, io.SEEK_END)
        signature = self._read(0, min(len(SIGNATURE), self.size))
        if signature != SIGNATURE:
            what = "ends within the signature: truncated" if SIGNATURE.startswith(signature) else "is not a linnet file"
            raise InputError(f"the file {what} ({self.size} bytes)")
        head = self._box_at(len(SIGNATURE))
        index = self._box_at(head.end)
        if (head.kind, index.kind) != (b"HEAD", b"INDX"):
            raise InputError(f"{head} and {index}: a version-{VERSION} picture starts with HEAD and INDX")
        self.header = self._parse_header(head)
        self._front_end = index.end
        self.entries = self._parse_index(index)

    def _read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(length)
        if len(data) != length:
            raise InputError(f"bytes {offset} to {offset + length} cannot be read: the file has {self.size}, truncated")
        return data

    def _box_at(self, offset: int) -> _Box:
        """The box header at `offset`, checked; its payload is known to lie inside the file."""
        if offset + BOX_HEADER > self.size:
            raise InputError(f"box header ends at byte {offset + BOX_HEADER} but the file has {self.size}: truncated")
        raw = self._read(offset, BOX_HEADER)
        if _CRC.unpack(raw[_BOX.size :])[0] != crc32c(raw[: _BOX.size]):
            raise InputError(f"box header at byte {offset} fails its checksum: the file is damaged there")
        kind, length, crc = _BOX.unpack(raw[: _BOX.size])
        box = _Box(kind, offset, length, crc)
        if box.end > self.size:
            raise InputError(f"{box} ends at byte {box.end} but the file has {self.size}: truncated")
        return box

    def _payload(self, box: _Box, limit: int) -> bytes:
        if box.length > limit:
            raise InputError(f"{box} claims {box.length} bytes: at most {limit} are allowed")
        payload = self._read(box.payload, box.length)
        if crc32c(payload) != box.crc:
            raise InputError(f"{box} fails its checksum: bytes {box.payload} to {box.end} are damaged")
        return payload

    def _parse_header(self, box: _Box) -> Header:
        payload = self._payload(box, 1 << 16)
        version = int.from_bytes(payload[:2], "little")
        if len(payload) >= 2 and version != VERSION:
            raise InputError(f"format version {version} is not known here (only {VERSION}): update linnet")
        if len(payload) < _HEADER.size:
            raise InputError(f"{box} has {len(payload)} bytes: a header needs {_HEADER.size}")
        _, flags, width, height, tile, quality, _, bundle = _HEADER.unpack(payload[: _HEADER.size])
        digest = payload[_HEADER.size : _HEADER.size + _DIGEST_SIZE] if flags & _HAS_DIGEST else None
        if flags & ~_HAS_DIGEST or (digest is not None and len(digest) != _DIGEST_SIZE):
            raise InputError(f"{box} has flags {flags:#x} and {len(payload)} bytes: not a version-{VERSION} header")
        if not 1 <= quality <= 100:
            raise InputError(f"{box} has quality {quality}: 1 to 100 is allowed")
        try:
            grid = TileGrid(width, height, tile)
        except UsageError as error:
            raise InputError(f"{box}: {error}") from None
        return Header(grid, quality, bundle, digest)

    def _parse_index(self, box: _Box) -> list[tuple[int, int]]:
        count = self.header.grid.count
        expected = _NUMBER.size + count * _ENTRY.size
        if box.length != expected:
            raise InputError(f"{box} has {box.length} bytes: {count} tiles need {expected}")
        payload = self._payload(box, expected)
        if _NUMBER.unpack_from(payload)[0] != count:
            raise InputError(f"{box} lists {_NUMBER.unpack_from(payload)[0]} tiles: the frame has {count}")
        return [_ENTRY.unpack_from(payload, _NUMBER.size + i * _ENTRY.size) for i in range(count)]

    def tile(self, number: int) -> bytes:
        """The entropy-coded payload of one tile, checked."""
        offset, length = self.entries[number]
        if offset < self._front_end or length < BOX_HEADER + _NUMBER.size or offset + length > self.size:
            raise InputError(
                f"tile {number} ends at byte {offset + length} but the file has {self.size}: truncated or damaged index"
            )
        box = self._box_at(offset)
        if box.kind != b"TILE" or box.end != offset + length:
            raise InputError(f"{box} is not tile {number}, which the index says is there")
        payload = self._payload(box, MAX_TILE_PAYLOAD)
        if _NUMBER.unpack_from(payload)[0] != number:
            raise InputError(f"{box} holds tile {_NUMBER.unpack_from(payload)[0]} where the index says {number}")
        return payload[_NUMBER.size :]

    def boxes(self) -> Iterator[_Box]:
        """All boxes in file order; raises at the first damaged header."""
        offset = len(SIGNATURE)
        while offset < self.size:
            box = self._box_at(offset)
            yield box
            offset = box.end

    def metadata(self) -> Metadata:
        """EXIF, XMP and ICC; they stand before the first tile."""
        found: dict[str, bytes] = {}
        for box in self.boxes():
            if box.kind == b"TILE":
                break
            if box.kind in _METADATA_BOXES:
                found[_METADATA_BOXES[box.kind]] = self._payload(box, MAX_METADATA)
        return Metadata(**found)

    def info(self) -> Info:
        header, grid = self.header, self.header.grid
        return Info(
            width=grid.width,
            height=grid.height,
            quality=header.quality,
            tile=grid.tile,
            tiles=grid.count,
            version=VERSION,
            bundle=header.bundle.hex(),
            digest=header.digest.hex() if header.digest else None,
            metadata=self.metadata(),
            tile_sizes=[length for _, length in self.entries],
            boxes=[(box.kind.decode("latin-1"), box.offset, box.length) for box in self.boxes()],
        )


def read_info(source: bytes | BinaryIO) -> Info:
    """Describe a file without decoding it. Raises InputError where header, index or metadata are damaged."""
    return Picture(source).info()


def verify(source: bytes | BinaryIO) -> Info:
    """Check every byte of a file against its checksums. Raises InputError naming the first damage."""
    picture = Picture(source)
    for number in range(picture.header.grid.count):
        picture.tile(number)
    for box in picture.boxes():
        if box.kind not in (b"TILE", b"INDX", b"HEAD"):
            picture._payload(box, MAX_METADATA)
    return picture.info()
