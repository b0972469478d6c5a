"""Measures for `linnet bench region`, on one thread in a process of its own.

Writes a file of each frame in each format, times full decodes and windows, and compares each window with its crop.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import MachineError
from ..runtime.tiles import Rect
from .codec import LINNET, Codec
from .measure import CodecFailure
from .metrics import Picture
from .peers import Reader
from .region_frames import TILE, crop, place, surround
from .speed import BITS_PER_PIXEL
from .tile_rates import RATE_MEGAPIXELS, rate_frames, tile_rates

PASSES = 5
"""Times each window is decoded in a round, beside one full decode."""


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
        codec = linnet_codec(request["bundle"], request["backend"], tile=TILE)
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
        own = rate_frames(photographs, pictures, source, min(request["megapixels"][0], RATE_MEGAPIXELS))
        costs = tile_rates(own, request["quality"], request["bundle"], request["backend"])
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
                crops.append({name: crop(full, w).copy() for name, w in frames[sample.frame]["windows"].items()})
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


if __name__ == "__main__":
    from linnet.benchmarks.single_thread import answer

    answer(measure)
