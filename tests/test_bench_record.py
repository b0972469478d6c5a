"""`linnet bench record`: what it counts adds up, what it records is whole, and its table says what the JSON holds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from linnet.benchmarks import record
from linnet.cli import main
from linnet.runtime.backends.reference import ReferenceBackend
from linnet.runtime.bundle import Bundle

TINY = str(Path(__file__).parent / "vectors" / "tiny.lntb")


def round_of(network: float, encoder: float, everything: float, capture: float, frames: int = 10) -> dict:
    return vars(record.Round(frames, 0, 1000, 1.0, capture, 4.0, 5.0, everything, encoder, network))


def test_shares_are_of_all_the_cpu_time() -> None:
    summary = record.summarise([round_of(6, 7, 8, 0.5), round_of(6, 7, 10, 0.5), round_of(6, 7, 7.5, 0.5)])
    assert summary["outside"] == pytest.approx({"min": 0.2, "median": 0.25, "max": 0.4})
    costs = summary["cpu_ms_per_frame"]
    assert costs["all"] == pytest.approx(800) and costs["networks"] == pytest.approx(600)
    assert costs["encoder around them"] == pytest.approx(100) and costs["reading the video"] == pytest.approx(50)
    assert costs["disk and the rest"] == pytest.approx(50)
    assert summary["pace"]["median"] == pytest.approx(0.8) and summary["frames_per_s"] == pytest.approx(2)
    document = {
        "video": {"width": 64, "height": 48, "frames": 10, "source": "tests"}, "quality": 60, "rounds": [1, 2, 3],
        "summary": summary,
    }  # fmt: skip
    assert "outside the networks: 25.0% (20.0%-40.0%) of the CPU time, at most the goal" in record.format_table(
        document
    )
    document["summary"] = record.summarise([round_of(6, 7, 10, 0.5)])
    assert "ABOVE the goal of 25%" in record.format_table(document)


def test_the_clock_counts_the_networks_and_changes_nothing() -> None:
    bundle = Bundle.open(TINY)
    backend = ReferenceBackend(bundle.networks)
    clocked = record.ClockedBackend(backend)
    inputs, expected = bundle.known_answer("analysis")
    for _ in range(3):
        before = clocked.cpu_s
        np.testing.assert_array_equal(clocked.run("analysis", inputs)[0], expected[0])
        assert clocked.cpu_s > before


def test_the_command_measures_a_video_that_it_makes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "record.json"
    command = ["bench", "record", "--size", "192x128", "--frames", "5", "--repeat", "2", "--bundle", TINY]
    assert main([*command, "--json", str(out)]) == 0
    said = capfd.readouterr().out
    assert "192x128, 5 frames of an MPEG-4 pan" in said and "outside the networks: " in said and "; 0 dropped" in said
    document = json.loads(out.read_text())
    assert document["format"] == record.FORMAT and len(document["rounds"]) == 2
    for sample in document["rounds"]:
        done = record.Round(**sample)
        assert (done.frames, done.dropped) == (5, 0) and done.bytes > 1000
        assert 0 < done.network_cpu_s < done.encoder_cpu_s < done.recording_cpu_s


def test_wrong_arguments_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for option, text in (("--frames", "0"), ("--repeat", "-3"), ("--size", "x")):
        with pytest.raises(SystemExit):
            main(["bench", "record", option, text])
        assert f"{option}: {text!r} is not" in capfd.readouterr().err
    assert main(["bench", "record", "--json", str(tmp_path / "no" / "a.json")]) == 2
    assert "the folder does not exist" in capfd.readouterr().err
    assert main(["bench", "record", str(tmp_path / "none.mp4"), "--bundle", TINY]) != 0
    assert "none.mp4: no such file" in capfd.readouterr().err
