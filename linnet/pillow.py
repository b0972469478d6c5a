"""linnet as a Pillow plugin: `import linnet.pillow`, then `Image.open("a.lnt")` and `image.save("b.lnt", quality=60)`.

Opening reads the header alone; pixels are decoded when they are first needed. `draft` chooses an overview level, as it
chooses a scale for JPEG, and `thumbnail` calls it: where a file stores overviews, its full-size tiles are not read. The
frames of a recording are reached with `seek`. EXIF, XMP and ICC stand in `image.info` under Pillow's usual names, the
time of capture as `timestamp` (nanoseconds since 1970), and are written back from there.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import Image, ImageFile, ImageSequence

from . import defaults
from .runtime.bitstream import Metadata
from .runtime.errors import LinnetError

FORMAT = "LINNET"
SUFFIX = ".lnt"
EXIF_PREFIX = b"Exif\0\0"
WRITTEN_MODES = ("RGB", "L", "1", "P", "CMYK", "YCbCr")
"""Converted to RGB; others hold what it cannot: transparency, more than 8 bits."""
OPTIONS = ("quality", "tile", "levels", "digest")
"""Of `image.save`, as those of `linnet.encode`."""


class LinnetImageFile(ImageFile.ImageFile):
    format = FORMAT
    format_description = "linnet learned image codec"

    def _open(self) -> None:
        from .runtime.reader import Reader

        try:
            self._reader = Reader(self.fp)
            self._frame = -1
            self._go_to(0)
        except LinnetError as error:
            raise SyntaxError(str(error)) from error  # how a Pillow plugin says that a file is not readable
        if self.is_animated:
            self._fp = self.fp  # stays open for the other frames

    @property
    def n_frames(self) -> int:
        return self._reader.frame_count

    @property
    def is_animated(self) -> bool:
        return self.n_frames > 1

    def tell(self) -> int:
        return self._frame

    def seek(self, frame: int) -> None:
        """To frame `frame` of a recording; EOFError where it has none."""
        if not self._seek_check(frame):
            return
        try:
            self._go_to(frame)
        except LinnetError as error:
            raise OSError(str(error)) from error

    def _go_to(self, frame: int) -> None:
        record, metadata = self._reader.record(frame), self._reader.metadata(frame)
        self._frame, self._level, self._im = frame, 0, None
        self._size, self._mode = (record.grid.width, record.grid.height), "RGB"
        self.info = {
            "quality": record.quality,
            **({"timestamp": record.timestamp} if record.timestamp else {}),
            **({"exif": EXIF_PREFIX + metadata.exif} if metadata.exif is not None else {}),
            **({"xmp": metadata.xmp} if metadata.xmp is not None else {}),
            **({"icc_profile": metadata.icc} if metadata.icc is not None else {}),
        }
        self._exif = None  # what `getexif` remembers is of another frame

    def draft(self, mode: str | None, size: tuple[int, int] | None) -> tuple[str, tuple[int, int, float, float]] | None:
        """Take the smallest level that is at least as large as `size`; None where that is the full size.

        Like JPEG's: only before the pixels are loaded, and once.
        """
        if size is None or self._im is not None or self._level:
            return None
        width, height = self.size
        scale = min(width // max(1, size[0]), height // max(1, size[1]))
        level = max(0, scale.bit_length() - 1)
        if level == 0:
            return None
        self._level, self._size = level, (-(-width >> level), -(-height >> level))
        return self.mode, (0, 0, width / 2**level, height / 2**level)

    def load(self) -> Any:
        if self._im is None:
            self.im = Image.fromarray(self._decoded()).im
            if self._exclusive_fp and not self.is_animated:
                self.fp.close()
                self.fp = None
        return super().load()

    def _decoded(self) -> Any:
        from .pictures import codec_of

        blanks: list[str] = []
        try:
            codec = codec_of(self._reader, self._frame)
            pixels = codec.decode(self._reader, frame=self._frame, level=self._level, blanks=blanks)
        except LinnetError as error:
            raise OSError(str(error)) from error
        for sentence in blanks:
            warnings.warn(sentence, stacklevel=4)
        return pixels

    def verify(self) -> None:
        """Check every checksum of the file, as `linnet verify` does; OSError names what is damaged."""
        from .runtime.inspection import verify

        try:
            verify(self._reader.source)
        except LinnetError as error:
            raise OSError(str(error)) from error
        finally:
            super().verify()


def _accept(prefix: bytes) -> bool:
    from .runtime.boxes import SIGNATURE

    return prefix.startswith(SIGNATURE)


def _save(image: Image.Image, output: BinaryIO, filename: str | bytes) -> None:
    from .pictures import encode

    settings = image.encoderinfo  # type: ignore[attr-defined]
    try:
        output.write(encode(_pixels(image), metadata=_metadata(image, settings), **_options(settings)))
    except LinnetError as error:
        raise OSError(str(error)) from error


def _save_all(image: Image.Image, output: BinaryIO, filename: str | bytes) -> None:
    """`save(..., save_all=True, append_images=[...])`: all frames as a recording."""
    from .pictures import codec
    from .runtime.writer import RecordingWriter

    settings = image.encoderinfo  # type: ignore[attr-defined]
    writer, options = RecordingWriter(output), {"quality": defaults.QUALITY, **_options(settings)}
    try:
        for number, frame in enumerate(_frames(image, settings)):
            codec().encode_frame(
                writer, _pixels(frame), number=number, timestamp=frame.info.get("timestamp", 0),
                metadata=_metadata(frame, {} if number else settings), **options,
            )  # fmt: skip
        writer.close()
    except LinnetError as error:
        raise OSError(str(error)) from error


def _frames(image: Image.Image, settings: dict[str, Any]) -> Iterator[Image.Image]:
    for one in (image, *settings.get("append_images", ())):
        yield from ImageSequence.Iterator(one)


def _options(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: settings[name] for name in OPTIONS if name in settings}


def _pixels(image: Image.Image) -> Any:
    import numpy as np

    if image.mode not in WRITTEN_MODES or image.has_transparency_data:
        kind = f"{image.mode} with transparency" if image.has_transparency_data else image.mode
        raise OSError(f"cannot write mode {kind} as {FORMAT}: convert the image to RGB first")
    return np.asarray(image.convert("RGB"))


def _metadata(image: Image.Image, settings: dict[str, Any]) -> Metadata:
    """What `save` was told, else what the image carries."""
    options = {**image.info, **settings}
    exif = options.get("exif")
    if isinstance(exif, Image.Exif):
        exif = exif.tobytes()
    return Metadata(
        exif=exif.removeprefix(EXIF_PREFIX) if exif else None,
        xmp=options.get("xmp") or None,
        icc=options.get("icc_profile") or None,
    )


def register() -> None:
    """Makes Pillow know `.lnt` files; importing this module has done it already."""
    Image.register_open(FORMAT, LinnetImageFile, _accept)
    Image.register_save(FORMAT, _save)
    Image.register_save_all(FORMAT, _save_all)
    Image.register_extension(FORMAT, SUFFIX)
    Image.register_mime(FORMAT, "image/x-linnet")


register()
