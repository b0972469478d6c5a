"""TIFF pictures row by row, so that a frame larger than memory can be encoded and written.

Reading takes tifffile and imagecodecs (the extra `tiff`), which decode one strip or tile at a time; Pillow decodes
whole pictures only. Writing takes Pillow's tags and puts the rows behind them. The pixels are those that Pillow gives.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin, TiffTags

from .runtime.errors import InputError, LinnetError

BLOCK_PIXELS = 1 << 20
"""Pixels that are converted to RGB at once."""
LARGEST_SEGMENT_ROWS = 2048
"""Compressed strips and tiles up to this height are decoded one row of them at a time."""
STRIP_BYTES = 1 << 20
"""Of the strips that are written, about."""
CLASSIC_BYTES = 0xF0000000
"""Above this a BigTIFF is written: offsets of a TIFF have 32 bits."""
CLASSIC_HEADER = b"II\x2a\x00" + bytes(4)
BIGTIFF_HEADER = b"II\x2b\x00\x08\x00\x00\x00" + bytes(8)

UNCOMPRESSED, LZW, JPEG, DEFLATE, PACKBITS, OLD_DEFLATE, ZSTD = 1, 5, 7, 8, 32773, 32946, 50000
COMPRESSIONS = frozenset({UNCOMPRESSED, LZW, JPEG, DEFLATE, PACKBITS, OLD_DEFLATE, ZSTD})
MINISWHITE, MINISBLACK, RGB, YCBCR = 0, 1, 2, 6
SEPARATE_PLANES = 2
IGNORED, PREMULTIPLIED = 0, 1
"""Meanings of a fourth sample; every other one is plain alpha."""


class NotByRows(Exception):
    """This TIFF cannot be read row by row; the text says why."""


class TiffRows:
    """The first picture of a TIFF as a frame to encode: 8-bit RGB rows, from top to bottom, each once.

    `flattened` says whether a pixel so far was transparent. Raises NotByRows for a layout or kind of pixels that is not
    read here, ImportError without tifffile or imagecodecs, and anything else for a damaged file.
    """

    def __init__(self, source: BinaryIO) -> None:
        import imagecodecs  # noqa: F401 - tifffile does without it until a strip needs it
        from tifffile import TiffFile

        logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what matters is raised
        source.seek(0)
        self._file = TiffFile(source)
        page: Any = self._file.pages.first
        self._page, self._source = page, source
        self.width, self.height = page.imagewidth, page.imagelength
        self._to_rgb = _conversion(page)
        if page.compression not in COMPRESSIONS:
            raise NotByRows(f"it is compressed by method {int(page.compression)}")
        self._by_rows = page.compression == UNCOMPRESSED and page.fillorder == 1 and not page.is_tiled
        if not self._by_rows and self._segment_rows > LARGEST_SEGMENT_ROWS:
            raise NotByRows(f"its strips or tiles are {self._segment_rows} rows high")
        if page.is_tiled and page.tilewidth > max(self.width, LARGEST_SEGMENT_ROWS):
            raise NotByRows(f"its tiles are {page.tilewidth} pixels wide")
        self._chunks = self._decoded()
        self._chunk = np.empty((0, self.width, page.samplesperpixel), np.uint8)
        self.flattened = False

    @property
    def _segment_rows(self) -> int:
        page = self._page
        return page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)

    def rows(self, y: int, count: int) -> np.ndarray:
        """The next `count` rows as (count, width, 3) uint8 RGB; InputError where the file is damaged."""
        pixels = np.empty((count, self.width, 3), np.uint8)
        step = max(1, BLOCK_PIXELS // self.width)
        done = 0
        try:
            while done < count:
                if not len(self._chunk):
                    self._chunk = next(self._chunks)
                now = min(step, count - done, len(self._chunk))
                pixels[done : done + now], transparent = self._to_rgb(self._chunk[:now])
                self.flattened |= transparent
                self._chunk = self._chunk[now:]
                done += now
        except (LinnetError, MemoryError):
            raise
        except Exception as error:  # tifffile and its decoders raise whatever a damaged file makes them stumble over
            reason = str(error) or type(error).__name__
            raise InputError(f"the picture is damaged in row {y + done} ({reason}); get another copy") from error
        return pixels

    def _decoded(self) -> Iterator[np.ndarray]:
        """The samples (rows, width, samples) from top to bottom, as they are stored."""
        page = self._page
        planes = page.samplesperpixel if page.planarconfig == SEPARATE_PLANES else 1
        rows = max(1, BLOCK_PIXELS // self.width) if self._by_rows else self._segment_rows
        across = -(-self.width // page.tilewidth) if page.is_tiled else 1
        per_plane = across * -(-self.height // self._segment_rows)
        for top in range(0, self.height, rows):
            height = min(rows, self.height - top)
            chunk = np.zeros((height, self.width, page.samplesperpixel), page.dtype)  # a short tile leaks no memory
            for plane in range(planes):
                part = chunk[..., plane : plane + 1] if planes > 1 else chunk
                if self._by_rows:
                    self._read_rows(part, plane * per_plane, top)
                    continue
                first = plane * per_plane + top // rows * across
                for number in range(across):
                    x = number * page.tilewidth if page.is_tiled else 0
                    self._decode_segment(part[:, x:], first + number)
            yield chunk

    def _read_rows(self, part: np.ndarray, first: int, top: int) -> None:
        """Uncompressed rows from `top` on of the plane whose strips start with strip `first`."""
        page, row_bytes = self._page, part[0].nbytes
        stored = page.dtype.newbyteorder(self._file.byteorder)
        y = 0
        while y < len(part):
            strip, row = divmod(top + y, self._segment_rows)
            count = min(len(part) - y, self._segment_rows - row)
            data = self._read(page.dataoffsets[first + strip] + row * row_bytes, count * row_bytes)
            part[y : y + count] = np.frombuffer(data, stored).reshape(count, *part.shape[1:])
            y += count

    def _decode_segment(self, part: np.ndarray, number: int) -> None:
        """Strip or tile `number` into the top left corner of `part`, as far as it reaches."""
        page = self._page
        offset, length = page.dataoffsets[number], page.databytecounts[number]
        if not offset or not length:  # a sparse file leaves tiles out
            part[:, : page.tilewidth or None] = page.nodata
            return
        tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        segment = page.decode(self._read(offset, length), number, **tables)[0][0]
        height, width = min(len(part), segment.shape[0]), min(part.shape[1], segment.shape[1])
        part[:height, :width] = segment[:height, :width]

    def _read(self, offset: int, length: int) -> bytes:
        self._source.seek(offset)
        data = self._source.read(length)
        if len(data) < length:
            raise InputError(f"the picture ends at byte {offset + len(data)}: truncated; get another copy")
        return data


Conversion = Callable[[np.ndarray], tuple[np.ndarray, bool]]


def _conversion(page: Any) -> Conversion:
    """What turns stored samples (h, w, samples) into (h, w, 3) uint8 RGB, and says whether any was transparent."""
    samples, photometric, extra = page.samplesperpixel, int(page.photometric), tuple(map(int, page.extrasamples))
    if page.dtype not in (np.uint8, np.uint16) or page.bitspersample not in (8, 16):
        raise NotByRows(f"it has {page.bitspersample}-bit samples of another kind than whole numbers from 0")
    colours = 1 if photometric in (MINISWHITE, MINISBLACK) else 3
    wanted = {(1, 1), (3, 3), (3, 4)}
    known = (MINISWHITE, MINISBLACK, RGB, *([YCBCR] if page.compression == JPEG else []))  # which becomes RGB there
    if photometric not in known or (colours, samples) not in wanted:
        raise NotByRows(f"it has {samples} samples per pixel of photometric kind {photometric}")

    def convert(stored: np.ndarray) -> tuple[np.ndarray, bool]:
        eight = (stored >> 8).astype(np.uint8) if stored.dtype == np.uint16 else stored
        if samples == 1:
            # Pillow leaves 16-bit samples as they are where 0 is white.
            inverted = photometric == MINISWHITE and stored.dtype == np.uint8
            return np.broadcast_to(~eight if inverted else eight, (*eight.shape[:2], 3)), False
        if samples == 3 or extra == (IGNORED,):
            return eight[..., :3], False
        if eight[..., 3].min() == 255:
            return eight[..., :3], False
        size = eight.shape[1::-1]
        rawmode = "RGBa" if extra == (PREMULTIPLIED,) else "RGBA"
        image = Image.frombytes("RGBA", size, eight.tobytes(), "raw", rawmode)
        white = Image.new("RGBA", size, "white")
        return np.asarray(Image.alpha_composite(white, image).convert("RGB")), True

    return convert


def write_rows(
    output: BinaryIO, width: int, height: int, strips: Iterable[np.ndarray], tags: Image.Exif, icc: bytes | None
) -> None:
    """Write strips (rows, width, 3) uint8 RGB as an uncompressed TIFF, or BigTIFF where it is larger than 4 GB."""
    stride, rows_per_strip = 3 * width, min(height, max(1, STRIP_BYTES // (3 * width)))
    starts = range(0, stride * height, stride * rows_per_strip)
    big = stride * height > CLASSIC_BYTES
    directory = (
        TiffImagePlugin.ImageFileDirectory_v2(BIGTIFF_HEADER) if big else TiffImagePlugin.ImageFileDirectory_v2()
    )
    for tag in tags:
        directory[tag] = tags.get_ifd(tag) if tag in TiffTags.TAGS_V2_GROUPS else tags.get(tag)
    if icc:
        directory[TiffImagePlugin.ICCPROFILE] = icc
    directory[TiffImagePlugin.IMAGEWIDTH], directory[TiffImagePlugin.IMAGELENGTH] = width, height
    directory[TiffImagePlugin.BITSPERSAMPLE], directory[TiffImagePlugin.SAMPLESPERPIXEL] = (8, 8, 8), 3
    directory[TiffImagePlugin.COMPRESSION] = UNCOMPRESSED
    directory[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = RGB
    directory[TiffImagePlugin.PLANAR_CONFIGURATION] = 1
    directory[TiffImagePlugin.ROWSPERSTRIP] = rows_per_strip
    for tag in (TiffImagePlugin.STRIPOFFSETS, TiffImagePlugin.STRIPBYTECOUNTS):
        directory.tagtype[tag] = TiffTags.LONG8 if big else TiffTags.LONG
    counts = (min(stride * rows_per_strip, stride * height - start) for start in starts)
    directory[TiffImagePlugin.STRIPBYTECOUNTS] = tuple(counts)
    directory[TiffImagePlugin.STRIPOFFSETS] = tuple(starts)  # which `save` moves behind the tags
    head = io.BytesIO()
    directory.save(head)
    output.write(head.getvalue())
    for strip in strips:
        output.write(np.ascontiguousarray(strip))
