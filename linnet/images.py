"""PNG, JPEG, TIFF and WebP in and out: 8-bit RGB pixels, and the EXIF, XMP and ICC blocks beside them, untouched.

`read` and `write` take whole pictures. `opened` and `write_strips` take them row by row where the format allows it,
which is TIFF, so that memory grows with the width only.

Pixels are never rotated: an EXIF orientation travels with the EXIF block and the viewer applies it, as before. What
8-bit RGB cannot hold (alpha, 16 bits, more pages) is reduced in one documented way, and `Picture.notes` says so.
EXIF is the bare TIFF structure here, without the `Exif\\0\\0` that JPEG puts in front of it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin

from . import files
from .runtime.bitstream import Metadata
from .runtime.errors import InputError, UsageError
from .runtime.rows import ArrayRows, FrameRows

LARGEST_PIXELS = 1 << 29
"""Pictures beyond 536 megapixels are not read whole: three times that many bytes would be allocated."""
BY_ROWS_PIXELS = 1 << 22
"""TIFF pictures beyond 4 megapixels are read by rows."""
TELL_PIXELS = 1 << 26
"""Beyond 67 megapixels a note says why a TIFF was held in memory whole."""
FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP",
}  # fmt: skip
LARGEST_SIDE = {"JPEG": 65500, "WEBP": 16383}
JPEG_QUALITY = 95
PNG_COMPRESSION_LEVEL = 3
"""Of zlib's 0..9; on a drone photograph of 9 megapixels twice as fast as the usual 6, and no larger."""
WEBP_METHOD = 0
"""Of libwebp's 0..6, lossless; on the same photograph nearly four times as fast as the usual 4, and 6 % larger."""

FLATTENED = "transparency was flattened onto white"
JPEG_SEGMENT_BYTES = 65533
EXIF_PREFIX = b"Exif\0\0"
XMP_JPEG_PREFIX_BYTES = len(b"http://ns.adobe.com/xap/1.0/\0")
JPEG_XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/"
ICC_COLOUR_SPACE = slice(16, 20)
"""Where a profile says what its device colours are."""
XMP_PNG_KEYWORD = "XML:com.adobe.xmp"
XMP_TIFF_TAG = 700
ORIENTATION_TAG = 274
TIFF_PIXEL_TAGS = frozenset(
    {
        254, 255,  # subfile types
        256, 257, 258, 259, 262, 266,  # width, length, bits per sample, compression, photometric, fill order
        273, 277, 278, 279, 284, 280, 281,  # strips, samples per pixel, planar configuration, sample range
        317, 320, 322, 323, 324, 325, 330,  # predictor, colour map, tiles, sub-IFDs
        332, 333, 334, 336, 338, 339, 340, 341,  # inks, extra samples, sample format
        347, 512, 513, 514, 515, 517, 518, 519, 520, 521,  # JPEG in TIFF
        529, 530, 531, 532,  # YCbCr layout
        700, 34675,  # XMP and ICC travel as themselves
    }
)  # fmt: skip
"""Tags that describe how a TIFF stores its pixels, which says nothing about another file's pixels."""
UNDO_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""Pillow turns a TIFF upright while loading it; these turn it back."""


@dataclass(frozen=True)
class Picture:
    """What a file holds for us: (H, W, 3) uint8 RGB pixels, its metadata, and what could not be kept."""

    pixels: np.ndarray
    metadata: Metadata
    notes: tuple[str, ...] = ()


@dataclass
class OpenPicture:
    """A picture whose rows are read when they are asked for. `notes` grow until the last row was."""

    frame: FrameRows
    metadata: Metadata
    known_notes: list[str]

    @property
    def notes(self) -> list[str]:
        return self.known_notes + ([FLATTENED] if getattr(self.frame, "flattened", False) else [])


def read(path: str) -> Picture:
    """The picture in a file, or on stdin for `-`."""
    with files.reading(path) as source, _reading(path, source) as image:
        return _whole(image)


@contextmanager
def opened(path: str) -> Iterator[OpenPicture]:
    """The picture in a file (or on stdin for `-`) as rows: those of a large TIFF are read when they are asked for.

    Needs the extra `tiff` for that; without it, and for kinds of TIFF that cannot be read so, the whole picture is.
    """
    with files.reading(path) as source:
        with _reading(path, source) as image:
            picture = _by_rows(image, source)
        yield picture


@contextmanager
def _reading(path: str, source: BinaryIO) -> Iterator[ImageFile.ImageFile]:
    """The opened picture; what goes wrong becomes an InputError that names the file."""
    name = files.shown(path)
    with _large_pictures_allowed():
        try:
            with Image.open(source, formats=("PNG", "JPEG", "TIFF", "WEBP")) as image:
                yield image
        except InputError as error:
            raise error if str(error).startswith(name) else InputError(f"{name}: {error}") from error
        except Image.UnidentifiedImageError as error:
            raise InputError(f"{name}: not a PNG, JPEG, TIFF or WebP picture; convert it to one of these") from error
        except MemoryError as error:
            raise InputError(f"{name}: does not fit into this machine's memory; cut the picture into parts") from error
        except Exception as error:  # Pillow's readers raise whatever a damaged file makes them stumble over
            raise InputError(f"{name}: the picture is damaged ({error}); get another copy") from error


def _whole(image: ImageFile.ImageFile, remedy: str = "cut the picture into parts") -> Picture:
    if image.width * image.height > LARGEST_PIXELS:
        raise InputError(f"{image.width}x{image.height} pixels are beyond the limit of {LARGEST_PIXELS}; {remedy}")
    return _picture(image)


def _by_rows(image: ImageFile.ImageFile, source: BinaryIO) -> OpenPicture:
    pixels = image.width * image.height
    why, remedy = "", "write it as TIFF, which is read by rows, or cut it into parts"
    if image.format == "TIFF" and pixels > BY_ROWS_PIXELS:
        try:
            from .tiff import NotByRows, TiffRows

            metadata, notes = _without_foreign_profile(_tiff_metadata(image), _known_notes(image))
            return OpenPicture(TiffRows(source), metadata, notes)
        except ImportError as missing:
            why = f"{missing.name} is not installed"
            remedy = "TIFF is read by rows with pip install 'linnet[tiff]'"
        except NotByRows as reason:
            why, remedy = str(reason), f"it cannot be read by rows ({reason}): cut it into parts"
    picture = _whole(image, remedy)
    notes = list(picture.notes)
    if why and pixels > TELL_PIXELS:
        notes.append(f"all of it was held in memory: {why}")
    return OpenPicture(ArrayRows(picture.pixels), picture.metadata, notes)


def output_format(path: str) -> str:
    """Pillow's name of the format that a path's suffix asks for; PNG for a pipe."""
    if path == files.PIPE:
        return "PNG"
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in FORMATS:
        raise UsageError(f"{path}: the suffix {suffix or '(none)'} is no picture format; use {', '.join(FORMATS)}")
    return FORMATS[suffix]


def write(path: str, pixels: np.ndarray, metadata: Metadata) -> tuple[str, ...]:
    """Writes an (H, W, 3) uint8 RGB array with its metadata; returns notes on what the format could not hold."""
    format_name = output_format(path)
    name = files.shown(path, output=True)
    largest = LARGEST_SIDE.get(format_name)
    if largest is not None and max(pixels.shape[:2]) > largest:
        raise UsageError(
            f"{name}: {format_name} ends at {largest} pixels a side and this picture is "
            f"{pixels.shape[1]}x{pixels.shape[0]}; write PNG or TIFF"
        )
    options, notes = _save_options(format_name, metadata)
    with files.writing(path) as output:
        if format_name == "TIFF":
            _write_tiff(output, pixels.shape[1], pixels.shape[0], [pixels], options)
        else:
            Image.fromarray(pixels).save(output, format_name, **options)
    return notes


def write_strips(
    path: str, width: int, height: int, strips: Iterable[np.ndarray], metadata: Metadata
) -> tuple[str, ...]:
    """Writes strips (rows, width, 3) uint8 RGB as a TIFF while they come; returns notes as `write` does."""
    options, notes = _save_options("TIFF", metadata)
    with files.writing(path) as output:
        _write_tiff(output, width, height, strips, options)
    return notes


def _write_tiff(
    output: BinaryIO, width: int, height: int, strips: Iterable[np.ndarray], options: dict[str, Any]
) -> None:
    from . import tiff

    tiff.write_rows(output, width, height, strips, options.get("exif", Image.Exif()), options.get("icc_profile"))


@contextmanager
def _large_pictures_allowed() -> Iterator[None]:
    """Pillow refuses 179 megapixels; the limit here is LARGEST_PIXELS, which `read` checks before any allocation."""
    pillow_limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = pillow_limit


def _picture(image: ImageFile.ImageFile) -> Picture:
    notes = _known_notes(image)
    orientation = None
    if image.format == "TIFF":
        orientation = image.getexif().get(ORIENTATION_TAG)
        metadata = _tiff_metadata(image)  # before loading, which takes the orientation out of EXIF and XMP
        image.load()
    else:
        image.load()
        metadata = _metadata(image)  # after loading: a PNG may keep its EXIF behind the pixels
    pixels, reductions = _rgb(image)
    if orientation in UNDO_ORIENTATION:
        pixels = pixels.transpose(UNDO_ORIENTATION[orientation])
    metadata, notes = _without_foreign_profile(metadata, notes + reductions)
    return Picture(np.asarray(pixels), metadata, tuple(notes))


def _known_notes(image: ImageFile.ImageFile) -> list[str]:
    """What will not be kept, as far as it is known before the pixels are read."""
    notes = []
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        notes.append(f"only the first of {pages} pictures in the file is used")
    if any(kind == "APP1" and JPEG_XMP_EXTENSION in body[:64] for kind, body in getattr(image, "applist", ())):
        notes.append("the XMP extension segments were dropped; the main XMP packet is kept")
    if ";16" in str(image.tile[:1]):
        notes.append("16-bit samples were cut to their upper 8 bits")
    return notes


def _without_foreign_profile(metadata: Metadata, notes: list[str]) -> tuple[Metadata, list[str]]:
    if metadata.icc is None or metadata.icc[ICC_COLOUR_SPACE] == b"RGB ":
        return metadata, notes
    dropped = "the ICC profile was dropped: it does not describe RGB pixels"
    return Metadata(exif=metadata.exif, xmp=metadata.xmp, icc=None), [*notes, dropped]


def _rgb(image: ImageFile.ImageFile) -> tuple[Image.Image, list[str]]:
    """8-bit RGB, and notes on what was reduced."""
    if image.mode in ("I", "F"):
        kind = "32-bit integer" if image.mode == "I" else "floating-point"
        raise InputError(f"{kind} samples have no 8-bit meaning of their own; scale them to 8 bits first")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB"), []
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        if rgba.getextrema()[3][0] == 255:
            return rgba.convert("RGB"), []
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB"), [FLATTENED]
    if image.mode == "CMYK":
        return image.convert("RGB"), ["CMYK was converted to RGB without its colour profile"]
    if image.mode == "RGB":
        return image, []
    try:
        return image.convert("RGB"), []
    except ValueError as error:
        raise InputError(f"{image.mode} pixels have no RGB meaning here; convert the picture to RGB first") from error


def _metadata(image: ImageFile.ImageFile) -> Metadata:
    exif = image.info.get("exif")
    if exif is not None:
        exif = exif.removeprefix(EXIF_PREFIX)
    return Metadata(exif=exif or None, xmp=image.info.get("xmp") or None, icc=image.info.get("icc_profile") or None)


def _tiff_metadata(image: ImageFile.ImageFile) -> Metadata:
    """A TIFF has no EXIF block: its tags are one, less those that describe the storage of the pixels."""
    exif = image.getexif()
    for tag in TIFF_PIXEL_TAGS & set(exif):
        del exif[tag]
    block = exif.tobytes().removeprefix(EXIF_PREFIX) if len(exif) else None
    xmp = image.tag_v2.get(XMP_TIFF_TAG)  # type: ignore[attr-defined]
    if isinstance(xmp, tuple):
        xmp = bytes(xmp) if all(isinstance(value, int) for value in xmp) else b"".join(xmp)
    if isinstance(xmp, str):
        xmp = xmp.encode()
    return Metadata(exif=block, xmp=xmp or None, icc=image.info.get("icc_profile") or None)


def _save_options(format_name: str, metadata: Metadata) -> tuple[dict[str, Any], tuple[str, ...]]:
    notes = []
    options: dict[str, Any] = {}
    exif, xmp, icc = metadata.exif, metadata.xmp, metadata.icc
    if format_name == "JPEG":
        options |= {"quality": JPEG_QUALITY, "subsampling": 0}
        if exif and len(EXIF_PREFIX + exif) > JPEG_SEGMENT_BYTES:
            notes.append(f"EXIF was dropped: its {len(exif)} bytes do not fit into a JPEG segment")
            exif = None
        if xmp and len(xmp) + XMP_JPEG_PREFIX_BYTES > JPEG_SEGMENT_BYTES:
            notes.append(f"XMP was dropped: its {len(xmp)} bytes do not fit into a JPEG segment")
            xmp = None
    if icc:
        options["icc_profile"] = icc
    if exif and format_name == "TIFF":
        options["exif"] = _tiff_tags(exif)
        if options["exif"] is None:
            del options["exif"]
            notes.append("EXIF was dropped: it is damaged and cannot be turned into TIFF tags")
    elif exif:
        options["exif"] = EXIF_PREFIX + exif
    if format_name == "PNG":
        options["compress_level"] = PNG_COMPRESSION_LEVEL
        if xmp:
            options["pnginfo"] = PngImagePlugin.PngInfo()
            options["pnginfo"].add_itxt(XMP_PNG_KEYWORD, xmp)
    elif format_name == "TIFF":
        if xmp:
            options.setdefault("exif", Image.Exif())[XMP_TIFF_TAG] = xmp
    elif xmp:
        options["xmp"] = xmp
    if format_name == "WEBP":
        options |= {"lossless": True, "quality": 0, "method": WEBP_METHOD}
    return options, tuple(notes)


def _tiff_tags(block: bytes) -> Image.Exif | None:
    tags = Image.Exif()
    try:
        tags.load(EXIF_PREFIX + block)
        for tag in TIFF_PIXEL_TAGS & set(tags):
            del tags[tag]
        tags.tobytes()
    except (ValueError, TypeError, SyntaxError, KeyError, OSError, struct.error):
        return None
    return tags
