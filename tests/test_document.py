"""docs/bitstream.md against the library: a decoder written from the page gives the same pixels and refusals."""

from __future__ import annotations

import book_decoder
import numpy as np
import pytest

from linnet.runtime.codec import Codec
from linnet.runtime.core import crc32c
from linnet.runtime.errors import InputError


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
