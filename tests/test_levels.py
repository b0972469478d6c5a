"""Overview levels, frames by rows and strips, concealment, encrypted tiles: the frame-sized features of the codec."""

from __future__ import annotations

import io

import numpy as np
import pytest

from linnet.runtime.codec import Codec
from linnet.runtime.errors import InputError, UsageError
from linnet.runtime.levels import enlarge, halve, level_qualities
from linnet.runtime.reader import Reader
from linnet.runtime.rows import ArrayRows
from linnet.runtime.sealing import Protection
from linnet.runtime.tiles import Rect
from linnet.runtime.writer import PictureWriter


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def halved(pixels: np.ndarray, times: int) -> np.ndarray:
    for _ in range(times):
        pixels = halve(pixels)
    return pixels


def damaged_tile(data: bytes, number: int) -> bytes:
    offset, length = Reader(data).index().entries[number]
    return data[: offset + length - 1] + bytes([data[offset + length - 1] ^ 1]) + data[offset + length :]


def test_halving_by_hand() -> None:
    pixels = np.array([[0, 1, 9], [2, 4, 9], [10, 20, 255]], np.uint8)[..., None].repeat(3, 2)
    assert halve(pixels)[..., 0].tolist() == [[2, 9], [15, 255]]
    assert halve(pixels[:1, :1])[..., 0].tolist() == [[0]]


def test_level_qualities() -> None:
    assert level_qualities(60, 0) == (60,) == level_qualities(60, 1)
    assert level_qualities(60, 4) == (60, 0, 40, 44, 52)
    assert level_qualities(22, 4) == (22, 0, 2, 6, 14)
    assert level_qualities(8, 5) == (8,)
    with pytest.raises(UsageError, match="levels is 17"):
        level_qualities(60, 17)


@pytest.fixture(scope="module")
def pyramid(codec: Codec, photograph: np.ndarray) -> bytes:
    return codec.encode(photograph[:451, :509], quality=60, tile=64, levels=3)


@pytest.mark.parametrize("level", range(6))
def test_levels_have_their_size_and_windows_equal_their_crop(codec: Codec, pyramid: bytes, level: int) -> None:
    whole = codec.decode(pyramid, level=level)
    height, width = whole.shape[:2]
    assert (width, height) == (-(-509 >> level), -(-451 >> level))
    rng = np.random.default_rng(level)
    for _ in range(12):
        w, h = int(rng.integers(1, width + 1)), int(rng.integers(1, height + 1))
        x, y = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        window = codec.decode(pyramid, level=level, region=(x, y, w, h))
        np.testing.assert_array_equal(window, whole[y : y + h, x : x + w])


def test_levels_show_the_picture(codec: Codec, pyramid: bytes, photograph: np.ndarray) -> None:
    assert list(Reader(pyramid).record().levels) == [0, 2, 3]
    full = codec.decode(pyramid)
    for level in range(1, 5):
        shown = codec.decode(pyramid, level=level)
        assert psnr(shown, halved(photograph[:451, :509], level)) > 22
        if level == 1:  # not stored: from full size
            np.testing.assert_array_equal(shown, halve(full))
        if level == 4:  # not stored: from level 3
            np.testing.assert_array_equal(shown, halve(codec.decode(pyramid, level=3)))
    with pytest.raises(UsageError, match="level is 10"):
        codec.decode(pyramid, level=10)


def test_a_stored_level_needs_no_tile_of_full_size(codec: Codec, pyramid: bytes) -> None:
    overview = codec.decode(pyramid, level=2)
    for number in range(Reader(pyramid).record().grid.count):
        pyramid = damaged_tile(pyramid, number)
    np.testing.assert_array_equal(codec.decode(pyramid, level=2), overview)


def test_levels_change_nothing_at_full_size(codec: Codec, pyramid: bytes, photograph: np.ndarray) -> None:
    plain = codec.encode(photograph[:451, :509], quality=60, tile=64)
    np.testing.assert_array_equal(codec.decode(pyramid), codec.decode(plain))


class OnceRows(ArrayRows):
    """Gives each row once, in order, and forgets nothing else is allowed."""

    bottom = 0

    def rows(self, y: int, count: int) -> np.ndarray:
        assert y == self.bottom, "rows are asked for from top to bottom, each once"
        self.bottom += count
        return super().rows(y, count).copy()


@pytest.mark.parametrize(("tile", "levels"), [(64, 0), (512, 3), (1088, 2)])
def test_rows_that_come_once_give_the_same_file(codec: Codec, photograph: np.ndarray, tile: int, levels: int) -> None:
    tall = np.concatenate([photograph, photograph[::-1], photograph[:201]])[:, :130]
    output = io.BytesIO()
    codec.encode_frame(PictureWriter(output), OnceRows(tall), tile=tile, levels=levels)
    assert output.getvalue() == codec.encode(tall, tile=tile, levels=levels)


def test_strips_are_the_frame(codec: Codec, photograph: np.ndarray) -> None:
    tall = np.concatenate([photograph] * 5)[:, :130]
    data = codec.encode(tall, tile=256, levels=2)
    for level in range(3):
        strips = list(codec.strips(data, level=level))
        assert len(strips) > 1 or level == 2  # which is one band high
        np.testing.assert_array_equal(np.concatenate(strips), codec.decode(data, level=level))


@pytest.mark.parametrize("number", [0, 9, 55])
def test_concealment_fills_the_tile_and_names_it(
    codec: Codec, pyramid: bytes, photograph: np.ndarray, number: int
) -> None:
    whole = codec.decode(pyramid)
    damaged = damaged_tile(pyramid, number)
    with pytest.raises(InputError, match=f"tile {number}: .* checksum"):
        codec.decode(damaged)
    blanks: list[str] = []
    concealed = codec.decode(damaged, conceal=True, blanks=blanks)
    assert len(blanks) == 1 and f"tile {number}:" in blanks[0]
    grid = Reader(pyramid).record().grid
    rect = grid.rect(number).common(Rect(0, 0, grid.width, grid.height))
    inside = (slice(rect.y, rect.bottom), slice(rect.x, rect.right))
    assert psnr(concealed[inside], photograph[:451, :509][inside]) > 14
    far = np.ones(whole.shape[:2], bool)
    reach = 16 * codec.synthesis_halo + 16
    far[max(0, rect.y - reach) : rect.bottom + reach, max(0, rect.x - reach) : rect.right + reach] = False
    np.testing.assert_array_equal(concealed[far], whole[far])


def test_without_an_overview_a_lost_tile_is_grey(codec: Codec, photograph: np.ndarray) -> None:
    data = damaged_tile(codec.encode(photograph[:256, :256], tile=128), 3)
    assert (codec.decode(data, conceal=True)[128:, 128:] == 128).all()


def test_protected_rectangles(codec: Codec, photograph: np.ndarray) -> None:
    pytest.importorskip("cryptography")
    image, key = photograph[:256, :384], bytes(range(32))
    clear = codec.decode(codec.encode(image, tile=64, levels=2))
    data = codec.encode(image, tile=64, levels=2, protection=Protection(key, [Rect(150, 100, 20, 20)]))
    np.testing.assert_array_equal(codec.decode(data, key=key), clear)
    blanks: list[str] = []
    hidden = codec.decode(data, blanks=blanks)
    assert (hidden[64:128, 128:192] == 128).all()
    assert blanks and all("is encrypted" in sentence for sentence in blanks)
    np.testing.assert_array_equal(hidden[:, 336:], clear[:, 336:])
    assert (codec.decode(data, level=2)[25:30, 38:42] == 128).all()
    with pytest.raises(InputError, match="wrong key or modified"):
        codec.decode(data, key=bytes(32))
    with pytest.raises(UsageError, match="digest"):
        codec.encode(image, digest=True, protection=Protection(key))


def test_enlarging_a_flat_picture_keeps_it() -> None:
    assert (enlarge(np.full((3, 2, 3), 77, np.uint8), 4, 8, 12) == 77).all()
    ramp = np.arange(0, 200, 20, dtype=np.uint8)[None, :, None].repeat(3, 2)
    row = enlarge(ramp, 2, 20, 2)[0, :, 0].astype(int)
    assert (np.diff(row) >= 0).all() and row[0] == 0 and row[-1] == 180
