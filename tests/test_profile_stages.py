"""The stage clock: nothing while off, and seconds that add up to the wall time while on."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from linnet.benchmarks.profiling.accounting import Interval, innermost, stage_seconds
from linnet.benchmarks.profiling.figures import distribution, summarise
from linnet.benchmarks.profiling.pipeline import DECODE, DIRECTIONS, ENCODE, NETWORK, Pipeline
from linnet.runtime import stages
from linnet.runtime.codec import Codec
from linnet.runtime.stages import ENTROPY, LAYOUT, READ, WRITE, Recorder, Span, recording, stage


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    """(520, 1100, 3) uint8 with something to code everywhere."""
    y, x = np.mgrid[:520, :1100]
    return np.stack(
        [127 + 120 * np.sin(x / a + y * y / 9000 + y / b) for a, b in ((9, 31), (40, 13), (7, 7))], -1
    ).astype(np.uint8)


@pytest.fixture
def pipeline(codec: Codec, frame: np.ndarray, tmp_path: Path) -> Pipeline:
    return Pipeline(codec.bundle, codec.backend, frame, tmp_path, quality=60, tile=256, threads=1, batch=None)


def span(name: str, thread: int, start: int, end: int) -> Span:
    return Span(name, thread, start, end, "")


# Off


def test_off_reads_no_clock_and_marks_batches_only(
    codec: Codec, frame: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_clock() -> int:
        raise AssertionError("the clock was read while nobody recorded")

    monkeypatch.setattr(stages, "perf_counter_ns", no_clock)
    data = codec.encode(frame, tile=256)
    assert codec.decode(data).shape == frame.shape


def test_marks_are_few(codec: Codec, frame: np.ndarray) -> None:
    """What being off costs is a comparison per mark: they must not grow with tiles or rows."""

    def marks(tile: int) -> int:
        recorder = Recorder()
        with recording(recorder):
            codec.decode(codec.encode(frame, tile=tile))
        return len(recorder.spans)

    assert 0 < marks(512) <= 12  # of a megapixel, both directions
    assert marks(64) < 64, "162 tiles"


def test_recording_costs_little(codec: Codec, frame: np.ndarray, tmp_path: Path) -> None:
    """The marks of a frame, each with its measured cost, are below a percent of the frame's time."""
    pipeline = Pipeline(codec.bundle, codec.backend, frame, tmp_path, quality=60, tile=256, threads=1, batch=None)
    pipeline.run(ENCODE)
    recorder, cost = Recorder(), float("inf")
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(100):
            with recorder.span("stage"):
                pass
        cost = min(cost, (time.perf_counter() - started) / 100)
    for direction in DIRECTIONS:
        done = pipeline.run(direction)
        assert len(done.spans) * cost < 0.01 * done.wall_s


def test_marks_are_transparent() -> None:
    @stage("doubling")
    def double(value: int, *, times: int = 2) -> int:
        """Twice."""
        return value * times

    recorder = Recorder()
    with recording(recorder):
        assert double(3, times=4) == 12
        assert recorder.spans[0].stage == "doubling"
    assert double(5) == 10
    assert len(recorder.spans) == 1
    assert double.__doc__ == "Twice."


def test_one_recorder_at_a_time_and_off_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="another recorder"), recording(Recorder()), recording(Recorder()):
        pass
    recorder = Recorder()

    @stage("failing")
    def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError), recording(recorder):
        fail()
    assert [s.stage for s in recorder.spans] == ["failing"]
    with recording(Recorder()):
        pass


# Accounting


def test_innermost_of_nested_spans() -> None:
    spans = [span("b", 1, 10, 20), span("c", 1, 30, 40), span("a", 1, 0, 50), span("d", 1, 60, 70)]
    assert innermost(spans) == [
        Interval(0, 10, "a"), Interval(10, 20, "b"), Interval(20, 30, "a"), Interval(30, 40, "c"),
        Interval(40, 50, "a"), Interval(60, 70, "d"),
    ]  # fmt: skip


def test_innermost_where_spans_begin_or_end_together() -> None:
    spans = [span("inner", 1, 0, 10), span("outer", 1, 0, 30), span("last", 1, 10, 30)]
    assert innermost(spans) == [Interval(0, 10, "inner"), Interval(10, 30, "last")]
    assert innermost([]) == []


def test_a_moment_is_shared_among_the_threads_in_stages() -> None:
    second = 10**9
    share, busy = stage_seconds(
        [
            span("net", 1, 0, 4 * second),
            span("code", 2, 2 * second, 6 * second),
            span("code", 3, 3 * second, 4 * second),
        ]
    )
    assert busy == {"net": 4.0, "code": 5.0}
    assert share["net"] == pytest.approx(2 + 1 / 2 + 1 / 3)
    assert share["code"] == pytest.approx(1 / 2 + 2 / 3 + 2)
    assert sum(share.values()) == pytest.approx(6)


def test_threads_record_side_by_side() -> None:
    recorder = Recorder()

    @stage("work")
    def work() -> None:
        time.sleep(0.02)

    with recording(recorder):
        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(recorder.spans) == 3
    share, busy = stage_seconds(recorder.spans)
    assert busy["work"] >= 0.06
    assert share["work"] < busy["work"]


def test_distribution() -> None:
    found = distribution([0.010, 0.020, 0.010, 0.040])
    assert found["mean_ms"] == pytest.approx(20)
    assert found["p50_ms"] == pytest.approx(15)
    assert found["max_ms"] == pytest.approx(40)
    assert found["p99_ms"] == pytest.approx(np.percentile([10, 20, 10, 40], 99))
    assert found["jitter_ms"] == pytest.approx((10 + 10 + 30) / 3)
    assert distribution([0.010])["jitter_ms"] == 0


# A frame


def test_stages_add_up_to_the_wall_time(pipeline: Pipeline) -> None:
    for direction in DIRECTIONS:
        pipeline.run(direction)
        best = 0.0
        for _ in range(3):  # somebody else may take the processor just between two stages
            done = pipeline.run(direction)
            shares, busy = stage_seconds(done.spans)
            assert shares == pytest.approx(busy), "one thread"
            best = max(best, sum(shares.values()) / done.wall_s)
        assert 0.95 <= best <= 1


def test_every_stage_is_seen(pipeline: Pipeline, codec: Codec) -> None:
    seen = {d: {s.stage for s in pipeline.run(d).spans} for d in DIRECTIONS}
    networks = {NETWORK + name for name in codec.bundle.networks}
    outside = {READ, LAYOUT, ENTROPY, stages.CONTAINER, WRITE}
    assert seen[ENCODE] == outside | networks - {NETWORK + "synthesis"}
    assert seen[DECODE] == outside | networks - {NETWORK + "analysis", NETWORK + "hyper_analysis"}


def test_the_pipeline_is_the_codec(pipeline: Pipeline, codec: Codec, frame: np.ndarray, tmp_path: Path) -> None:
    """What is profiled writes the very bytes and pixels of the codec, also when a network takes fewer tiles a call."""
    plain = codec.encode(frame, quality=60, tile=256)
    in_twos = Pipeline(codec.bundle, codec.backend, frame, tmp_path, quality=60, tile=256, threads=1, batch=2)
    for way in (pipeline, in_twos):
        for direction in DIRECTIONS:
            way.run(direction)
        assert (tmp_path / "frame.lnt").read_bytes() == plain
        assert way.coded_bytes == len(plain)
        pixels = np.fromfile(tmp_path / "decoded.rgb", np.uint8).reshape(frame.shape)
        assert np.array_equal(pixels, codec.decode(plain))
    assert all(shapes[0][1][0] <= 2 for _, shapes in in_twos.backend.calls)
    assert any(shapes[0][1][0] > 2 for _, shapes in pipeline.backend.calls)


def test_summary_of_samples() -> None:
    def sample(wall: float, analysis: float, coding: float) -> dict[str, object]:
        stages_s = {NETWORK + "analysis": analysis, ENTROPY: coding}
        spans = [[name, 0, 0, 1, ""] for name in stages_s]
        return {
            "wall_s": wall,
            "cpu_s": wall,
            "peak_mib": 10 * wall,
            "stages_s": stages_s,
            "busy_s": stages_s,
            "spans": spans,
        }

    found = summarise(ENCODE, [sample(1, 0.7, 0.2), sample(3, 2.1, 0.8)], pixels=2_000_000)
    assert list(found["stages"]) == [NETWORK + "analysis", ENTROPY]
    assert found["stages"][NETWORK + "analysis"]["share"] == pytest.approx(0.7)
    assert found["outside_networks_share"] == pytest.approx(0.3)
    assert found["accounted_share"] == pytest.approx(3.8 / 4)
    assert found["megapixels_per_s"] == pytest.approx(1)
    assert found["frames_per_s"] == pytest.approx(0.5)
    assert found["peak_mib"] == 30
