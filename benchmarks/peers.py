"""The codecs people would use instead of linnet, through Pillow and imagecodecs, one thread each, at fixed settings.

`available()` hands on those this machine has, and the reason for each that it lacks. `jpeg-420` is the reference of
every BD-rate. Names and settings are those of the published anchor files, so that results compare point by point.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, features

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
        _jxl(7),
        _jxl(3),
        _avif(6),
        _avif(9),
    )
}
SPEED_ONLY = {"jpeg-420-baseline", "webp-m4"}
RD_PEERS = tuple(name for name in PEERS if name not in SPEED_ONLY)
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
