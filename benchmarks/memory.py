"""`linnet bench memory`: peak memory of encoding a huge TIFF by rows, and of decoding windows of the result.

Each figure is that of one `linnet` command in a process of its own, from its start to its end. Frames of one width and
different heights show what memory grows with.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import defaults
from ..argument_types import size
from ..files import require_folders
from ..runtime.errors import MachineError, UsageError

FORMAT = "linnet-bench-memory/1"
SIZES = ((20_000, 5_000), (20_000, 20_000))
LEVELS = 5
WINDOW = 512
TIFF_TILE = 512
GOAL_PIXELS = 400_000_000
GOAL_ENCODE_MB, GOAL_WINDOW_MB = 500, 200
"""What encoding a frame of GOAL_PIXELS, and a window of it, may take."""

COMMAND = """
import sys
from linnet.cli import main
status = main(sys.argv[1:])
from linnet.benchmarks.peak_memory import peak_mib
print(peak_mib())
sys.exit(status)
"""


@dataclass(frozen=True)
class Peak:
    """One command: what it did with which frame, its largest resident memory in 10^6 bytes, and its seconds."""

    width: int
    height: int
    levels: int
    what: str
    peak_mb: float
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--size", type=size, action="append", metavar="WxH",
        help="frame in pixels; may be repeated (default: 20000x5000 and 20000x20000)",
    )  # fmt: skip
    add("--levels", type=int, default=LEVELS, metavar="N", help=f"overviews of the second file (default: {LEVELS})")
    add("--quality", type=int, choices=range(1, 101), default=defaults.QUALITY, metavar="Q", help="quality of linnet")
    add("--threads", type=int, metavar="N", help="processor cores to use (default: all)")
    add("--bundle", help="codec bundle of linnet (default: the shipped one)")
    add("--backend", default="auto", help="backend of linnet (default: auto)")
    add("--json", type=Path, metavar="FILE", help="write all figures here")


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark and return the exit status."""
    from tqdm import tqdm

    from . import host

    require_folders(arguments.json)
    sizes = arguments.size or SIZES
    for width, height in sizes:
        if min(width, height) < WINDOW:
            raise UsageError(f"--size {width}x{height}: has no room for a window of {WINDOW}")
    options = ["--backend", arguments.backend]
    for name in ("bundle", "threads"):
        if (value := getattr(arguments, name)) is not None:
            options += [f"--{name}", str(value)]
    peaks: list[Peak] = []
    with (
        tempfile.TemporaryDirectory(prefix="linnet-bench-") as folder,
        tqdm(total=len(sizes) * len(steps(0, 0, arguments.levels)), unit="command", desc="memory", disable=None) as bar,
    ):
        for width, height in sizes:
            for peak in measure_frame(Path(folder), width, height, arguments.levels, arguments.quality, options):
                peaks.append(peak)
                bar.update()
    document = {"format": FORMAT, "host": host.fingerprint(), "quality": arguments.quality, "window": WINDOW,
                "peaks": [asdict(peak) for peak in peaks]}  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(format_table(peaks))
    print(f"\n{verdict(peaks)}")
    return 0


def steps(width: int, height: int, levels: int) -> list[tuple[int, str, list[str]]]:
    """(levels of the file, what is done, arguments of the command after the names of the files)."""

    def window(level: int) -> list[str]:
        x, y = (max(0, (side >> level) // 2 - WINDOW // 2) for side in (width, height))
        w, h = (min(WINDOW, max(1, side >> level)) for side in (width, height))
        return ["--region", f"{x},{y},{w},{h}", "--level", str(level)]

    found = []
    for stored in dict.fromkeys((0, levels)):
        found += [(stored, "encode", ["--levels", str(stored)]), (stored, "window", window(0))]
        # What no stored level is near costs what it is averaged from: below 1/4 that is a large part of the frame.
        overviews = {1, 2, stored} - {0}
        found += [(stored, f"window at 1/{1 << level}", window(level)) for level in sorted(overviews)]
    return found


def measure_frame(
    folder: Path, width: int, height: int, levels: int, quality: int, options: Sequence[str]
) -> Iterator[Peak]:
    """Encode a generated TIFF of that size, without and with overview levels, and decode windows of both."""
    picture, out = folder / "frame.tif", folder / "window.png"
    write_texture(picture, width, height)
    for stored, what, more in steps(width, height, levels):
        file = folder / f"{stored}.lnt"
        command = ["decode", str(file), str(out)]
        if what == "encode":
            command = ["encode", str(picture), str(file), "--quality", str(quality)]
        peak_mb, seconds = peak([*command, *more, *options])
        yield Peak(width, height, stored, what, peak_mb, seconds)


def write_texture(path: Path, width: int, height: int) -> None:
    """A tiled, compressed TIFF of that size, made tile by tile from one piece of texture."""
    from tifffile import TiffWriter

    from .mosaic import texture

    side = TIFF_TILE
    piece = texture(2 * side, 3 * side)
    tiles = [np.ascontiguousarray(piece[y : y + side, x : x + side]) for y in (0, side) for x in (0, side, 2 * side)]
    rows, columns = -(-height // side), -(-width // side)
    supply = (tiles[(row % 2) * 3 + column % 3] for row in range(rows) for column in range(columns))
    with TiffWriter(path, bigtiff=True) as writer:
        writer.write(
            supply, shape=(height, width, 3), dtype=np.uint8, tile=(side, side), photometric="rgb",
            compression="zlib", compressionargs={"level": 1}, metadata=None,
        )  # fmt: skip


def peak(arguments: Sequence[str]) -> tuple[float, float]:
    """Largest resident memory in 10^6 bytes and seconds of a `linnet` command."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(f"linnet {' '.join(arguments)} ended with status {done.returncode}: {done.stderr.strip()}")
    return float(done.stdout.split()[-1]) * 2**20 / 1e6, time.perf_counter() - started


def format_table(peaks: Sequence[Peak]) -> str:
    """One row per command; frames side by side."""
    sizes = list(dict.fromkeys((peak.width, peak.height) for peak in peaks))
    lines = [
        f"peak memory in MB of one command each, windows of {WINDOW}x{WINDOW} in the middle of the level",
        f"{'levels':>6}  {'command':<16}" + "".join(f"{f'{w}x{h}':>16}" for w, h in sizes),
    ]
    for levels, what in dict.fromkeys((peak.levels, peak.what) for peak in peaks):
        cells = {(p.width, p.height): p for p in peaks if (p.levels, p.what) == (levels, what)}
        lines.append(f"{levels:>6}  {what:<16}" + "".join(f"{cells[size].peak_mb:>16.0f}" for size in sizes))
    return "\n".join(lines)


def verdict(peaks: Sequence[Peak]) -> str:
    """The worst of the largest frame, beside the goals where it has their size."""
    largest = max(peak.width * peak.height for peak in peaks)
    own = [peak for peak in peaks if peak.width * peak.height == largest]
    encode = max(peak.peak_mb for peak in own if peak.what == "encode")
    window = max(peak.peak_mb for peak in own if peak.what == "window")
    goals: dict[str, Any] = {"encode": "", "window": ""}
    if largest == GOAL_PIXELS:
        goals = {"encode": f" (goal: {GOAL_ENCODE_MB})", "window": f" (goal: {GOAL_WINDOW_MB})"}
    return (
        f"linnet: {largest / 1e6:g} megapixels encode in {encode:.0f} MB{goals['encode']}, "
        f"a window decodes in {window:.0f} MB{goals['window']}"
    )
