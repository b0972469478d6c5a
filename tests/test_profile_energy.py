"""Energy from power rails, on a tree of files like that of Linux's hwmon; the boards themselves are not here."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from linnet.benchmarks.profiling import energy, page, table, trace
from linnet.benchmarks.profiling.energy import PowerMeter, Rail
from linnet.cli import main

SECOND = 10**9
ORIN_NANO = {"VDD_IN": (5056, 944), "VDD_CPU_GPU_CV": (5056, 120), "VDD_SOC": (5056, 296)}


@pytest.fixture
def chip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Adds hwmon folders; a rail is (millivolts, milliamperes)."""
    monkeypatch.setattr(energy, "HWMON", tmp_path)

    def add(number: int, name: str, rails: dict[str, tuple[int, int]]) -> Path:
        folder = tmp_path / f"hwmon{number}"
        folder.mkdir()
        (folder / "name").write_text(f"{name}\n")
        for channel, (label, (millivolts, milliamperes)) in enumerate(rails.items(), 1):
            (folder / f"in{channel}_label").write_text(f"{label}\n")
            (folder / f"in{channel}_input").write_text(f"{millivolts}\n")
            (folder / f"curr{channel}_input").write_text(f"{milliamperes}\n")
        (folder / "in7_label").write_text("sum of shunt voltages\n")
        (folder / "in7_input").write_text("1000\n")
        return folder

    return add


def test_rails_of_an_orin_nano(chip: Callable[..., Path]) -> None:
    chip(0, "cpu_thermal", {})
    chip(1, "ina3221", ORIN_NANO)
    found = energy.rails()
    assert [rail.name for rail in found] == list(ORIN_NANO)
    assert found[0].watts() == pytest.approx(5.056 * 0.944)
    assert [rail.name for rail in energy.total_rails(found)] == ["VDD_IN"], "the others are parts of it"


def test_rails_of_an_agx_orin(chip: Callable[..., Path]) -> None:
    """Two chips and no rail for the whole; unconnected and switched-off channels are no rails."""
    chip(1, "ina3221", {"VDD_GPU_SOC": (19000, 100), "VDD_CPU_CV": (19000, 50), "VIN_SYS_5V0": (5000, 600)})
    second = chip(2, "ina3221", {"NC": (0, 0), "VDDQ_VDD2_1V8AO": (5000, 80), "OFF": (5000, 80)})
    (second / "curr3_input").unlink()
    found = energy.rails()
    assert [rail.name for rail in found] == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"]
    assert energy.total_rails(found) == found


def test_no_rails_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chip: Callable[..., Path]) -> None:
    chip(0, "coretemp", {"VDD_IN": (1, 1)})
    assert energy.rails() == []
    monkeypatch.setattr(energy, "HWMON", tmp_path / "absent")
    assert energy.rails() == []


def test_joules_by_the_trapezoidal_rule() -> None:
    meter = PowerMeter([])
    meter._moments, meter._watts = [SECOND, 2 * SECOND, 4 * SECOND], [10.0, 20.0, 20.0]
    assert meter.joules(SECOND, 2 * SECOND) == pytest.approx(15)
    assert meter.joules(SECOND, 4 * SECOND) == pytest.approx(15 + 40)
    assert meter.joules(round(1.5 * SECOND), 3 * SECOND) == pytest.approx(0.5 * 17.5 + 20)
    assert meter.joules(round(2.2 * SECOND), round(2.3 * SECOND)) == pytest.approx(2), "between two readings"
    assert meter.joules(0, SECOND) == pytest.approx(10), "before the first"


def test_report_per_megapixel() -> None:
    meter = PowerMeter([Rail("VDD_IN", Path(), Path())])
    meter._moments, meter._watts = [SECOND * t for t in range(9)], [5.0] * 3 + [15.0] * 6
    meter.idle_watts = 5.0
    found = meter.report(
        {"encode": [(4 * SECOND, 2.0)], "decode": [(6 * SECOND, 1.0), (7 * SECOND, 1.0)]}, 3_000_000, 0
    )
    assert found["per_direction"]["encode"] == {
        "joules": [pytest.approx(30)], "watts": pytest.approx(15), "joules_per_megapixel": pytest.approx(10),
        "joules_per_megapixel_above_idle": pytest.approx(20 / 3),
    }  # fmt: skip
    assert found["per_direction"]["decode"]["joules_per_megapixel"] == pytest.approx(30 / 6)
    assert found["samples"][4] == [4.0, 15.0]


def test_meter_follows_the_files(chip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "IDLE_S", 0.3)
    monkeypatch.setattr(energy, "PERIOD_S", 0.01)
    folder = chip(1, "ina3221", {"VDD_IN": (5000, 1000)})
    meter = PowerMeter(energy.rails())
    meter.start()
    assert meter.idle_watts == pytest.approx(5)
    (folder / "curr1_input").write_text("nothing yet")  # a reading that fails is left out
    time.sleep(0.05)
    (folder / "curr1_input").write_text("3000")
    began = time.perf_counter_ns()
    time.sleep(0.3)
    ended = time.perf_counter_ns()
    meter.stop()
    assert meter.joules(began, ended) == pytest.approx(15 * (ended - began) / 1e9, rel=0.35)
    PowerMeter([]).stop()


def test_profile_with_rails(
    chip: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the files to all reports, with the power mode of the board's own tool."""
    monkeypatch.setattr(energy, "IDLE_S", 0.2)
    chip(1, "ina3221", ORIN_NANO)
    tool = tmp_path / "nvpmodel"
    tool.write_text("#!/bin/sh\necho 'NV Power Mode: 15W'\necho 0\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    report = tmp_path / "report.json"
    small = "--size 256x128 --frames 2 --warmup 0 --threads 1 --backend onnxruntime"
    assert main(["profile", *small.split(), "--json", str(report)]) == 0
    document = json.loads(report.read_text())
    watts = 5.056 * 0.944
    figures = document["energy"]["per_direction"]["encode"]
    assert figures["watts"] == pytest.approx(watts)
    assert figures["joules_per_megapixel"] == pytest.approx(watts / document["summary"]["encode"]["megapixels_per_s"])
    assert figures["joules_per_megapixel_above_idle"] == pytest.approx(0, abs=1e-9)
    assert document["energy"]["power_mode"] == "NV Power Mode: 15W 0"
    shown = capsys.readouterr().out
    assert "energy (VDD_IN, NV Power Mode: 15W 0); idle 4.77 W" in shown
    assert table.lines(document)
    assert "J/MP" in page.html(document)
    assert any(event["ph"] == "C" for event in trace.events(document)["traceEvents"])
