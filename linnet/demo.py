"""`make demo`: one photograph through the codec, what it cost, and pictures to look at.

The photograph is encoded, decoded whole and decoded as a window, which must equal the crop. Beside it stands the JPEG
that spends no fewer bytes. Everything is measured here and now; a small picture says little about speed, which is
what `linnet bench speed` is for.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import linnet

from . import defaults, files, images
from .benchmarks.metrics import ms_ssim, psnr_rgb
from .runtime.bitstream import Metadata
from .runtime.tiles import usual_tile

TIMED_RUNS = 5
WINDOW_PIXELS = 192
LABEL_PIXELS = 28
PHOTOGRAPH = "coffee"
"""Of scikit-image's pictures: 600x400 pixels, by Rachel Michetti, in the public domain (CC0)."""

Result = TypeVar("Result")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m linnet.demo", description=__doc__.split("\n\n")[0])
    parser.add_argument("image", nargs="?", help=f"a photograph, else scikit-image's {PHOTOGRAPH!r}")
    parser.add_argument("--quality", type=int, default=defaults.QUALITY)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the pictures")
    options = parser.parse_args(argv)
    try:
        run(options.image, options.quality, options.out)
    except linnet.LinnetError as error:
        print(f"linnet: {error}", file=sys.stderr)
        return error.exit_status
    return 0


def run(image: str | None, quality: int, out: Path) -> None:
    name, original, metadata = _photograph(image)
    height, width = original.shape[:2]
    megapixels = width * height / 1e6
    codec = linnet.Codec.open()

    data, encode_seconds = _timed(lambda: codec.encode(original, quality=quality, metadata=metadata))
    decoded, decode_seconds = _timed(lambda: codec.decode(data))
    x, y, w, h = region = _window(width, height)
    window, window_seconds = _timed(lambda: codec.decode(data, region=region))
    if not np.array_equal(window, decoded[y : y + h, x : x + w]):
        raise SystemExit(f"the window {region} differs from the same crop of the whole picture: please report this")
    stream_bytes = len(codec.encode(original, quality=quality)) if metadata != Metadata() else len(data)
    jpeg_quality, jpeg_data = _jpeg_of_at_least(original, stream_bytes)
    jpeg = np.asarray(Image.open(io.BytesIO(jpeg_data)))

    cost = codec.bundle.kmac_per_pixel
    rows = {
        "photograph": f"{name}, {width}x{height}, {original.nbytes} bytes of pixels",
        "codec": f"{codec.bundle.name} {codec.bundle.identity[:16]} on {codec.backend.name}, quality {quality}",
        "size": f"{len(data)} bytes, {8 * len(data) / (width * height):.3f} bits per pixel",
        "fidelity": _fidelity(original, decoded),
        "encode": f"{encode_seconds * 1e3:.1f} ms, {megapixels / encode_seconds:.2f} MP/s",
        "decode": f"{decode_seconds * 1e3:.1f} ms, {megapixels / decode_seconds:.2f} MP/s",
        "window": f"{w}x{h} at {x},{y} in {window_seconds * 1e3:.1f} ms, equal to the crop",
        "network cost": f"{cost['encoder']:.1f} kMAC/px to encode, {cost['decoder']:.1f} kMAC/px to decode",
        "JPEG, no smaller": f"{len(jpeg_data)} bytes (quality {jpeg_quality}, 4:2:0), {_fidelity(original, jpeg)}",
    }
    for what, value in rows.items():
        print(f"{what:<18}{value}")

    out.mkdir(parents=True, exist_ok=True)
    with files.writing(str(out / "photograph.lnt")) as stream:
        stream.write(data)
    sheet = _sheet(
        {
            "original": original,
            f"JPEG, {len(jpeg_data)} bytes": jpeg,
            f"linnet, {stream_bytes} bytes": decoded,
        }
    )
    plain = Metadata()
    pictures = {"original": original, "decoded": decoded, "window": window, "comparison": sheet}
    for stem, pixels in pictures.items():
        images.write(str(out / f"{stem}.png"), pixels, plain if stem == "comparison" else metadata)
    print(f"{'to look at':<18}{', '.join(str(out / f'{stem}.png') for stem in pictures)}")


def _photograph(path: str | None) -> tuple[str, np.ndarray, Metadata]:
    if path is not None:
        picture = images.read(path)
        return path, picture.pixels, picture.metadata
    from skimage import data

    return f"scikit-image {PHOTOGRAPH}", getattr(data, PHOTOGRAPH)(), Metadata()


def _timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result, and the seconds of the fastest of TIMED_RUNS."""
    fastest = float("inf")
    for _ in range(TIMED_RUNS):
        started = perf_counter()
        result = work()
        fastest = min(fastest, perf_counter() - started)
    return result, fastest


def _window(width: int, height: int) -> tuple[int, int, int, int]:
    """A window over the seam of the first two tiles where there is one, else in the middle."""
    w, h = min(WINDOW_PIXELS, width), min(WINDOW_PIXELS, height)
    tile = usual_tile(width, height)
    seam = tile if width > tile else width // 2
    x = min(max(seam - w // 2, 0), width - w)
    return x, (height - h) // 2, w, h


def _jpeg_of_at_least(pixels: np.ndarray, size: int) -> tuple[int, bytes]:
    """The lowest-quality 4:2:0 JPEG that is no smaller than `size` bytes: JPEG gets the benefit of the doubt."""
    picture = Image.fromarray(pixels)

    def compressed(quality: int) -> bytes:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
        return stream.getvalue()

    low, high = 1, 100
    while low < high:
        middle = (low + high) // 2
        if len(compressed(middle)) >= size:
            high = middle
        else:
            low = middle + 1
    return low, compressed(low)


def _fidelity(original: np.ndarray, decoded: np.ndarray) -> str:
    similarity = ms_ssim(original, decoded)
    text = f"PSNR {psnr_rgb(original, decoded):.2f} dB"
    return text if similarity is None else f"{text}, MS-SSIM {similarity:.4f}"


def _sheet(panels: dict[str, np.ndarray]) -> np.ndarray:
    """The panels side by side, each under its label."""
    height, width = next(iter(panels.values())).shape[:2]
    sheet = Image.new("RGB", (width * len(panels), height + LABEL_PIXELS), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=LABEL_PIXELS * 0.6)
    for column, (label, pixels) in enumerate(panels.items()):
        sheet.paste(Image.fromarray(pixels), (column * width, LABEL_PIXELS))
        draw.text((column * width + 8, LABEL_PIXELS * 0.15), label, fill="black", font=font)
    return np.asarray(sheet)


if __name__ == "__main__":
    sys.exit(main())
