"""Streams that break: a real MJPEG server on loopback drops the connection, refuses, comes back, or stays away."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest

from linnet import capture, recording
from linnet.capture import open_source
from linnet.runtime.errors import InputError, UsageError
from linnet.runtime.reader import Reader

TINY = str(Path(__file__).parent / "vectors" / "tiny.lntb")
SETTINGS = {"tile": 64, "threads": 1, "backend": "onnxruntime", "bundle": TINY}
FRAMES = 8
"""That each connection gives before it is dropped."""


class Camera:
    """A network camera: each connection gets FRAMES frames and is closed, as far as `connections` says."""

    def __init__(self, connections: int) -> None:
        self.left, self.asked = connections, 0
        self.before: Callable[[int], object] = lambda number: None
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                camera.asked += 1
                if camera.left <= 0:
                    self.send_error(503)
                    return
                camera.left -= 1
                camera.before(camera.asked)
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                for number in range(FRAMES):
                    jpeg = cv2.imencode(".jpg", np.full((48, 64, 3), 20 * number, np.uint8))[1].tobytes()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    self.wfile.write(head.encode() + jpeg + b"\r\n")
                    self.wfile.flush()
                    time.sleep(0.01)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://pilot:secret@127.0.0.1:{self._server.server_port}/video.mjpg"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Camera]]:
    cameras: list[Camera] = []

    def made(connections: int) -> Camera:
        cameras.append(Camera(connections))
        return cameras[-1]

    if not cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
        pytest.skip("this OpenCV has no FFmpeg, which reads streams")
    monkeypatch.setattr(capture, "FIRST_RETRY_SECONDS", 0.05)
    yield made
    for one in cameras:
        one.close()


def test_a_stream_that_breaks_is_taken_up_again(camera: Callable[[int], Camera]) -> None:
    served = camera(3)
    source = open_source(served.url, reconnect=3.0)
    assert source.live
    frames = []
    with pytest.raises(InputError, match=r"stopped after 24 frames and did not come back within 3 seconds") as caught:
        for frame in source:
            frames.append(frame)
    assert "secret" not in str(caught.value) + str(source.notes)
    assert [round(float(frame.pixels.mean()) / 20) for frame in frames] == [*range(FRAMES)] * 3
    stamps = [frame.timestamp for frame in frames]
    assert stamps == sorted(stamps)
    assert source.breaks == 2
    assert [note.split(" ")[:3] for note in source.notes] == [
        ["the", "stream", "broke"], ["the", "stream", "is"], ["the", "stream", "broke"], ["the", "stream", "is"],
        ["the", "stream", "broke"],
    ]  # fmt: skip
    assert "after 8 frames; trying again for 3 seconds" in source.notes[0]
    assert 4 <= served.asked < 12  # it waits longer and longer
    source.close()


def test_without_reconnecting_the_first_break_is_the_end(camera: Callable[[int], Camera]) -> None:
    served = camera(3)
    source = open_source(served.url, reconnect=0)
    with pytest.raises(InputError, match=r"stopped after 8 frames; check"):
        list(source)
    assert served.asked == 1 and source.notes == []
    for seconds in (-1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="seconds to reconnect"):
            open_source(served.url, reconnect=seconds)


def test_all_of_it_goes_into_one_file_and_breaks_are_said_at_once(
    camera: Callable[[int], Camera],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served, out, said = camera(2), tmp_path / "out.lnt", io.StringIO()
    seen_by_the_second_connection = []

    def before(number: int) -> None:
        deadline = time.monotonic() + 10
        while number == 2 and "the stream broke" not in said.getvalue() and time.monotonic() < deadline:
            time.sleep(0.02)
        seen_by_the_second_connection.append("the stream broke after 8 frames" in said.getvalue())

    served.before = before
    monkeypatch.setattr(sys, "stderr", said)
    with pytest.raises(InputError, match="did not come back"):
        recording.main(served.url, str(out), reconnect=2.0, as_json=True, drop="never", **SETTINGS)
    assert seen_by_the_second_connection == [False, True]
    lines = said.getvalue().splitlines()
    assert [line.partition(": note: ")[2].split(" ")[2] for line in lines] == ["broke", "is", "broke"]
    assert all(line.startswith("linnet: http://127.0.0.1") for line in lines)
    report = json.loads(capsys.readouterr().out)
    assert (report["frames"], report["breaks"], report["interrupted"]) == (2 * FRAMES, 1, False)
    with open(out, "rb") as file:
        reader = Reader(file)
        assert reader.complete and reader.frame_count == 2 * FRAMES


def test_a_signal_ends_the_tries(
    camera: Callable[[int], Camera], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served, out = camera(1), tmp_path / "out.lnt"

    def interrupt() -> None:
        while served.asked < 4:  # the stream broke and was asked for three times in vain
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    started = time.monotonic()
    assert recording.main(served.url, str(out), reconnect=60, as_json=True, **SETTINGS) == 0
    assert time.monotonic() - started < 40
    report = json.loads(capsys.readouterr().out)
    assert report["interrupted"] and report["error"] is None and 1 <= report["frames"] <= FRAMES
    with open(out, "rb") as file:
        assert Reader(file).complete


def test_a_video_file_that_ends_is_no_break(tmp_path: Path) -> None:
    path = str(tmp_path / "clip.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    for _ in range(5):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    source, started = open_source(path, reconnect=60), time.monotonic()
    assert len(list(source)) == 5
    assert source.notes == [] and time.monotonic() - started < 10
