"""Sources of frames and `linnet.record` from end to end: videos, folders, cameras, iterables, signals, errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
from PIL import Image

from linnet import capture, images, recording
from linnet.capture import open_source
from linnet.runtime.bitstream import Metadata
from linnet.runtime.codec import Codec
from linnet.runtime.errors import InputError, MachineError, UsageError
from linnet.runtime.reader import Reader
from linnet.runtime.recorder import CapturedFrame, Figures

WIDTH, HEIGHT = 128, 96
SMALL = {"tile": 64, "threads": 1, "backend": "onnxruntime"}
PATIENCE_SECONDS = 20


def grey(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.full((height, width, 3), 20 * number, np.uint8)


@pytest.fixture
def video(tmp_path: Path) -> str:
    """Ten frames, each redder than the one before, at 25 frames per second."""
    path = str(tmp_path / "clip.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 25, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for number in range(10):
        writer.write(np.full((HEIGHT, WIDTH, 3), (10, 50, 20 * number), np.uint8))
    writer.release()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures that a plain sort would put in the wrong order, one of another size, with metadata."""
    path = tmp_path / "flight"
    path.mkdir()
    for number in range(12):
        exif = Image.Exif()
        exif[0x010F] = f"maker {number}"
        metadata = Metadata(exif=exif.tobytes().removeprefix(images.EXIF_PREFIX))
        images.write(str(path / f"IMG_{number}.png"), grey(number, width=WIDTH + (number == 7)), metadata)
    (path / "notes.txt").write_text("not a picture")
    (path / ".hidden.png").write_text("nor this")
    return path


class FakeCamera:
    """Stands in for `cv2.VideoCapture`: gives `frames` frames, then fails, as an unplugged camera does."""

    frames = 5
    opened: ClassVar[list[tuple]] = []

    def __init__(self, *arguments: object) -> None:
        self.opened.append(arguments)
        self._left, self._properties = self.frames, {cv2.CAP_PROP_FPS: 30.0}

    def isOpened(self) -> bool:
        return True

    def set(self, key: int, value: float) -> bool:
        self._properties[key] = min(value, 640)
        return True

    def get(self, key: int) -> float:
        return self._properties.get(key, -1)

    def grab(self) -> bool:
        time.sleep(0.005)
        self._left -= 1
        return self._left >= 0

    def retrieve(self) -> tuple[bool, np.ndarray]:
        return True, np.full((HEIGHT, WIDTH, 3), (1, 2, 3), np.uint8)

    def release(self) -> None: ...


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> type[FakeCamera]:
    monkeypatch.setattr(FakeCamera, "opened", [])
    monkeypatch.setattr(cv2, "VideoCapture", FakeCamera)
    return FakeCamera


def timestamps(path: Path | str) -> list[int]:
    with open(path, "rb") as file:
        reader = Reader(file)
        assert reader.complete
        return [reader.timestamp(number) for number in range(reader.frame_count)]


def test_a_video_gives_rgb_frames_in_order_with_their_time(video: str) -> None:
    source = open_source(video)
    assert (source.live, source.fps, source.count) == (False, 25, 10)
    frames = list(source)
    assert [frame.timestamp for frame in frames] == [40_000_000 * number for number in range(10)]
    for number, frame in enumerate(frames):
        assert frame.pixels.shape == (HEIGHT, WIDTH, 3) and frame.pixels.dtype == np.uint8
        assert np.abs(frame.pixels.mean((0, 1)) - (20 * number, 50, 10)).max() < 6
    assert not source.notes
    source.close()


def test_a_video_that_ends_early_says_so(video: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(Path(video))
    source.count = 20
    assert len(list(source)) == 10
    assert "20 frames are announced and 10 could be read" in source.notes[0]


def test_a_folder_gives_its_pictures_in_natural_order_with_metadata(folder: Path) -> None:
    source = open_source(folder)
    assert (source.live, source.count) == (False, 12)
    frames = list(source)
    assert [int(frame.pixels[0, 0, 0]) for frame in frames] == [20 * number for number in range(12)]
    assert frames[7].pixels.shape == (HEIGHT, WIDTH + 1, 3)
    assert [f"maker {number}".encode() in frame.metadata.exif for number, frame in enumerate(frames)] == [True] * 12
    assert all(frame.timestamp == 0 for frame in frames)


@pytest.mark.parametrize(
    ("photo", "gps", "expected"),
    [
        (
            {36867: "2024:05:06 07:08:09", 36881: "+02:00", 37521: "25"}, {},
            1714972089_250_000_000,
        ),
        ({36867: "2024:05:06 07:08:09"}, {}, 0),
        ({}, {29: "2024:05:06", 7: (5.0, 8.0, 9.5)}, 1714972089_500_000_000),
        ({36867: "yesterday", 36881: "+02:00"}, {}, 0),
        ({}, {7: (1.0, 2.0)}, 0),
        ({}, {}, 0),
    ],
)  # fmt: skip
def test_exif_says_when_a_picture_was_taken(tmp_path: Path, photo: dict, gps: dict, expected: int) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif.get_ifd(0x8769).update(photo)
    exif.get_ifd(0x8825).update(gps)
    Image.new("RGB", (64, 64)).save(tmp_path / "a.jpg", exif=exif)
    assert [frame.timestamp for frame in open_source(tmp_path)] == [expected]


def test_notes_of_a_folder_are_said_once(tmp_path: Path) -> None:
    for name in "abc":
        Image.new("RGBA", (64, 64), (1, 2, 3, 4)).save(tmp_path / f"{name}.png")
    source = open_source(tmp_path)
    assert len(list(source)) == 3
    assert source.notes == ["a.png: transparency was flattened onto white"]


def test_what_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    bad, empty = tmp_path / "bad.mp4", tmp_path / "empty"
    bad.write_bytes(b"no video" * 100)
    empty.mkdir()
    for source, kind, said in (
        (str(bad), InputError, r"bad\.mp4: not a video"),
        (str(tmp_path / "missing.mp4"), InputError, "no such file"),
        (str(empty), InputError, "no pictures"),
        ("photo.jpg", UsageError, "linnet encode"),
        ("7", MachineError, "camera 7: cannot be opened"),
        ("/dev/video77", MachineError, "camera /dev/video77"),
        ("rtsp://pilot:secret@127.0.0.1:9/live", InputError, r"^rtsp://127\.0\.0\.1:9/live: "),
        ("gst:no-such-element ! appsink", (MachineError, InputError), "GStreamer"),
    ):
        with pytest.raises(kind, match=said) as caught:
            open_source(source)
        assert "secret" not in str(caught.value)
    with pytest.raises(UsageError, match="only a camera"):
        open_source(str(bad), size=(640, 480))


def test_opencv_and_ffmpeg_do_not_talk(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 100)
    code = "import sys, contextlib, linnet.capture as c\nfor s in sys.argv[1:]:\n"
    code += "  with contextlib.suppress(c.InputError, c.MachineError): c.open_source(s)"
    sources = [str(tmp_path / "bad.mp4"), "rtsp://127.0.0.1:9/live", "77"]
    result = subprocess.run([sys.executable, "-c", code, *sources], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_damaged_picture_is_named(folder: Path) -> None:
    (folder / "IMG_3.png").write_bytes(b"\x89PNG")
    frames = iter(open_source(folder))
    assert len([next(frames) for _ in range(3)]) == 3
    with pytest.raises(InputError, match=r"IMG_3\.png"):
        next(frames)


def test_a_camera_is_live_and_stamps_frames_as_they_come(camera: type[FakeCamera]) -> None:
    source = open_source("0", size=(1920, 1080), fps=30)
    assert camera.opened[0][0] == 0
    assert source.live and source.count is None
    assert source.notes == ["1920x1080 was asked for and 640x640 is what it gives"]
    frames, before = [], time.time_ns()
    with pytest.raises(InputError, match="camera 0: the source stopped after 5 frames"):
        for frame in source:
            frames.append(frame)
    stamps = [before, *(frame.timestamp for frame in frames), time.time_ns()]
    assert stamps == sorted(set(stamps))
    assert frames[0].pixels[0, 0].tolist() == [3, 2, 1]


def test_which_urls_are_live(camera: type[FakeCamera], monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_source("http://camera/video.mjpg").live
    monkeypatch.setattr(FakeCamera, "get", lambda self, key: 300.0)
    assert not open_source("https://archive/flight.mp4").live
    assert open_source("RTSP://camera/live").live


def test_grey_and_bgra_frames_become_rgb_and_others_are_refused(
    camera: type[FakeCamera], monkeypatch: pytest.MonkeyPatch
) -> None:
    for pixels, expected in (
        (np.full((4, 4), 9, np.uint8), [9, 9, 9]),
        (np.full((4, 4, 4), (1, 2, 3, 4), np.uint8), [3, 2, 1]),
    ):
        monkeypatch.setattr(FakeCamera, "retrieve", lambda self, pixels=pixels: (True, pixels))
        assert next(iter(open_source("0"))).pixels[0, 0].tolist() == expected
    monkeypatch.setattr(FakeCamera, "retrieve", lambda self: (True, np.zeros((4, 4), np.uint16)))
    with pytest.raises(InputError, match="uint16"):
        next(iter(open_source("0")))


def test_record_a_video(video: str, tmp_path: Path, codec: Codec) -> None:
    out = tmp_path / "out.lnt"
    seen: list[Figures] = []
    figures = recording.record(video, out, quality=50, queue=1, drop="oldest", progress=seen.append, **SMALL)
    assert (figures.frames, figures.safe, figures.dropped) == (10, 10, 0)  # a file waits, whatever the policy
    assert figures.bytes == out.stat().st_size
    assert figures.frame_seconds == pytest.approx(0.4)
    assert seen and seen[0].frames <= 10
    assert timestamps(out) == [40_000_000 * number for number in range(10)]
    frames = [frame.pixels for frame in open_source(video)]
    with open(out, "rb") as file:
        reader = Reader(file)
        assert reader.record(4).quality == 50
        straight = codec.decode(codec.encode(frames[4], quality=50, tile=64))
        assert np.array_equal(codec.decode(reader, frame=4), straight)


def test_record_a_folder(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.lnt"
    recording.record(folder, out, **SMALL)
    with open(out, "rb") as file:
        reader = Reader(file)
        assert reader.frame_count == 12
        assert reader.record(7).grid.width == WIDTH + 1
        assert b"maker 11" in reader.metadata(11).exif


def test_record_an_iterable_that_fills_one_array_again_and_again(tmp_path: Path, codec: Codec) -> None:
    def frames() -> Iterator[np.ndarray | CapturedFrame]:
        buffer = np.empty((HEIGHT, WIDTH, 3), np.uint8)
        for number in range(6):
            buffer[:] = 40 * number
            yield buffer if number < 3 else CapturedFrame(buffer, number, Metadata(xmp=b"%d" % number))
        buffer[:] = 255

    out, before = tmp_path / "out.lnt", time.time_ns()
    assert recording.record(frames(), out, **SMALL).frames == 6
    stamps = timestamps(out)
    assert before < stamps[0] < stamps[1] < stamps[2] < time.time_ns()
    assert stamps[3:] == [3, 4, 5]
    with open(out, "rb") as file:
        reader = Reader(file)
        assert reader.metadata(5).xmp == b"5"
        for number in range(6):
            assert abs(float(codec.decode(reader, frame=number).mean()) - 40 * number) < 8


def test_record_a_camera(camera: type[FakeCamera], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.lnt"
    with pytest.raises(InputError, match="camera 0: the source stopped after 5 frames"):
        recording.record(0, out, **SMALL)
    assert len(timestamps(out)) == 5  # with its index, whatever happened to the camera


def test_options_of_the_codec_pass_through(video: str, tmp_path: Path, codec: Codec) -> None:
    out = tmp_path / "out.lnt"
    recording.record(video, out, digest=True, levels=2, **SMALL)
    with open(out, "rb") as file:
        reader = Reader(file)
        assert len(reader.record(3).levels) == 2
        assert codec.verify_pixels(reader, 3)


def test_a_recording_is_never_overwritten_unasked(video: str, tmp_path: Path) -> None:
    out = tmp_path / "out.lnt"
    out.write_bytes(b"precious")
    with pytest.raises(UsageError, match=r"out\.lnt: is there already.*--force"):
        recording.record(video, out, **SMALL)
    assert out.read_bytes() == b"precious"
    assert recording.record(video, out, overwrite=True, **SMALL).frames == 10
    with pytest.raises(UsageError, match="the source itself"):
        recording.record(video, video, overwrite=True, **SMALL)
    assert len(list(open_source(video))) == 10


def test_a_source_without_frames_leaves_no_file(tmp_path: Path) -> None:
    out = tmp_path / "out.lnt"
    with pytest.raises(InputError, match="gave no frame"):
        recording.record(iter(()), out, **SMALL)
    with pytest.raises(UsageError, match="no source"):
        recording.record(3.5, out, **SMALL)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="bit rate"):
        recording.record(iter(()), out, bitrate=-1, **SMALL)
    with pytest.raises(UsageError, match="uint8 RGB"):
        recording.record([grey(1)[..., 0]], out, **SMALL)
    assert os.listdir(tmp_path) == []
    with pytest.raises(UsageError, match="folder does not exist"):
        recording.record([grey(1)], tmp_path / "no" / "out.lnt", **SMALL)
    with pytest.raises(UsageError, match="is a folder"):
        recording.record([grey(1)], tmp_path, **SMALL)


def test_a_failing_iterator_leaves_what_it_gave(tmp_path: Path) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield from (grey(1), grey(2), grey(3))
        raise ZeroDivisionError

    out = tmp_path / "out.lnt"
    with pytest.raises(ZeroDivisionError):
        recording.record(frames(), out, **SMALL)
    assert len(timestamps(out)) == 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_device_is_an_error_of_this_machine() -> None:
    with pytest.raises(MachineError, match="/dev/full: no space left on device"):
        recording.record((grey(number) for number in range(10**6)), "/dev/full", **SMALL)


FILLED = """
import resource, sys, numpy as np
from linnet.recording import record
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
record((np.full((96, 128, 3), i % 200, np.uint8) for i in range(10**6)), sys.argv[1], tile=64, threads=1)
"""


def test_a_file_that_may_not_grow_ends_the_recording(tmp_path: Path) -> None:
    out = tmp_path / "out.lnt"
    limit = 20_000
    command = [sys.executable, "-c", FILLED, str(out), str(limit)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "frames are safe in it" in result.stderr
    assert out.stat().st_size == limit
    reader = Reader(out.read_bytes())
    safe = int(result.stderr.rpartition(" frames are safe")[0].rpartition(" ")[2])
    assert reader.frame_count - 1 <= safe <= reader.frame_count


class Endless:
    """A live source that goes on until somebody stops it, and tells how far it is."""

    name, live, fps, count = "endless", True, None, None

    def __init__(self, at: Callable[[int], object], still: bool = False) -> None:
        self.notes: list[str] = []
        self._at, self._still = at, still

    def __iter__(self) -> Iterator[CapturedFrame]:
        number = 0
        while True:
            yield CapturedFrame(grey(number % 10), number + 1)
            number += 1
            self._at(number)
            time.sleep(PATIENCE_SECONDS if self._still and number == 3 else 0.002)

    def close(self) -> None: ...


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("still", [False, True])
def test_signals_end_a_recording_in_good_order(
    kind: signal.Signals,
    still: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if signal.getsignal(kind) is signal.SIG_IGN:
        pytest.skip(
            f"the tests were started with {kind.name} ignored, as nohup does, and so a recording ignores it too"
        )

    def at(number: int) -> None:
        if number == 3:
            threading.Timer(0.3, os.kill, (os.getpid(), kind)).start()

    monkeypatch.setattr(recording, "PARTING_SECONDS", 0.1)
    monkeypatch.setattr(recording, "open_source", lambda *_, **__: Endless(at, still))
    before, out, started = signal.getsignal(kind), tmp_path / "out.lnt", time.monotonic()
    assert recording.main("0", str(out), as_json=True, quality=40, **SMALL) == 0
    assert time.monotonic() - started < PATIENCE_SECONDS / 2
    report = json.loads(capsys.readouterr().out)
    assert report["interrupted"] and report["error"] is None
    assert len(timestamps(out)) == report["frames"] >= 1
    assert report["bytes"] == out.stat().st_size
    assert signal.getsignal(kind) is before


def test_a_live_source_loses_frames_while_the_encoder_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def at(number: int) -> None:
        if number == 300:
            raise InputError("unplugged")

    encode = Codec.encode_frame
    monkeypatch.setattr(Codec, "encode_frame", lambda *a, **k: (time.sleep(0.02), encode(*a, **k)))
    monkeypatch.setattr(recording, "open_source", lambda *_, **__: Endless(at))
    out = tmp_path / "out.lnt"
    with pytest.raises(InputError, match="unplugged"):
        recording.main("0", str(out), as_json=True, queue=2, **SMALL)
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert report["frames"] + report["dropped"] == 300
    assert report["dropped"] > 100
    assert f"{report['dropped']} frames" in said.err and "were dropped" in said.err
    assert report["error"] == "unplugged" and not report["interrupted"]
    stamps = timestamps(out)
    assert stamps == sorted(stamps) and len(stamps) == report["frames"]
    assert stamps[-2:] == [299, 300]  # the oldest make room


def test_the_command_reports(video: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.lnt"
    assert recording.main(video, str(out), as_json=True, bitrate=0.3, **SMALL) == 0
    said = capsys.readouterr()
    assert said.err == ""
    report = json.loads(said.out)
    assert (report["source"], report["file"], report["frames"], report["dropped"]) == (video, str(out), 10, 0)
    assert report["frame_seconds"] == pytest.approx(0.4) and report["fps"] > 0 and report["encode_ms"] > 0
    assert report["megabits_per_second"] == pytest.approx(8e-6 * report["bytes"] / 0.4)
    assert recording.main(video, str(tmp_path / "silent.lnt"), **SMALL) == 0
    assert capsys.readouterr() == ("", "")
    with pytest.raises(UsageError, match="standard output"):
        recording.main(video, "-", as_json=True)


def test_a_recording_may_go_to_a_pipe(video: str) -> None:
    code = f"from linnet.recording import main; main({video!r}, '-', tile=64, threads=1)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert result.returncode == 0, result.stderr
    reader = Reader(result.stdout)
    assert reader.complete and reader.frame_count == 10


def test_natural_order() -> None:
    names = ["b1", "a10", "a9", "10", "9", "a", "a9b", "A9"]
    assert sorted(names, key=capture._natural) == ["9", "10", "A9", "a", "a9", "a9b", "a10", "b1"]
