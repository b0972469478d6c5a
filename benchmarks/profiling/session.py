"""Measures frames and makes the document of a profile; an interrupt ends the measurement, not the report."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import images
from ...runtime import backends
from ...runtime.backends.layers import LayerTime
from ...runtime.backends.onnxruntime import OnnxRuntimeBackend
from ...runtime.bundle import Bundle
from ...runtime.errors import MachineError, UsageError
from ...runtime.tiles import TileGrid
from .. import host, memory, mosaic
from . import ceiling, energy, layers
from .accounting import stage_seconds
from .figures import summarise
from .pipeline import DIRECTIONS, Pass, Pipeline

FORMAT = "linnet-profile/1"
FRAMES = 20
WARMUP = 2
LARGEST_PIXELS = 1 << 29


@dataclass(frozen=True)
class Request:
    """What to measure. `size` None: that of `image`; `frames` and `seconds` end the run, whichever comes first."""

    bundle: str | None
    backend: str
    threads: int | None
    batch: int | None
    quality: int
    tile: int
    size: tuple[int, int] | None
    image: str | None
    frames: int | None
    seconds: float | None
    warmup: int
    per_layer: bool


def measure(request: Request) -> dict[str, Any]:
    """The whole document. `partial` says in words where an interrupt (Ctrl-C or SIGTERM) ended it, else it is None."""
    pixels, source = frame(request)
    height, width = pixels.shape[:2]
    with tempfile.TemporaryDirectory(prefix="linnet-profile-") as folder:
        free, needed = shutil.disk_usage(folder).free, 3 * pixels.nbytes
        if free < needed:
            raise MachineError(
                f"{tempfile.gettempdir()} has {free >> 20} MiB free and raw frames of {width}x{height} need "
                f"{needed >> 20}: set TMPDIR to another folder or use a smaller --size"
            )
        run = _Run(request, pixels, Path(folder))
        del pixels
        try:
            run.frames()
            if request.per_layer:
                run.layers()
        except (KeyboardInterrupt, SystemExit):
            run.partial = f"interrupted {run.doing}"
        finally:
            if run.meter is not None:
                run.meter.stop()
        return run.document(source)


def frame(request: Request) -> tuple[np.ndarray, str]:
    """(height, width, 3) uint8 RGB, and in words where it comes from."""
    if request.image is not None:
        picture = images.read(request.image).pixels
        pictures, source = [picture], Path(request.image).name
        width, height = request.size or (picture.shape[1], picture.shape[0])
    else:
        assert request.size is not None
        pictures, source = mosaic.stand_ins()
        width, height = request.size
    TileGrid(width, height, request.tile)
    if width * height > LARGEST_PIXELS:
        raise UsageError(f"--size {width}x{height} is more than {LARGEST_PIXELS} pixels: profile a smaller frame")
    return mosaic.fill(pictures, width, height), source


class _Run:
    """One profile as it grows."""

    def __init__(self, request: Request, pixels: np.ndarray, folder: Path) -> None:
        self.request = request
        self.partial: str | None = None
        self.doing = "before the first frame"
        started = time.perf_counter()
        self.bundle = Bundle.open(request.bundle)
        self.backend = backends.select(request.backend, self.bundle, request.threads)
        self.open_s = time.perf_counter() - started
        if request.per_layer:
            with backends.layer_times(self.backend):  # says so now where it cannot
                pass
        self.pipeline = Pipeline(
            self.bundle, self.backend, pixels, folder, quality=request.quality, tile=request.tile,
            threads=request.threads, batch=request.batch,
        )  # fmt: skip
        self.resident_mib = 0.0
        self.first: dict[str, float] = {}
        self.samples: dict[str, list[Pass]] = {direction: [] for direction in DIRECTIONS}
        rails = energy.rails()
        self.meter = energy.PowerMeter(rails) if rails else None
        self.layer_rows: list[dict[str, Any]] | None = None
        self.layer_times: list[LayerTime] = []
        self.layer_passes: dict[str, Pass] = {}
        self.ceiling: dict[str, Any] | None = None
        self.no_ceiling: str | None = None

    def frames(self) -> None:
        """Warm up, then encode and decode in turns."""
        from tqdm import tqdm

        request = self.request
        frames = request.frames or (None if request.seconds else FRAMES)
        if self.meter is not None:
            self.meter.start()
        with tqdm(total=frames, unit="frame", desc="warming up", disable=None, leave=False) as bar:
            for number in range(request.warmup):
                for direction in DIRECTIONS:
                    done = self.pipeline.run(direction)
                    if number == 0:
                        self.first[direction] = done.wall_s
            memory.reset_peak()
            self.resident_mib = memory.peak_mib()
            bar.set_description("measuring")
            self.pipeline.backend.calls.clear()
            started = time.perf_counter()
            while not self._enough(frames, time.perf_counter() - started):
                self.doing = f"after {len(self.samples[DIRECTIONS[0]])} frames" + (f" of {frames}" if frames else "")
                passes = [self.pipeline.run(direction) for direction in DIRECTIONS]
                for direction, done in zip(DIRECTIONS, passes, strict=True):
                    self.samples[direction].append(done)
                bar.update()

    def _enough(self, frames: int | None, seconds: float) -> bool:
        done = len(self.samples[DIRECTIONS[0]])
        timed_out = self.request.seconds is not None and seconds >= self.request.seconds and done > 0
        return timed_out or (frames is not None and done >= frames)

    def layers(self) -> None:
        """Time every layer in frames of their own, and measure the machine's ceilings where that is possible."""
        from tqdm import tqdm

        self.doing = "while timing the layers"
        with tqdm(
            total=layers.UNCOUNTED + layers.FRAMES, unit="frame", desc="layers", disable=None, leave=False
        ) as bar:
            rows, self.layer_times, self.layer_passes = layers.measure(
                self.pipeline, self.bundle, self.backend, bar.update
            )
        self.layer_rows = rows
        layers.against(rows, None)
        self.doing = "while measuring this machine's ceilings"
        engine = getattr(self.backend, "inner", self.backend)
        if not isinstance(engine, OnnxRuntimeBackend):
            self.no_ceiling = f"the ceilings of {self.backend.name} cannot be measured yet"
            return
        with tqdm(total=len(ceiling.CONVOLUTIONS), desc="ceilings", disable=None, leave=False) as bar:
            try:
                self.ceiling = ceiling.measure(engine.settings, bar.update)
            except ImportError:
                self.no_ceiling = "the ceilings of this machine need the package onnx: pip install 'linnet[profile]'"
                return
        layers.against(rows, self.ceiling)

    def document(self, source: str) -> dict[str, Any]:
        """JSON-ready. Spans are [stage, thread, start, end, detail], microseconds from the start of the frame."""
        request, pipeline = self.request, self.pipeline
        origin = min((done.started for passes in self.samples.values() for done in passes), default=0)
        samples = {name: [_sample(done, origin) for done in passes] for name, passes in self.samples.items()}
        measured = bool(samples[DIRECTIONS[0]])
        coded = pipeline.coded_bytes if measured else 0
        return {
            "format": FORMAT,
            "host": host.fingerprint(),
            "partial": self.partial,
            "settings": {
                "bundle": self.bundle.name,
                "bundle_identity": self.bundle.identity,
                "backend": self.backend.name,
                "threads": request.threads,
                "batch": request.batch,
                "quality": request.quality,
                "tile": request.tile,
                "warmup": request.warmup,
            },
            "frame": {
                "source": source,
                "width": pipeline.width,
                "height": pipeline.height,
                "bytes": coded,
                "bits_per_pixel": 8 * coded / pipeline.pixels,
            },
            "start": {"open_s": self.open_s, **{f"first_{name}_s": value for name, value in self.first.items()}},
            "resident_mib": self.resident_mib,
            "peak_per_direction": memory.reset_peak(),
            "summary": {name: summarise(name, own, pipeline.pixels) for name, own in samples.items()}
            if measured
            else {},
            "layers": self.layer_rows,
            "layer_timeline": {name: self._units(done) for name, done in self.layer_passes.items()} or None,
            "ceiling": self.ceiling,
            "no_ceiling": self.no_ceiling,
            "energy": self._energy(origin) if self.meter and self.meter.has_readings and measured else None,
            "samples": samples,
        }

    def _energy(self, origin: int) -> dict[str, Any]:
        assert self.meter is not None
        passes = {name: [(done.started, done.wall_s) for done in own] for name, own in self.samples.items()}
        return self.meter.report(passes, self.pipeline.pixels, origin)

    def _units(self, done: Pass) -> dict[str, Any]:
        """The last timed frame of a direction: its stages, and the engine's units whose start is known."""
        inside = [t for t in self.layer_times if t.start and 0 <= t.start - done.started <= 1e9 * done.wall_s]
        return {
            "spans": _spans(done),
            "units": [
                [t.network, t.layer, t.operator, (t.start - done.started) / 1e3, 1e6 * t.seconds] for t in inside
            ],
        }


def _sample(done: Pass, origin: int) -> dict[str, Any]:
    shares, busy = stage_seconds(done.spans)
    return {
        "start_s": (done.started - origin) / 1e9,
        "wall_s": done.wall_s,
        "cpu_s": done.cpu_s,
        "peak_mib": done.peak_mib,
        "stages_s": shares,
        "busy_s": busy,
        "spans": _spans(done),
    }


def _spans(done: Pass) -> list[list[Any]]:
    threads = {thread: number for number, thread in enumerate(dict.fromkeys(s.thread for s in done.spans))}
    return [
        [s.stage, threads[s.thread], (s.start - done.started) / 1e3, (s.end - done.started) / 1e3, s.detail]
        for s in done.spans
    ]
