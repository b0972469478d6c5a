"""The codecs people would use instead of linnet, one thread each, at fixed settings.

`available()` hands on those this machine has, and the reason for each that it lacks; `readers()` likewise what reads
windows of their files. `jpeg-420` is the reference of every BD-rate. Names and settings are those of the published
anchor files, so that results compare point by point.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features

from ..runtime.tiles import Rect, TileGrid
from .codec import Codec
from .metrics import Picture

REFERENCE = "jpeg-420"

JPEG_QUALITIES = (1, 5, 9, 15, 25, 40, 58, 72, 82, 90)
WEBP_QUALITIES = (0, 3, 10, 22, 38, 55, 70, 80, 88, 94)
J2K_BITS_PER_PIXEL = (0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 0.9, 1.25, 1.6, 2.0)
JXL_DISTANCES = (25, 17, 12, 8, 5.5, 3.8, 2.6, 1.8, 1.2, 0.8)
AVIF_QUALITIES = (3, 14, 25, 36, 46, 56, 65, 74, 82, 88)
RGB_BITS_PER_PIXEL = 24


class Absent(Exception):
    """This machine lacks the library behind a peer."""


def _decode_pillow(data: bytes) -> Picture:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def _save(picture: Picture, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, **options)
    return buffer.getvalue()


def _encode_jpeg(picture: Picture, setting: float, *, progressive: bool) -> bytes:
    options = {"subsampling": "4:2:0", "optimize": True, "progressive": progressive}
    return _save(picture, format="JPEG", quality=int(setting), **options)


def _encode_webp(picture: Picture, setting: float, *, method: int) -> bytes:
    return _save(picture, format="WEBP", quality=int(setting), method=method)


def _encode_j2k(picture: Picture, setting: float, *, tile: int | None) -> bytes:
    options: dict[str, Any] = {"no_jp2": True, "irreversible": True, "mct": 1}
    if tile is not None:
        options["tile_size"] = (tile, tile)
    return _save(picture, format="JPEG2000", quality_layers=[RGB_BITS_PER_PIXEL / setting], **options)


def _encode_avif(picture: Picture, setting: float, *, speed: int) -> bytes:
    options = {"subsampling": "4:2:0", "codec": "aom", "advanced": {"tune": "psnr"}, "max_threads": 1}
    return _save(picture, format="AVIF", quality=int(setting), speed=speed, **options)


def _decode_avif(data: bytes) -> Picture:
    from PIL import AvifImagePlugin

    before = AvifImagePlugin.DEFAULT_MAX_THREADS  # Pillow's only way to pass the decoder a thread count
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    try:
        return _decode_pillow(data)
    finally:
        AvifImagePlugin.DEFAULT_MAX_THREADS = before


def _encode_jxl(picture: Picture, setting: float, *, effort: int) -> bytes:
    import imagecodecs

    return imagecodecs.jpegxl_encode(picture, distance=setting, effort=effort, usecontainer=False, numthreads=1)


def _decode_jxl(data: bytes) -> Picture:
    import imagecodecs

    return imagecodecs.jpegxl_decode(data, numthreads=1)


def _encode_tiff_jpeg(picture: Picture, setting: float, *, tile: int) -> bytes:
    import tifffile

    buffer = io.BytesIO()
    options: dict[str, Any] = {"photometric": "rgb", "subsampling": (2, 2), "metadata": None, "software": False}
    level = {"level": int(setting), "optimize": True}
    tifffile.imwrite(
        buffer, picture, tile=(tile, tile), compression="jpeg", compressionargs=level, maxworkers=1, **options
    )
    return buffer.getvalue()


def _decode_tiff(data: bytes) -> Picture:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        return file.pages[0].asarray(maxworkers=1)


def _pillow_version(feature: str, library: str) -> str:
    if not features.check(feature):
        raise Absent(f"this Pillow was built without {library}: install Pillow's own wheels")
    import PIL

    return f"Pillow {PIL.__version__}, {library} {features.version(feature) or 'of unknown version'}"


def _avif_version() -> str:
    version = _pillow_version("avif", "libavif")
    from PIL import AvifImagePlugin

    aom = AvifImagePlugin.get_codec_version("aom")
    if aom is None:
        raise Absent("this Pillow's libavif has no libaom encoder: install Pillow's own wheels")
    return f"{version}, libaom {aom}"


def _jxl_version() -> str:
    try:
        import imagecodecs
    except ImportError:
        raise Absent("imagecodecs is not installed: pip install imagecodecs") from None
    if not imagecodecs.JPEGXL.available:
        raise Absent("this imagecodecs was built without libjxl: install its own wheels")
    return f"imagecodecs {imagecodecs.__version__}, {imagecodecs.jpegxl_version()}"


def _tiff_jpeg_version() -> str:
    try:
        import imagecodecs
        import tifffile
    except ImportError as error:
        raise Absent(f"{error.name} is not installed: pip install tifffile imagecodecs") from None
    return f"tifffile {tifffile.__version__}, imagecodecs {imagecodecs.__version__}, {imagecodecs.jpeg8_version()}"


@dataclass(frozen=True)
class Peer:
    """A row of the table: a codec whose version is asked only when it is wanted."""

    name: str
    about: str
    settings: tuple[float, ...]
    encode: Callable[[Picture, float], bytes]
    decode: Callable[[bytes], Picture]
    version: Callable[[], str]  # raises Absent

    def codec(self) -> Codec:
        return Codec(self.name, self.about, self.version(), self.settings, self.encode, self.decode)


_jpeg_version = partial(_pillow_version, "libjpeg_turbo", "libjpeg-turbo")
_webp_version = partial(_pillow_version, "webp", "libwebp")
_j2k_version = partial(_pillow_version, "jpg_2000", "OpenJPEG")


def _jpeg(name: str, about: str, progressive: bool) -> Peer:
    encode = partial(_encode_jpeg, progressive=progressive)
    return Peer(name, about, JPEG_QUALITIES, encode, _decode_pillow, _jpeg_version)


def _webp(method: int) -> Peer:
    encode = partial(_encode_webp, method=method)
    about = f"method {method}, quality=q"
    return Peer(f"webp-m{method}", about, WEBP_QUALITIES, encode, _decode_pillow, _webp_version)


def _j2k(name: str, tile: int | None) -> Peer:
    tiles = "one tile" if tile is None else f"{tile}x{tile} tiles"
    about = f"raw codestream, 9/7 and ICT, {tiles}, target bits per pixel=q"
    return Peer(name, about, J2K_BITS_PER_PIXEL, partial(_encode_j2k, tile=tile), _decode_pillow, _j2k_version)


def _tiff_jpeg(tile: int) -> Peer:
    about = f"JPEG in TIFF, 4:2:0, optimised, {tile}x{tile} tiles, quality=q"
    encode = partial(_encode_tiff_jpeg, tile=tile)
    return Peer(f"tiff-jpeg-tile{tile}", about, JPEG_QUALITIES, encode, _decode_tiff, _tiff_jpeg_version)


def _jxl(effort: int) -> Peer:
    about = f"effort {effort}, distance=q, bare codestream"
    return Peer(f"jxl-e{effort}", about, JXL_DISTANCES, partial(_encode_jxl, effort=effort), _decode_jxl, _jxl_version)


def _avif(speed: int) -> Peer:
    about = f"8 bit, speed {speed}, 4:2:0, tune=psnr, quality=q"
    encode = partial(_encode_avif, speed=speed)
    return Peer(f"avif-s{speed}-420-psnr", about, AVIF_QUALITIES, encode, _decode_avif, _avif_version)


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        _jpeg(REFERENCE, "4:2:0, optimised, progressive, quality=q", progressive=True),
        _jpeg("jpeg-420-baseline", "4:2:0, optimised, one scan, quality=q", progressive=False),
        _webp(6),
        _webp(4),
        _j2k("j2k", None),
        _j2k("j2k-tile512", 512),
        _tiff_jpeg(512),
        _jxl(7),
        _jxl(3),
        _avif(6),
        _avif(9),
    )
}
NOT_IN_RD = {"jpeg-420-baseline", "webp-m4", "tiff-jpeg-tile512"}
RD_PEERS = tuple(name for name in PEERS if name not in NOT_IN_RD)
SPEED_PEERS = ("avif-s9-420-psnr", "jxl-e3", "jpeg-420-baseline", "webp-m4")


def available(names: Iterable[str]) -> tuple[dict[str, Codec], dict[str, str]]:
    """The named peers this machine has, and for each of the others the reason. Unknown names raise KeyError."""
    codecs: dict[str, Codec] = {}
    absent: dict[str, str] = {}
    for name in names:
        peer = PEERS[name]
        try:
            codecs[name] = peer.codec()
        except Absent as reason:
            absent[name] = str(reason)
    return codecs, absent


# Windows out of files


@dataclass(frozen=True)
class Reader:
    """Gets pixels out of a file that a codec wrote: all of them, or one window. Each call opens the file anew."""

    name: str
    writer: Codec
    suffix: str
    about: str
    version: str
    read: Callable[[Path], Picture]
    read_window: Callable[[Path, Rect], Picture]
    has_windows: bool = True


def _gdal_reader(name: str, writer: Codec) -> Reader:
    try:
        import rasterio
        from rasterio.windows import Window
    except ImportError:
        raise Absent("rasterio is not installed: pip install rasterio") from None

    def read(path: Path, window: Rect | None = None) -> Picture:
        area = None if window is None else Window(*window)
        with rasterio.Env(GDAL_NUM_THREADS=1, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"), rasterio.open(path) as file:
            return np.moveaxis(file.read(window=area), 0, -1)

    version = f"rasterio {rasterio.__version__}, GDAL {rasterio.__gdal_version__} with OpenJPEG"
    return Reader(name, writer, ".j2k", "decodes the touched tiles whole", version, read, read)


def _glymur_reader(name: str, writer: Codec) -> Reader:
    remedy = "pip install glymur, and libopenjp2 from the system's packages"
    try:
        import glymur
    except ImportError:
        raise Absent(f"glymur is not installed: {remedy}") from None
    if glymur.version.openjpeg_version == "0.0.0":
        raise Absent(f"glymur finds no OpenJPEG: {remedy}")

    def read(path: Path) -> Picture:
        return glymur.Jp2k(path)[:]

    def read_window(path: Path, window: Rect) -> Picture:
        return glymur.Jp2k(path)[window.y : window.bottom, window.x : window.right]

    version = f"glymur {glymur.version.version}, OpenJPEG {glymur.version.openjpeg_version}"
    about = "decodes the touched code blocks of the touched tiles"
    return Reader(name, writer, ".j2k", about, version, read, read_window)


def _tiff_reader(name: str, writer: Codec) -> Reader:
    import tifffile

    def read(path: Path) -> Picture:
        with tifffile.TiffFile(path) as file:
            return file.pages[0].asarray(maxworkers=1)

    def read_window(path: Path, window: Rect) -> Picture:
        pixels = np.empty((window.height, window.width, 3), np.uint8)
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            numbers = TileGrid(page.imagewidth, page.imagelength, page.tilewidth).touching(window)
            offsets, lengths = ([table[n] for n in numbers] for table in (page.dataoffsets, page.databytecounts))
            for data, number in file.filehandle.read_segments(offsets, lengths, numbers):
                tile, (_, _, top, left, _), _ = page.decode(data, number, jpegtables=page.jpegtables)
                y, x = max(top, window.y), max(left, window.x)
                part = tile[0, y - top : window.bottom - top, x - left : window.right - left]
                pixels[y - window.y :, x - window.x :][: part.shape[0], : part.shape[1]] = part
        return pixels

    return Reader(name, writer, ".tif", "decodes the touched tiles whole", writer.version, read, read_window)


def _whole_file_reader(name: str, writer: Codec) -> Reader:
    """For a format without windows."""

    def read(path: Path) -> Picture:
        return writer.decode(path.read_bytes())

    def read_window(path: Path, window: Rect) -> Picture:
        return read(path)[window.y : window.bottom, window.x : window.right].copy()

    about = "has no windows: decodes the whole frame and crops it"
    return Reader(name, writer, ".bin", about, writer.version, read, read_window, has_windows=False)


READERS: dict[str, tuple[str, Callable[[str, Codec], Reader]]] = {
    "j2k-tile512/gdal": ("j2k-tile512", _gdal_reader),
    "j2k-tile512/glymur": ("j2k-tile512", _glymur_reader),
    "tiff-jpeg-tile512": ("tiff-jpeg-tile512", _tiff_reader),
    "jxl-e3": ("jxl-e3", _whole_file_reader),
}
"""By name: the peer that writes the file, and what opens a reader or raises Absent."""


def readers() -> tuple[list[Reader], dict[str, str]]:
    """The window readers this machine has, and for each of the others the reason."""
    writers, absent_writers = available(dict.fromkeys(writer for writer, _ in READERS.values()))
    found: list[Reader] = []
    absent: dict[str, str] = {}
    for name, (writer, open_reader) in READERS.items():
        try:
            if writer in absent_writers:
                raise Absent(absent_writers[writer])
            found.append(open_reader(name, writers[writer]))
        except Absent as reason:
            absent[name] = str(reason)
    return found, absent
