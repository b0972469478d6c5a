"""What the guides tell people to do works, as far as a machine without a GPU and a camera can tell."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fake_gpu
import numpy as np
import pytest

import linnet
from linnet import cli
from linnet.runtime.backends import pixels_reference
from linnet.runtime.codec import Codec
from linnet.runtime.errors import MachineError

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def accepted(arguments: list[str]) -> bool:
    """Whether the command line takes them; unlike running, this needs no file and no GPU."""
    try:
        cli.parser(arguments).parse_args(arguments)
    except SystemExit:
        return False
    except MachineError as error:  # a benchmark's own library is missing
        assert "pip install" in str(error)
    return True


def commands(text: str) -> list[list[str]]:
    """The `linnet` commands in the code blocks of a guide, indented or fenced as sh, without the program's name."""
    fenced = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    indented = "\n".join(line.strip() for line in text.splitlines() if line.startswith("    "))
    lines = re.sub(r"\\\n\s*", "", f"{fenced}\n{indented}").splitlines()
    alone = [re.split(r"\s(?:\|\||&&|[|;])\s", line)[0] for line in lines if line.startswith("linnet ")]
    return [shlex.split(line, comments=True)[1:] for line in alone]


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.name)
def test_commands_are_accepted(path: Path) -> None:
    for arguments in commands(path.read_text()):
        assert accepted(arguments), f"{path.name}: linnet {shlex.join(arguments)}"


def test_commands_are_found_and_wrong_ones_are_noticed() -> None:
    found = commands((ROOT / "docs" / "jetson.md").read_text())
    assert len(found) >= 10
    assert commands("text\n\n    linnet a b \\\n        --c d    # why\n\nand linnet e\n") == [["a", "b", "--c", "d"]]
    assert not accepted(["build", "--device", "orin-pico"])


# The recorder's unit


def test_the_unit_starts_a_command_that_exists() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(EXAMPLES / "linnet-record.service")
    script, folder, source, *options = shlex.split(unit["Service"]["ExecStart"])
    assert (EXAMPLES / Path(script).name).is_file()
    assert os.access(EXAMPLES / Path(script).name, os.X_OK)
    assert accepted(["record", source, f"{folder}/open/x.lnt", *options])
    assert (unit["Service"]["Restart"], unit["Unit"]["StartLimitIntervalSec"]) == ("always", "0")


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    text = (EXAMPLES / "linnet-record.service").read_text()
    unit = tmp_path / "linnet-record.service"
    unit.write_text(text.replace("/opt/linnet/linnet-record.sh", str(EXAMPLES / "linnet-record.sh")))
    result = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_recorder_recovers_what_was_cut_off(tmp_path: Path, photograph: np.ndarray) -> None:
    """A folder of pictures for a camera, and in `open` what a power cut left, beside something unreadable."""
    from PIL import Image

    program = tmp_path / "bin" / "linnet"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m linnet.cli "$@"\n')
    program.chmod(0o755)
    folder, camera = tmp_path / "recordings", tmp_path / "camera"
    camera.mkdir()
    Image.fromarray(photograph[:64, :64]).save(camera / "a.png")
    (folder / "open").mkdir(parents=True)
    linnet.record([photograph[:64, :64]] * 3, folder / "open" / "cut.lnt", backend="onnxruntime")
    data = (folder / "open" / "cut.lnt").read_bytes()
    (folder / "open" / "cut.lnt").write_bytes(data[: len(data) * 2 // 3])
    (folder / "open" / "noise.lnt").write_bytes(b"noise")
    command = [EXAMPLES / "linnet-record.sh", folder, camera, "--quality", "30", "--threads", "1"]
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in (folder / "open").iterdir()] == ["noise.lnt.unreadable"]
    names = sorted(path.name for path in (folder / "done").iterdir())
    assert len(names) == 2
    assert names[1] == "cut.lnt"
    assert re.fullmatch(r"\d{8}T\d{6}Z\.lnt", names[0])
    with linnet.open(folder / "done" / "cut.lnt") as recovered, linnet.open(folder / "done" / names[0]) as recorded:
        assert 1 <= len(recovered) < 3
        assert len(recorded) == 1


# Firmware


@pytest.mark.parametrize("nv12", [False, True])
def test_frames_go_through_a_pipe(tmp_path: Path, nv12: bool) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    program, out = tmp_path / "frames", tmp_path / "out.lnt"
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    subprocess.run([compiler, *flags, "-o", program, EXAMPLES / "frames.c"], check=True)
    # Two RGB frames of 64 x 64 have the bytes of four in NV12.
    raw = subprocess.run([program, "64x64", "2"], capture_output=True, check=True).stdout
    assert len(raw) == 2 * 64 * 64 * 3
    command = [sys.executable, EXAMPLES / "record_raw.py", "64x64", "-", *(["--nv12"] if nv12 else [])]
    with open(out, "wb") as output:
        result = subprocess.run(command, input=raw + b"cut", stdout=output, stderr=subprocess.PIPE, check=True)
    assert b"ended within a frame: 3 of" in result.stderr
    with linnet.open(out) as recording:
        assert len(recording) == (4 if nv12 else 2)
        assert recording.size == (64, 64)


def test_the_frame_on_the_gpu_is_encoded(
    machine: fake_gpu.Machine, codec: Codec, photograph: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guide's Python, on the fake GPU."""
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "jetson.md").read_text(), re.DOTALL)
    assert cli.main(["build", "--device", "this", "--size", "64x64", "--encoder-only"]) == 0
    colour = pixels_reference.Colour("bt709")
    luma, pairs = pixels_reference.rgb_to_nv12(photograph[:64, :64], colour)
    monkeypatch.chdir(tmp_path)
    with machine.holding(luma, pairs) as (luma_address, chroma_address):
        sizes = {"width": 64, "height": 64, "luma_stride": 64, "chroma_stride": 64}
        exec(compile(code, "jetson.md", "exec"), {"luma": luma_address, "chroma": chroma_address, **sizes})
    expected = codec.encode(pixels_reference.nv12_to_rgb(luma, pairs, colour), quality=60)
    assert (tmp_path / "frame.lnt").read_bytes() == expected
