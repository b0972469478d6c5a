"""`linnet.images`: pixels and metadata of the four formats, odd inputs, damaged files, outputs that appear whole."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from linnet import files, images
from linnet.runtime.bitstream import Metadata
from linnet.runtime.errors import InputError, MachineError, UsageError

XMP = b'<?xpacket begin="\xef\xbb\xbf"?><x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6"/><?xpacket end="w"?>'
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LOSSLESS = ["a.png", "a.tif", "a.tiff", "a.webp"]
BLOCK_FORMATS = ["a.png", "a.jpg", "a.webp"]
GPS_LATITUDE = (50.0, 49.0, 12.34)


def exif_block(orientation: int = 6) -> bytes:
    """A camera's block, with GPS, a maker note and an orientation; the bare TIFF structure."""
    exif = Image.Exif()
    exif[271], exif[272], exif[274] = "linnet", "test camera", orientation
    details = exif.get_ifd(0x8769)
    details[33434], details[37500] = 0.004, b"\0maker note\xff" * 5
    position = exif.get_ifd(0x8825)
    position[1], position[2] = "N", GPS_LATITUDE
    return exif.tobytes().removeprefix(b"Exif\0\0")


METADATA = Metadata(exif=exif_block(), xmp=XMP, icc=ICC)


def gradient(height: int = 37, width: int = 53) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("shape", [(37, 53), (1, 1), (1, 300), (64, 64)])
def test_pixels_survive_lossless_formats(tmp_path: Path, name: str, shape: tuple[int, int]) -> None:
    path = str(tmp_path / name)
    images.write(path, gradient(*shape), Metadata())
    picture = images.read(path)
    np.testing.assert_array_equal(picture.pixels, gradient(*shape))
    assert picture.metadata == Metadata()
    assert picture.notes == ()


def test_jpeg_is_close_and_keeps_chroma_resolution(tmp_path: Path) -> None:
    path = str(tmp_path / "a.jpg")
    images.write(path, gradient(), Metadata())
    difference = images.read(path).pixels.astype(int) - gradient()
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_metadata_passes_byte_for_byte(tmp_path: Path, name: str) -> None:
    path = str(tmp_path / name)
    assert images.write(path, gradient(), METADATA) == ()
    assert images.read(path).metadata == METADATA


def test_metadata_stands_where_each_format_wants_it(tmp_path: Path) -> None:
    written = {}
    for name in ("a.png", "a.jpg", "a.webp", "a.tif"):
        images.write(str(tmp_path / name), gradient(), METADATA)
        written[name] = (tmp_path / name).read_bytes()
    assert b"eXIf" + METADATA.exif in written["a.png"]
    assert b"iTXtXML:com.adobe.xmp\0\0\0\0\0" + XMP in written["a.png"]
    assert b"iCCP" in written["a.png"]
    assert b"Exif\0\0" + METADATA.exif in written["a.jpg"]
    assert b"http://ns.adobe.com/xap/1.0/\0" + XMP in written["a.jpg"]
    assert b"ICC_PROFILE\0\x01\x01" + ICC in written["a.jpg"]
    for kind, block in ((b"EXIF", METADATA.exif), (b"XMP ", XMP), (b"ICCP", ICC)):
        assert kind + struct.pack("<I", len(block)) + block in written["a.webp"]
    with Image.open(io.BytesIO(written["a.tif"])) as tiff:
        assert (tiff.tag_v2[700], tiff.tag_v2[34675]) == (XMP, ICC)


def test_tiff_keeps_the_values_of_exif(tmp_path: Path) -> None:
    path = str(tmp_path / "a.tif")
    images.write(path, gradient(), METADATA)
    found = images.read(path).metadata
    assert (found.xmp, found.icc) == (XMP, ICC)
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + found.exif)
    assert (exif[271], exif[272], exif[274]) == ("linnet", "test camera", 6)
    assert exif.get_ifd(0x8769)[37500] == b"\0maker note\xff" * 5
    assert exif.get_ifd(0x8825)[2] == GPS_LATITUDE
    assert not images.TIFF_PIXEL_TAGS & set(exif)


def test_tiff_rewritten_twice_gives_the_same_block(tmp_path: Path) -> None:
    first, second = str(tmp_path / "a.tif"), str(tmp_path / "b.tif")
    images.write(first, gradient(), METADATA)
    once = images.read(first)
    images.write(second, once.pixels, once.metadata)
    assert images.read(second).metadata == once.metadata


def test_geotiff_tags_travel(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[33550], tags[33922], tags[34735] = (0.05, 0.05, 0.0), (0.0, 0.0, 0.0, 5e5, 5.5e6, 0.0), (1, 1, 0, 0)
    Image.fromarray(gradient()).save(tmp_path / "map.tif", exif=tags)
    picture = images.read(str(tmp_path / "map.tif"))
    images.write(str(tmp_path / "out.tif"), picture.pixels, picture.metadata)
    with Image.open(tmp_path / "out.tif") as out:
        assert out.tag_v2[33550] == (0.05, 0.05, 0.0)
        assert out.tag_v2[33922] == (0.0, 0.0, 0.0, 5e5, 5.5e6, 0.0)
        assert out.tag_v2[34735] == (1, 1, 0, 0)


def test_size_tags_in_exif_do_not_break_a_tiff(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[256], exif[257], exif[271] = 9999, 8888, "linnet"
    block = exif.tobytes().removeprefix(b"Exif\0\0")
    images.write(str(tmp_path / "a.tif"), gradient(), Metadata(exif=block))
    np.testing.assert_array_equal(images.read(str(tmp_path / "a.tif")).pixels, gradient())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", [*LOSSLESS, "a.jpg"])
def test_orientation_is_kept_and_pixels_are_not_turned(tmp_path: Path, name: str, orientation: int) -> None:
    plain, turned = str(tmp_path / f"plain{name}"), str(tmp_path / name)
    images.write(plain, gradient(), Metadata())
    images.write(turned, gradient(), Metadata(exif=exif_block(orientation)))
    picture = images.read(turned)
    np.testing.assert_array_equal(picture.pixels, images.read(plain).pixels)
    exif = Image.Exif()
    exif.load(b"Exif\0\0" + picture.metadata.exif)
    assert exif[274] == orientation


def test_xmp_of_a_turned_tiff_is_not_edited(tmp_path: Path) -> None:
    images.write(str(tmp_path / "a.tif"), gradient(), METADATA)
    assert images.read(str(tmp_path / "a.tif")).metadata.xmp == XMP


def test_exif_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(gradient()).save(stream, "PNG")
    content = b"eXIf" + METADATA.exif
    chunk = struct.pack(">I", len(METADATA.exif)) + content + struct.pack(">I", zlib.crc32(content))
    data = stream.getvalue()
    (tmp_path / "a.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert images.read(str(tmp_path / "a.png")).metadata.exif == METADATA.exif


def test_webp_exif_with_the_jpeg_prefix(tmp_path: Path) -> None:
    images.write(str(tmp_path / "a.webp"), gradient(), Metadata(exif=METADATA.exif))
    data = (tmp_path / "a.webp").read_bytes()
    at = data.index(b"EXIF")
    size = len(METADATA.exif) + 6
    changed = data[:at] + b"EXIF" + struct.pack("<I", size) + b"Exif\0\0" + METADATA.exif + b"\0" * (size % 2)
    changed = b"RIFF" + struct.pack("<I", len(changed) - 8) + changed[8:]
    (tmp_path / "b.webp").write_bytes(changed)
    assert images.read(str(tmp_path / "b.webp")).metadata.exif == METADATA.exif


def test_what_a_jpeg_segment_cannot_hold_is_named(tmp_path: Path) -> None:
    large = Metadata(exif=METADATA.exif + bytes(70000), xmp=XMP + b" " * 70000, icc=ICC + bytes(200000))
    notes = images.write(str(tmp_path / "a.jpg"), gradient(), large)
    assert [note.split(" ", 1)[0] for note in notes] == ["EXIF", "XMP"]
    found = images.read(str(tmp_path / "a.jpg")).metadata
    assert (found.exif, found.xmp, found.icc) == (None, None, large.icc)
    for name in ("a.png", "a.webp"):
        assert images.write(str(tmp_path / name), gradient(), large) == ()
        assert images.read(str(tmp_path / name)).metadata == large


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_exif_does_not_stop_a_tiff(tmp_path: Path) -> None:
    for block in (b"", b"II*\0", b"not exif at all", METADATA.exif[:40], b"MM\0*\xff\xff\xff\xff"):
        images.write(str(tmp_path / "a.tif"), gradient(), Metadata(exif=block, xmp=XMP))
        found = images.read(str(tmp_path / "a.tif"))
        np.testing.assert_array_equal(found.pixels, gradient())
        assert found.metadata.xmp == XMP


def test_extended_xmp_is_named(tmp_path: Path) -> None:
    images.write(str(tmp_path / "a.jpg"), gradient(), Metadata(xmp=XMP))
    body = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 40 + b"<more/>"
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment + data[2:])
    picture = images.read(str(tmp_path / "a.jpg"))
    assert picture.metadata.xmp == XMP
    assert "XMP extension" in picture.notes[0]


# What is not 8-bit RGB


def read_saved(tmp_path: Path, image: Image.Image, name: str, **options: object) -> images.Picture:
    image.save(tmp_path / name, **options)
    return images.read(str(tmp_path / name))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_grey_becomes_rgb_silently(tmp_path: Path, name: str) -> None:
    grey = gradient()[..., 0]
    picture = read_saved(tmp_path, Image.fromarray(grey), name, **({"lossless": True} if name == "a.webp" else {}))
    np.testing.assert_array_equal(picture.pixels, np.stack([grey] * 3, axis=2))
    assert picture.notes == ()


def test_bilevel_and_palette_become_rgb(tmp_path: Path) -> None:
    bits = Image.fromarray(gradient()[..., 0]).convert("1")
    np.testing.assert_array_equal(read_saved(tmp_path, bits, "a.png").pixels, np.asarray(bits.convert("RGB")))
    palette = Image.fromarray(gradient()).quantize(16)
    picture = read_saved(tmp_path, palette, "b.png")
    np.testing.assert_array_equal(picture.pixels, np.asarray(palette.convert("RGB")))
    assert picture.notes == ()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_alpha_is_flattened_onto_white(tmp_path: Path, name: str) -> None:
    alpha = np.full((37, 53, 1), 255, np.uint8)
    options = {"lossless": True, "exact": True} if name == "a.webp" else {}
    opaque = read_saved(tmp_path, Image.fromarray(np.dstack([gradient(), alpha])), name, **options)
    np.testing.assert_array_equal(opaque.pixels, gradient())
    assert opaque.notes == ()
    alpha[:10] = 0
    picture = read_saved(tmp_path, Image.fromarray(np.dstack([gradient(), alpha])), name, **options)
    assert (picture.pixels[:10] == 255).all()
    np.testing.assert_array_equal(picture.pixels[10:], gradient()[10:])
    assert picture.notes == ("transparency was flattened onto white",)


def test_transparent_colour_of_a_png(tmp_path: Path) -> None:
    pixels = gradient()
    pixels[0, 0] = 1, 2, 3
    picture = read_saved(tmp_path, Image.fromarray(pixels), "a.png", transparency=(1, 2, 3))
    assert picture.pixels[0, 0].tolist() == [255, 255, 255]
    assert picture.notes == ("transparency was flattened onto white",)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path, name: str, channels: int) -> None:
    high = gradient()[..., :channels].astype(np.uint16)
    cv2.imwrite(str(tmp_path / name), high[..., ::-1] * 256 + 200)
    picture = images.read(str(tmp_path / name))
    np.testing.assert_array_equal(picture.pixels, np.broadcast_to(high, (37, 53, 3)))
    assert picture.notes == ("16-bit samples were cut to their upper 8 bits",)


def test_cmyk_is_converted_and_its_profile_dropped(tmp_path: Path) -> None:
    profile = bytearray(ICC)
    profile[16:20] = b"CMYK"
    cmyk = Image.fromarray(gradient()).convert("CMYK")
    picture = read_saved(tmp_path, cmyk, "a.tif", icc_profile=bytes(profile))
    assert np.abs(picture.pixels.astype(int) - gradient()).max() <= 1
    assert picture.metadata.icc is None
    assert [note.split(" ")[0] for note in picture.notes] == ["CMYK", "the"]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_samples_without_8_bit_meaning_are_refused(tmp_path: Path, mode: str) -> None:
    with pytest.raises(InputError, match=r"a\.tif: .* scale them to 8 bits"):
        read_saved(tmp_path, Image.new(mode, (8, 8)), "a.tif")


def test_only_the_first_page(tmp_path: Path) -> None:
    pages = [Image.fromarray(gradient()), Image.new("RGB", (9, 9))]
    picture = read_saved(tmp_path, pages[0], "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(picture.pixels, gradient())
    assert picture.notes == ("only the first of 2 pictures in the file is used",)


# Damaged, absent, enormous


def test_absent_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.png: no such file"):
        images.read(str(tmp_path / "nothing.png"))
    with pytest.raises(InputError, match="is a directory"):
        images.read(str(tmp_path))


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"RIFF\0\0\0\0WEBP"])
def test_not_a_picture(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.png: ") as caught:
        images.read(str(path))
    assert "\n" not in str(caught.value)


def test_other_formats_are_not_read(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.bmp")
    with pytest.raises(InputError, match="not a PNG, JPEG, TIFF or WebP"):
        images.read(str(tmp_path / "a.bmp"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_truncated_pictures(tmp_path: Path, name: str) -> None:
    images.write(str(tmp_path / name), gradient(), METADATA)
    data = (tmp_path / name).read_bytes()
    for keep in range(0, len(data) - 20, max(1, len(data) // 60)):
        (tmp_path / name).write_bytes(data[:keep])
        try:
            images.read(str(tmp_path / name))
        except InputError as error:
            assert str(error).startswith(str(tmp_path / name))
    (tmp_path / name).write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(InputError):
        images.read(str(tmp_path / name))


def forged_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def test_enormous_pictures_are_refused_before_allocation(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(forged_png(60000, 60000))
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(InputError, match="beyond the limit"):
        images.read(str(tmp_path / "a.png"))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_400_megapixels_pass_the_guard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(forged_png(20000, 20000))
    seen = []
    monkeypatch.setattr(images, "_picture", lambda image: seen.append(image.size))
    images.read(str(tmp_path / "a.png"))
    assert seen == [(20000, 20000)]


# Outputs


def test_suffixes() -> None:
    assert images.output_format("a.JPG") == "JPEG"
    assert images.output_format("-") == "PNG"
    for path in ("a.lnt", "a", "a.bmp"):
        with pytest.raises(UsageError, match=r"\.png"):
            images.output_format(path)


def test_sides_that_a_format_cannot_hold(tmp_path: Path) -> None:
    wide = np.zeros((1, 70000, 3), np.uint8)
    for name in ("a.jpg", "a.webp"):
        with pytest.raises(UsageError, match="70000x1; write PNG or TIFF"):
            images.write(str(tmp_path / name), wide, Metadata())
    images.write(str(tmp_path / "a.png"), wide, Metadata())
    assert os.listdir(tmp_path) == ["a.png"]


def test_failed_output_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), files.writing(str(path)) as output:
        output.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


def test_output_takes_the_place_of_a_link_target(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(b"old")
    (tmp_path / "link.png").symlink_to("real.png")
    with files.writing(str(tmp_path / "link.png")) as output:
        output.write(b"new")
    assert (tmp_path / "link.png").is_symlink()
    assert (tmp_path / "real.png").read_bytes() == b"new"


def test_output_permissions_follow_the_umask(tmp_path: Path) -> None:
    with files.writing(str(tmp_path / "a.png")) as output:
        output.write(b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_output_problems_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="folder does not exist"), files.writing(str(tmp_path / "no" / "a.png")):
        pass
    with pytest.raises(UsageError, match="is a folder"), files.writing(str(tmp_path)):
        pass


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disk() -> None:
    with pytest.raises(MachineError, match="no space left"), files.writing("/dev/full") as output:
        output.write(b"x" * 100000)
        output.flush()


def test_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.fromarray(gradient()).save(stream, "PNG")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stream.getvalue())))
    np.testing.assert_array_equal(images.read("-").pixels, gradient())
    caught = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(caught))
    images.write("-", gradient(), METADATA)
    with Image.open(io.BytesIO(caught.getvalue())) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert image.info["xmp"] == XMP
