"""The recorder: order, drops, bit rate, and what a kill, a full disk or a failing encoder leave behind."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from linnet.runtime import recorder as recorder_module
from linnet.runtime.bitstream import FrameRecord, Metadata
from linnet.runtime.boxes import BOX_HEADER, SIGNATURE
from linnet.runtime.codec import Codec
from linnet.runtime.errors import InputError, MachineError, UsageError
from linnet.runtime.reader import Reader
from linnet.runtime.recorder import CapturedFrame, RateControl, Recorder
from linnet.runtime.tiles import TileGrid
from linnet.runtime.writer import RecordingWriter

WIDTH, HEIGHT, TILE = 128, 96, 64
TILES = 4
PATIENCE_SECONDS = 20


def frame(number: int, **more: object) -> CapturedFrame:
    """A frame that can be recognised: its timestamp is its number plus 1."""
    return CapturedFrame(np.full((HEIGHT, WIDTH, 3), number % 256, np.uint8), number + 1, **more)  # type: ignore[arg-type]


def payload(number: int, tile: int, size: int = 40) -> bytes:
    return random.Random(number * TILES + tile).randbytes(size)


class FakeCodec:
    """Writes recognisable tiles; `before` is called with each frame's number."""

    def __init__(self, before: Callable[[int], object] = lambda number: None, tile_bytes: int = 40) -> None:
        self._before, self._tile_bytes = before, tile_bytes

    def encode_frame(  # type: ignore[no-untyped-def]
        self, writer: RecordingWriter, pixels: np.ndarray, *, quality, number, timestamp, metadata, tile=TILE
    ) -> None:
        self._before(number)
        grid = TileGrid(pixels.shape[1], pixels.shape[0], tile)
        writer.begin(FrameRecord(grid, (quality,), bytes(32), number, timestamp), metadata)
        for at in range(grid.count):
            writer.tile(at, payload(number, at, self._tile_bytes))
        writer.end()


class Gate:
    """Holds the encoder at its first frame until `open`."""

    def __init__(self) -> None:
        self.reached, self._opened = threading.Event(), threading.Event()

    def __call__(self, number: int) -> None:
        self.reached.set()
        assert self._opened.wait(PATIENCE_SECONDS)

    def open(self) -> None:
        self._opened.set()


class SmallDisk(io.RawIOBase):
    """A file on a disk that is full after `room` bytes."""

    def __init__(self, room: int) -> None:
        self.content, self._room = bytearray(), room

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def]
        taken = bytes(data)[: self._room - len(self.content)]
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.content += taken
        return len(taken)


def timestamps(content: bytes) -> list[int]:
    reader = Reader(content)
    return [reader.timestamp(number) for number in range(reader.frame_count)]


def whole_tiles(content: bytes) -> list[tuple[int, int]]:
    """(offset, length) of each whole TILE box, found by nothing but the lengths."""
    found, at = [], len(SIGNATURE)
    while at + BOX_HEADER <= len(content):
        length = BOX_HEADER + int.from_bytes(content[at + 4 : at + 12], "little")
        if content[at : at + 4] == b"TILE" and at + length <= len(content):
            found.append((at, length))
        at += length
    return found


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_frames_keep_their_order_their_time_and_their_metadata() -> None:
    output = io.BytesIO()
    metadata = Metadata(exif=b"II*\0somewhere", xmp=b"<x/>", icc=b"profile")
    with Recorder(output, FakeCodec(), drop="never", queue=2) as recorder:
        for number in range(50):
            assert recorder.put(frame(number, metadata=metadata if number % 2 else None))
    figures = recorder.figures()
    assert (figures.frames, figures.safe, figures.dropped, figures.waiting) == (50, 50, 0, 0)
    assert figures.bytes == len(output.getvalue())
    reader = Reader(output.getvalue())
    assert reader.recording and reader.complete
    assert timestamps(output.getvalue()) == list(range(1, 51))
    for number in range(50):
        assert reader.record(number).number == number
        assert reader.metadata(number) == (metadata if number % 2 else Metadata())
        assert {at: tile.payload for at, tile in reader.tiles(number, range(TILES)).items()} == {
            at: payload(number, at) for at in range(TILES)
        }


@pytest.mark.parametrize(("drop", "kept"), [("oldest", [1, 8, 9, 10]), ("newest", [1, 2, 3, 4])])
def test_a_full_queue_drops_what_the_policy_says(drop: str, kept: list[int]) -> None:
    gate, output = Gate(), io.BytesIO()
    with Recorder(output, FakeCodec(gate), drop=drop, queue=3) as recorder:
        assert recorder.put(frame(0))
        assert gate.reached.wait(PATIENCE_SECONDS)
        assert [recorder.put(frame(number)) for number in range(1, 10)] == [True] * 3 + [False] * 6
        assert (recorder.figures().waiting, recorder.figures().dropped) == (3, 6)
        gate.open()
    assert timestamps(output.getvalue()) == kept
    assert recorder.figures().frames == 4


def test_back_pressure_drops_nothing() -> None:
    output, waiting = io.BytesIO(), []
    with Recorder(output, FakeCodec(lambda number: time.sleep(0.002)), drop="never", queue=3) as recorder:
        for number in range(60):
            assert recorder.put(frame(number))
            waiting.append(recorder.figures().waiting)
    assert timestamps(output.getvalue()) == list(range(1, 61))
    assert recorder.figures().dropped == 0
    assert max(waiting) <= 3


def test_several_cameras_may_give_frames() -> None:
    output = io.BytesIO()
    with Recorder(output, FakeCodec(), drop="never", queue=2) as recorder:
        threads = [
            threading.Thread(target=lambda first=first: [recorder.put(frame(first + i)) for i in range(20)])
            for first in (0, 100, 200)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    found = timestamps(output.getvalue())
    for first in (0, 100, 200):
        assert [stamp for stamp in found if first < stamp <= first + 20] == list(range(first + 1, first + 21))


def test_stop_finishes_the_frame_that_is_being_encoded() -> None:
    gate, output = Gate(), io.BytesIO()
    recorder = Recorder(output, FakeCodec(gate), drop="never")
    for number in range(4):
        recorder.put(frame(number))
    assert gate.reached.wait(PATIENCE_SECONDS)
    recorder.stop()
    assert not recorder.put(frame(4))
    gate.open()
    assert recorder.close().frames == 1
    assert Reader(output.getvalue()).complete
    assert timestamps(output.getvalue()) == [1]
    with pytest.raises(UsageError, match="closed"):
        recorder.put(frame(5))


def test_an_error_in_the_block_is_raised_and_the_index_written() -> None:
    output = io.BytesIO()
    with pytest.raises(ZeroDivisionError), Recorder(output, FakeCodec(), drop="never") as recorder:
        recorder.put(frame(0))
        wait_for(lambda: recorder.figures().frames == 1)
        raise ZeroDivisionError
    assert timestamps(output.getvalue()) == [1]
    assert Reader(output.getvalue()).complete


def test_a_frame_becomes_durable_while_nothing_else_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    monkeypatch.setattr(recorder_module.os, "fsync", lambda handle: synced.append(os.fstat(handle).st_size))
    with open(tmp_path / "out.lnt", "wb", buffering=0) as output:
        with Recorder(output, FakeCodec(), sync_seconds=0.05) as recorder:
            recorder.put(frame(0))
            wait_for(lambda: recorder.figures().safe == 1)
            assert synced[-1] == recorder.figures().bytes
            count = len(synced)
            time.sleep(0.2)
            assert len(synced) == count  # nothing new, nothing to do
        assert synced[-1] == os.path.getsize(output.name)


def test_nothing_waits_in_the_process(tmp_path: Path) -> None:
    """A kill must find all tiles in the file, synced or not."""
    path = tmp_path / "out.lnt"
    with open(path, "wb", buffering=0) as output, Recorder(output, FakeCodec(), sync_seconds=1000) as recorder:
        for number in range(5):
            recorder.put(frame(number))
        wait_for(lambda: recorder.figures().frames == 5 and not recorder.figures().bytes_waiting)
        assert timestamps(path.read_bytes()) == [1, 2, 3, 4, 5]


def test_few_checkpoints_for_many_frames() -> None:
    output = io.BytesIO()
    with Recorder(output, FakeCodec(tile_bytes=0), drop="never", sync_seconds=0) as recorder:
        for number in range(2000):
            recorder.put(frame(number))
    assert 10 < output.getvalue().count(b"CKPT") < 80
    assert timestamps(output.getvalue()) == list(range(1, 2001))


@pytest.mark.parametrize("room", [*range(0, 1400, 37), 1999])
def test_a_full_disk_keeps_every_tile_that_fitted(room: int) -> None:
    whole = io.BytesIO()
    with Recorder(whole, FakeCodec(), drop="never", sync_seconds=1000) as recorder:
        for number in range(4):
            recorder.put(frame(number))
    boxes = whole.getvalue()
    assert len(boxes) > 1400
    disk = SmallDisk(min(room, len(boxes) - 1))
    recorder = Recorder(disk, FakeCodec(), drop="never", sync_seconds=1000)
    with pytest.raises(MachineError, match="no space left on device") as caught:
        for number in range(4):
            recorder.put(frame(number))
        recorder.close()
    with pytest.raises(MachineError):
        recorder.close()
    assert bytes(disk.content) == boxes[: len(disk.content)]
    places = [entry for number in range(4) for entry in Reader(boxes).index(number).entries]
    fitted = whole_tiles(bytes(disk.content))
    assert fitted == places[: len(fitted)]
    expected = {divmod(at, TILES): payload(*divmod(at, TILES)) for at in range(len(fitted))}
    ends = [boxes.index(b"INDX", places[number * TILES - 1][0]) for number in range(1, 5)]
    ends = [end + BOX_HEADER + int.from_bytes(boxes[end + 4 : end + 12], "little") for end in ends]
    safe = sum(end <= len(disk.content) for end in ends)
    assert recorder.figures().safe == safe
    assert f"{safe} frame{' is' if safe == 1 else 's are'} safe" in str(caught.value)
    found = {}
    if expected:
        reader = Reader(bytes(disk.content))
        for number in range(reader.frame_count):
            for at, entry in enumerate(reader.index(number).entries):
                if entry != (0, 0):
                    found[number, at] = reader.tile(at, number)
    assert found == expected


def test_a_disk_that_fails_to_sync_says_what_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with open(tmp_path / "out.lnt", "wb", buffering=0) as output:
        recorder = Recorder(output, FakeCodec(), sync_seconds=0)
        recorder.put(frame(0))
        wait_for(lambda: recorder.figures().safe == 1)
        monkeypatch.setattr(recorder_module.os, "fsync", fail)
        recorder.put(frame(1))
        wait_for(lambda: recorder._error is not None or recorder._disk.error is not None)
        with pytest.raises(MachineError, match=r"(?i)input/output error.*1 frame is safe"):
            recorder.close()


def test_a_slow_disk_holds_the_encoder_up_and_not_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class SlowDisk(io.BytesIO):
        def write(self, data) -> int:  # type: ignore[no-untyped-def]
            waiting.append(recorder._disk.waiting if recorder else 0)
            time.sleep(0.001)
            return super().write(data)

    monkeypatch.setattr(recorder_module, "DISK_QUEUE_BYTES", 600)
    waiting: list[int] = []
    recorder: Recorder | None = None
    output = SlowDisk()
    recorder = Recorder(output, FakeCodec(), drop="never")
    for number in range(20):
        recorder.put(frame(number))
    assert recorder.close().frames == 20
    assert max(waiting) <= 600
    assert timestamps(output.getvalue()) == list(range(1, 21))


def test_a_failing_encoder_is_an_error_for_the_giver_and_keeps_the_rest() -> None:
    def fail(number: int) -> None:
        if number == 3:
            raise RuntimeError("the network is gone")

    output = io.BytesIO()
    recorder = Recorder(output, FakeCodec(fail), drop="never", queue=1)
    with pytest.raises(MachineError, match="the network is gone"):
        for number in range(100):
            recorder.put(frame(number))
    with pytest.raises(MachineError, match="the network is gone"):
        recorder.close()
    assert timestamps(output.getvalue()) == [1, 2, 3]
    assert Reader(output.getvalue()).complete


def test_what_is_no_frame_is_refused_at_once() -> None:
    with Recorder(io.BytesIO(), FakeCodec()) as recorder:
        for bad in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)):
            with pytest.raises(UsageError, match="uint8 RGB"):
                recorder.put(bad)
        with pytest.raises(UsageError, match="nanoseconds"):
            recorder.put(CapturedFrame(frame(0).pixels, 1.5))  # type: ignore[arg-type]
        with pytest.raises(UsageError, match=r"7 of clip\.mp4.*list"):
            recorder.put(CapturedFrame([[1]], name="7 of clip.mp4"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {"quality": 0}, {"quality": 101}, {"bitrate": 0}, {"bitrate": float("nan")}, {"fps": -1}, {"queue": 0},
        {"drop": "some"}, {"sync_seconds": -1},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict) -> None:
    with pytest.raises(UsageError):
        Recorder(io.BytesIO(), FakeCodec(), **settings)


def test_figures_count_the_time_that_the_frames_span() -> None:
    with Recorder(io.BytesIO(), FakeCodec(tile_bytes=1000), drop="never") as recorder:
        for number in range(11):
            recorder.put(CapturedFrame(frame(0).pixels, 5 + number * 100_000_000))
    figures = recorder.figures()
    assert figures.frame_seconds == pytest.approx(1.1)
    assert figures.mean_megabits_per_second == pytest.approx(8e-6 * figures.bytes / 1.1)
    assert figures.megabits_per_second == pytest.approx(8e-6 * figures.bytes / 1.1, rel=0.1)
    assert figures.fps > 0 and figures.encode_ms > 0


class Scene:
    """A synthetic sequence: how many bytes a frame takes at a quality."""

    def __init__(self, doubling: float = 27, complexity: float = 0, noise: float = 0.1) -> None:
        self.doubling, self.complexity, self._noise = doubling, complexity, noise
        self._random = random.Random(1)

    def size(self, quality: int) -> int:
        bits = 0.7 * 1920 * 1080 * 2 ** ((quality - 60) / self.doubling + self.complexity)
        return round(bits / 8 * 2 ** self._random.gauss(0, self._noise)) + 200


def drive(control: RateControl, scene: Scene, stamps: list[int]) -> tuple[list[int], list[int]]:
    sizes, qualities = [], []
    for stamp in stamps:
        quality = control.quality(1920 * 1080)
        size = scene.size(quality)
        control.spent(size, quality, 1920 * 1080, stamp)
        sizes.append(size)
        qualities.append(quality)
    return sizes, qualities


def clock(count: int, fps: float, start: int = 10**18) -> list[int]:
    return [start + round(number * 1e9 / fps) for number in range(count)]


@pytest.mark.parametrize("fps", [60, 25, 2, 0.2])
@pytest.mark.parametrize("doubling", [15, 27, 45])
@pytest.mark.parametrize("complexity", [-0.7, 0, 0.7])
def test_bit_rate_is_kept(fps: float, doubling: float, complexity: float) -> None:
    target = 0.6 * 1920 * 1080 * fps
    sizes, qualities = drive(RateControl(target), Scene(doubling, complexity), clock(600, fps))
    settled = slice(200, None)
    assert 8 * sum(sizes[settled]) * fps / len(sizes[settled]) == pytest.approx(target, rel=0.03)
    assert np.std(qualities[settled]) < 4  # no swinging
    assert max(abs(np.diff(qualities[settled]))) < 15


def test_bit_rate_without_timestamps_goes_by_the_frame_rate() -> None:
    sizes, _ = drive(RateControl(1e7, 12.5), Scene(), [0] * 400)
    assert 8 * sum(sizes[100:]) * 12.5 / 300 == pytest.approx(1e7, rel=0.03)


def test_bit_rate_survives_cuts_pauses_and_uneven_frames() -> None:
    target, scene = 3e7, Scene()
    control = RateControl(target)
    drive(control, scene, clock(300, 30))
    scene.complexity = 1.2  # a cut to something busy
    sizes, _ = drive(control, scene, clock(300, 30, 10**18 + 10 * 10**9))
    assert 8 * sum(sizes[:60]) / 2 == pytest.approx(target, rel=0.25)
    assert 8 * sum(sizes[60:]) / 8 == pytest.approx(target, rel=0.03)
    _, qualities = drive(control, scene, clock(300, 30, 10**18 + 3600 * 10**9))  # an hour later
    assert max(qualities) - min(qualities[50:]) < 45
    jitter = random.Random(2)
    stamps = sorted(10**18 + 7200 * 10**9 + jitter.randrange(20 * 10**9) for _ in range(600))
    sizes, _ = drive(control, scene, stamps)
    assert 8 * sum(sizes[100:]) / ((stamps[-1] - stamps[100]) / 1e9) == pytest.approx(target, rel=0.05)


@pytest.mark.parametrize(("target", "quality"), [(1e4, 1), (1e10, 100)])
def test_a_bit_rate_out_of_reach_is_met_as_well_as_can_be_and_forgotten(target: float, quality: int) -> None:
    control, scene = RateControl(target), Scene()
    _, qualities = drive(control, scene, clock(300, 30))
    assert set(qualities[3:]) == {quality}
    control._bytes_per_second = 3e7 / 8
    sizes, _ = drive(control, scene, clock(300, 30, 10**18 + 10 * 10**9))
    assert 8 * sum(sizes[200:]) * 30 / 100 == pytest.approx(3e7, rel=0.05)


def test_recorder_keeps_a_bit_rate_with_the_shipped_codec(codec: Codec) -> None:
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 255, (24, 32, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    output = io.BytesIO()
    with Recorder(output, codec, bitrate=2, drop="never", tile=TILE) as recorder:
        for number in range(50):
            recorder.put(CapturedFrame(np.roll(scene, 3 * number, 1)[:192, :256], 1 + number * 40_000_000))
    assert recorder.figures().mean_megabits_per_second == pytest.approx(2, rel=0.1)
    reader = Reader(output.getvalue())
    assert len({reader.record(number).quality for number in range(50)}) > 1


KILLED = """
import sys, numpy as np
from linnet.recording import record
from linnet.runtime.recorder import CapturedFrame
def frames():
    number = 0
    while True:
        yield CapturedFrame(np.full(({height}, {width}, 3), number % 256, np.uint8), number + 1)
        number += 1
record(frames(), sys.argv[1], tile={tile}, threads=1, sync_seconds=0.05, backend="onnxruntime")
"""


@pytest.mark.parametrize("seed", range(3))
def test_sigkill_loses_no_tile(seed: int, tmp_path: Path, codec: Codec) -> None:
    path = tmp_path / "out.lnt"
    code = KILLED.format(height=HEIGHT, width=WIDTH, tile=TILE)
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stderr=subprocess.PIPE)
    try:
        wait_for(lambda: (path.exists() and path.stat().st_size > 5000) or child.poll() is not None)
        time.sleep(random.Random(seed).uniform(0, 0.5))
    finally:
        child.send_signal(signal.SIGKILL)
        _, errors = child.communicate()
    assert child.returncode == -signal.SIGKILL, errors.decode()
    content = path.read_bytes()
    reader = Reader(content)
    assert reader.recording and not reader.complete
    assert timestamps(content) == list(range(1, reader.frame_count + 1))
    found = []
    for number in range(reader.frame_count):
        present = [at for at, entry in enumerate(reader.index(number).entries) if entry != (0, 0)]
        assert len(reader.tiles(number, present)) == len(present)  # each checked by its checksum
        found += [reader.index(number).entries[at] for at in present]
    assert sorted(found) == whole_tiles(content)
    last = reader.frame_count - 2
    straight = codec.decode(codec.encode(np.full((HEIGHT, WIDTH, 3), last % 256, np.uint8), tile=TILE))
    assert np.array_equal(codec.decode(content, frame=last), straight)


def test_every_prefix_of_a_recording_opens() -> None:
    """What a power cut leaves is a prefix, at any byte."""
    whole = io.BytesIO()
    with Recorder(whole, FakeCodec(tile_bytes=3), drop="never", sync_seconds=0) as recorder:
        for number in range(4):
            recorder.put(frame(number))
    content = whole.getvalue()
    frames = 0
    for length in range(len(content)):
        try:
            found = Reader(content[:length]).frame_count
        except InputError:
            found = 0
        assert found >= frames, length
        frames = max(frames, found)
    assert frames == 4
