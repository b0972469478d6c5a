"""Memory grows with a frame's width and not its height, measured from outside; and `linnet bench memory` itself."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from linnet.benchmarks import memory
from linnet.runtime.errors import MachineError, UsageError

pytest.importorskip("tifffile", reason="needs tifffile: pip install 'linnet[tiff]'")
pytest.importorskip("imagecodecs", reason="needs imagecodecs: pip install 'linnet[tiff]'")

WIDTH, LOW, HIGH = 1024, 3072, 15360
PIXELS_MB = 3 * WIDTH * (HIGH - LOW) / 1e6
"""What the higher frame's pixels take in addition, were they all held: 38 MB."""


def test_memory_does_not_grow_with_the_height(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # glibc returns large blocks at once then. It keeps them otherwise, 20 to 60 MB that differ from run to run.
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(1 << 19))
    peaks: dict[str, list[float]] = {"encode": [], "decode": []}
    for height in (LOW, HIGH):
        picture, file, back = (str(tmp_path / f"{height}{suffix}") for suffix in (".tif", ".lnt", "-back.tif"))
        memory.write_texture(Path(picture), WIDTH, height)
        for name, arguments in (("encode", [picture, file, "--levels", "3"]), ("decode", [file, back])):
            peaks[name].append(memory.peak([name, *arguments, "--threads", "1"])[0])
    for name, (low, high) in peaks.items():
        assert high - low < PIXELS_MB / 2, f"{name}: {low:.0f} MB, then {high:.0f} MB"


def arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    memory.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "memory.json"
    words = ("--size", "640x512", "--levels", 0, "--threads", 1, "--backend", "onnxruntime", "--json", results)
    assert memory.run(arguments(*words)) == 0
    printed = capsys.readouterr().out
    assert "640x512" in printed and "0.32768 megapixels encode in" in printed and "goal" not in printed
    document = json.loads(results.read_text())
    peaks = {row["what"]: row["peak_mb"] for row in document["peaks"]}
    assert list(peaks) == ["encode", "window", "window at 1/2", "window at 1/4"]
    assert all(30 < peak < 1000 for peak in peaks.values())
    assert str(tmp_path) not in results.read_text()


def test_the_verdict_names_the_goals_at_their_size() -> None:
    peaks = [memory.Peak(20_000, 20_000, 0, what, mb, 1.0) for what, mb in (("encode", 410.4), ("window", 123.0))]
    assert memory.verdict(peaks) == (
        "linnet: 400 megapixels encode in 410 MB (goal: 500), a window decodes in 123 MB (goal: 200)"
    )


def test_wrong_usage(tmp_path: Path) -> None:
    for words in (("--size", "300x2000"), ("--json", tmp_path / "no" / "x.json")):
        with pytest.raises(UsageError):
            memory.run(arguments(*words))
    with pytest.raises(SystemExit):
        arguments("--size", "20000")
    with pytest.raises(MachineError, match=r"linnet decode nothing\.lnt .* status 1: linnet: nothing\.lnt: no such"):
        memory.peak(["decode", "nothing.lnt", "x.png"])
