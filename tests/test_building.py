"""`linnet build` on a fake GPU: the plan is what sessions ask for, and every outcome has its line and its status."""

from __future__ import annotations

import shlex
import sys
import warnings
from io import BytesIO
from pathlib import Path

import fake_gpu
import numpy as np
import pytest

from linnet import building, defaults
from linnet.cli import main
from linnet.runtime.backends import pixels_reference
from linnet.runtime.backends.cuda_pixels import Nv12Frame, RgbFrame
from linnet.runtime.backends.engines import FOLDER, BuildOptions, EngineCache, Target
from linnet.runtime.backends.pixels_reference import Colour
from linnet.runtime.bundle import Bundle
from linnet.runtime.codec import Codec
from linnet.runtime.writer import PictureWriter

SIZE = 150, 70
BUILD = ["build", "--device", "orin-nano", "--size", "150x70", "--tile", "64"]


def planned(bundle: Bundle, *, levels: int = 0, batch: int = 4, decoder: bool = True) -> list[Target]:
    return building.targets(bundle, building.asked_for(bundle, [SIZE], tile=64, levels=levels, decoder=decoder), batch)


def test_the_command_line_offers_the_devices() -> None:
    assert tuple(building.DEVICES) == defaults.DEVICES


def test_a_session_finds_an_engine_for_every_call(
    bundle: Bundle, machine: fake_gpu.Machine, codec: Codec, photograph: np.ndarray,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main([*BUILD, "--levels", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(planned(bundle, levels=1))
    assert all("its bits proved (there is none)" in line for line in lines)
    machine.counts.clear()
    width, height = SIZE
    image = photograph[:height, :width]
    session = Codec.open(backend="tensorrt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = session.encode(image, tile=64, levels=1)
        pixels = session.decode(data)
    assert machine.counts["Runtime.deserialize_cuda_engine"] >= len(bundle.networks)
    assert data == codec.encode(image, tile=64, levels=1)
    np.testing.assert_array_equal(pixels, codec.decode(data))


@pytest.mark.parametrize(("levels", "shared_memory"), [(0, False), (1, True)])
def test_a_frame_on_the_gpu_gives_the_same_bytes(
    machine: fake_gpu.Machine, codec: Codec, photograph: np.ndarray, levels: int, shared_memory: bool
) -> None:
    """RGB and NV12, by plain runs and by replayed graphs; overviews are made from copied rows."""
    machine.shared_memory = shared_memory
    assert main([*BUILD, "--encoder-only", "--levels", str(levels)]) == 0
    width, height = SIZE
    image = np.ascontiguousarray(photograph[:height, :width])
    colour = Colour("bt601", full_range=True)
    luma, chroma = pixels_reference.rgb_to_nv12(image, colour)
    session = Codec.open(backend="tensorrt")
    with machine.holding(image, luma, chroma) as (rgb, *nv12), warnings.catch_warnings():
        warnings.simplefilter("error")
        frames = {
            RgbFrame(rgb, width, height, 3 * width): image,
            Nv12Frame(*nv12, width, height, width, width, colour): pixels_reference.nv12_to_rgb(luma, chroma, colour),
        }
        for frame, pixels in [*frames.items(), *frames.items()][:3]:
            written = BytesIO()
            session.encode_frame(PictureWriter(written), session.backend.gpu_frame(frame), tile=64, levels=levels)
            assert written.getvalue() == codec.encode(pixels, tile=64, levels=levels)
    assert (machine.counts["SourceModule"], machine.counts["rgb_to_planes"] > 0) == (1, True)


def test_a_frame_on_the_gpu_falls_back_by_a_copy(
    machine: fake_gpu.Machine, codec: Codec, photograph: np.ndarray
) -> None:
    machine.wrong_bits = lambda network: network == "analysis"
    assert main([*BUILD, "--encoder-only"]) == 3
    width, height = SIZE
    image = np.ascontiguousarray(photograph[:height, :width])
    session, written = Codec.open(backend="tensorrt"), BytesIO()
    with machine.holding(image) as (rgb,), pytest.warns(RuntimeWarning, match="analysis .*using onnxruntime instead"):
        frame = session.backend.gpu_frame(RgbFrame(rgb, width, height, 3 * width))
        session.encode_frame(PictureWriter(written), frame, tile=64)
    assert written.getvalue() == codec.encode(image, tile=64)


def test_windows_of_any_size_find_their_engines(
    machine: fake_gpu.Machine, codec: Codec, photograph: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is larger than an engine is computed in pieces."""
    assert main(["build", "--device", "this", "--size", "150x70", "--tile", "64"]) == 0
    data = codec.encode(photograph[:96, :192], tile=64)
    session = Codec.open(backend="tensorrt")
    region = (37, 5, 99, 80)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = session.decode(data, region=region)
    np.testing.assert_array_equal(pixels, codec.decode(data, region=region))


def test_what_is_built_stays(machine: fake_gpu.Machine, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*BUILD, "--encoder-only"]
    assert main(command) == 0
    assert capsys.readouterr().err == ""
    builds = machine.counts["Builder.build_serialized_network"]
    assert main(command) == 0
    assert all(line.endswith(": up to date") for line in capsys.readouterr().out.splitlines())
    assert machine.counts["Builder.build_serialized_network"] == builds
    assert main([*command, "--workspace", "64"]) == 0
    assert "(workspace_mib was 512, is 64)" in capsys.readouterr().out
    assert main([*command, "--workspace", "64", "--force"]) == 0
    assert "(forced)" in capsys.readouterr().out
    assert machine.counts["Builder.build_serialized_network"] == 3 * builds


def test_a_rejected_engine_ends_with_3_and_the_others_are_built(
    bundle: Bundle, machine: fake_gpu.Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.wrong_bits = lambda network: network == "context_1"
    assert main([*BUILD, "--encoder-only"]) == 3
    out, err = capsys.readouterr()
    assert "context_1" not in out
    assert "analysis" in out
    assert "is rejected: backend tensorrt computes network context_1" in err
    assert "engines are missing: the next backend will do their work" in err
    stored = EngineCache(bundle).records()
    assert {record.target.network for record in stored if record.rejected} == {"context_1"}


def test_a_failed_build_ends_with_3(machine: fake_gpu.Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.fails = {"OnnxParser.parse"}
    assert main([*BUILD, "--encoder-only"]) == 3
    assert "no importer for Abacus" in capsys.readouterr().err


def test_the_wrong_device_is_refused(machine: fake_gpu.Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--device", "thor"]) == 2
    assert (
        "this GPU is Fake Orin and not that of Jetson Thor: engines are built where they run" in capsys.readouterr().err
    )


def test_a_dry_run_needs_no_gpu_and_builds_nothing(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    assert main([*BUILD, "--dry-run", "--weakly-typed", "--max-tactics", "9"]) == 0
    text = capsys.readouterr().out
    assert "cannot be built: tensorrt cannot be imported" in text
    commands = [shlex.split(line) for line in text.splitlines() if line.startswith("trtexec")]
    assert len(commands) == len(planned(bundle))
    for command in commands:
        assert {"--int8", "--maxTactics=9", "--memPoolSize=workspace:512M"} < set(command)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_is_there(machine: fake_gpu.Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BUILD, "--encoder-only"]) == 0
    capsys.readouterr()
    assert main([*BUILD, "--dry-run"]) == 0
    text = capsys.readouterr().out
    states = [line for line in text.splitlines() if line.startswith("  ")]
    assert all(line.endswith("there is none" if "  synthesis" in line else "up to date") for line in states)
    assert "synthesis" in text


def test_trtexec_builds_the_same_engine() -> None:
    target = Target("context_1", (("features", (2, 4, 8, 96)), ("coded", (2, 4, 8, 32))))
    command = shlex.split(building.trtexec(target, BuildOptions(workspace_mib=7), "a b/context_1.qdq.onnx"))
    assert command[:2] == ["trtexec", "--onnx=a b/context_1.qdq.onnx"]
    assert {"--shapes=features:2x4x8x96,coded:2x4x8x32", "--memPoolSize=workspace:7M", "--stronglyTyped"} < set(command)


def test_batches_are_cut_to_the_device(bundle: Bundle) -> None:
    def largest(batch: int) -> int:
        return max(target.batch for target in planned(bundle, batch=batch))

    assert largest(1) == 1
    assert largest(2) == 2
    assert {target.network for target in planned(bundle, decoder=False)} == set(bundle.networks) - {"synthesis"}


@pytest.mark.parametrize("size", ["150", "x", "150x0", "150x70x3", "axb"])
def test_sizes_are_checked(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["build", "--device", "this", "--size", size])
    assert caught.value.code == 2
    assert "like 3840x2160" in capsys.readouterr().err
