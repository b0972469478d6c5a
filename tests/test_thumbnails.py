"""Thumbnails in EXIF: found, said when tiles are encrypted, and blanked without moving anything else."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from linnet import images
from linnet.cli import main
from linnet.runtime.bitstream import Metadata
from linnet.runtime.reader import Reader
from linnet.thumbnails import has_thumbnail, without_thumbnail

PIXELS = np.zeros((64, 96, 3), np.uint8)


def small_jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (16, 12), "red").save(stream, "JPEG")
    return stream.getvalue()


def block(order: str, jpeg: bytes | None = None, *, strips: bool = False) -> bytes:
    """EXIF by hand: IFD0 with a make, then IFD1 with the JPEG or with two strips of samples."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8)
    make = struct.pack(order + "HHL4s", 271, 2, 4, b"abc\0")
    if jpeg is None:
        return head + struct.pack(order + "H", 1) + make + struct.pack(order + "L", 0)
    second, data = 26, 26 + 2 + 2 * 12 + 4
    if strips:
        half = len(jpeg) // 2
        places = struct.pack(order + "HH", data + 8, data + 8 + half) + struct.pack(
            order + "HH", half, len(jpeg) - half
        )
        entries = struct.pack(order + "HHLL", 273, 3, 2, 0)[:8] + places[:4]
        entries += struct.pack(order + "HHL", 279, 3, 2) + places[4:]
        jpeg = bytes(8) + jpeg
    else:
        entries = struct.pack(order + "HHLLHHLL", 513, 4, 1, data, 514, 4, 1, len(jpeg))
    directory = struct.pack(order + "H", 2) + entries + struct.pack(order + "L", 0)
    return head + struct.pack(order + "H", 1) + make + struct.pack(order + "L", second) + directory + jpeg + b"note"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("strips", [False, True])
def test_blanking_takes_the_thumbnail_and_nothing_else(order: str, strips: bool) -> None:
    exif = block(order, small_jpeg(), strips=strips)
    assert has_thumbnail(exif)
    blanked = without_thumbnail(exif)
    assert len(blanked) == len(exif) and not has_thumbnail(blanked)
    assert blanked[:22] == exif[:22] and not any(blanked[22:-4]) and blanked[-4:] == b"note"
    parsed = Image.Exif()
    parsed.load(b"Exif\0\0" + blanked)
    assert parsed[271] == "abc" and not parsed.get_ifd(1)


def test_blocks_without_one() -> None:
    for exif in (block("<"), block(">"), b"", b"II*\0", b"nothing of the kind", block("<", small_jpeg())[:30]):
        assert not has_thumbnail(exif) and without_thumbnail(exif) == exif
    assert not has_thumbnail(None)


def test_damaged_blocks_raise_nothing() -> None:
    rng, exif = random.Random(3), block("<", small_jpeg())
    for _ in range(2000):
        broken = bytearray(exif[: rng.randrange(len(exif) + 1)])
        for _ in range(rng.randrange(5)):
            if broken:
                broken[rng.randrange(min(60, len(broken)))] = rng.randrange(256)
        assert len(without_thumbnail(bytes(broken))) == len(broken)


def test_encoding_with_a_key_says_so_and_drops_it_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cryptography")
    exif = block("<", small_jpeg())
    picture, out, key = (str(tmp_path / name) for name in ("a.png", "a.lnt", "key"))
    images.write(picture, PIXELS, Metadata(exif=exif))
    Path(key).write_bytes(bytes(range(32)))
    Path(key).chmod(0o600)
    protected = ["encode", picture, out, "--tile", "64", "--key", f"file:{key}", "--protect", "0,0,10,10"]

    assert main(protected) == 0
    assert "a.png: note: EXIF holds a thumbnail" in (said := capsys.readouterr().err) and "--drop-thumbnail" in said
    assert Reader(Path(out).read_bytes()).metadata().exif == exif

    assert main([*protected, "--drop-thumbnail"]) == 0
    assert capsys.readouterr().err == ""
    assert Reader(Path(out).read_bytes()).metadata().exif == without_thumbnail(exif)

    assert main(["encode", picture, out]) == 0
    assert capsys.readouterr().err == ""
