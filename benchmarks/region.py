"""`linnet bench region`: a window of a large frame in a file, beside tiled JPEG 2000, tiled TIFF-JPEG and JPEG XL.

Measures opening and decoding a window against decoding everything, the same window inside a larger frame, the bytes
that are read for it, and what tiles cost in rate. Every window is compared with its crop of the full decode. The
measuring half of this module runs in a process of its own on one thread.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import defaults
from ..runtime.errors import MachineError, UsageError
from ..runtime.tiles import MAX_TILE, Rect
from .codec import LINNET, Codec
from .measure import LOSSLESS_DB, CodecFailure
from .metrics import Picture
from .mosaic import ASPECT
from .peers import Reader
from .speed import BITS_PER_PIXEL

if TYPE_CHECKING:
    from .image_sets import Photograph

FORMAT = "linnet-bench-region/1"
MEGAPIXELS = (24.0, 96.0)
WINDOW = 512
TILE = 512
"""Side of the tiles of every format here; the peers' names say it too."""
OFF_GRID = 5
"""The unaligned window lies this far from a tile's middle: across four tiles and on no block boundary."""
REPEAT = 3
PASSES = 5
"""Times each window is decoded in a round, beside one full decode."""
GOAL_RATIO = 25
GOAL_GROWTH = 0.2
GOAL_MEGAPIXELS = 24.0, 96.0
"""At these sizes a window takes at most 1/25 of the full decode, and its time grows by at most 20 %."""
RATE_TILES = (256, 512, 1024)
RATE_STEP = 5
"""Qualities below and above the one asked for, between which rates are compared."""
RATE_MEGAPIXELS = 4.0
"""Size of each frame of the rate table when no pictures are given."""


@dataclass
class Placed:
    """One window of one frame through one reader: seconds by round and pass, and what the operating system read."""

    seconds: list[list[float]] = field(default_factory=list)
    bytes_read: int | None = None  # of the pass that read least; None where the system does not count
    reads: int | None = None
    same_pixels: bool = True


@dataclass
class Sample:
    """One frame through one reader."""

    reader: str
    frame: int
    file_bytes: int
    bits_per_pixel: float
    full_s: list[float] = field(default_factory=list)
    full_cpu_s: list[float] = field(default_factory=list)
    windows: dict[str, Placed] = field(default_factory=dict)


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGES", help="pictures, folders or NAME=FOLDER (default: scikit-image's)")
    add(
        "--megapixels", type=_sizes, default=MEGAPIXELS, metavar="MP,MP,...",
        help="sizes of the frame, rising (default: 24,96)",
    )  # fmt: skip
    add("--window", type=_positive, default=WINDOW, metavar="N", help="side of the window in pixels (default: 512)")
    add("--repeat", type=_positive, default=REPEAT, metavar="N", help="rounds (default: 3)")
    add(
        "--quality", type=int, choices=range(1, 101), default=defaults.QUALITY, metavar="Q",
        help=f"quality of linnet (default: {defaults.QUALITY})",
    )  # fmt: skip
    add("--bpp", type=float, metavar="B", help="bits per pixel the peers aim at (default: what linnet needs)")
    add("--limit", type=_positive, metavar="N", help="at most N pictures of each set")
    add("--no-linnet", action="store_true", help="measure the peers only")
    add("--bundle", help="codec bundle of linnet (default: the shipped one)")
    add("--backend", default="auto", help="backend of linnet (default: auto)")
    add("--json", type=Path, metavar="FILE", help="write all samples here")
    add("--plot", type=Path, metavar="FILE", help="write times and rates as a picture")


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark and return the exit status. Raises CodecFailure where a window of linnet is not its crop."""
    from . import host
    from .single_thread import call

    for path in (arguments.json, arguments.plot):
        if path is not None and not path.resolve().parent.is_dir():
            raise UsageError(f"{path}: the folder does not exist; create it first")
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
        document: dict[str, Any] = {"format": FORMAT, "host": host.fingerprint()} | call("region", request)
    document["summary"] = summarise(document)
    document["rates"] = summarise_rates(document["tile_rates"])
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(format_table(document))
    if document["rates"]:
        print(f"\n{format_rates(document)}")
    print(f"\n{format_verdict(document)}")
    if arguments.plot:
        _draw(document, arguments.plot)
    wrong = [
        f"{row['placement']} at {row['megapixels']:g} megapixels"
        for row in document["summary"]
        if row["reader"] == LINNET and not row["same_pixels"]
    ]
    if wrong:
        raise CodecFailure(f"linnet: the window differs from that crop of the full decode ({', '.join(wrong)})")
    return 0


def _draw(document: dict[str, Any], path: Path) -> None:
    try:
        draw(document, path)
    except ImportError as error:
        raise MachineError(f"{path}: not drawn, matplotlib is missing; pip install 'linnet[bench]'") from error


def _sizes(text: str) -> tuple[float, ...]:
    values = tuple(float(part) for part in text.split(","))
    if not values[0] > 0 or any(not a < b for a, b in pairwise(values)):
        raise argparse.ArgumentTypeError(f"{text}: use positive sizes in rising order")
    return values


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: use 1 or more")
    return value


# Frames and windows


def _crop(picture: Picture, window: Rect) -> Picture:
    return picture[window.y : window.bottom, window.x : window.right]


def place(width: int, height: int, side: int) -> dict[str, Rect]:
    """The windows in the middle of a frame: one that starts on a tile, one across four tiles."""
    if width < TILE + side or height < TILE + side:
        raise UsageError(
            f"a frame of {width}x{height} has no room for a window of {side} across tiles of {TILE}: "
            "use more --megapixels or a smaller --window"
        )
    x, y = ((length - side) // 2 // TILE * TILE for length in (width, height))
    aside = TILE - side // 2 - OFF_GRID
    return {"aligned": Rect(x, y, side, side), "unaligned": Rect(x + aside, y + aside, side, side)}


def size(megapixels: float) -> tuple[int, int]:
    """Width and height of a frame."""
    width = math.ceil(math.sqrt(megapixels * 1e6 * ASPECT))
    return width, math.ceil(megapixels * 1e6 / width)


def surround(picture: Picture, megapixels: float) -> tuple[Picture, int, int]:
    """A larger frame with the picture in its middle and mirrored around it, and where the picture lies in it.

    It lies on whole tiles, so that a window of it meets the same pixels and the same tile borders in both frames.
    """
    width, height = size(megapixels)
    sides = []
    for length, inner in ((height, picture.shape[0]), (width, picture.shape[1])):
        more = max(0, length - inner)
        before = round(more / 2 / TILE) * TILE
        sides.append((before, more - before))
    return np.pad(picture, (*sides, (0, 0)), mode="symmetric"), sides[1][0], sides[0][0]


# Measuring, in a process of its own


def _linnet(codec: Codec, bundle: str | None, backend: str) -> Reader:
    import linnet

    options: dict[str, Any] = {"bundle": bundle, "backend": backend, "threads": 1}

    def read(path: Path) -> Picture:
        with linnet.open(path, **options) as frame:
            return frame.read()

    def read_window(path: Path, window: Rect) -> Picture:
        with linnet.open(path, **options) as frame:
            return frame.read_region(*window)

    return Reader(LINNET, codec, ".lnt", "reads the tiles of the window and its halo", codec.version, read, read_window)


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """What `run` asks of its child process."""
    import cv2

    from . import image_sets, mosaic, peers
    from .codec import linnet_codec
    from .timing import match_rate

    cv2.setNumThreads(1)
    for module in ("rasterio", "glymur"):  # both remark that a photograph has no map coordinates
        warnings.filterwarnings("ignore", module=module)
    photographs = image_sets.find(request["images"], request["limit"])
    if photographs:
        pictures, source = [p.read() for p in photographs], f"{len(photographs)} given pictures"
    else:
        pictures, source = mosaic.stand_ins()
    frame = mosaic.build(pictures, request["megapixels"][0])
    placed = place(frame.shape[1], frame.shape[0], request["window"])

    small, wanted, settings = mosaic.sample(frame), request["bits_per_pixel"], {}
    readers, absent = peers.readers()
    if request["linnet"]:
        codec = linnet_codec(request["bundle"], request["backend"])
        readers.insert(0, _linnet(codec, request["bundle"], request["backend"]))
        settings[LINNET] = float(request["quality"])
        if wanted is None:
            wanted = 8 * len(codec.encode(small, settings[LINNET])) / (small.shape[0] * small.shape[1])
    if not readers:
        raise MachineError("no codec to measure here: " + "; ".join(f"{n}: {reason}" for n, reason in absent.items()))
    wanted = BITS_PER_PIXEL if wanted is None else wanted
    for reader in readers:
        if reader.writer.name not in settings:
            settings[reader.writer.name] = match_rate(reader.writer, small, wanted)

    frames, samples = _write_frames(frame, placed, request, readers, settings)
    samples = time_windows(samples, readers, frames, Path(request["folder"]), request["repeat"])
    costs = []
    if request["linnet"]:
        rate_frames = _rate_frames(photographs, pictures, source, min(request["megapixels"][0], RATE_MEGAPIXELS))
        costs = tile_rates(rate_frames, request["quality"], request["bundle"], request["backend"])
    return {
        "source": source,
        "window": request["window"],
        "quality": request["quality"] if request["linnet"] else None,
        "bits_per_pixel_wanted": wanted,
        "frames": frames,
        "readers": {
            r.name: {"about": r.about, "version": r.version, "writer": r.writer.name, "writer_about": r.writer.about,
                     "writer_version": r.writer.version, "setting": settings[r.writer.name]}
            for r in readers
        },
        "samples": [asdict(sample) for sample in samples],
        "tile_rates": costs,
        "absent": absent,
    }  # fmt: skip


def _write_frames(
    frame: Picture, placed: dict[str, Rect], request: dict[str, Any], readers: Sequence[Reader],
    settings: dict[str, float],
) -> tuple[list[dict[str, Any]], list[Sample]]:  # fmt: skip
    """Every frame as a file of every writer, and the samples to fill."""
    from tqdm import tqdm

    writers = {reader.writer.name: reader for reader in readers}
    frames, samples = [], []
    with tqdm(total=len(writers) * len(request["megapixels"]), unit="file", desc="writing", disable=None) as bar:
        for number, megapixels in enumerate(request["megapixels"]):
            pixels, x, y = (frame, 0, 0) if number == 0 else surround(frame, megapixels)
            windows = {name: Rect(w.x + x, w.y + y, *w[2:]) for name, w in placed.items()}
            height, width = pixels.shape[:2]
            frames.append({"megapixels": megapixels, "width": width, "height": height, "windows": windows})
            sizes = {}
            for name, reader in writers.items():
                with _blaming(name, "encoding"):
                    data = reader.writer.encode(pixels, settings[name])
                _path(Path(request["folder"]), reader, number).write_bytes(data)
                sizes[name] = len(data)
                bar.update()
            for reader in readers:
                file_bytes = sizes[reader.writer.name]
                samples.append(Sample(reader.name, number, file_bytes, 8 * file_bytes / (width * height)))
    return frames, samples


def time_windows(
    samples: list[Sample], readers: Sequence[Reader], frames: Sequence[dict[str, Any]], folder: Path, repeat: int
) -> list[Sample]:
    """Rounds of one full decode of each file, then passes over all windows with the frame sizes next to each other.

    A format without windows takes part in the first pass only: what it does there is a full decode.
    """
    from tqdm import tqdm

    from .timing import _timed

    by_name = {reader.name: reader for reader in readers}
    paths = [_path(folder, by_name[sample.reader], sample.frame) for sample in samples]
    for sample, path in zip(samples, paths, strict=True):
        window = next(iter(frames[sample.frame]["windows"].values()))
        sample.windows = {name: Placed() for name in frames[sample.frame]["windows"]}
        with _blaming(sample.reader, "a window"):
            by_name[sample.reader].read_window(path, window)  # warm-up: libraries, networks, the file in memory
    with tqdm(total=repeat * len(samples), unit="file", desc="reading", disable=None) as bar:
        for _ in range(repeat):
            crops: list[dict[str, Picture]] = []
            for sample, path in zip(samples, paths, strict=True):
                with _blaming(sample.reader, "the full decode"):
                    full, seconds, cpu_seconds = _timed(partial(by_name[sample.reader].read, path))
                sample.full_s.append(seconds)
                sample.full_cpu_s.append(cpu_seconds)
                crops.append({name: _crop(full, w).copy() for name, w in frames[sample.frame]["windows"].items()})
                del full
                bar.update()
            for number in range(PASSES):
                for name in frames[0]["windows"]:
                    for index in _in_turns(samples, readers, backwards=number % 2 == 1):
                        sample, reader = samples[index], by_name[samples[index].reader]
                        if number and not reader.has_windows:
                            continue
                        window, placed = frames[sample.frame]["windows"][name], sample.windows[name]
                        before = _bytes_and_calls()
                        with _blaming(sample.reader, "a window"):
                            pixels, seconds, _cpu = _timed(partial(reader.read_window, paths[index], window))
                        _count(placed, before, _bytes_and_calls())
                        if number == 0:
                            placed.seconds.append([])
                        placed.seconds[-1].append(seconds)
                        placed.same_pixels &= np.array_equal(pixels, crops[index][name])
    return samples


def _in_turns(samples: Sequence[Sample], readers: Sequence[Reader], *, backwards: bool) -> Iterator[int]:
    """Indices of the samples, reader by reader; every other pass takes the largest frame first."""
    for reader in readers:
        own = [index for index, sample in enumerate(samples) if sample.reader == reader.name]
        yield from reversed(own) if backwards else own


def _bytes_and_calls() -> tuple[int, int, int] | None:
    """Bytes and calls this process has read so far, cached files included, and the bytes of this answer, which are not
    yet among them. None where the system does not say."""
    try:
        with open("/proc/self/io", "rb", buffering=0) as file:
            text = file.read(4096)
        values = dict(line.split(b": ") for line in text.splitlines())
        return int(values[b"rchar"]), int(values[b"syscr"]), len(text)
    except (OSError, KeyError, ValueError):
        return None


def _count(placed: Placed, before: tuple[int, int, int] | None, after: tuple[int, int, int] | None) -> None:
    """Keep the pass that read least: the others had something else to read as well, such as a library."""
    if before is None or after is None:
        return
    bytes_read, reads = after[0] - before[0] - before[2], after[1] - before[1] - 1
    if placed.bytes_read is None or bytes_read < placed.bytes_read:
        placed.bytes_read, placed.reads = bytes_read, reads


def _path(folder: Path, reader: Reader, frame: int) -> Path:
    return folder / f"{reader.writer.name}-{frame}{reader.suffix}"


@contextmanager
def _blaming(name: str, what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise CodecFailure(f"{name}: {what} failed: {error}") from error


def _rate_frames(
    photographs: Sequence[Photograph], pictures: Sequence[Picture], source: str, megapixels: float
) -> Iterator[tuple[str, str, Picture]]:
    """Set, name and pixels, at most one tile of the largest size on a side. Stand-ins are small: each is repeated."""
    from . import mosaic

    for photograph, picture in zip(photographs, pictures, strict=False):
        y, x = (max(0, length - MAX_TILE) // 2 for length in picture.shape[:2])
        yield photograph.set_name, photograph.name, picture[y : y + MAX_TILE, x : x + MAX_TILE]
    if not photographs:
        for number, picture in enumerate(pictures):
            yield source, str(number), mosaic.build([picture], megapixels)


def tile_rates(
    frames: Iterable[tuple[str, str, Picture]], quality: int, bundle: str | None, backend: str
) -> list[dict[str, Any]]:
    """Rate and PSNR of each frame a little below and above a quality, in one tile and in tiles of each size."""
    from tqdm import tqdm

    import linnet

    from .metrics import psnr_rgb

    options: dict[str, Any] = {"bundle": bundle, "backend": backend, "threads": 1}
    results = []
    for set_name, name, picture in tqdm(frames, unit="picture", desc="tile sizes", disable=None):
        height, width = picture.shape[:2]

        def point(tile: int, quality: int, picture: Picture = picture) -> tuple[float, float]:
            data = linnet.encode(picture, quality=quality, tile=tile, **options)
            psnr = psnr_rgb(picture, linnet.decode(data, **options))
            return 8 * len(data) / (picture.shape[0] * picture.shape[1]), min(psnr, LOSSLESS_DB)

        sizes = [tile for tile in RATE_TILES if tile < max(width, height)]
        tiles = {str(tile): [point(tile, q) for q in _around(quality)] for tile in sizes}
        one_tile = [point(MAX_TILE, q) for q in _around(quality)]
        about = {"set": set_name, "image": name, "width": width, "height": height}
        results.append(about | {"one_tile": one_tile, "tiles": tiles})
    return results


def _around(quality: int) -> tuple[int, int]:
    return max(defaults.LOWEST_QUALITY, quality - RATE_STEP), min(defaults.HIGHEST_QUALITY, quality + RATE_STEP)


# Reporting


def summarise(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per reader, frame and window: medians, and ratios that are taken within each round."""
    rows = []
    first = {s["reader"]: s for s in document["samples"] if s["frame"] == 0}
    for sample in document["samples"]:
        frame = document["frames"][sample["frame"]]
        for placement, placed in sample["windows"].items():
            rounds, first_rounds = placed["seconds"], first[sample["reader"]]["windows"][placement]["seconds"]
            ratios = [full / median(passes) for full, passes in zip(sample["full_s"], rounds, strict=True)]
            growths = [
                median(a / b for a, b in zip(passes, first_passes, strict=True))
                for passes, first_passes in zip(rounds, first_rounds, strict=True)
            ]
            rows.append(
                {
                    "reader": sample["reader"],
                    "megapixels": frame["megapixels"],
                    "placement": placement,
                    "bits_per_pixel": sample["bits_per_pixel"],
                    "window_ms": 1e3 * median(s for passes in rounds for s in passes),
                    "full_ms": 1e3 * median(sample["full_s"]),
                    "threads_busy": sum(sample["full_cpu_s"]) / sum(sample["full_s"]),
                    "full_over_window": _spread(ratios),
                    "over_first_size": _spread(growths),
                    "bytes_read": placed["bytes_read"],
                    "reads": placed["reads"],
                    "file_bytes": sample["file_bytes"],
                    "same_pixels": placed["same_pixels"],
                }
            )
    return rows


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}


def summarise_rates(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per set: bits per pixel of one tile per frame, and what tiles cost in percent, over the frames that they cut.

    The cost is the BD-rate of the tiled files: tiles change the encoder's rounding, and with it the PSNR, a little.
    """
    from .metrics import bd_rate

    rows = []
    for set_name in dict.fromkeys(r["set"] for r in results):
        group = [r for r in results if r["set"] == set_name]
        overheads = {}
        for tile in map(str, RATE_TILES):
            cut = [(r["one_tile"], r["tiles"][tile]) for r in group if tile in r["tiles"]]
            costs = [cost for one, tiled in cut if (cost := bd_rate(one, tiled)) is not None]
            if costs:
                sizes = [100 * (b[0] / a[0] - 1) for one, tiled in cut for a, b in zip(one, tiled, strict=True)]
                overheads[tile] = {
                    "pictures": len(costs),
                    "mean": fmean(costs),
                    "max": max(costs),
                    "size_at_same_quality": fmean(sizes),
                    "psnr_change_db": fmean(b[1] - a[1] for one, tiled in cut for a, b in zip(one, tiled, strict=True)),
                }
        rates = [rate for r in group for rate, _ in r["one_tile"]]
        rows.append(
            {"set": set_name, "pictures": len(group), "bits_per_pixel": fmean(rates), "overhead_percent": overheads}
        )
    return rows


def format_table(document: dict[str, Any]) -> str:
    """One wide row per reader, frame and window, then what the readers do and which are absent."""
    side, rounds = document["window"], len(document["samples"][0]["full_s"])
    to_first = f"to {document['frames'][0]['megapixels']:g} MP"
    quality = "" if document["quality"] is None else f"linnet at quality {document['quality']}, "
    lines = [
        f"a window of {side}x{side} in the middle of a frame from {document['source']}, opened and decoded from a file "
        f"in the page cache; one thread, {rounds} rounds of 1 full decode and {PASSES} windows; {quality}"
        f"all near {document['bits_per_pixel_wanted']:.2f} bits per pixel; ratios within a round: median (min-max)",
        f"{'codec':<20}{'megapixels':>11}{'bits/pixel':>11}{'window':>11}{'window ms':>11}{'full ms':>10}"
        f"{'full/window':>19}{to_first:>18}{'KiB read':>10}{'reads':>7}{'of file':>9}{'same pixels':>13}"
        f"{'threads busy':>14}",
    ]
    for row in document["summary"]:
        read = row["bytes_read"]
        share = "-" if read is None else f"{read / row['file_bytes']:.1%}"
        kib, reads = ("-", "-") if read is None else (f"{read / 2**10:.1f}", row["reads"])
        lines.append(
            f"{row['reader']:<20}{row['megapixels']:>11g}{row['bits_per_pixel']:>11.3f}{row['placement']:>11}"
            f"{row['window_ms']:>11.1f}{row['full_ms']:>10.0f}{_ratio(row['full_over_window'], 1):>19}"
            f"{_ratio(row['over_first_size'], 2):>18}{kib:>10}{reads:>7}{share:>9}"
            f"{'yes' if row['same_pixels'] else 'NO':>13}{row['threads_busy']:>14.2f}"
        )
    lines += [f"{name}: {about['about']}; {about['version']}" for name, about in document["readers"].items()]
    return "\n".join(lines + [f"{name}: absent, {reason}" for name, reason in document["absent"].items()])


def _ratio(spread: dict[str, float], digits: int) -> str:
    low, middle, high = (f"{spread[key]:.{digits}f}" for key in ("min", "median", "max"))
    return f"{middle} ({low}-{high})"


def format_rates(document: dict[str, Any]) -> str:
    """One row per set."""
    low, high = _around(document["quality"])
    lines = [
        f"rate of tiles against one tile per frame, linnet between quality {low} and {high}: BD-rate, mean (largest) "
        "over the pictures that tiles of that size cut, and the change of PSNR RGB at one quality",
        f"{'set':<30}{'pictures':>9}{'bits/pixel':>11}" + "".join(f"{f'tiles of {tile}':>31}" for tile in RATE_TILES),
    ]
    for row in document["rates"]:
        cells = [row["overhead_percent"].get(str(tile)) for tile in RATE_TILES]
        texts = [
            "-" if c is None else f"{c['mean']:+.2f} % ({c['max']:+.2f} %) {c['psnr_change_db']:+.3f} dB" for c in cells
        ]
        line = f"{row['set']:<30}{row['pictures']:>9}{row['bits_per_pixel']:>11.3f}"
        lines.append(line + "".join(f"{text:>31}" for text in texts))
    return "\n".join(lines)


def format_verdict(document: dict[str, Any]) -> str:
    """The worst of linnet's windows, beside the goals where the frames have the sizes that the goals are about."""
    own = [row for row in document["summary"] if row["reader"] == LINNET]
    if not own:
        return "linnet: not measured"
    at_goal = tuple(f["megapixels"] for f in document["frames"]) == GOAL_MEGAPIXELS and document["window"] == WINDOW
    smallest, largest = (document["frames"][i]["megapixels"] for i in (0, -1))
    ratio = min(row["full_over_window"]["median"] for row in own if row["megapixels"] == smallest)
    parts = [f"1/{ratio:.1f} of the full decode at {smallest:g} megapixels" + (f" (goal: 1/{GOAL_RATIO})" * at_goal)]
    if largest > smallest:
        growth = max(abs(row["over_first_size"]["median"] - 1) for row in own if row["megapixels"] == largest)
        goal = f" (goal: {100 * GOAL_GROWTH:.0f} %)" * at_goal
        parts.append(f"that time to within {100 * growth:.0f} % at {largest:g} megapixels{goal}")
    windows = sum(len(passes) for s in document["samples"] if s["reader"] == LINNET
                  for placed in s["windows"].values() for passes in placed["seconds"])  # fmt: skip
    same = all(row["same_pixels"] for row in own)
    parts.append(f"all {windows} windows equal their crop" if same else "some windows DIFFER from their crop")
    return f"{LINNET}: a window takes at worst " + ", ".join(parts)


def draw(document: dict[str, Any], path: Path) -> None:
    """Times over the size of the frame, and beside them what tiles cost; from the JSON form alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from .plot import LEGEND_INCHES, PANEL_INCHES

    panels = 2 if document["rates"] else 1
    figure = Figure(figsize=(panels * PANEL_INCHES[0] + LEGEND_INCHES, PANEL_INCHES[1]), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for number, reader in enumerate(document["readers"]):
        rows = [row for row in document["summary"] if row["reader"] == reader]
        style: dict[str, Any] = {"color": f"C{number % 10}", "marker": "o", "markersize": 3, "linewidth": 1.2}
        if reader == LINNET:
            style |= {"color": "black", "linewidth": 2.5, "markersize": 5, "zorder": 10}
        for placement, line in (("aligned", "-"), ("unaligned", "--")):
            own = [row for row in rows if row["placement"] == placement]
            sizes, times = [row["megapixels"] for row in own], [row["window_ms"] for row in own]
            axes[0].plot(sizes, times, linestyle=line, label=f"{reader}, {placement} window", **style)
        times = [row["full_ms"] for row in own]
        axes[0].plot(sizes, times, linestyle=":", label=f"{reader}, full frame", **style)
    axes[0].set_xscale("log", base=2)
    axes[0].set_yscale("log")
    axes[0].set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes[0].set_xlabel("megapixels of the frame")
    axes[0].set_title(f"window of {document['window']}x{document['window']}: milliseconds")
    for row in document["rates"]:
        cells = row["overhead_percent"]
        axes[1].plot([int(t) for t in cells], [c["mean"] for c in cells.values()], marker="o", label=row["set"])
        axes[1].axhline(0, color="grey", linewidth=1)
        axes[1].set_title("BD-rate of tiles against one tile per frame, %")
        axes[1].set_xscale("log", base=2)
        axes[1].set_xticks(RATE_TILES, [str(tile) for tile in RATE_TILES])
        axes[1].set_xlabel("side of the tiles")
        axes[1].legend(fontsize="small")
    for panel in axes:
        panel.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    from linnet.benchmarks.single_thread import answer

    answer(measure)
