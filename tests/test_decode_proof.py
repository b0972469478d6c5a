"""`linnet verify --pixels`: the digest in a stream proves the decode on the machine at hand, or says what is wrong."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

import linnet
from linnet.cli import main
from linnet.runtime import boxes
from linnet.runtime.core import crc32c
from linnet.runtime.reader import Reader
from linnet.runtime.sources import as_source

PICTURES = [np.full((70, 90, 3), value, np.uint8) for value in (10, 200, 90)]


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Three frames, each with its digest."""
    path = tmp_path / "frames.lnt"
    linnet.record(iter(PICTURES), path, digest=True, tile=64, threads=1)
    return path


def changed(path: Path, old: bytes, new: bytes) -> Path:
    """The same file with `old` replaced and every checksum made right again."""
    data = bytearray(path.read_bytes().replace(old, new))
    for box in list(boxes.walk(as_source(path.read_bytes()), len(boxes.SIGNATURE))):
        struct.pack_into("<I", data, box.offset + 12, crc32c(data[box.payload_offset : box.end]))
        struct.pack_into("<I", data, box.offset + 16, crc32c(data[box.offset : box.offset + 16]))
    copy = path.with_name("changed.lnt")
    copy.write_bytes(data)
    return copy


def test_every_frame_of_a_recording_is_proved(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--pixels", str(recording)]) == 0
    assert capsys.readouterr().out.endswith("the pixels match their proof\n")


@pytest.mark.parametrize("frame", [0, 2])
def test_a_frame_that_differs_is_named(recording: Path, frame: int, capsys: pytest.CaptureFixture[str]) -> None:
    digest = Reader(recording.read_bytes()).index(frame).digest
    assert digest is not None
    other = changed(recording, digest, bytes([digest[0] ^ 1]) + digest[1:])
    assert main(["verify", str(other)]) == 0, "the checksums alone do not tell"
    capsys.readouterr()
    assert main(["verify", "--pixels", str(other)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"changed.lnt: frame {frame}: the decoded pixels differ from the stored proof" in shown.err
    assert "--backend reference" in shown.err


def test_a_file_without_digest_has_nothing_to_prove(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "plain.lnt"
    path.write_bytes(linnet.encode(PICTURES[0]))
    assert main(["verify", str(path)]) == 0
    assert main(["verify", "--pixels", str(path)]) == 1
    assert "carries no digest of its pixels: encode with --digest" in capsys.readouterr().err


def test_another_bundle_is_asked_for_by_identity(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = changed(recording, Reader(recording.read_bytes()).record(0).bundle, bytes(32))
    assert main(["verify", "--pixels", str(other)]) == 1
    assert "encoded with bundle 0000000000000000" in capsys.readouterr().err
