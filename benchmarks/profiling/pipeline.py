"""The frame's way through the codec as a camera would drive it, with every part under the stage clock.

Raw RGB is read from a file band by band, the picture file is written as it grows, and back. Picture formats like PNG
and JPEG are left out: they are not ours, and a camera has none. What cannot be marked inside the runtime (the
backend, the input and the output) is wrapped here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...runtime.backends import Backend
from ...runtime.bitstream import FrameIndex, FrameRecord, Metadata, Tile
from ...runtime.bundle import Bundle
from ...runtime.codec import Codec
from ...runtime.reader import Reader
from ...runtime.sources import FileSource, Range
from ...runtime.stages import CONTAINER, READ, WRITE, Recorder, Span, recording
from ...runtime.writer import PictureWriter
from .. import peak_memory

NETWORK = "network "
"""Before the name of a network in the name of its stage."""
ENCODE, DECODE = "encode", "decode"
DIRECTIONS = (ENCODE, DECODE)
CHANNELS = 3


@dataclass(frozen=True)
class Pass:
    """One frame in one direction: wall and processor seconds, its spans, and the peak memory of the process."""

    wall_s: float
    cpu_s: float
    started: int
    spans: list[Span]
    peak_mib: float


class Pipeline:
    """Encodes the raw frame at `folder`/frame.rgb to frame.lnt and decodes that to decoded.rgb, again and again."""

    def __init__(
        self, bundle: Bundle, backend: Backend, frame: np.ndarray, folder: Path, *, quality: int, tile: int,
        threads: int | None, batch: int | None,
    ) -> None:  # fmt: skip
        self.height, self.width = frame.shape[:2]
        self.pixels = self.width * self.height
        self._raw, self._coded, self._decoded = (folder / n for n in ("frame.rgb", "frame.lnt", "decoded.rgb"))
        frame.tofile(self._raw)
        self._quality, self._tile = quality, tile
        self._recorder = Recorder()
        self.backend = MeasuredBackend(backend, self._recorder, batch)
        self.codec = Codec(bundle, self.backend, threads)
        self.coded_bytes = 0
        """Of the last frame that was encoded to its end."""

    def run(self, direction: str) -> Pass:
        """One frame; the peak memory is that of this pass where the system can reset it (`peak_memory.reset_peak`)."""
        peak_memory.reset_peak()
        self._recorder.spans = []
        work = self._encode if direction == ENCODE else self._decode
        with recording(self._recorder):
            started, cpu = time.perf_counter_ns(), time.process_time()
            work()
            ended, cpu_s = time.perf_counter_ns(), time.process_time() - cpu
        return Pass((ended - started) / 1e9, cpu_s, started, self._recorder.spans, peak_memory.peak_mib())

    def _encode(self) -> None:
        recorder = self._recorder
        rows = _Rows(self._raw, self.width, self.height, recorder)
        with open(self._coded, "wb", buffering=0) as coded:
            writer = _Writer(_Output(coded, recorder), recorder)
            self.codec.encode_frame(writer, rows, quality=self._quality, tile=self._tile)
        self.coded_bytes = self._coded.stat().st_size

    def _decode(self) -> None:
        source = _Source(self._coded, self._recorder)
        try:
            with open(self._decoded, "wb", buffering=0) as raw:
                output = _Output(raw, self._recorder)
                for strip in self.codec.strips(_Reader(source, self._recorder)):
                    output.write(strip)
        finally:
            source.close()


class MeasuredBackend:
    """A backend under the clock, with at most `batch` samples a call, that notes what it is asked for."""

    def __init__(self, backend: Backend, recorder: Recorder, batch: int | None) -> None:
        self._backend, self._recorder, self._batch = backend, recorder, batch
        self.name = backend.name
        self.calls: Counter[tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]] = Counter()
        """(network, shapes of its inputs) -> how often it was computed."""

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        count = len(next(iter(inputs.values())))
        size = min(self._batch or count, count)
        parts = [self._run(network, {k: v[i : i + size] for k, v in inputs.items()}) for i in range(0, count, size)]
        return parts[0] if len(parts) == 1 else [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        self.calls[network, tuple((name, value.shape) for name, value in inputs.items())] += 1
        shapes = ", ".join("x".join(map(str, value.shape)) for value in inputs.values())
        with self._recorder.span(NETWORK + network, shapes):
            return self._backend.run(network, inputs)


class _Rows:
    """Rows of raw RGB from a file."""

    def __init__(self, raw: Path, width: int, height: int, recorder: Recorder) -> None:
        self.width, self.height = width, height
        self._raw, self._recorder = raw, recorder

    def rows(self, y: int, count: int) -> np.ndarray:
        row = self.width * CHANNELS
        with self._recorder.span(READ, f"rows {y} to {y + count}"):
            return np.fromfile(self._raw, np.uint8, count * row, offset=y * row).reshape(count, self.width, CHANNELS)


class _Output:
    """A file to write to."""

    def __init__(self, output: BinaryIO, recorder: Recorder) -> None:
        self._output, self._recorder = output, recorder
        self.seek = output.seek

    def write(self, data: bytes | np.ndarray) -> None:
        with self._recorder.span(WRITE, f"{len(memoryview(data).cast('B'))} bytes"):
            rest = memoryview(data).cast("B")
            while rest:
                rest = rest[self._output.write(rest) :]


class _Writer(PictureWriter):
    """The picture writer, less the writing inside."""

    def __init__(self, output: _Output, recorder: Recorder) -> None:
        self._recorder = recorder
        super().__init__(output)  # type: ignore[arg-type]

    def begin(self, record: FrameRecord, metadata: Metadata | None = None, *, digest: bool = False) -> None:
        with self._recorder.span(CONTAINER, "begin"):
            super().begin(record, metadata, digest=digest)

    def tile(self, number: int, payload: bytes, *, quality: int | None = None, sealed: bool = False) -> None:
        with self._recorder.span(CONTAINER, f"tile {number}"):
            super().tile(number, payload, quality=quality, sealed=sealed)

    def end(self, digest: bytes | None = None) -> None:
        with self._recorder.span(CONTAINER, "index"):
            super().end(digest)


class _Source(FileSource):
    def __init__(self, path: Path, recorder: Recorder) -> None:
        self._recorder = recorder
        super().__init__(path)

    def read(self, offset: int, length: int) -> bytes:
        with self._recorder.span(READ, f"{length} bytes"):
            return super().read(offset, length)

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        with self._recorder.span(READ, f"{len(ranges)} ranges"):
            return super().read_many(ranges)


class _Reader(Reader):
    """The reader, less the reading inside."""

    def __init__(self, source: _Source, recorder: Recorder) -> None:
        self._recorder = recorder
        with recorder.span(CONTAINER, "open"):
            super().__init__(source)

    def index(self, frame: int = 0) -> FrameIndex:
        with self._recorder.span(CONTAINER, "index"):
            return super().index(frame)

    def tiles(self, frame: int, numbers: Sequence[int]) -> dict[int, Tile]:
        with self._recorder.span(CONTAINER, f"{len(numbers)} tiles"):
            return super().tiles(frame, numbers)
