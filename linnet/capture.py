"""Frames from cameras, streams, video files and folders of pictures, with the time at which each was taken.

OpenCV opens what moves, Pillow reads pictures. A *live* source goes on by itself and its frames must be dropped when
nobody takes them; any other one waits. A live stream never ends, so where it does it broke: it is opened again, at
growing intervals, until a frame comes or the time for it is up. A file that ends has ended.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from typing import Any, Protocol

import numpy as np
from PIL import Image

from . import images
from .runtime.bitstream import Metadata
from .runtime.errors import InputError, MachineError, UsageError
from .runtime.recorder import CapturedFrame

PIPELINE = "gst:"
SILENCE_SECONDS = 10
"""A stream that says nothing for so long is broken."""
RECONNECT_SECONDS = 30.0
"""How long a broken stream is tried again: a camera's restart, a lost radio link behind a hill."""
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.25, 4.0
"""The waits between two tries; each is twice the one before."""
STREAM_SCHEMES = {"rtsp", "rtsps", "rtmp", "rtmps", "rtp", "srt", "udp"}
"""URLs that are live whatever they say about their length."""
MISSING_SHARE = 0.01
"""Fewer frames than announced are worth a note from here on: what a container announces is often a little off."""
EXIF_PHOTO, EXIF_GPS = 0x8769, 0x8825
EXIF_TAKEN, EXIF_TAKEN_ZONE, EXIF_TAKEN_FRACTION = 36867, 36881, 37521
GPS_TIME, GPS_DATE = 7, 29
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class Source(Protocol):
    """Iterate once over the frames, then `close`."""

    name: str
    """For messages: without the password of a URL."""
    live: bool
    fps: float | None
    """The frame rate that the source announces."""
    count: int | None
    """The number of frames, where the source has one."""
    notes: list[str]
    """Sentences about what was not as expected."""

    def __iter__(self) -> Iterator[CapturedFrame]: ...
    def close(self) -> None: ...


def open_source(
    source: str | int | os.PathLike[str],
    *,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    reconnect: float = RECONNECT_SECONDS,
) -> Source:
    """A camera (its number or device), a URL, `gst:` and a GStreamer pipeline, a folder of pictures, or a video file.

    `size` (width, height) and `fps` are asked of a camera, which may choose others. A live stream that breaks is tried
    again for `reconnect` seconds. Raises InputError or MachineError where there is nothing to read, UsageError for what
    is no source.
    """
    if not 0 <= reconnect < float("inf"):
        raise UsageError(f"{reconnect} seconds to reconnect: use 0 (not at all) or more")
    text = os.fspath(source) if isinstance(source, os.PathLike) else str(source)
    camera = text.isdecimal() or _is_device(text)
    if (size is not None) and not camera:
        raise UsageError(f"{text}: only a camera can be asked for a size; leave it out")
    if camera:
        return _camera(text, size, fps)
    if text.startswith(PIPELINE):
        return _pipeline(text)
    if "://" in text:
        return _stream(text, reconnect)
    if os.path.isdir(text):
        return Folder(text)
    if os.path.splitext(text)[1].lower() in images.FORMATS:
        raise UsageError(f"{text}: is named like a picture; give the folder, or use `linnet encode`")
    if not os.path.exists(text):
        raise InputError(f"{text}: no such file or folder; give a video, a folder, a camera's number or a URL")
    capture = _opened(text)
    if capture is None:
        raise InputError(f"{text}: not a video that OpenCV can read here; convert it, to H.264 in MP4 for instance")
    return Video(text, capture, live=False)


class Video:
    """What OpenCV reads frame by frame.

    Frames of a live source are stamped when they arrive; those of a file have the time since the file's start, so the
    first is 0. `reopen` gives a new capture of a live stream that broke, within so many seconds, or None.
    """

    def __init__(
        self, name: str, capture: Any, *, live: bool, reopen: Callable[[float], Any] | None = None, reconnect: float = 0
    ) -> None:
        import cv2

        self.name, self.live, self.notes = name, live, []
        self.breaks = 0
        """How often the stream broke and came back."""
        self._capture, self._cv2 = capture, cv2
        self._reopen, self._reconnect, self._stopped = reopen, reconnect, threading.Event()
        rate, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.fps: float | None = rate if 0 < rate < 1e4 else None
        self.count: int | None = int(count) if not live and 0 < count < 1 << 31 else None

    def __iter__(self) -> Iterator[CapturedFrame]:
        number, stamp = 0, -1
        while self._capture.grab() or self._back_again(number):
            stamp = time.time_ns() if self.live else self._position(stamp)
            found, pixels = self._capture.retrieve()
            if not found:
                break
            yield CapturedFrame(self._rgb(pixels), stamp, None, f"{number} of {self.name}")
            number += 1
        if self.live and not self._stopped.is_set():
            tried = f" and did not come back within {self._reconnect:g} seconds" if self._may_come_back else ""
            raise InputError(
                f"{self.name}: the source stopped after {number} frames{tried}; check it and its connection"
            )
        if self.count is not None and number < self.count - max(1, MISSING_SHARE * self.count):
            self.notes.append(f"{self.count} frames are announced and {number} could be read: the video may be damaged")

    def stop(self) -> None:
        """Give up a stream that is being tried again. May be called from another thread."""
        self._stopped.set()

    def close(self) -> None:
        self._capture.release()

    @property
    def _may_come_back(self) -> bool:
        return self.live and self._reopen is not None and self._reconnect > 0

    def _back_again(self, number: int) -> bool:
        """Whether a broken stream gave another frame in time, which is then grabbed."""
        if not self._may_come_back:
            return False
        broke, wait = time.monotonic(), FIRST_RETRY_SECONDS
        self.notes.append(f"the stream broke after {number} frames; trying again for {self._reconnect:g} seconds")
        self._capture.release()
        while (left := broke + self._reconnect - time.monotonic()) > 0:
            if self._stopped.wait(min(wait, left)):
                return False
            capture = self._reopen(max(1.0, min(SILENCE_SECONDS, left)))
            if capture is not None and capture.grab():
                self._capture, self.breaks = capture, self.breaks + 1
                self.notes.append(f"the stream is back after {time.monotonic() - broke:.1f} seconds")
                return True
            wait = min(2 * wait, LONGEST_RETRY_SECONDS)
        return False

    def _position(self, before: int) -> int:
        """Nanoseconds from the start of the file; counted up by the frame rate where the backend does not tell."""
        position = round(self._capture.get(self._cv2.CAP_PROP_POS_MSEC) * 1e6)
        return position if position > before else before + round(1e9 / (self.fps or 30))

    def _rgb(self, pixels: np.ndarray) -> np.ndarray:
        channels = pixels.shape[2] if pixels.ndim == 3 else 1
        codes = {1: self._cv2.COLOR_GRAY2RGB, 3: self._cv2.COLOR_BGR2RGB, 4: self._cv2.COLOR_BGRA2RGB}
        if pixels.dtype != np.uint8 or channels not in codes:
            raise InputError(
                f"{self.name}: gives {channels} channels of {pixels.dtype}; convert them to 8-bit BGR in the pipeline"
            )
        return self._cv2.cvtColor(pixels, codes[channels])


class Folder:
    """The PNG, JPEG, TIFF and WebP pictures of a folder by name, `2` before `10`, with their metadata."""

    live = False
    fps = None

    def __init__(self, path: str) -> None:
        try:
            names = os.listdir(path)
        except OSError as error:
            raise InputError(f"{path}: {(error.strerror or str(error)).lower()}; give a readable folder") from error
        pictures = [n for n in names if os.path.splitext(n)[1].lower() in images.FORMATS and not n.startswith(".")]
        if not pictures:
            raise InputError(f"{path}: no pictures are in this folder; {', '.join(images.FORMATS)} are known")
        self.name, self.notes = path, []
        self._paths = [os.path.join(path, name) for name in sorted(pictures, key=_natural)]
        self.count = len(self._paths)

    def __iter__(self) -> Iterator[CapturedFrame]:
        said = set()
        for path in self._paths:
            picture = images.read(path)
            for note in picture.notes:
                if note not in said:  # the same of every picture would fill the screen
                    said.add(note)
                    self.notes.append(f"{os.path.basename(path)}: {note}")
            yield CapturedFrame(picture.pixels, _time_taken(picture.metadata), picture.metadata, path)

    def close(self) -> None:
        pass


def _camera(text: str, size: tuple[int, int] | None, fps: float | None) -> Video:
    import cv2

    name = f"camera {text}"
    capture = _opened(int(text) if text.isdecimal() else text)
    if capture is None:
        raise MachineError(f"{name}: cannot be opened; check that it is connected and that no other program has it")
    if size is not None:
        capture.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
        capture.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
    if fps is not None:
        capture.set(cv2.CAP_PROP_FPS, fps)
    video = Video(name, capture, live=True)
    found = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    if size is not None and found != tuple(size):
        video.notes.append(f"{size[0]}x{size[1]} was asked for and {found[0]}x{found[1]} is what it gives")
    return video


def _pipeline(text: str) -> Video:
    cv2 = _opencv()
    if not cv2.videoio_registry.hasBackend(cv2.CAP_GSTREAMER):
        raise MachineError(
            f"{text}: this build of OpenCV has no GStreamer (wheels have none); install the system's python3-opencv"
        )
    capture = _opened(text.removeprefix(PIPELINE), cv2.CAP_GSTREAMER)
    if capture is None:
        raise InputError(f"{text}: GStreamer cannot start this pipeline; it must end in `! videoconvert ! appsink`")
    return Video(text, capture, live=True)


def _stream(url: str, reconnect: float) -> Video:
    cv2 = _opencv()
    name = re.sub(r"//[^/@]*@", "//", url)

    def opened(patience_seconds: float) -> Any:
        if not cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
            return _opened(url)
        patience, silence = round(1000 * patience_seconds), 1000 * SILENCE_SECONDS
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, patience, cv2.CAP_PROP_READ_TIMEOUT_MSEC, silence]
        return _opened(url, cv2.CAP_FFMPEG, limits)

    capture = opened(SILENCE_SECONDS)
    if capture is None:
        raise InputError(f"{name}: the stream cannot be opened; check the address and that its server runs")
    endless = capture.get(cv2.CAP_PROP_FRAME_COUNT) <= 0
    live = endless or url.partition("://")[0].lower() in STREAM_SCHEMES
    return Video(name, capture, live=live, reopen=opened, reconnect=reconnect)


def _opencv() -> Any:
    # FFmpeg talks to the terminal by itself. Our errors say what matters; whoever wants more sets the variable.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    try:
        import cv2
    except ImportError as error:
        raise MachineError(
            "OpenCV is not installed, which reads cameras and videos: pip install opencv-python-headless"
        ) from error
    return cv2


def _opened(source: str | int, backend: int = 0, parameters: list[int] | None = None) -> Any:
    """An opened `cv2.VideoCapture`, or None."""
    cv2 = _opencv()
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        capture = cv2.VideoCapture(source, backend, parameters or [])
        return capture if capture.isOpened() else None
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)


def _is_device(path: str) -> bool:
    try:
        return stat.S_ISCHR(os.stat(path).st_mode)
    except OSError:
        return path.startswith("/dev/")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts numbers by value: (value, "") between texts (0, text), which always take turns."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _time_taken(metadata: Metadata) -> int:
    """Nanoseconds since 1970 by EXIF: the camera's clock where it names its time zone, else GPS time; 0 if unknown."""
    if metadata.exif is None:
        return 0
    exif = Image.Exif()
    try:
        exif.load(images.EXIF_PREFIX + metadata.exif)
        photo, gps = exif.get_ifd(EXIF_PHOTO), exif.get_ifd(EXIF_GPS)
        if EXIF_TAKEN_ZONE in photo:
            taken = datetime.strptime(f"{photo[EXIF_TAKEN]} {photo[EXIF_TAKEN_ZONE]}", "%Y:%m:%d %H:%M:%S %z")
            fraction = str(photo.get(EXIF_TAKEN_FRACTION, "")).strip().ljust(9, "0")[:9]
            return (taken - EPOCH) // timedelta(seconds=1) * 10**9 + int(fraction)
        hours, minutes, seconds = (float(part) for part in gps[GPS_TIME])
        midnight = datetime.strptime(f"{gps[GPS_DATE]} +0000", "%Y:%m:%d %z")
        return (midnight - EPOCH).days * 86400 * 10**9 + round((hours * 3600 + minutes * 60 + seconds) * 1e9)
    except Exception:  # a damaged block, or one that says less than a time
        return 0
