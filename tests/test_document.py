"""docs/bitstream.md against the library: a decoder written from the page gives the same pixels and refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import book_decoder
import numpy as np
import pytest

from linnet.runtime import bitstream, tiles
from linnet.runtime.codec import Codec
from linnet.runtime.core import crc32c
from linnet.runtime.errors import InputError

HERE = Path(__file__).parent


@pytest.mark.parametrize(
    ("height", "width", "tile", "quality"), [(96, 130, 64, 90), (64, 64, 512, 1), (70, 65, 64, 50)]
)
def test_the_book_decoder_gives_the_same_pixels(
    codec: Codec, photograph: np.ndarray, height: int, width: int, tile: int, quality: int
) -> None:
    data = codec.encode(photograph[100 : 100 + height, 200 : 200 + width], quality=quality, tile=tile, levels=2)
    np.testing.assert_array_equal(book_decoder.decode(data, codec.bundle), codec.decode(data))


def test_the_checksum_is_the_documented_one() -> None:
    assert book_decoder.crc32c(b"123456789") == 0xE3069283 == crc32c(b"123456789")


def test_the_library_refuses_what_the_book_refuses(codec: Codec, photograph: np.ndarray) -> None:
    """A bit flipped anywhere in the boxes that matter: both refuse. (Where both accept, the pixels are the same.)"""
    data = codec.encode(photograph[:64, :128], quality=30, tile=64)
    rng = np.random.default_rng(11)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        with pytest.raises(book_decoder.BadFileError):
            book_decoder.decode(bytes(damaged), codec.bundle)
        with pytest.raises(InputError):
            codec.decode(bytes(damaged))


def test_the_worked_example_is_what_the_command_prints(tmp_path: Path) -> None:
    document = (HERE.parent / "docs" / "bitstream.md").read_text()
    example = document.partition("## Worked example")[2].split("```")[1].strip("\n")
    command = [sys.executable, str(HERE / "annotate.py"), str(HERE / "vectors" / "one-pixel.lnt")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert example == printed.strip("\n")
    data = b"".join(bytes.fromhex(line[8:56]) for line in example.splitlines() if line[:2] == "00")
    assert data == (HERE / "vectors" / "one-pixel.lnt").read_bytes()


def test_the_document_names_every_vector() -> None:
    document = (HERE.parent / "docs" / "bitstream.md").read_text()
    for folder in ("vectors", "vectors-bad"):
        for path in (HERE / folder).glob("*.lnt"):
            name = path.stem
            short = name.removeprefix("entropy")  # the table lists these by their endings
            assert f"`{name}`" in document or f"`{short}`" in document or name.startswith("camera"), name


def test_the_document_names_the_limits() -> None:
    document = (HERE.parent / "docs" / "bitstream.md").read_text()
    limits = document.partition("## Limits")[2].partition("## Errors")[0]
    assert bitstream.MAX_METADATA == 1 << 26 and "| EXIF, XMP or ICC payload | 2^26 bytes |" in limits
    assert bitstream.MAX_TILE_PAYLOAD == 1 << 28 and "| TILE or SEAL payload | 2^28 bytes |" in limits
    assert bitstream.MAX_RECORD == 1 << 16 and "| FRAM payload | 2^16 bytes |" in limits
    assert bitstream.MAX_CHECKPOINT_FRAMES == 1 << 20 and "| frames listed by one CKPT | 1 .. 2^20 |" in limits
    assert tiles.MAX_TILES == 1 << 24 and "| tiles of a frame, all levels | 2^24 |" in limits
    assert tiles.MAX_SIDE == 1 << 20 and "| width and height | 1 .. 2^20 |" in limits
    assert bitstream.MAX_LEVELS == 16 and "| levels | 16 |" in limits


def test_the_oracle_names_the_sections_that_it_implements() -> None:
    document = (HERE.parent / "docs" / "bitstream.md").read_text().splitlines()
    oracle = [line.strip() for line in (HERE / "book_decoder.py").read_text().splitlines()]
    for section in (
        "Signature", "Box", "FRAM: the frame record", "INDX", "CKPT and TAIL", "Recovery", "TILE", "SEAL",
        "Order of symbols", "Pixels", "Entropy coder",
    ):  # fmt: skip
        assert any(line.lstrip("#").strip().split(" (")[0] == section for line in document if line[:1] == "#"), section
        assert any(line == f"# {section}" or line.startswith(f"# {section},") for line in oracle), section
