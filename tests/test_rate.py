"""Encoding to a size, rectangles that are coded better, and that the decoder cannot tell the difference."""

from __future__ import annotations

import numpy as np
import pytest
from book_decoder import decode as decode_by_the_book

import linnet
from linnet.cli import main
from linnet.runtime.bundle import Bundle
from linnet.runtime.codec import Codec
from linnet.runtime.errors import UsageError
from linnet.runtime.rate import SizeTarget, first_guess
from linnet.runtime.reader import Reader
from linnet.runtime.sealing import Protection


def photograph(height: int, width: int) -> np.ndarray:
    data = pytest.importorskip("skimage.data")
    image = data.astronaut()
    return np.ascontiguousarray(np.tile(image, (-(-height // 512), -(-width // 512), 1))[:height, :width])


@pytest.mark.parametrize("bits_per_pixel", [0.25, 0.8])
@pytest.mark.parametrize("tile", [128, 512])
def test_the_size_is_met(bits_per_pixel: float, tile: int) -> None:
    image = photograph(400, 500)
    size = round(bits_per_pixel * 400 * 500 / 8)
    data = linnet.encode(image, size=size, tile=tile, threads=1)
    assert abs(len(data) / size - 1) <= 0.03
    assert linnet.encode(image, size=size, tile=tile, threads=2) == data  # whoever finishes first


@pytest.mark.parametrize("bundle", ["camera", "micro", "camera-ms-ssim"])
def test_photographs_of_one_tile_or_two_meet_a_size(bundle: str) -> None:
    """No tile is left to make up for a wrong estimate: a step of quality is 4 % of the bytes."""
    data = pytest.importorskip("skimage.data")
    codec, errors = Codec.open(bundle, threads=1), []
    for image in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket()):
        for bits_per_pixel in (0.1, 0.4):
            size = round(bits_per_pixel * image[..., 0].size / 8)
            errors.append(abs(len(codec.encode(np.ascontiguousarray(image), size=size)) / size - 1))
    assert np.mean(errors) <= 0.02 and max(errors) <= 0.05


def test_a_size_that_is_the_size_of_a_quality_gives_that_quality() -> None:
    """The estimate is of the codec's real tables: it finds the quality again from the bytes alone."""
    image = photograph(512, 512)
    for quality in (20, 55, 90):
        found = linnet.info(linnet.encode(image, size=len(linnet.encode(image, quality=quality)))).quality
        assert abs(found - quality) <= 1


def test_levels_and_metadata_count() -> None:
    image = photograph(500, 700)
    metadata = linnet.Metadata(exif=b"Exif" * 500)
    data = linnet.encode(image, size=30_000, tile=128, levels=3, metadata=metadata)
    assert abs(len(data) / 30_000 - 1) <= 0.03
    assert len(Reader(data).record().levels) > 1


def test_a_size_that_cannot_be_is_refused() -> None:
    image = photograph(256, 256)
    with pytest.raises(UsageError, match=r"take about \d+ at quality 1"):
        linnet.encode(image, size=400)
    with pytest.raises(UsageError, match="do not even hold the metadata"):
        linnet.encode(image, size=100)


def test_a_frame_too_large_for_a_size_is_refused_at_once() -> None:
    class Huge:
        width, height = 1 << 14, 1 << 14

        def rows(self, y: int, count: int) -> np.ndarray:
            raise AssertionError("no row must be read")

    from linnet.pictures import codec
    from linnet.runtime.writer import PictureWriter

    with pytest.raises(UsageError, match="choose a quality"):
        codec().encode_frame(PictureWriter(__import__("io").BytesIO()), Huge(), size=1_000_000)


def qualities(data: bytes) -> list[int]:
    reader = Reader(data)
    return [tile.quality for tile in reader.tiles(0, range(reader.record().tile_count)).values()]


def test_favoured_rectangles() -> None:
    image = photograph(256, 384)
    plain = linnet.encode(image, quality=40, tile=128)
    better = linnet.encode(image, quality=40, tile=128, favoured=[((130, 10, 100, 50), 30), ((0, 250, 5, 5), -100)])
    assert qualities(plain) == [40] * 6
    assert qualities(better) == [40, 70, 40, 1, 40, 40]
    whole = linnet.decode(better)
    before, after = (
        np.square(linnet.decode(data)[:128, 128:256].astype(float) - image[:128, 128:256]).mean()
        for data in (plain, better)
    )
    assert after < 0.7 * before
    assert np.array_equal(linnet.decode(better, region=(100, 90, 200, 120)), whole[90:210, 100:300])
    assert np.array_equal(linnet.decode(better, backend="reference"), whole)
    with pytest.raises(UsageError, match="has no pixel in the frame"):
        linnet.encode(image, favoured=[((400, 0, 5, 5), 10)])


def test_another_decoder_agrees_about_the_quality_of_each_tile() -> None:
    data = linnet.encode(photograph(64, 128), quality=30, tile=64, favoured=[((70, 0, 9, 9), 40)])
    assert np.array_equal(decode_by_the_book(data, Bundle.open()), linnet.decode(data))


def test_the_digest_and_the_seal_hold_with_a_size(tmp_path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("cryptography")
    image, favoured = photograph(256, 256), [((0, 0, 9, 9), 25)]
    (tmp_path / "a.lnt").write_bytes(linnet.encode(image, size=9_000, tile=128, favoured=favoured, digest=True))
    assert main(["verify", "--pixels", str(tmp_path / "a.lnt")]) == 0
    sealed = linnet.encode(image, size=9_000, tile=128, favoured=favoured, protection=Protection(bytes(range(32))))
    plain = linnet.encode(image, size=9_000, tile=128, favoured=favoured)
    assert np.array_equal(linnet.decode(sealed, key=bytes(range(32))), linnet.decode(plain))


def test_the_command(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    from PIL import Image

    source, out = str(tmp_path / "a.png"), str(tmp_path / "a.lnt")
    Image.fromarray(photograph(300, 400)).save(source)
    assert main(["encode", source, out, "--size", "12k"]) == 0
    assert abs((tmp_path / "a.lnt").stat().st_size / 12_000 - 1) <= 0.03
    assert main(["encode", source, out, "--bpp", "0.4", "--roi", "0,0,50,50", "--tile", "128"]) == 0
    assert abs((tmp_path / "a.lnt").stat().st_size / 6_000 - 1) <= 0.03
    found = qualities((tmp_path / "a.lnt").read_bytes())
    assert max(found) >= min(found) + 15, "16 steps better, from a quality that goes one up and down to meet the size"
    assert main(["encode", source, out, "--quality", "40", "--roi", "0,0,50,50", "--tile", "128"]) == 0
    assert set(qualities((tmp_path / "a.lnt").read_bytes())) == {40, 56}
    assert capsys.readouterr().err == ""
    assert main(["encode", source, out, "--size", "1M"]) == 0
    assert "as near as quality 1 to 100 comes" in capsys.readouterr().err
    assert main(["encode", source, out, "--size", "300"]) == 2
    for wrong in (["--size", "0"], ["--size", "x"], ["--bpp", "-1"], ["--bpp", "1", "--size", "1"], ["--roi", "1,2,3"]):
        with pytest.raises(SystemExit) as ended:
            main(["encode", source, out, *wrong])
        assert ended.value.code == 2


class Flat:
    """A rate curve that says every quality step costs one percent."""

    def relative(self, quality: int) -> float:
        return 1.01**quality

    def quality_for(self, factor: float, quality: int) -> int:
        return round(min(max(quality + np.log(factor) / np.log(1.01), 1), 100))


def test_later_tiles_make_up_for_earlier_ones() -> None:
    """Every tile comes out three percent larger than the curve says: the last ones pay for it."""
    sizes = dict.fromkeys(range(50), 1000)
    target = SizeTarget(Flat(), sizes, 2000, 50, 52_000)  # type: ignore[arg-type]
    target.reserve(2000)
    spent, used = 0, []
    for tile in sizes:
        quality = target.next()
        size = round(1030 * 1.01 ** (quality - 50))
        target.spent(quality, [(tile, size)])
        spent += size
        used.append(quality)
    assert abs(spent - 50_000) < 250
    assert max(used) - min(used) <= 4


def test_the_first_guess_rises_with_the_rate_and_falls_with_what_there_is_to_write() -> None:
    bundle, rng = Bundle.open("micro"), np.random.default_rng(5)
    latents = [rng.laplace(0, 0.02, (height, 7, bundle.latent_channels)).astype(np.float32) for height in (40, 3)]
    guesses = [first_guess(bundle, latents, rate) for rate in (1e-6, 0.1, 0.5, 2.0, 100.0)]
    assert guesses == sorted(guesses) and guesses[0] == 2 and guesses[-1] == 100
    assert guesses[0] < guesses[1] < guesses[2] < guesses[3] < guesses[4]
    assert first_guess(bundle, [2 * values for values in latents], 0.5) < guesses[2]
    assert first_guess(bundle, [np.zeros((4, 4, bundle.latent_channels), np.float32)], 0.5) == 100
