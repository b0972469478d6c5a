"""TIFF pictures by rows: the same pixels and notes as Pillow's whole read, and files that every reader understands."""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from linnet import images
from linnet.cli import main
from linnet.runtime.bitstream import Metadata
from linnet.runtime.errors import InputError
from linnet.runtime.reader import Reader
from linnet.runtime.rows import ArrayRows

tifffile = pytest.importorskip("tifffile", reason="needs tifffile: pip install 'linnet[tiff]'")
pytest.importorskip("imagecodecs", reason="needs imagecodecs: pip install 'linnet[tiff]'")

from linnet.tiff import TiffRows, write_rows  # noqa: E402

HEIGHT, WIDTH = 203, 157


@pytest.fixture(autouse=True)
def every_tiff_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "BY_ROWS_PIXELS", 0)


def samples(count: int, dtype: Any = np.uint8) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = [(x * 3 + y) % 256, (x + y * 2) % 256, (x * y) % 256, np.clip(x * 4 - 100, 0, 255)]
    stacked = np.stack(planes[:count], axis=-1)
    return (stacked * 257 if dtype == np.uint16 else stacked).astype(dtype)


def by_rows(path: Path, seed: int = 1) -> tuple[np.ndarray, list[str]]:
    """All rows, asked for in pieces of random heights."""
    rng, pieces, y = random.Random(seed), [], 0
    with images.opened(str(path)) as picture:
        assert isinstance(picture.frame, TiffRows)
        while y < picture.frame.height:
            count = min(rng.randrange(1, 60), picture.frame.height - y)
            rows = picture.frame.rows(y, count)
            assert rows.shape == (count, picture.frame.width, 3) and rows.dtype == np.uint8
            pieces.append(rows)
            y += count
        return np.concatenate(pieces), list(picture.notes)


LAYOUTS: dict[str, dict[str, Any]] = {
    "one-strip": {},
    "strips": {"rowsperstrip": 17},
    "tiles": {"tile": (64, 48)},
    "big-endian": {"byteorder": ">", "rowsperstrip": 50},
    "bigtiff": {"bigtiff": True, "tile": (32, 32)},
    "deflate": {"compression": "zlib", "rowsperstrip": 20},
    "deflate-predictor": {"compression": "zlib", "predictor": True, "tile": (64, 64)},
    "lzw-predictor": {"compression": "lzw", "predictor": True, "rowsperstrip": 33},
    "zstd": {"compression": "zstd", "tile": (48, 64)},
    "packbits": {"compression": "packbits", "rowsperstrip": 9},
}
KINDS: dict[str, tuple[int, Any, dict[str, Any]]] = {
    "rgb": (3, np.uint8, {"photometric": "rgb"}),
    "rgb16": (3, np.uint16, {"photometric": "rgb"}),
    "rgba": (4, np.uint8, {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
    "premultiplied": (4, np.uint8, {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
    "rgbx": (4, np.uint8, {"photometric": "rgb", "extrasamples": ["unspecified"]}),
    "grey": (1, np.uint8, {"photometric": "minisblack"}),
    "grey16": (1, np.uint16, {"photometric": "minisblack"}),
    "white-is-0": (1, np.uint8, {"photometric": "miniswhite"}),
}


def write(path: Path, kind: str, layout: dict[str, Any]) -> None:
    count, dtype, options = KINDS[kind]
    pixels = samples(count, dtype)
    layout = dict(layout)
    whole = {key: layout.pop(key) for key in ("byteorder", "bigtiff") if key in layout}
    with tifffile.TiffWriter(path, **whole) as writer:
        writer.write(pixels[..., 0] if count == 1 else pixels, **options, **layout, metadata=None)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_what_pillow_reads(tmp_path: Path, kind: str, layout: str) -> None:
    path = tmp_path / "a.tif"
    write(path, kind, LAYOUTS[layout])
    whole = images.read(str(path))
    rows, notes = by_rows(path)
    np.testing.assert_array_equal(rows, whole.pixels)
    assert notes == list(whole.notes)


def test_separate_planes(tmp_path: Path) -> None:
    for name, layout in (("strips", {"rowsperstrip": 16}), ("tiles", {"tile": (64, 64), "compression": "zlib"})):
        path = tmp_path / f"{name}.tif"
        planes = np.ascontiguousarray(samples(3).transpose(2, 0, 1))
        tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", metadata=None, **layout)
        np.testing.assert_array_equal(by_rows(path)[0], samples(3))


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_jpeg_tiles_become_rgb(tmp_path: Path, subsampling: tuple[int, int]) -> None:
    path = tmp_path / "a.tif"
    smooth = np.repeat(np.linspace(0, 255, WIDTH).astype(np.uint8)[None, :, None], HEIGHT, 0).repeat(3, 2)
    options = {"compression": "jpeg", "compressionargs": {"level": 95}, "subsampling": subsampling}
    tifffile.imwrite(path, smooth, photometric="rgb", tile=(64, 64), metadata=None, **options)
    rows = by_rows(path)[0].astype(int)
    assert np.abs(rows - smooth).max() <= 4
    assert np.abs(rows - images.read(str(path)).pixels).max() <= 2  # two builds of libjpeg


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_tiles_that_a_sparse_file_leaves_out_are_nodata(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="needs rasterio to write a sparse TIFF")
    path = tmp_path / "a.tif"
    profile = {"driver": "GTiff", "width": WIDTH, "height": HEIGHT, "count": 3, "dtype": "uint8", "tiled": True}
    with rasterio.open(path, "w", **profile, blockxsize=64, blockysize=64, sparse_ok=True, photometric="rgb") as output:
        output.write(samples(3)[:64, :64].transpose(2, 0, 1), window=((0, 64), (0, 64)))
    rows = by_rows(path)[0]
    np.testing.assert_array_equal(rows[:64, :64], samples(3)[:64, :64])
    assert not rows[64:].any() and not rows[:, 64:].any()


def test_metadata_is_that_of_the_whole_read(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    exif = Image.Exif()
    exif[271], exif[274], exif[33550] = "linnet", 6, (0.05, 0.05, 0.0)
    exif.get_ifd(0x8825)[2] = (50.0, 49.0, 12.34)
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    images.write(str(path), samples(3), Metadata(exif=block, xmp=b"<x:xmpmeta/>"))
    with images.opened(str(path)) as picture:
        assert picture.metadata == images.read(str(path)).metadata
        assert picture.metadata.xmp == b"<x:xmpmeta/>"
    np.testing.assert_array_equal(by_rows(path)[0], samples(3))  # not turned, whatever the orientation says


@pytest.mark.parametrize(
    ("mode", "why"), [("P", "photometric kind 3"), ("CMYK", "photometric kind 5"), ("1", "1-bit"), ("LA", "2 samples")]
)
def test_other_kinds_are_read_whole(tmp_path: Path, mode: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(samples(3)).convert(mode).save(path)
    monkeypatch.setattr(images, "TELL_PIXELS", 0)
    with images.opened(str(path)) as picture:
        assert isinstance(picture.frame, ArrayRows)
        np.testing.assert_array_equal(picture.frame.rows(0, HEIGHT), images.read(str(path)).pixels)
        assert "held in memory" in picture.notes[-1] and why in picture.notes[-1]
    monkeypatch.setattr(images, "LARGEST_PIXELS", 100)
    with pytest.raises(InputError, match=f"beyond the limit of 100; it cannot be read by rows .*{why}"):
        images.opened(str(path)).__enter__()


def test_high_compressed_strips_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tall = np.zeros((3000, 8), np.uint8)
    tifffile.imwrite(path, tall, compression="zlib", rowsperstrip=3000, metadata=None)
    with images.opened(str(path)) as picture:
        assert isinstance(picture.frame, ArrayRows)
    tifffile.imwrite(path, tall, metadata=None)
    with images.opened(str(path)) as picture:
        assert isinstance(picture.frame, TiffRows)


@pytest.mark.parametrize("library", ["tifffile", "imagecodecs"])
def test_a_missing_library_is_named(tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    write(path, "rgb", {})
    monkeypatch.setitem(sys.modules, library, None)
    with images.opened(str(path)) as picture:
        np.testing.assert_array_equal(picture.frame.rows(0, HEIGHT), samples(3))
    monkeypatch.setattr(images, "TELL_PIXELS", 0)
    with images.opened(str(path)) as picture:
        assert picture.notes == [f"all of it was held in memory: {library} is not installed"]
    monkeypatch.setattr(images, "LARGEST_PIXELS", 100)
    with pytest.raises(InputError, match=r"a\.tif: .*pip install 'linnet\[tiff\]'"):
        images.opened(str(path)).__enter__()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("layout", ["one-strip", "deflate-predictor", "lzw-predictor"])
def test_damage_is_one_sentence(tmp_path: Path, layout: str) -> None:
    path = tmp_path / "a.tif"
    write(path, "rgb", LAYOUTS[layout])
    data = path.read_bytes()
    rng = random.Random(5)
    refused = 0
    for _ in range(60):
        broken = bytearray(data[: rng.randrange(8, len(data))] if rng.random() < 0.5 else data)
        for _ in range(rng.randrange(8)):
            broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        try:
            with images.opened(str(path)) as picture:
                if picture.frame.width * picture.frame.height < 1 << 22:
                    picture.frame.rows(0, picture.frame.height)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 10


def test_the_commands_take_and_give_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", "rgba", LAYOUTS["tiles"])
    Image.fromarray(images.read(str(tmp_path / "a.tif")).pixels).save(tmp_path / "b.png")
    for name in ("a.tif", "b.png"):
        assert main(["encode", str(tmp_path / name), str(tmp_path / f"{name}.lnt"), "--tile", "64"]) == 0
    by_rows, whole = (Reader((tmp_path / f"{name}.lnt").read_bytes()) for name in ("a.tif", "b.png"))
    numbers = range(by_rows.record().tile_count)
    assert [by_rows.tile(number) for number in numbers] == [whole.tile(number) for number in numbers]
    for name in ("c.tif", "c.png"):
        assert main(["decode", str(tmp_path / "a.tif.lnt"), str(tmp_path / name), "--region", "10,20,140,180"]) == 0
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "c.tif")), np.asarray(Image.open(tmp_path / "c.png"))
    )


@pytest.mark.parametrize("threshold", [1, 1 << 40])
def test_written_rows_are_read_by_everybody(tmp_path: Path, threshold: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As TIFF and, where the threshold is low, as BigTIFF."""
    monkeypatch.setattr("linnet.tiff.CLASSIC_BYTES", threshold)
    monkeypatch.setattr("linnet.tiff.STRIP_BYTES", 3 * WIDTH * 10)
    tags = Image.Exif()
    tags[270], tags[274] = "a description that does not fit into an entry", 1
    tags.get_ifd(0x8769)[33434] = 0.004
    tags.load(tags.tobytes())
    output = io.BytesIO()
    write_rows(output, WIDTH, HEIGHT, [samples(3)[:100], samples(3)[100:]], tags, b"not a real profile")
    (tmp_path / "a.tif").write_bytes(output.getvalue())
    assert (output.getvalue()[2] == 43) == (threshold == 1)
    np.testing.assert_array_equal(by_rows(tmp_path / "a.tif")[0], samples(3))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), samples(3))
    with Image.open(tmp_path / "a.tif") as image:
        np.testing.assert_array_equal(np.asarray(image), samples(3))
        assert image.tag_v2[270] == tags[270] and image.info["icc_profile"] == b"not a real profile"
        assert float(image.getexif().get_ifd(0x8769)[33434]) == 0.004
