"""linnet as a Pillow plugin: `import linnet.pillow`, then `Image.open("a.lnt")` and `image.save("b.lnt", quality=60)`.

Opening reads the header alone; pixels are decoded when they are first needed. EXIF, XMP and ICC stand in
`image.info` under Pillow's usual names and are written back from there.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, BinaryIO

from PIL import Image, ImageFile

from . import defaults
from .runtime.errors import LinnetError

FORMAT = "LINNET"
SUFFIX = ".lnt"
EXIF_PREFIX = b"Exif\0\0"


class LinnetImageFile(ImageFile.ImageFile):
    format = FORMAT
    format_description = "linnet learned image codec"

    def _open(self) -> None:
        import linnet

        try:
            self._described = linnet.info(self.fp)
        except LinnetError as error:
            raise SyntaxError(str(error)) from error  # how a Pillow plugin says that a file is not readable
        self._size = self._described.width, self._described.height
        self._mode = "RGB"
        metadata = self._described.metadata
        if metadata.exif is not None:
            self.info["exif"] = EXIF_PREFIX + metadata.exif
        if metadata.xmp is not None:
            self.info["xmp"] = metadata.xmp
        if metadata.icc is not None:
            self.info["icc_profile"] = metadata.icc
        self.info["quality"] = self._described.quality
        self._undecoded = True

    def load(self) -> Any:
        if self._undecoded:
            import linnet

            try:
                self.fp.seek(0)
                pixels = linnet.decode(self.fp)
            except LinnetError as error:
                raise OSError(str(error)) from error
            if self._exclusive_fp:
                self.fp.close()
            self.fp = BytesIO(pixels.tobytes())
            self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), 0, "RGB")]
            self._undecoded = False
        return super().load()


def _accept(prefix: bytes) -> bool:
    from .runtime.boxes import SIGNATURE

    return prefix.startswith(SIGNATURE)


def _save(image: Image.Image, output: BinaryIO, filename: str | bytes) -> None:
    import numpy as np

    import linnet

    options = {**image.info, **image.encoderinfo}  # type: ignore[attr-defined]
    exif = options.get("exif")
    if isinstance(exif, Image.Exif):
        exif = exif.tobytes()
    metadata = linnet.Metadata(
        exif=exif.removeprefix(EXIF_PREFIX) if exif else None,
        xmp=options.get("xmp") or None,
        icc=options.get("icc_profile") or None,
    )
    quality = image.encoderinfo.get("quality", defaults.QUALITY)  # type: ignore[attr-defined]
    try:
        output.write(linnet.encode(np.asarray(image.convert("RGB")), quality=quality, metadata=metadata))
    except LinnetError as error:
        raise OSError(str(error)) from error


def register() -> None:
    """Makes Pillow know `.lnt` files; importing this module has done it already."""
    Image.register_open(FORMAT, LinnetImageFile, _accept)
    Image.register_save(FORMAT, _save)
    Image.register_extension(FORMAT, SUFFIX)
    Image.register_mime(FORMAT, "image/x-linnet")


register()
