"""The Pillow plugin: lazy opening, levels by `draft` and `thumbnail`, the frames of recordings, metadata, errors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

import linnet
import linnet.pillow  # registers
from linnet.runtime.bitstream import Metadata
from linnet.runtime.codec import Codec
from linnet.runtime.reader import Reader

EXIF = Image.Exif()
EXIF[271] = "linnet"
METADATA = Metadata(
    exif=EXIF.tobytes().removeprefix(b"Exif\0\0"),
    xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>',
    icc=bytes(16) + b"RGB " + bytes(range(200)),
)


class Counted(io.BytesIO):
    """A file that knows which of its bytes were read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.touched = np.zeros(len(data), bool)

    def read(self, size: int | None = -1) -> bytes:
        start = self.tell()
        data = super().read(size)
        self.touched[start : start + len(data)] = True
        return data


@pytest.fixture(scope="module")
def with_levels(codec: Codec, photograph: np.ndarray) -> bytes:
    return codec.encode(photograph[:400, :500], quality=70, tile=128, levels=3, metadata=METADATA)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory, photograph: np.ndarray) -> Path:
    """Three frames, the last one smaller."""
    path = tmp_path_factory.mktemp("pillow") / "flight.lnt"
    frames = [
        linnet.CapturedFrame(photograph[:100, :120], 1000, METADATA),
        linnet.CapturedFrame(photograph[100:200, :120], 2000),
        linnet.CapturedFrame(photograph[200:264, :80], 3000),
    ]
    linnet.record(frames, path, tile=64, threads=1)
    return path


def test_opening_reads_no_tile(with_levels: bytes) -> None:
    file = Counted(with_levels)
    with Image.open(file) as image:
        assert (image.size, image.mode, image.info["quality"]) == ((500, 400), "RGB", 70)
        assert image.info["xmp"] == METADATA.xmp and image.getexif()[271] == "linnet"
        for offset, length in Reader(with_levels).index().entries:
            assert not file.touched[offset + 28 : offset + length].any()


@pytest.mark.parametrize(
    ("size", "level"), [((500, 400), 0), ((251, 100), 0), ((250, 200), 1), ((100, 50), 2), ((62, 50), 3), ((1, 1), 8)]
)
def test_draft_takes_the_smallest_level_that_is_large_enough(
    with_levels: bytes, codec: Codec, size: tuple[int, int], level: int
) -> None:
    with Image.open(io.BytesIO(with_levels)) as image:
        found = image.draft("RGB", size)
        assert found == (None if level == 0 else ("RGB", (0, 0, 500 / 2**level, 400 / 2**level)))
        assert image.size == (-(-500 >> level), -(-400 >> level))
        assert image.draft("RGB", (1, 1)) is None or level == 0
        if level:
            np.testing.assert_array_equal(np.asarray(image), codec.decode(with_levels, level=level))
            assert image.draft("RGB", (1, 1)) is None  # the pixels are there


def test_a_thumbnail_touches_no_tile_of_full_size(with_levels: bytes, codec: Codec) -> None:
    file = Counted(with_levels)
    with Image.open(file) as image:
        image.thumbnail((50, 50))
        assert image.size == (50, 40)
        close = Image.fromarray(codec.decode(with_levels)).resize((50, 40), Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(close)).mean() < 8  # overviews are coarser
    index = Reader(with_levels).index()
    bounds = [index.record.first_tile(level) for level in (0, 2, 3)]
    assert bounds == [0, 16, 17]
    for offset, length in index.entries[:16]:
        assert not file.touched[offset + 28 : offset + length].any()
    assert file.touched.mean() < 0.2


def test_without_draft_the_picture_has_its_full_size(with_levels: bytes, codec: Codec) -> None:
    with Image.open(io.BytesIO(with_levels)) as image:
        np.testing.assert_array_equal(np.asarray(image), codec.decode(with_levels))


def test_the_frames_of_a_recording(recording: Path) -> None:
    whole = [linnet.decode(recording.read_bytes(), frame=number) for number in range(3)]
    with Image.open(recording) as image:
        assert (image.n_frames, image.is_animated, image.tell()) == (3, True, 0)
        assert image.getexif()[271] == "linnet"
        for frame, pixels in zip(ImageSequence.Iterator(image), whole, strict=True):
            np.testing.assert_array_equal(np.asarray(frame), pixels)
        assert (image.tell(), image.size, image.info["timestamp"]) == (2, (80, 64), 3000)
        assert "exif" not in image.info and 271 not in image.getexif()
        image.seek(0)
        np.testing.assert_array_equal(np.asarray(image), whole[0])
        image.seek(1)
        image.draft(None, (30, 25))
        assert image.size == (30, 25)
        image.seek(2)
        assert image.size == (80, 64)
        for beyond in (3, -1):
            with pytest.raises(EOFError):
                image.seek(beyond)
    single = Image.open(io.BytesIO(linnet.encode(whole[2])))
    assert (single.n_frames, single.is_animated) == (1, False)


def test_save_all_writes_a_recording(recording: Path, tmp_path: Path, codec: Codec) -> None:
    out = tmp_path / "again.lnt"
    with Image.open(recording) as image:
        image.save(out, save_all=True, append_images=[Image.new("L", (70, 40), 99)], quality=90, tile=64)
    with open(out, "rb") as file:
        reader = Reader(file)
        assert reader.recording and reader.complete and reader.frame_count == 4
        assert [reader.timestamp(number) for number in range(4)] == [1000, 2000, 3000, 0]
        assert reader.metadata(0) == METADATA and reader.metadata(3) == Metadata()
        assert (reader.record(2).quality, reader.record(2).grid.tile) == (90, 64)
        assert abs(codec.decode(reader, frame=3).astype(int) - 99).max() < 8


def test_options_of_save(tmp_path: Path, photograph: np.ndarray) -> None:
    out = tmp_path / "a.lnt"
    Image.fromarray(photograph[:200, :200]).save(out, quality=80, tile=64, levels=2, digest=True, xmp=METADATA.xmp)
    info = linnet.info(out.read_bytes())
    assert (info.quality, info.tile, info.levels, info.metadata.xmp) == (80, 64, (2,), METADATA.xmp)
    assert info.digest is not None
    for mode in ("RGBA", "LA", "I", "F", "I;16"):
        with pytest.raises(OSError, match=f"cannot write mode {mode}.*convert the image to RGB"):
            Image.new(mode, (64, 64)).save(tmp_path / "b.lnt")
    with pytest.raises(OSError, match="quality is 0"):
        Image.new("RGB", (64, 64)).save(tmp_path / "b.lnt", quality=0)
    assert [path.name for path in tmp_path.iterdir()] == ["a.lnt"]


def test_verify_checks_every_byte(with_levels: bytes) -> None:
    Image.open(io.BytesIO(with_levels)).verify()
    damaged = bytearray(with_levels)
    damaged[-1] ^= 1
    with pytest.raises(OSError, match="fails its checksum"):
        Image.open(io.BytesIO(bytes(damaged))).verify()


def test_encrypted_tiles_are_grey_and_said_to_be(photograph: np.ndarray) -> None:
    pytest.importorskip("cryptography", reason="encrypted tiles need the privacy extra")
    data = linnet.encode(photograph[:64, :64], protection=linnet.Protection(bytes(32)))
    with Image.open(io.BytesIO(data)) as image, pytest.warns(UserWarning, match="tile 0 is encrypted"):
        assert (np.asarray(image) == 128).all()


def test_files_are_closed(with_levels: bytes, recording: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.lnt"
    path.write_bytes(with_levels)
    image = Image.open(path)
    file = image.fp
    image.load()
    assert file.closed and image.fp is None
    assert image.copy().size == (500, 400)
    image = Image.open(recording)
    file = image.fp
    image.load()
    assert not file.closed
    image.close()
    assert file.closed
