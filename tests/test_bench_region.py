"""`linnet bench region`: frames and windows, readers that read only what they need, timing, and the report."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linnet.benchmarks import (
    metrics,
    mosaic,
    peers,
    region,
    region_frames,
    region_report,
    region_timing,
    single_thread,
    tile_rates,
)  # fmt: skip
from linnet.benchmarks.codec import Codec
from linnet.benchmarks.measure import CodecFailure
from linnet.benchmarks.peers import Reader
from linnet.runtime.errors import UsageError
from linnet.runtime.tiles import Rect, TileGrid

# Frames and windows


@pytest.mark.parametrize(("width", "height", "side"), [(6000, 4000, 512), (949, 633, 64), (1024, 1024, 512)])
def test_windows_lie_in_the_middle_on_one_tile_and_across_four(width: int, height: int, side: int) -> None:
    grid = TileGrid(width, height, region_frames.TILE)
    windows = region_frames.place(width, height, side)
    for window in windows.values():
        assert min(window.x, window.y) >= 0 and window.right <= width and window.bottom <= height
        off = window.x + side / 2 - width / 2, window.y + side / 2 - height / 2
        assert max(map(abs, off)) <= region_frames.TILE
    assert len(grid.touching(windows["aligned"])) == 1 and windows["aligned"].x % region_frames.TILE == 0
    assert len(grid.touching(windows["unaligned"])) == 4 and windows["unaligned"].x % 2 == 1


@pytest.mark.parametrize("megapixels", [0.6, 0.63, 1.3, 3.0])
def test_a_larger_frame_has_the_same_window_at_the_same_place_of_its_tile(megapixels: float) -> None:
    picture = mosaic.build([mosaic.texture(190, 260)], 0.6)
    larger, x, y = region_frames.surround(picture, megapixels)
    assert larger.shape[1::-1] == region_frames.size(megapixels)
    assert x % region_frames.TILE == y % region_frames.TILE == 0
    assert np.array_equal(larger[y : y + picture.shape[0], x : x + picture.shape[1]], picture)


# Readers


@pytest.fixture(scope="module")
def frame() -> np.ndarray:
    return mosaic.build([mosaic.texture(300, 450)], 1.7)


def reader_of(name: str) -> Reader:
    found, absent = peers.readers()
    if name in absent:
        pytest.skip(absent[name])
    return next(reader for reader in found if reader.name == name)


@pytest.mark.parametrize("name", peers.READERS)
@pytest.mark.filterwarnings("ignore")
def test_a_window_of_a_peer_is_its_crop(name: str, frame: np.ndarray, tmp_path: Path) -> None:
    reader = reader_of(name)
    path = tmp_path / f"frame{reader.suffix}"
    path.write_bytes(reader.writer.encode(frame, reader.writer.settings[-2]))
    full = reader.read(path)
    assert metrics.psnr_rgb(full, frame) > 24
    height, width = frame.shape[:2]
    corner = Rect(width - 70, height - 50, 70, 50)
    for window in (
        *region_frames.place(width, height, 100).values(),
        corner,
        Rect(0, 0, 600, 7),
        Rect(511, 511, 514, 2),
    ):
        expected = full[window.y : window.bottom, window.x : window.right]
        assert np.array_equal(reader.read_window(path, window), expected), window


def test_tiff_windows_need_nothing_but_their_tiles(frame: np.ndarray, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    reader = reader_of("tiff-jpeg-tile512")
    path, window = tmp_path / "frame.tif", Rect(600, 20, 300, 400)
    path.write_bytes(reader.writer.encode(frame, 50))
    expected = reader.read_window(path, window)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
    touched = TileGrid(frame.shape[1], frame.shape[0], 512).touching(window)
    assert len(touched) == 1 < len(places)
    data = bytearray(path.read_bytes())
    for number, (offset, length) in enumerate(places):
        if number not in touched:
            data[offset : offset + length] = bytes(length)
    path.write_bytes(data)
    assert np.array_equal(reader.read_window(path, window), expected)


def test_missing_libraries_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("imagecodecs", "rasterio", "glymur"):
        monkeypatch.setitem(sys.modules, name, None)
    found, absent = peers.readers()
    assert not found and list(absent) == list(peers.READERS)
    assert all("pip install" in reason for reason in absent.values())


# Timing


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what a process reads")
def test_bytes_and_calls_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    placed = region_timing.Placed()
    for length in (70_000, 30_000, 50_000):
        descriptor = os.open(path, os.O_RDONLY)
        before = region_timing._bytes_and_calls()
        os.read(descriptor, length)
        region_timing._count(placed, before, region_timing._bytes_and_calls())
        os.close(descriptor)
    assert (placed.bytes_read, placed.reads) == (30_000, 1)
    region_timing._count(placed, None, None)
    assert placed.reads == 1


def fake(name: str, calls: list[tuple[Any, ...]], *, shift: int = 0, has_windows: bool = True) -> Reader:
    picture = mosaic.texture(200, 300)

    def read(path: Path) -> np.ndarray:
        calls.append((name, path.name, "full"))
        return picture

    def read_window(path: Path, window: Rect) -> np.ndarray:
        calls.append((name, path.name, window.x))
        x = window.x + shift if window.x else 0
        return picture[window.y : window.bottom, x : x + window.width]

    writer = Codec(name, "", "1", (1,), lambda picture, setting: b"", lambda data: picture)
    return Reader(name, writer, "", "", "1", read, read_window, has_windows)


def timed(readers: list[Reader], repeat: int) -> list[region_timing.Sample]:
    frames = [{"windows": {"aligned": Rect(0, 0, 8, 8), "unaligned": Rect(5, 9, 8, 8)}} for _ in range(2)]
    samples = [region_timing.Sample(reader.name, number, 1, 1.0) for number in range(2) for reader in readers]
    return region_timing.time_windows(samples, readers, frames, Path("nowhere"), repeat)


def test_sizes_take_turns_within_each_reader() -> None:
    calls: list[tuple[Any, ...]] = []
    timed([fake("a", calls), fake("b", calls)], repeat=2)
    windows = [call[:2] for call in calls if call[2] == 5][: 4 * region_timing.PASSES]  # the first round
    first_pass = [("a", "a-0"), ("a", "a-1"), ("b", "b-0"), ("b", "b-1")]
    assert windows[:4] == first_pass
    assert windows[4:8] == [("a", "a-1"), ("a", "a-0"), ("b", "b-1"), ("b", "b-0")]
    assert windows[8:12] == first_pass
    assert sum(call[2] == "full" for call in calls) == 8


def test_every_window_is_compared_with_its_crop() -> None:
    samples = timed([fake("right", []), fake("wrong", [], shift=1)], repeat=2)
    same = {(s.reader, name): placed.same_pixels for s in samples for name, placed in s.windows.items()}
    assert same.pop(("wrong", "unaligned")) is False
    assert len(same) == 3 and all(same.values())
    assert all(len(s.full_s) == 2 for s in samples)
    assert all(len(passes) == region_timing.PASSES for s in samples for p in s.windows.values() for passes in p.seconds)


def test_a_format_without_windows_is_not_decoded_over_and_over() -> None:
    calls: list[tuple[Any, ...]] = []
    samples = timed([fake("a", calls, has_windows=False)], repeat=1)
    assert [len(passes) for s in samples for p in s.windows.values() for passes in p.seconds] == [1] * 4


def test_a_failing_reader_is_named() -> None:
    def broken(path: Path, window: Rect) -> np.ndarray:
        raise RuntimeError("out of ideas")

    reader = fake("a", [])
    with pytest.raises(CodecFailure, match="a: a window failed: out of ideas"):
        timed([Reader("a", reader.writer, "", "", "1", reader.read, broken)], repeat=1)


# The report


def document(*, megapixels: tuple[float, float] = (24.0, 96.0), same: bool = True) -> dict[str, Any]:
    """Two rounds; the machine was twice as slow in the second. Windows of the larger frame take 10 % longer."""

    def sample(number: int, seconds: float) -> dict[str, Any]:
        rounds = [[seconds] * 3, [2 * seconds] * 3]
        placed = {"seconds": rounds, "bytes_read": 2048, "reads": 3, "same_pixels": same}
        windows = {"aligned": placed, "unaligned": placed}
        return {"reader": "linnet", "frame": number, "file_bytes": 8192, "bits_per_pixel": 0.6,
                "full_s": [3.0, 6.0], "full_cpu_s": [3.0, 3.0], "windows": windows}  # fmt: skip

    about = {"about": "a", "version": "1", "writer": "linnet", "writer_about": "", "writer_version": "1", "setting": 60}
    made = {
        "source": "photographs", "window": 512, "quality": 60, "bits_per_pixel_wanted": 0.6, "absent": {"x": "why"},
        "frames": [{"megapixels": m, "width": 9, "height": 9, "windows": {}} for m in megapixels],
        "readers": {"linnet": about}, "samples": [sample(0, 0.1), sample(1, 0.11)], "tile_rates": [],
    }  # fmt: skip
    return made | {"summary": region_report.summarise(made), "rates": []}


def test_ratios_are_taken_within_a_round() -> None:
    small, _, large, _ = document()["summary"]
    assert small["full_over_window"] == pytest.approx({"min": 30, "median": 30, "max": 30})
    assert large["over_first_size"] == pytest.approx({"min": 1.1, "median": 1.1, "max": 1.1})
    assert (small["window_ms"], small["full_ms"]) == pytest.approx((150, 4500))
    row = region_report.format_table(document()).splitlines()[2]
    assert "30.0 (30.0-30.0)" in row and "25.0%" in row and row.split()[-2:] == ["yes", "0.67"]
    assert "x: absent, why" in region_report.format_table(document())


def test_the_verdict_names_goals_only_at_their_sizes() -> None:
    text = region_report.format_verdict(document())
    assert "1/30.0 of the full decode at 24 megapixels (goal: 1/25)" in text
    assert "within 10 % at 96 megapixels (goal: 20 %)" in text and "all 24 windows equal" in text
    assert "goal" not in region_report.format_verdict(document(megapixels=(1.0, 2.0)))
    assert "DIFFER" in region_report.format_verdict(document(same=False))


def test_rates_are_compared_at_equal_psnr() -> None:
    """A file that is 10 % larger at the same PSNR costs 10 %; one on the same curve at a lower PSNR costs nothing."""
    one = [(0.5, 32.0), (0.6, 33.0)]
    slope = np.log(0.6 / 0.5)
    along = [(rate * np.exp(-0.1 * slope), psnr - 0.1) for rate, psnr in one]
    tiles = {"256": [(1.1 * rate, psnr) for rate, psnr in one], "512": along}
    common = {"set": "s", "image": "i", "width": 700, "height": 600}
    whole = {"one_tile": one, "tiles": {"256": one}}
    (row,) = tile_rates.summarise_rates([common | {"one_tile": one, "tiles": tiles}, common | whole])
    costs = row["overhead_percent"]
    assert list(costs) == ["256", "512"] and costs["256"]["pictures"] == 2 and row["pictures"] == 2
    assert (costs["256"]["mean"], costs["256"]["max"]) == pytest.approx((5, 10))
    assert costs["512"]["mean"] == pytest.approx(0, abs=1e-6)
    assert costs["512"]["size_at_same_quality"] < -1 and costs["512"]["psnr_change_db"] == pytest.approx(-0.1)


def arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    region.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_a_wrong_window_of_linnet_is_an_error_and_the_results_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(single_thread, "call", lambda module, request: document(same=False))
    with pytest.raises(CodecFailure, match="aligned at 24 megapixels, unaligned at 24 megapixels"):
        region.run(arguments("--json", tmp_path / "region.json"))
    assert json.loads((tmp_path / "region.json").read_text())["summary"][0]["same_pixels"] is False
    assert "NO" in capsys.readouterr().out


def test_wrong_usage(tmp_path: Path) -> None:
    for words in (("--json", tmp_path / "no" / "x.json"), ("--bpp", 0), ("--megapixels", 0.5), ("--window", 4000)):
        with pytest.raises(UsageError):
            region.run(arguments(*words))
    for words in (("--megapixels", "2,1"), ("--megapixels", "0"), ("--repeat", "0")):
        with pytest.raises(SystemExit):
            arguments(*words)


def test_region_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    (tmp_path / "set").mkdir()
    Image.fromarray(mosaic.texture(200, 300)).save(tmp_path / "set" / "one.png")
    results, plot = tmp_path / "region.json", tmp_path / "region.png"
    words = (f"noise={tmp_path / 'set'}", "--megapixels", "0.6,1.0", "--window", 64, "--repeat", 1)
    assert region.run(arguments(*words, "--json", results, "--plot", plot)) == 0
    assert "all 20 windows equal their crop" in capsys.readouterr().out
    assert plot.stat().st_size > 10_000
    text = results.read_text()
    assert str(tmp_path) not in text
    made = json.loads(text)
    rows = {(row["reader"], row["megapixels"], row["placement"]): row for row in made["summary"]}
    assert all(row["same_pixels"] for row in rows.values())
    assert rows["linnet", 0.6, "aligned"]["full_over_window"]["median"] > 1
    if rows["linnet", 1.0, "aligned"]["bytes_read"] is not None:
        assert rows["linnet", 1.0, "aligned"]["bytes_read"] < rows["linnet", 1.0, "aligned"]["file_bytes"]
    (rate,) = made["rates"]
    assert rate["set"] == "noise" and list(rate["overhead_percent"]) == ["256"]
