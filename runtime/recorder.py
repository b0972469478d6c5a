"""Frames into a recording as they come: a bounded queue before the network, one before the disk, a rate held between.

    put() --frames--> encoder thread --bytes--> disk thread --> output

Every box goes to the operating system as soon as it is whole and is made durable once a second, so that a kill, a
power cut or a full disk costs no tile that was written. Where the frames come from is the caller's business.
"""

from __future__ import annotations

import errno
import io
import math
import os
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from .bitstream import Metadata
from .errors import LinnetError, MachineError, UsageError
from .writer import RecordingWriter

DROP_POLICIES = ("oldest", "newest", "never")
"""What happens to a frame that comes while the queue is full: it takes the place of the one that waits longest, it is
dropped itself, or its giver waits."""
QUEUE = 8
"""Frames that may wait for the encoder."""
SYNC_SECONDS = 1.0
DISK_QUEUE_BYTES = 32 << 20
"""Bytes that may wait for the disk; the encoder waits beyond that. Seconds of a recording: longer than a flash card
stalls."""
CHECKPOINT_SHARE = 8
"""A checkpoint is written once its frames are an eighth of all before them: a scan after a power cut has little to do,
and hours of frames are found through less than a hundred checkpoints."""
RECENT = 32
"""Frames that "lately" means in `Figures`."""
CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EROFS}
"""What a pipe or a device answers to fsync."""

QUALITY_PER_DOUBLING = 20.0
"""Steps of quality that double the bytes of a frame, measured on photographs."""
USUAL_QUALITY = 60
USUAL_COMPLEXITY = math.log2(0.55 / 8) - USUAL_QUALITY / QUALITY_PER_DOUBLING
"""Of a photograph with 0.55 bits per pixel at USUAL_QUALITY: what the first frame's quality is guessed from."""
RATE_HORIZON = 2.0
"""Seconds over which bytes spent beyond the rate, or saved, are given back."""
SLOWEST_HORIZON = 8
"""The least number of frames in the horizon, so that a frame every few seconds does not swing around the rate."""
LEARNING = 0.5
"""Weight of the newest frame in what is known of the scene. The loop is stable while this times QUALITY_PER_DOUBLING
over the true steps per doubling stays below 2: down to 5 steps per doubling."""
USUAL_FPS = 30.0


@dataclass(frozen=True)
class CapturedFrame:
    """(H, W, 3) uint8 RGB pixels, nanoseconds since 1970 (0: unknown), what travels beside them, a name for errors."""

    pixels: np.ndarray = field(repr=False)
    timestamp: int = 0
    metadata: Metadata | None = None
    name: str = ""


class _Encoded(NamedTuple):
    started: float
    seconds: float
    size: int


class FrameEncoder(Protocol):
    """The one call of `codec.Codec` that a recording needs."""

    def encode_frame(self, writer: RecordingWriter, frame: np.ndarray, **options: Any) -> None: ...


@dataclass(frozen=True)
class Figures:
    """A recording at one moment."""

    frames: int
    """Encoded."""
    safe: int
    """Of these, on the disk for good."""
    dropped: int
    waiting: int
    """Frames in the queue before the encoder."""
    bytes: int
    bytes_waiting: int
    """In the queue before the disk."""
    seconds: float
    """Since the recording began."""
    frame_seconds: float
    """The time that the frames span: by their timestamps, else by the frame rate that was named, else `seconds`."""
    fps: float
    """Frames encoded per second, lately."""
    megabits_per_second: float
    """Lately, per second of `frame_seconds`."""
    encode_ms: float
    """Per frame, lately: the networks, the entropy coder and what the disk made them wait."""
    quality: int
    """Of the last frame."""

    @property
    def mean_fps(self) -> float:
        return self.frames / self.seconds if self.seconds else 0.0

    @property
    def mean_megabits_per_second(self) -> float:
        return 8e-6 * self.bytes / self.frame_seconds if self.frame_seconds else 0.0


class RateControl:
    """The quality of each frame such that the recording keeps to `bits_per_second`.

    The logarithm of a frame's size is taken to be the scene's complexity, learned from frame to frame, plus its quality
    times a known slope. Each frame gets its share of the rate, corrected by what the frames before left over or owe.
    """

    def __init__(self, bits_per_second: float, fps: float = USUAL_FPS) -> None:
        self._bytes_per_second = bits_per_second / 8
        self._interval = 1 / fps
        self._owed = 0.0
        self._complexity: float | None = None
        self._timestamp = 0

    @property
    def _horizon(self) -> float:
        return max(RATE_HORIZON, SLOWEST_HORIZON * self._interval)

    def quality(self, pixels: int) -> int:
        """For the next frame, of so many pixels."""
        correction = 1 - self._owed / (self._bytes_per_second * self._horizon)
        share = self._bytes_per_second * self._interval * min(max(correction, 0.25), 2.0)
        complexity = USUAL_COMPLEXITY if self._complexity is None else self._complexity
        wanted = QUALITY_PER_DOUBLING * (math.log2(share / pixels) - complexity)
        return round(min(max(wanted, 1), 100))

    def spent(self, size: int, quality: int, pixels: int, timestamp: int) -> None:
        """The frame at `timestamp` (ns, 0: unknown) took `size` bytes at `quality`."""
        seen = math.log2(max(1, size) / pixels) - quality / QUALITY_PER_DOUBLING
        before = seen if self._complexity is None else self._complexity
        self._complexity = before + LEARNING * (seen - before)
        passed = self._interval
        if 0 < self._timestamp < timestamp:
            # A pause earns no more than the horizon, and hardly moves what is taken for the frame rate.
            passed = min((timestamp - self._timestamp) / 1e9, self._horizon)
            self._interval += 0.1 * (min(passed, 4 * self._interval) - self._interval)
        self._timestamp = timestamp
        limit = self._bytes_per_second * self._horizon
        self._owed = min(max(self._owed + size - self._bytes_per_second * passed, -limit), limit)


class Recorder:
    """Records frames into `output`, which is only appended to, with `codec`, which is in use until `close`.

    Give frames with `put` and end with `close`, which writes the index, or use it in a `with` block. `output` should be
    an unbuffered file, so that nothing waits in this process for longer than the disk makes it. When the disk or the
    encoder fails, the next `put` and `close` raise; what was written until then stays readable.
    """

    def __init__(
        self,
        output: BinaryIO,
        codec: FrameEncoder,
        *,
        quality: int = USUAL_QUALITY,
        bitrate: float | None = None,
        fps: float | None = None,
        drop: str = "oldest",
        queue: int = QUEUE,
        sync_seconds: float = SYNC_SECONDS,
        **encoding: Any,
    ) -> None:
        """`bitrate` (megabits per second) chooses the quality frame by frame; `fps` is the frame rate where the frames
        carry no timestamps (USUAL_FPS for a bit rate if nothing is said). `drop` and `queue` say what happens while the
        encoder is behind (DROP_POLICIES). What was written is made durable every `sync_seconds`. `encoding` goes to
        `Codec.encode_frame`: tile, levels, ...
        """
        if not 1 <= quality <= 100:
            raise UsageError(f"quality is {quality}: use 1 to 100")
        if bitrate is not None and not 0 < bitrate < math.inf:
            raise UsageError(f"bit rate is {bitrate}: use a number of megabits per second above 0")
        if fps is not None and not 0 < fps < math.inf:
            raise UsageError(f"frame rate is {fps}: use a number of frames per second above 0")
        if drop not in DROP_POLICIES:
            raise UsageError(f"drop policy {drop!r} is not known: use {', '.join(DROP_POLICIES)}")
        if queue < 1:
            raise UsageError(f"queue of {queue} frames: use 1 or more")
        if not 0 <= sync_seconds < math.inf:
            raise UsageError(f"{sync_seconds} seconds between syncs: use 0 or more")
        self._codec, self._quality, self._encoding = codec, quality, encoding
        self._fps = USUAL_FPS if fps is None and bitrate is not None else fps
        self._rate = RateControl(bitrate * 1e6, self._fps) if bitrate is not None else None
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._queue = _FrameQueue(queue, drop)
        self._error: LinnetError | None = None
        self._closed = False
        self._frames = self._stamped = self._safe = self._unlisted = 0
        self._first_timestamp = self._last_timestamp = 0
        self._ends: deque[int] = deque()
        self._recent: deque[_Encoded] = deque(maxlen=RECENT)
        self._sync_seconds, self._checkpoint_at = sync_seconds, self._started
        self._disk = _Disk(output, sync_seconds)
        self._writer = RecordingWriter(self._disk)  # type: ignore[arg-type] - it only writes
        self._encoder = threading.Thread(target=self._encode_all, name="linnet-encoder", daemon=True)
        self._encoder.start()

    def put(self, frame: CapturedFrame | np.ndarray) -> bool:
        """Queue a frame, whose pixels must stay as they are from now on. False when this or another frame was dropped
        for want of room, or when the recording was stopped.

        A bare array is stamped with the time of this call. Raises UsageError for what is no frame, and the error that
        ended the recording when one did.
        """
        if isinstance(frame, np.ndarray):
            frame = CapturedFrame(frame, time.time_ns())
        pixels = frame.pixels
        if not isinstance(pixels, np.ndarray) or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            found = f"shape {pixels.shape} and type {pixels.dtype}" if isinstance(pixels, np.ndarray) else type(pixels)
            raise UsageError(f"frame {frame.name or ''} has {found}: an (H, W, 3) uint8 RGB array is needed")
        if not isinstance(frame.timestamp, int | np.integer):
            raise UsageError(f"timestamp {frame.timestamp!r}: whole nanoseconds since 1970 are needed")
        if self._closed:
            raise UsageError("the recording is closed: it takes no more frames")
        self.check()
        kept = self._queue.put(frame)
        self.check()
        return kept

    def check(self) -> None:
        """Raise the error that ended the recording, if one did."""
        if self._error is not None:
            raise self._error

    def figures(self) -> Figures:
        with self._lock:
            durable = self._disk.durable
            while self._ends and self._ends[0] <= durable:
                self._ends.popleft()
                self._safe += 1
            now = time.monotonic()
            seconds = frame_seconds = now - self._started
            if self._stamped > 1 and self._first_timestamp < self._last_timestamp:
                span = (self._last_timestamp - self._first_timestamp) / 1e9
                frame_seconds = span / (self._stamped - 1) * self._frames
            elif self._fps and self._frames:
                frame_seconds = self._frames / self._fps
            recent = self._recent
            count = max(1, len(recent))
            fps = len(recent) / (now - recent[0].started) if recent else 0.0
            rate = 8e-6 * sum(frame.size for frame in recent) / count * self._frames / frame_seconds
            encode_ms = 1e3 * sum(frame.seconds for frame in recent) / count
            return Figures(
                self._frames, self._safe, self._queue.dropped, len(self._queue), self._writer.bytes_written,
                self._disk.waiting, seconds, frame_seconds, fps, rate, encode_ms, self._quality,
            )  # fmt: skip

    def stop(self) -> None:
        """End after the frame that is being encoded: those that wait are not recorded. Then `close`."""
        self._queue.close(discard=True)

    def close(self) -> Figures:
        """Encode what waits, write the index, make all of it durable. Raises the error that ended the recording."""
        self._queue.close()
        self._encoder.join()
        if not self._closed:
            self._closed = True
            with suppress(OSError):  # which the disk keeps
                self._writer.close()
            self._disk.close()
            if self._disk.error is not None:
                self._fail(self._disk.error)
        self.check()
        return self.figures()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close()
            return
        self.stop()
        with suppress(LinnetError):  # the block's own error says more
            self.close()

    def _encode_all(self) -> None:
        try:
            while (frame := self._queue.get()) is not None:
                self._encode(frame)
        except Exception as error:  # it must reach whoever gives the frames
            self._fail(error)

    def _encode(self, frame: CapturedFrame) -> None:
        started, start = time.monotonic(), self._writer.bytes_written
        height, width = frame.pixels.shape[:2]
        quality = self._rate.quality(width * height) if self._rate else self._quality
        self._codec.encode_frame(
            self._writer, frame.pixels, quality=quality, number=self._frames, timestamp=frame.timestamp,
            metadata=frame.metadata, **self._encoding,
        )  # fmt: skip
        end, now = self._writer.bytes_written, time.monotonic()
        if self._rate:
            self._rate.spent(end - start, quality, width * height, frame.timestamp)
        with self._lock:
            self._frames += 1
            self._ends.append(end)
            self._recent.append(_Encoded(started, now - started, end - start))
            self._quality = quality
            if frame.timestamp:
                self._stamped += 1
                self._first_timestamp = self._first_timestamp or frame.timestamp
                self._last_timestamp = frame.timestamp
        self._unlisted += 1
        if self._unlisted * CHECKPOINT_SHARE >= self._frames and now >= self._checkpoint_at + self._sync_seconds:
            self._writer.checkpoint()
            self._unlisted, self._checkpoint_at = 0, now

    def _fail(self, error: Exception) -> None:
        """The recording ends here, for good."""
        if error is self._disk.error:
            self._disk.close()
            safe = self.figures().safe
            assert isinstance(error, OSError)
            what = (error.strerror or str(error)).lower()
            advice = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "check the disk"
            frames = "1 frame is" if safe == 1 else f"{safe} frames are"
            mapped: LinnetError = MachineError(
                f"{what} after {self._disk.written} bytes: the recording ended, {frames} safe in it; {advice}"
            )
            mapped.__cause__ = error
        elif isinstance(error, LinnetError):
            mapped = error
        else:
            what = f"{type(error).__name__}: {error}"
            mapped = MachineError(f"the encoder failed on this machine ({what}): the recording ended")
            mapped.__cause__ = error
        self._error = self._error or mapped
        self._queue.close(discard=True)


class _FrameQueue:
    """Frames that wait for the encoder. `put` may be called from several threads."""

    def __init__(self, length: int, drop: str) -> None:
        self._length, self._drop = length, drop
        self._frames: deque[CapturedFrame] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: CapturedFrame) -> bool:
        with self._changed:
            while self._drop == "never" and len(self._frames) >= self._length and not self._closed:
                self._changed.wait()
            if self._closed:
                return False
            full = len(self._frames) >= self._length
            if full:
                self.dropped += 1
                if self._drop == "newest":
                    return False
                self._frames.popleft()
            self._frames.append(frame)
            self._changed.notify_all()
            return not full

    def get(self) -> CapturedFrame | None:
        """The next frame, waited for; None when there is none any more."""
        with self._changed:
            while not self._frames and not self._closed:
                self._changed.wait()
            if not self._frames:
                return None
            frame = self._frames.popleft()
            self._changed.notify_all()
            return frame

    def close(self, discard: bool = False) -> None:
        with self._changed:
            self._closed = True
            if discard:
                self._frames.clear()
            self._changed.notify_all()


class _Disk:
    """Writes what it is given to `output` at once, in its own thread, and syncs every `sync_seconds`.

    `written` bytes have been taken by the operating system, `durable` ones are on the disk for good.
    """

    def __init__(self, output: BinaryIO, sync_seconds: float) -> None:
        self._output, self._sync_seconds = output, sync_seconds
        self._chunks: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._synced_at = time.monotonic()
        self.written = self.durable = self.waiting = 0
        self.error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="linnet-disk", daemon=True)
        self._thread.start()

    def write(self, data: bytes) -> int:
        """Takes `data`, waiting while too much waits already; raises the error that ended the writing."""
        with self._changed:
            while self.waiting and self.waiting + len(data) > DISK_QUEUE_BYTES and self.error is None:
                self._changed.wait()
            if self.error is not None:
                raise self.error
            self._chunks.append(data)
            self.waiting += len(data)
            self._changed.notify_all()
        return len(data)

    def sync_is_due(self) -> bool:
        return time.monotonic() >= self._synced_at + self._sync_seconds

    def close(self) -> None:
        """Write and sync what waits. Leaves `output` open."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            while (chunk := self._next()) is not None:
                self._put(chunk)
                if self.sync_is_due():
                    self._sync()
            self._sync()
        except Exception as error:
            self._give_up(error if isinstance(error, OSError) else OSError(f"writing failed: {error}"))

    def _next(self) -> bytes | None:
        """The next chunk, empty when it is time to sync instead; None at the end."""
        with self._changed:
            while not self._chunks and not self._closed:
                if self.durable == self.written:
                    self._changed.wait()
                elif self.sync_is_due():
                    return b""
                else:
                    self._changed.wait(self._synced_at + self._sync_seconds - time.monotonic())
            return self._chunks.popleft() if self._chunks else None

    def _put(self, chunk: bytes) -> None:
        rest = memoryview(chunk)
        while rest:
            count = self._output.write(rest)
            count = len(rest) if count is None else count
            self.written += count
            rest = rest[count:]
        with self._changed:
            self.waiting -= len(chunk)
            self._changed.notify_all()

    def _sync(self) -> None:
        written = self.written
        if written > self.durable:
            self._output.flush()
            try:
                os.fsync(self._output.fileno())
            except OSError as error:
                if not isinstance(error, io.UnsupportedOperation) and error.errno not in CANNOT_SYNC:
                    raise
            self.durable = written
        self._synced_at = time.monotonic()

    def _give_up(self, error: OSError) -> None:
        with suppress(OSError, ValueError):  # else what was synced before is what is safe
            self._sync()
        with self._changed:
            self.error = error
            self.waiting = 0
            self._chunks.clear()
            self._changed.notify_all()
