"""`linnet bench region`: a window of a large frame in a file, beside tiled JPEG 2000, tiled TIFF-JPEG and JPEG XL.

Measures opening and decoding a window against decoding everything, the same window inside a larger frame, the bytes
that are read for it, and what tiles cost in rate. Every window is compared with its crop of the full decode.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from .. import defaults
from ..argument_types import positive
from ..runtime.errors import UsageError
from .codec import LINNET
from .measure import CodecFailure
from .region_frames import WINDOW, place, size
from .region_report import draw, format_rates, format_table, format_verdict, summarise
from .tile_rates import summarise_rates

FORMAT = "linnet-bench-region/1"
MEGAPIXELS = (24.0, 96.0)
REPEAT = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGES", help="pictures, folders or NAME=FOLDER (default: scikit-image's)")
    add(
        "--megapixels", type=_sizes, default=MEGAPIXELS, metavar="MP,MP,...",
        help="sizes of the frame, rising (default: 24,96)",
    )  # fmt: skip
    add("--window", type=positive, default=WINDOW, metavar="N", help="side of the window in pixels (default: 512)")
    add("--repeat", type=positive, default=REPEAT, metavar="N", help="rounds (default: 3)")
    add(
        "--quality", type=int, choices=range(1, 101), default=defaults.QUALITY, metavar="Q",
        help=f"quality of linnet (default: {defaults.QUALITY})",
    )  # fmt: skip
    add("--bpp", type=float, metavar="B", help="bits per pixel the peers aim at (default: what linnet needs)")
    add("--limit", type=positive, metavar="N", help="at most N pictures of each set")
    add("--no-linnet", action="store_true", help="measure the peers only")
    add("--bundle", help="codec bundle of linnet (default: the shipped one)")
    add("--backend", default="auto", help="backend of linnet (default: auto)")
    add("--json", type=Path, metavar="FILE", help="write all samples here")
    add("--plot", type=Path, metavar="FILE", help="write times and rates as a picture")


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark and return the exit status. Raises CodecFailure where a window of linnet is not its crop."""
    from . import host, plot
    from .single_thread import call

    plot.check_outputs([arguments.plot], [arguments.json])
    if arguments.bpp is not None and not arguments.bpp > 0:
        raise UsageError(f"--bpp {arguments.bpp:g}: use a positive number")
    place(*size(arguments.megapixels[0]), arguments.window)
    with tempfile.TemporaryDirectory(prefix="linnet-bench-") as folder:
        request = {
            "images": arguments.images,
            "limit": arguments.limit,
            "megapixels": arguments.megapixels,
            "window": arguments.window,
            "repeat": arguments.repeat,
            "quality": arguments.quality,
            "bits_per_pixel": arguments.bpp,
            "linnet": not arguments.no_linnet,
            "bundle": arguments.bundle,
            "backend": arguments.backend,
            "folder": folder,
        }
        document: dict[str, Any] = {"format": FORMAT, "host": host.fingerprint()} | call("region_timing", request)
    document["summary"] = summarise(document)
    document["rates"] = summarise_rates(document["tile_rates"])
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(format_table(document))
    if document["rates"]:
        print(f"\n{format_rates(document)}")
    print(f"\n{format_verdict(document)}")
    if arguments.plot:
        draw(document, arguments.plot)
    wrong = [
        f"{row['placement']} at {row['megapixels']:g} megapixels"
        for row in document["summary"]
        if row["reader"] == LINNET and not row["same_pixels"]
    ]
    if wrong:
        raise CodecFailure(f"linnet: the window differs from that crop of the full decode ({', '.join(wrong)})")
    return 0


def _sizes(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if not values[0] > 0 or any(not a < b for a, b in pairwise(values)):
        raise argparse.ArgumentTypeError(f"{text}: use positive sizes in rising order")
    return values
