"""The `linnet` command from end to end: files and pipes, exit statuses, one-sentence errors, nothing half written."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import linnet
from linnet import images
from linnet.cli import main
from linnet.runtime.bitstream import Metadata

PICTURE_SIZE = 301, 203
LINNET = [sys.executable, "-I", "-c", "import sys; from linnet.cli import main; sys.exit(main())"]
EXIF = Image.Exif()
EXIF[271], EXIF[274] = "linnet", 6
METADATA = Metadata(
    exif=EXIF.tobytes().removeprefix(b"Exif\0\0"),
    xmp=b"<x:xmpmeta/>",
    icc=bytes(16) + b"RGB " + bytes(range(200)),
)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    width, height = PICTURE_SIZE
    y, x = np.mgrid[:height, :width]
    waves = [127 + 120 * np.sin(x / a + y / b) for a, b in ((9, 31), (40, 13), (70, 70))]
    return np.stack(waves, axis=2).astype(np.uint8)


@pytest.fixture
def photo(tmp_path: Path, pixels: np.ndarray) -> str:
    path = str(tmp_path / "photo.png")
    images.write(path, pixels, METADATA)
    return path


@pytest.fixture(scope="module")
def stream(pixels: np.ndarray) -> bytes:
    return linnet.encode(pixels, quality=40, tile=128, metadata=METADATA, digest=True)


@pytest.fixture
def coded(tmp_path: Path, stream: bytes) -> str:
    path = tmp_path / "photo.lnt"
    path.write_bytes(stream)
    return str(path)


def run(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*LINNET, *arguments], input=given, capture_output=True)


def usage_error(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return caught.value.code


# What works


def test_encode_decode_verify(tmp_path: Path, photo: str, capfd: pytest.CaptureFixture[str]) -> None:
    coded, back = str(tmp_path / "a.lnt"), str(tmp_path / "a.png")
    assert main(["encode", photo, coded, "--quality", "80"]) == 0
    assert main(["decode", coded, back]) == 0
    assert capfd.readouterr() == ("", "")
    assert main(["verify", coded]) == 0
    assert capfd.readouterr().out == f"{coded}: intact, 1 tile\n"
    picture = images.read(back)
    assert picture.metadata == METADATA
    np.testing.assert_array_equal(picture.pixels, linnet.decode(Path(coded).read_bytes()))
    assert linnet.info(Path(coded).read_bytes()).quality == 80
    assert sorted(os.listdir(tmp_path)) == ["a.lnt", "a.png", "photo.png"]


def test_options_reach_the_file(tmp_path: Path, photo: str) -> None:
    coded = str(tmp_path / "a.lnt")
    options = ["--quality", "7", "--tile", "128", "--digest", "--backend", "onnxruntime", "--threads", "1"]
    assert main(["encode", photo, coded, *options]) == 0
    found = linnet.info(Path(coded).read_bytes())
    assert (found.quality, found.tile, found.tiles) == (7, 128, 6)
    assert found.digest is not None
    assert main(["verify", coded, "--pixels"]) == 0


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_region_equals_the_crop(tmp_path: Path, coded: str, stream: bytes, suffix: str) -> None:
    window = str(tmp_path / f"window.{suffix}")
    assert main(["decode", coded, window, "--region", "100,50,77,99"]) == 0
    np.testing.assert_array_equal(images.read(window).pixels, linnet.decode(stream)[50:149, 100:177])


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_metadata_goes_around(tmp_path: Path, pixels: np.ndarray, name: str) -> None:
    source, coded, back = (str(tmp_path / part) for part in (name, "a.lnt", f"back-{name}"))
    images.write(source, pixels, METADATA)
    assert main(["encode", source, coded]) == 0
    assert main(["decode", coded, back]) == 0
    assert images.read(back).metadata == METADATA


def test_pipes(photo: str, pixels: np.ndarray) -> None:
    encoded = run("encode", "-", "-", given=Path(photo).read_bytes())
    assert (encoded.returncode, encoded.stderr) == (0, b"")
    decoded = run("decode", "-", "-", given=encoded.stdout)
    assert (decoded.returncode, decoded.stderr) == (0, b"")
    with Image.open(io.BytesIO(decoded.stdout)) as image:
        assert image.format == "PNG"
        assert image.size == PICTURE_SIZE
    assert run("verify", "-", given=encoded.stdout).stdout == b"standard input: intact, 1 tile\n"


def test_info(coded: str, stream: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", coded, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["width"], found["height"]) == PICTURE_SIZE
    assert (found["bytes"], found["quality"], found["tile"], found["tiles"]) == (len(stream), 40, 128, 6)
    assert found["bits_per_pixel"] == 8 * len(stream) / (PICTURE_SIZE[0] * PICTURE_SIZE[1])
    blocks = {name: len(getattr(METADATA, name)) for name in ("exif", "xmp", "icc")}
    assert found["metadata_bytes"] == blocks
    assert len(found["tile_bytes"]) == 6
    assert main(["info", coded]) == 0
    text = capsys.readouterr().out
    assert "301x203" in text
    assert found["bundle"] in text


def test_verify_pixels(tmp_path: Path, coded: str, pixels: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", coded, "--pixels"]) == 0
    assert capsys.readouterr().out == f"{coded}: intact, 6 tiles, the pixels match their proof\n"
    plain = tmp_path / "plain.lnt"
    plain.write_bytes(linnet.encode(pixels[:64, :64]))
    assert main(["verify", str(plain), "--pixels"]) == 1
    assert "--digest" in capsys.readouterr().err


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "numpy" in text
    assert "backend reference" in text
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert found["codec"]["backend"] in {backend["name"] for backend in found["backends"]}


def test_reductions_are_noted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "a.png")
    Image.new("RGBA", (64, 64), (9, 9, 9, 128)).save(path)
    assert main(["encode", path, str(tmp_path / "a.lnt")]) == 0
    assert capfd.readouterr().err == f"linnet: {path}: note: transparency was flattened onto white\n"


# What does not


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["encode", "a.png"],
        ["encode", "a.png", "a.lnt", "--quality", "0"],
        ["encode", "a.png", "a.lnt", "--quality", "101"],
        ["encode", "a.png", "a.lnt", "--quality", "6.5"],
        ["encode", "a.png", "a.lnt", "--tile", "-1"],
        ["encode", "a.png", "a.lnt", "--threads", "0"],
        ["encode", "a.png", "a.lnt", "--backend", "abacus"],
        ["decode", "a.lnt", "a.png", "--region", "1,2,3"],
        ["decode", "a.lnt", "a.png", "--region", "1,2,3,0"],
        ["decode", "a.lnt", "a.png", "--region", "1,2,-3,4"],
        ["bench"],
        ["bench", "patience"],
        ["export", "camera"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(*arguments) == 2
    assert "usage: linnet" in capsys.readouterr().err


def failure(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and the message, which is one line without a traceback, and nothing on stdout."""
    status = main(list(arguments))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("linnet: ")
    assert err.count("\n") == 1
    return status, err


def test_bad_input_ends_with_1_and_names_the_file(
    tmp_path: Path, stream: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.png")
    damaged = bytearray(stream)
    damaged[-20] ^= 1
    for name, data in {"empty": b"", "noise": os.urandom(500), "cut": stream[:-9], "flip": bytes(damaged)}.items():
        path = str(tmp_path / f"{name}.lnt")
        Path(path).write_bytes(data)
        for command in (["decode", path, out], ["verify", path]):
            status, message = failure(capfd, *command)
            assert status == 1
            assert message.startswith(f"linnet: {path}: ")
        assert not Path(out).exists()
    for command in (["encode", str(tmp_path / "no.png"), out + ".lnt"], ["info", str(tmp_path / "no.png")]):
        status, message = failure(capfd, *command)
        assert (status, message.split(": ")[1]) == (1, str(tmp_path / "no.png"))
    assert not [name for name in os.listdir(tmp_path) if name.startswith(("out", "."))]


def test_a_picture_is_no_linnet_file(photo: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert failure(capfd, "info", photo)[0] == 1
    assert failure(capfd, "encode", __file__, photo + ".lnt")[0] == 1


def test_region_outside_the_picture(tmp_path: Path, coded: str, capfd: pytest.CaptureFixture[str]) -> None:
    status, message = failure(capfd, "decode", coded, str(tmp_path / "a.png"), "--region", "250,0,100,10")
    assert status == 2
    assert coded in message
    assert "301x203" in message


def test_outputs_that_make_no_sense(tmp_path: Path, photo: str, coded: str, capfd: pytest.CaptureFixture[str]) -> None:
    before = Path(photo).read_bytes()
    assert failure(capfd, "encode", photo, photo)[0] == 2
    assert failure(capfd, "decode", coded, str(tmp_path / "a.gif"))[0] == 2
    assert failure(capfd, "decode", coded, str(tmp_path / "no" / "a.png"))[0] == 2
    assert Path(photo).read_bytes() == before


def test_what_the_machine_lacks_ends_with_3(tmp_path: Path, photo: str, capfd: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "a.lnt")
    status, message = failure(capfd, "encode", photo, out, "--backend", "tensorrt")
    assert status == 3
    assert "--backend onnxruntime" in message
    assert not Path(out).exists()


def test_missing_extra_names_the_install_command(tmp_path: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from linnet.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["export", "camera", "--weights", "w.pt", "--out", str(tmp_path / "a.lntb")]
    result = subprocess.run([sys.executable, "-I", "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 3
    assert result.stderr == "linnet: torch is not installed and this command needs it: pip install 'linnet[export]'\n"


def test_debug_shows_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINNET_DEBUG", "1")
    with pytest.raises(linnet.InputError):
        main(["info", str(tmp_path / "no.lnt")])


def test_a_reader_that_leaves_is_no_error(coded: str) -> None:
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run([*LINNET, "decode", coded, "-"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert b"Traceback" not in process.stderr
    assert b"Exception" not in process.stderr


def test_interrupted(monkeypatch: pytest.MonkeyPatch, coded: str) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("linnet.runtime.inspection.read_info", interrupt)
    assert main(["info", coded]) == 130


@pytest.mark.parametrize("benchmark", ["rd", "speed"])
def test_benchmarks_bring_their_options(benchmark: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error("bench", benchmark, "--help") == 0
    assert f"usage: linnet bench {benchmark}" in capsys.readouterr().out


# Python and Pillow


def test_frame(coded: str, stream: bytes) -> None:
    whole = linnet.decode(stream)
    with linnet.open(coded) as frame:
        assert frame.size == PICTURE_SIZE
        assert frame.tiles == 6
        np.testing.assert_array_equal(frame.read_region(3, 5, 130, 140), whole[5:145, 3:133])
        np.testing.assert_array_equal(frame.read(), whole)
    with pytest.raises(linnet.InputError, match=r"no such file"):
        linnet.open(coded + "x")


def test_pillow_plugin(tmp_path: Path, coded: str, stream: bytes) -> None:
    import linnet.pillow

    with Image.open(coded) as image:
        assert (image.format, image.size, image.mode) == ("LINNET", PICTURE_SIZE, "RGB")
        assert image.info["exif"] == b"Exif\0\0" + METADATA.exif
        assert (image.info["xmp"], image.info["icc_profile"]) == (METADATA.xmp, METADATA.icc)
        assert image.getexif()[271] == "linnet"
        np.testing.assert_array_equal(np.asarray(image), linnet.decode(stream))
        image.save(tmp_path / "again.lnt", quality=90)
    again = linnet.info((tmp_path / "again.lnt").read_bytes())
    assert (again.quality, again.metadata) == (90, METADATA)
    linnet.pillow.register()


def test_pillow_refuses_damage(tmp_path: Path, stream: bytes) -> None:
    import linnet.pillow  # noqa: F401 - registers

    (tmp_path / "cut.lnt").write_bytes(stream[:100])
    with pytest.raises(Image.UnidentifiedImageError):
        Image.open(tmp_path / "cut.lnt")
    damaged = bytearray(stream)
    damaged[-20] ^= 1
    (tmp_path / "flip.lnt").write_bytes(damaged)
    with Image.open(tmp_path / "flip.lnt") as image, pytest.raises(OSError, match="checksum"):
        image.load()
