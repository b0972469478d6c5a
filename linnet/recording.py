"""`linnet.record` and the command behind it: a source into a recording, with figures on the way.

The file has its final name from the start and is only appended to: a power cut leaves all of it but the last moment.
How frames wait, are encoded and written is `runtime.recorder`; where they come from is `capture`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from . import defaults, files
from .capture import RECONNECT_SECONDS, Folder, Source, Video, open_source
from .runtime.bitstream import TAIL_SIZE
from .runtime.boxes import SIGNATURE
from .runtime.codec import Codec
from .runtime.errors import InputError, LinnetError, MachineError, UsageError
from .runtime.recorder import QUEUE, SYNC_SECONDS, CapturedFrame, Figures, Recorder

LOOK_SECONDS = 0.25
"""Between two looks at a recording's figures."""
PARTING_SECONDS = 2.0
"""How long a camera may take to give its last frame; one that is silent is left behind."""
EMPTY_BYTES = len(SIGNATURE) + TAIL_SIZE
"""The size of a recording without frames."""

Progress = Callable[[Figures], None]


def record(
    source: str | int | os.PathLike[str] | Source | Iterable[CapturedFrame | np.ndarray],
    path: str | os.PathLike[str],
    *,
    quality: int = defaults.QUALITY,
    bitrate: float | None = None,
    fps: float | None = None,
    tile: int | None = None,
    drop: str | None = None,
    queue: int = QUEUE,
    reconnect: float = RECONNECT_SECONDS,
    sync_seconds: float = SYNC_SECONDS,
    overwrite: bool = False,
    bundle: str | os.PathLike[str] | None = None,
    backend: str = defaults.BACKEND,
    threads: int | None = None,
    progress: Progress | None = None,
    **encoding: Any,
) -> Figures:
    """Record `source` into the `.lnt` file at `path` until it ends. Ctrl-C ends it in good order and is raised then.

    `source` is what `capture.open_source` takes, or any iterable of (H, W, 3) uint8 RGB arrays (stamped when they
    come) or `CapturedFrame`s (with their own time and metadata). `bitrate` in megabits per second chooses the quality
    frame by frame; `fps` is the frame rate where frames carry no time. While the encoder is behind, a live source loses
    the frame that has waited longest and any other waits; `drop` ("oldest", "newest", "never") says otherwise for
    live sources and iterables. A URL's live stream that breaks is tried again for `reconnect` seconds, into the same
    file. `encoding` goes to `Codec.encode_frame`. `progress` is called a few times a second. A
    file that is there already is left alone unless `overwrite` is said.
    """
    frames = source
    if isinstance(source, str | int | os.PathLike):
        frames = open_source(source, fps=fps, reconnect=reconnect)
    elif not isinstance(source, Iterable):
        raise UsageError(f"{type(source).__name__} is no source of frames: give a path, a camera or an iterable")
    figures, ended_by = _record(
        frames, os.fspath(path), quality=quality, bitrate=bitrate, fps=fps, tile=tile, drop=drop, queue=queue,
        sync_seconds=sync_seconds, overwrite=overwrite, bundle=bundle, backend=backend, threads=threads,
        progress=progress, **encoding,
    )  # fmt: skip
    if ended_by is not None:
        raise ended_by
    return figures


def main(
    source: str,
    path: str,
    *,
    size: tuple[int, int] | None = None,
    reconnect: float = RECONNECT_SECONDS,
    as_json: bool = False,
    **settings: Any,
) -> int:
    """The command; `settings` are those of `record`. A signal is the usual end of a recording: the status is 0 then."""
    if as_json and path == files.PIPE:
        raise UsageError("the recording and its figures cannot both go to standard output: name a file")
    frames = open_source(source, size=size, fps=settings.get("fps"), reconnect=reconnect)
    name = files.shown(path, output=True)
    with _signals_interrupt(), _Line(frames) as line:
        figures, ended_by = _record(frames, path, progress=line, **settings)
    if figures.dropped:
        share = figures.dropped / (figures.frames + figures.dropped)
        note = f"{figures.dropped} frames ({share:.1%}) were dropped while the encoder was behind"
        print(f"linnet: {name}: note: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(_report(frames, path, figures, ended_by), indent=2))
    elif sys.stderr.isatty():
        print(
            f"{name}: {figures.frames} frames, {figures.bytes} bytes, {figures.mean_megabits_per_second:.2f} Mbit/s, "
            f"encoded at {figures.mean_fps:.1f} fps",
            file=sys.stderr,
        )
    if ended_by is not None and not isinstance(ended_by, KeyboardInterrupt):
        raise ended_by
    return 0


def _report(source: Source, path: str, figures: Figures, ended_by: BaseException | None) -> dict[str, Any]:
    return {
        "source": source.name, "file": path, "frames": figures.frames, "dropped": figures.dropped,
        "breaks": getattr(source, "breaks", 0),
        "bytes": figures.bytes, "seconds": figures.seconds, "frame_seconds": figures.frame_seconds,
        "fps": figures.mean_fps, "megabits_per_second": figures.mean_megabits_per_second,
        "encode_ms": figures.encode_ms, "quality": figures.quality,
        "interrupted": isinstance(ended_by, KeyboardInterrupt),
        "error": str(ended_by) if isinstance(ended_by, LinnetError) else None,
    }  # fmt: skip


def _record(
    frames: Any,
    path: str,
    *,
    fps: float | None = None,
    drop: str | None = None,
    overwrite: bool = False,
    bundle: str | os.PathLike[str] | None = None,
    backend: str = defaults.BACKEND,
    threads: int | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> tuple[Figures, BaseException | None]:
    """The figures of a recording that has its index, and what ended it before its source did."""
    live, ours = getattr(frames, "live", False), isinstance(frames, Video | Folder)
    if ours and os.path.exists(path) and os.path.exists(frames.name) and os.path.samefile(path, frames.name):
        raise UsageError(f"{path}: is the source itself; name another file")
    if drop is None or (ours and not live):
        drop = "oldest" if live else "never"
    # A codec of its own: the caller may need this thread's meanwhile, to decode the frames that it gives for instance.
    codec = Codec.open(bundle, backend, threads)
    ended_by: BaseException | None = None
    with _output(path, overwrite) as output:
        recorder = Recorder(output, codec, fps=fps or getattr(frames, "fps", None), drop=drop, **settings)
        feed = _ApartFeed(frames, recorder) if live else _Feed(frames, recorder, copy=not ours)
        try:
            feed.run(_Look(recorder, progress))
        except Exception as error:  # the source's: what it gave before is recorded
            ended_by = error
        except BaseException as error:
            ended_by = error
            recorder.stop()
        try:
            figures = recorder.close()
        except MachineError as error:
            raise MachineError(f"{files.shown(path, output=True)}: {error}") from error
        finally:
            feed.close()
        if not figures.frames:
            raise ended_by or InputError(f"{getattr(frames, 'name', 'the source')}: gave no frame; check it")
    return figures, ended_by


class _Feed:
    """Gives a source's frames to a recorder, in this thread: the source waits while the recorder does."""

    def __init__(self, frames: Iterable[CapturedFrame | np.ndarray], recorder: Recorder, *, copy: bool) -> None:
        self._frames, self._recorder, self._copy = frames, recorder, copy

    def run(self, look: Callable[[], None]) -> None:
        for frame in self._frames:
            self._recorder.put(_copied(frame) if self._copy else frame)
            look()

    def close(self) -> None:
        if isinstance(self._frames, Video | Folder):
            self._frames.close()


class _ApartFeed(_Feed):
    """The same in a thread of its own: a camera that is silent holds up neither the figures nor a signal."""

    def __init__(self, frames: Iterable[CapturedFrame | np.ndarray], recorder: Recorder) -> None:
        super().__init__(frames, recorder, copy=not isinstance(frames, Video))
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="linnet-capture", daemon=True)

    def run(self, look: Callable[[], None]) -> None:
        self._thread.start()
        while self._thread.is_alive():
            self._thread.join(LOOK_SECONDS)
            self._recorder.check()
            look()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            super().run(lambda: None)
        except BaseException as error:
            self._error = error

    def close(self) -> None:
        if isinstance(self._frames, Video):
            self._frames.stop()
        self._thread.join(PARTING_SECONDS)  # the recorder is closed: the next frame ends the thread
        if not self._thread.is_alive():  # else the camera is in use, and goes with the process
            super().close()


class _Look:
    """Shows a recording's figures now and then."""

    def __init__(self, recorder: Recorder, progress: Progress | None) -> None:
        self._recorder, self._progress, self._next = recorder, progress, 0.0

    def __call__(self) -> None:
        if self._progress is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + LOOK_SECONDS
            self._progress(self._recorder.figures())


def _copied(frame: CapturedFrame | np.ndarray) -> CapturedFrame:
    """A frame that stays as it is: many iterators fill the same array again and again."""
    if isinstance(frame, CapturedFrame):
        return dataclasses.replace(frame, pixels=np.array(frame.pixels))
    return CapturedFrame(np.array(frame), time.time_ns())


@contextmanager
def _output(path: str, overwrite: bool) -> Iterator[BinaryIO]:
    """A file that is unbuffered, durably in its folder from the start, and gone again if no frame came into it."""
    if path == files.PIPE:
        yield getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)
        return
    if os.path.isdir(path):
        raise UsageError(f"{path}: is a folder; name the file to write")
    files.require_folders(path)
    device = os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode)
    try:
        output = open(path, "wb" if device or overwrite else "xb", buffering=0)  # noqa: SIM115 - closed below
        if not device:
            _sync_folder(os.path.dirname(os.path.realpath(path)))
    except FileExistsError:
        raise UsageError(
            f"{path}: is there already; name another file or overwrite it (--force, overwrite=True)"
        ) from None
    except OSError as error:
        raise MachineError(f"{path}: {files.reason(error)}; choose a place that can be written to") from error
    try:
        yield output
    finally:
        empty = not device and os.fstat(output.fileno()).st_size <= EMPTY_BYTES
        output.close()
        if empty:
            with suppress(OSError):
                os.unlink(path)


def _sync_folder(folder: str) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems cannot
                os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Signals that ask for an end become a KeyboardInterrupt, also where a shell's `&` had SIGINT ignored."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    kinds = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        kinds.append(signal.SIGHUP)
    before = {}
    with suppress(ValueError):  # not in the main thread: the program around us decides
        for kind in kinds:
            before[kind] = signal.signal(kind, interrupt)
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


class _Line:
    """Says a source's notes as they come, and on a terminal the live figures."""

    def __init__(self, source: Source) -> None:
        self._source, self._bar, self._said = source, None, 0

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            bar_format = "{desc}: {percentage:3.0f}%|{bar}| " if self._source.count else "{desc}: "
            self._bar = tqdm(
                desc="recording", total=self._source.count, leave=False, file=sys.stderr, dynamic_ncols=True,
                bar_format=bar_format + "{n_fmt} frames, {elapsed}{postfix}",
            )  # fmt: skip
        return self._show

    def _show(self, figures: Figures) -> None:
        self._say_notes()
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"{figures.fps:.1f} fps, {figures.megabits_per_second:.2f} Mbit/s, quality {figures.quality}, "
                f"queue {figures.waiting}, to disk {figures.bytes_waiting / 1e6:.1f} MB, dropped {figures.dropped}",
                refresh=False,
            )
            self._bar.update(figures.frames - self._bar.n)

    def _say_notes(self) -> None:
        while self._said < len(self._source.notes):
            if self._bar is not None:
                self._bar.clear()
            print(f"linnet: {self._source.name}: note: {self._source.notes[self._said]}", file=sys.stderr, flush=True)
            self._said += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._say_notes()
