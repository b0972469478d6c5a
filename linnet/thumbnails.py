"""The small picture that a camera puts into EXIF: it shows in clear what encrypted tiles hide.

Exif 2.32 keeps it behind the second directory (IFD1) of the block, as a JPEG or as strips of samples. Taking it out
blanks it in place, so that every other byte, maker notes with their own offsets included, stays where it was.
"""

from __future__ import annotations

import struct

JPEG_AT, JPEG_LENGTH, STRIP_OFFSETS, STRIP_LENGTHS = 513, 514, 273, 279
NUMBER_BYTES = {3: 2, 4: 4}
"""Of the TIFF types SHORT and LONG."""
ENTRY_BYTES = 12


def has_thumbnail(exif: bytes | None) -> bool:
    """Whether an EXIF block (the bare TIFF structure) holds one. A damaged block counts as without."""
    return exif is not None and without_thumbnail(exif) != exif


def without_thumbnail(exif: bytes) -> bytes:
    """The block of the same length with zeros for the thumbnail and its directory; a damaged one as it is."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2], "")
    try:
        if not order:
            return exif
        (first,) = struct.unpack_from(order + "L", exif, 4)
        link = first + 2 + ENTRY_BYTES * struct.unpack_from(order + "H", exif, first)[0]
        (directory,) = struct.unpack_from(order + "L", exif, link)
        if not directory:
            return exif
        (count,) = struct.unpack_from(order + "H", exif, directory)
        numbers = {}
        for entry in range(directory + 2, directory + 2 + ENTRY_BYTES * count, ENTRY_BYTES):
            tag, values = _numbers(exif, order, entry)
            numbers[tag] = values
    except struct.error:
        return exif
    blanks = [(link, 4), (directory, 2 + ENTRY_BYTES * count + 4)]
    for offsets, lengths in ((JPEG_AT, JPEG_LENGTH), (STRIP_OFFSETS, STRIP_LENGTHS)):
        blanks += zip(numbers.get(offsets, []), numbers.get(lengths, []), strict=False)
    block = bytearray(exif)
    for offset, length in blanks:
        end = min(offset + length, len(block))
        block[offset:end] = bytes(max(0, end - offset))
    return bytes(block)


def _numbers(exif: bytes, order: str, entry: int) -> tuple[int, list[int]]:
    """The tag of a directory's entry, and its values where they are whole numbers."""
    tag, kind, count = struct.unpack_from(order + "HHL", exif, entry)
    size = NUMBER_BYTES.get(kind, 0) * count
    if not size or size > len(exif):
        return tag, []
    at = entry + 8 if size <= 4 else struct.unpack_from(order + "L", exif, entry + 8)[0]
    return tag, list(struct.unpack_from(f"{order}{count}{'H' if kind == 3 else 'L'}", exif, at))
