"""Measures frames, layers and ceilings in turn; an interrupt ends the measurement, not the report."""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ... import images
from ...runtime import backends
from ...runtime.backends.layers import LayerTime
from ...runtime.backends.onnxruntime import OnnxRuntimeBackend
from ...runtime.bundle import Bundle
from ...runtime.errors import MachineError, UsageError
from ...runtime.tiles import TILE, TileGrid, usual_tile
from .. import mosaic, peak_memory
from . import ceiling, document, energy, layers
from .pipeline import DIRECTIONS, Pass, Pipeline

FRAMES = 20
WARMUP = 2
LARGEST_PIXELS = 1 << 29


@dataclass(frozen=True)
class Request:
    """What to measure. `size` None: that of `image`; `tile` None: the usual one of such a frame; `frames` and `seconds`
    end the run, whichever comes first."""

    bundle: str | None
    backend: str
    threads: int | None
    batch: int | None
    quality: int
    tile: int | None
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
    request = replace(request, tile=request.tile or usual_tile(width, height))
    with tempfile.TemporaryDirectory(prefix="linnet-profile-") as folder:
        free, needed = shutil.disk_usage(folder).free, 3 * pixels.nbytes
        if free < needed:
            raise MachineError(
                f"{tempfile.gettempdir()} has {free >> 20} MiB free and raw frames of {width}x{height} need "
                f"{needed >> 20}: set TMPDIR to another folder or use a smaller --size"
            )
        session = Session(request, pixels, source, Path(folder))
        del pixels
        try:
            session.measure_frames()
            if request.per_layer:
                session.measure_layers()
        except (KeyboardInterrupt, SystemExit):
            session.partial = f"interrupted {session.doing}"
        finally:
            if session.meter is not None:
                session.meter.stop()
        return document.build(session)


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
    TileGrid(width, height, request.tile or TILE)
    if width * height > LARGEST_PIXELS:
        raise UsageError(f"--size {width}x{height} is more than {LARGEST_PIXELS} pixels: profile a smaller frame")
    return mosaic.fill(pictures, width, height), source


class Session:
    """One profile as it grows; `document.build` reads its attributes."""

    def __init__(self, request: Request, pixels: np.ndarray, source: str, folder: Path) -> None:
        self.request, self.source = request, source
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

    def measure_frames(self) -> None:
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
            peak_memory.reset_peak()
            self.resident_mib = peak_memory.peak_mib()
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

    def measure_layers(self) -> None:
        """Time every layer in frames of their own, and measure the machine's ceilings where that is possible."""
        from tqdm import tqdm

        self.doing = "while timing the layers"
        count = layers.UNCOUNTED + layers.FRAMES
        with tqdm(total=count, unit="frame", desc="layers", disable=None, leave=False) as bar:
            found = layers.measure(self.pipeline, self.bundle, self.backend, bar.update)
        self.layer_rows, self.layer_times, self.layer_passes = found
        layers.against(self.layer_rows, None)
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
        layers.against(self.layer_rows, self.ceiling)
