"""What `linnet doctor` says of boards, on file systems like theirs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from linnet import board, doctor


def orin(root: Path) -> Path:
    tree = root / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(b"NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0")
    (tree / "compatible").write_bytes(b"nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0")
    (root / "etc").mkdir()
    (root / "etc/nv_tegra_release").write_text(
        "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"
    )
    return root


def nvpmodel(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = folder / "nvpmodel"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_a_jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvpmodel(tmp_path, "echo 'NV Power Mode: MAXN_SUPER'; echo 2", monkeypatch)
    found = board.jetson(orin(tmp_path))
    assert found == {
        "model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        "l4t": "36.4.3",
        "power_mode": "MAXN_SUPER",
    }
    said = "\n".join(doctor.lines({**doctor.report(), "jetson": found}))
    assert "Orin Nano" in said and "L4T 36.4.3" in said and "MAXN_SUPER" in said


def test_a_jetson_that_hides_its_power_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvpmodel(tmp_path, "echo 'NVPM ERROR: must be root' >&2; exit 1", monkeypatch)
    found = board.jetson(orin(tmp_path))
    assert found is not None and "sudo nvpmodel" in found["power_mode"]
    monkeypatch.setenv("PATH", "")
    found = board.jetson(tmp_path)
    assert found is not None and "not in the PATH" in found["power_mode"]


def test_other_machines_are_no_jetson(tmp_path: Path) -> None:
    assert board.jetson(tmp_path) is None
    tree = tmp_path / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(b"Raspberry Pi 5 Model B Rev 1.0\0")
    (tree / "compatible").write_bytes(b"raspberrypi,5-model-b\0brcm,bcm2712\0")
    assert board.jetson(tmp_path) is None


def test_what_opencv_opens() -> None:
    cv2 = pytest.importorskip("cv2")
    built = cv2.getBuildInformation()
    opens = {name: f"{name.upper()}:YES" in built.upper().replace(" ", "") for name in ("FFmpeg", "GStreamer")}
    assert board.video_backends() == opens
