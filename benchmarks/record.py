"""`linnet bench record`: what recording a video costs beside the networks, and whether it keeps the encoder's pace.

In every round the same frames are read from the video alone, encoded alone, and recorded from the video into a file.
Costs are CPU time, per thread where a part has a thread of its own, so that a busy machine does not move the shares.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .. import defaults
from ..argument_types import positive, size
from ..files import require_folders
from ..runtime.backends import Backend
from ..runtime.errors import InputError, MachineError

FORMAT = "linnet-bench-record/1"
SIZE = 1920, 1080
FRAMES = 40
REPEAT = 3
FPS = 25
PAN = 8
"""Pixels that the made video moves per frame."""
FRAMES_HELD = 8
"""Decoded frames kept in memory for encoding alone."""
GOAL_SHARE = 0.25
"""Of the CPU time at most this is spent outside the networks."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("video", nargs="?", metavar="VIDEO", help="a video file (default: a pan over scikit-image's photographs)")
    add("--size", type=size, default=SIZE, metavar="WxH", help="of the video that is made (default: 1920x1080)")
    add("--frames", type=positive, default=FRAMES, metavar="N", help="frames to record (default: 40)")
    add("--repeat", type=positive, default=REPEAT, metavar="N", help="rounds (default: 3)")
    add("--quality", type=int, choices=range(1, 101), default=defaults.QUALITY, metavar="Q", help="default: 60")
    add("--bundle", help="codec bundle of linnet (default: the shipped one)")
    add("--json", type=Path, metavar="FILE", help="write all samples here")


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark and return the exit status."""
    from . import host
    from .single_thread import call

    require_folders(arguments.json)
    with tempfile.TemporaryDirectory(prefix="linnet-bench-") as folder:
        request = {
            "video": arguments.video, "size": arguments.size, "frames": arguments.frames, "repeat": arguments.repeat,
            "quality": arguments.quality, "bundle": arguments.bundle, "folder": folder,
        }  # fmt: skip
        document: dict[str, Any] = {"format": FORMAT, "host": host.fingerprint()} | call("record", request)
    document["summary"] = summarise(document["rounds"])
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(format_table(document))
    return 0


@dataclass
class Round:
    """Seconds of wall-clock time, and of CPU time of all threads or of those that the name says."""

    frames: int
    dropped: int
    bytes: int
    capture_s: float
    capture_cpu_s: float
    encoding_s: float
    recording_s: float
    recording_cpu_s: float
    encoder_cpu_s: float
    """Of the recorder's encoder thread, the networks included."""
    network_cpu_s: float


def summarise(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds, and the range of the share that the goal is about."""
    done = [Round(**sample) for sample in rounds]
    outside = [1 - r.network_cpu_s / r.recording_cpu_s for r in done]
    pace = [r.encoding_s / r.recording_s for r in done]

    def per_frame(seconds: list[float]) -> float:
        return 1000 * median(s / r.frames for s, r in zip(seconds, done, strict=True))

    return {
        "frames_per_s": median(r.frames / r.recording_s for r in done),
        "pace": {"min": min(pace), "median": median(pace), "max": max(pace)},
        "dropped": sum(r.dropped for r in done),
        "outside": {"min": min(outside), "median": median(outside), "max": max(outside)},
        "cpu_ms_per_frame": {
            "networks": per_frame([r.network_cpu_s for r in done]),
            "encoder around them": per_frame([r.encoder_cpu_s - r.network_cpu_s for r in done]),
            "reading the video": per_frame([r.capture_cpu_s for r in done]),
            "disk and the rest": per_frame([r.recording_cpu_s - r.encoder_cpu_s - r.capture_cpu_s for r in done]),
            "all": per_frame([r.recording_cpu_s for r in done]),
        },
    }


def format_table(document: dict[str, Any]) -> str:
    video, summary = document["video"], document["summary"]
    costs, pace, outside = summary["cpu_ms_per_frame"], summary["pace"], summary["outside"]
    verdict = "at most" if outside["median"] <= GOAL_SHARE else "ABOVE"
    lines = [
        f"{video['width']}x{video['height']}, {video['frames']} frames of {video['source']}; quality "
        f"{document['quality']}, networks on one thread, {len(document['rounds'])} rounds",
        f"recorded at {summary['frames_per_s']:.2f} frames per second, {pace['median']:.2f} "
        f"({pace['min']:.2f}-{pace['max']:.2f}) of the encoder alone in the same round; {summary['dropped']} dropped",
        "",
        f"{'CPU time per frame':<24}{'ms':>9}{'share':>9}",
    ]
    lines += [f"{name:<24}{cost:>9.1f}{cost / costs['all']:>9.1%}" for name, cost in costs.items()]
    return "\n".join([
        *lines, "",
        f"outside the networks: {outside['median']:.1%} ({outside['min']:.1%}-{outside['max']:.1%}) of the CPU time, "
        f"{verdict} the goal of {GOAL_SHARE:.0%}",
    ])  # fmt: skip


class ClockedBackend:
    """A backend on one thread that adds up its CPU time, in the thread that calls it."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self.name, self.cpu_s = backend, backend.name, 0.0

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        started = time.thread_time()
        outputs = self._backend.run(network, inputs)
        self.cpu_s += time.thread_time() - started
        return outputs


class _ClockedEncoder:
    """What a recorder needs of a codec, adding up the CPU time of the thread that encodes."""

    def __init__(self, codec: Any) -> None:
        self._codec, self.cpu_s = codec, 0.0

    def encode_frame(self, *arguments: Any, **options: Any) -> None:
        started = time.thread_time()
        self._codec.encode_frame(*arguments, **options)
        self.cpu_s += time.thread_time() - started


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """What `run` asks of its child process."""
    import cv2
    from tqdm import tqdm

    from ..runtime import backends
    from ..runtime.bundle import Bundle
    from ..runtime.codec import Codec

    cv2.setNumThreads(1)
    path, source = request["video"], "the given video"
    if path is None:
        path, source = make_video(Path(request["folder"]), tuple(request["size"]), request["frames"])
    bundle = Bundle.open(request["bundle"])
    backend = ClockedBackend(backends.select("onnxruntime", bundle, 1))
    codec, out = Codec(bundle, backend, 1), Path(request["folder"]) / "out.lnt"
    frames = [frame.pixels for frame in itertools.islice(_frames(path), FRAMES_HELD)]
    if not frames:
        raise InputError(f"{path}: gave no frame; check it")
    codec.encode(frames[0], quality=request["quality"])  # warm-up
    rounds = []
    for _ in tqdm(range(request["repeat"]), unit="round", desc="recording", disable=None):
        rounds.append(asdict(one_round(codec, backend, path, frames, out, request["frames"], request["quality"])))
        out.unlink()
    height, width = frames[0].shape[:2]
    video = {"source": source, "width": width, "height": height, "frames": rounds[0]["frames"]}
    return {"video": video, "quality": request["quality"], "rounds": rounds}


def one_round(
    codec: Any, backend: ClockedBackend, path: str, held: list[np.ndarray], out: Path, limit: int, quality: int
) -> Round:
    from ..runtime.recorder import Recorder
    from ..runtime.writer import RecordingWriter

    wall, cpu = time.perf_counter(), time.process_time()
    count = sum(1 for _ in itertools.islice(_frames(path), limit))
    capture_s, capture_cpu_s = time.perf_counter() - wall, time.process_time() - cpu

    wall, writer = time.perf_counter(), RecordingWriter(io.BytesIO())
    for number, pixels in zip(range(count), itertools.cycle(held), strict=False):
        codec.encode_frame(writer, pixels, quality=quality, number=number)
    encoding_s = time.perf_counter() - wall

    encoder, backend.cpu_s = _ClockedEncoder(codec), 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    with open(out, "xb", buffering=0) as file:
        recorder = Recorder(file, encoder, quality=quality, drop="never")
        for frame in itertools.islice(_frames(path), limit):
            recorder.put(frame)
        figures = recorder.close()
    return Round(
        frames=figures.frames, dropped=figures.dropped, bytes=figures.bytes,
        capture_s=capture_s, capture_cpu_s=capture_cpu_s, encoding_s=encoding_s,
        recording_s=time.perf_counter() - wall, recording_cpu_s=time.process_time() - cpu,
        encoder_cpu_s=encoder.cpu_s, network_cpu_s=backend.cpu_s,
    )  # fmt: skip


def _frames(path: str) -> Any:
    from ..capture import open_source

    source = open_source(path)
    try:
        yield from source
    finally:
        source.close()


def make_video(folder: Path, size: tuple[int, int], frames: int) -> tuple[str, str]:
    """A pan over a large picture in MPEG-4; its path and what it shows."""
    import cv2

    from . import mosaic

    width, height = size
    pictures, source = mosaic.stand_ins()
    wide = width + PAN * frames
    canvas = mosaic.build(pictures, max(wide * wide / mosaic.ASPECT, height * height * mosaic.ASPECT) / 1e6 * 1.02)
    path = str(folder / "video.mp4")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), FPS, size)
    if not writer.isOpened():
        raise MachineError("this OpenCV cannot write MPEG-4 to measure with; give a video file")
    for number in range(frames):
        left = PAN * number
        writer.write(np.ascontiguousarray(canvas[:height, left : left + width, ::-1]))
    writer.release()
    return path, f"an MPEG-4 pan over {source}"


if __name__ == "__main__":
    from linnet.benchmarks.single_thread import answer

    answer(measure)
