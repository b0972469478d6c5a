"""The container: what it writes it reads; truncated, flipped or noise is one InputError, never anything else."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest

from linnet.runtime.bitstream import BOX_HEADER, SIGNATURE, Header, Metadata, Picture, read_info, verify, write_picture
from linnet.runtime.codec import Codec
from linnet.runtime.core import crc32c
from linnet.runtime.errors import InputError, LinnetError
from linnet.runtime.tiles import TileGrid

METADATA = Metadata(exif=b"II*\0exif", xmp=b"<x:xmpmeta/>", icc=b"profile")
MUTATIONS = 20_000


@pytest.fixture(scope="module")
def payloads() -> list[bytes]:
    return [bytes([n]) * (20 + n) for n in range(6)]


@pytest.fixture(scope="module")
def file(payloads: list[bytes]) -> bytes:
    header = Header(TileGrid(300, 150, 128), 37, bytes(range(32)), b"d" * 32)
    return write_picture(header, payloads, METADATA)


def test_what_is_written_is_read(file: bytes, payloads: list[bytes]) -> None:
    picture = Picture(io.BytesIO(file))
    assert [picture.tile(n) for n in range(6)] == payloads
    info = verify(file)
    assert info == read_info(file)
    assert (info.width, info.height, info.tile, info.tiles, info.quality) == (300, 150, 128, 6, 37)
    assert info.metadata == METADATA
    assert info.digest == (b"d" * 32).hex() and info.bundle == bytes(range(32)).hex()
    assert [kind for kind, _, _ in info.boxes] == ["HEAD", "INDX", "EXIF", "XMP ", "ICC ", *["TILE"] * 6]


def test_layout_is_the_documented_one(file: bytes) -> None:
    """Parsed by hand as docs/bitstream.md says, without the library's structs."""
    assert file[:8] == bytes.fromhex("894C4E540D0A1A0A")
    assert file[8:12] == b"HEAD"
    length = int.from_bytes(file[12:20], "little")
    assert length == 80
    assert int.from_bytes(file[20:24], "little") == crc32c(file[28 : 28 + length])
    assert int.from_bytes(file[24:28], "little") == crc32c(file[8:24])
    version, flags, width, height, tile, quality = struct.unpack_from("<HHIIHB", file, 28)
    assert (version, flags, width, height, tile, quality) == (1, 1, 300, 150, 128, 37)
    index = 28 + length
    assert file[index : index + 4] == b"INDX"
    count, offset, size = struct.unpack_from("<IQI", file, index + 20)
    assert count == 6 and file[offset : offset + 4] == b"TILE" and size == 20 + 4 + 20


def test_unknown_boxes_are_skipped_and_damage_in_them_is_found(file: bytes) -> None:
    body = b"something new"
    head = struct.pack("<4sQI", b"NEWS", len(body), crc32c(body))
    longer = file + head + struct.pack("<I", crc32c(head)) + body
    assert verify(longer).tiles == 6
    with pytest.raises(InputError, match="'NEWS'"):
        verify(longer[:-1] + b"?")


def test_unknown_version_is_refused(file: bytes) -> None:
    head = bytearray(file[8 : 28 + 80])
    head[20] = 2
    head[12:16] = crc32c(bytes(head[20:])).to_bytes(4, "little")
    head[16:20] = crc32c(bytes(head[:16])).to_bytes(4, "little")
    with pytest.raises(InputError, match="version 2 is not known"):
        Picture(file[:8] + bytes(head) + file[108:])


def test_every_truncation_is_an_error(file: bytes) -> None:
    for size in range(len(file)):
        with pytest.raises(InputError):
            verify(file[:size])


def test_every_flipped_bit_is_an_error(file: bytes) -> None:
    for bit in range(8 * len(file)):
        damaged = bytearray(file)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InputError):
            verify(bytes(damaged))


def test_a_forged_header_allocates_nothing() -> None:
    """A 180-byte file that claims a million by a million pixels is refused before its index is believed."""
    grid = TileGrid(1 << 20, 1 << 20, 4096)
    front = write_picture(Header(grid, 50, bytes(32)), [b""])
    tracemalloc.start()
    with pytest.raises(InputError, match="tiles need"):
        Picture(front)
    assert tracemalloc.get_traced_memory()[1] < 1 << 16
    tracemalloc.stop()


def repaired(data: bytearray) -> bytes:
    """`data` with the checksums of every box that still parses made right, so that fuzzing gets past them."""
    offset = len(SIGNATURE)
    while offset + BOX_HEADER <= len(data):
        length = int.from_bytes(data[offset + 4 : offset + 12], "little")
        end = offset + BOX_HEADER + length
        if end > len(data):
            break
        data[offset + 12 : offset + 16] = crc32c(bytes(data[offset + BOX_HEADER : end])).to_bytes(4, "little")
        data[offset + 16 : offset + 20] = crc32c(bytes(data[offset : offset + 16])).to_bytes(4, "little")
        offset = end
    return bytes(data)


def mutated(data: bytes, rng: np.random.Generator) -> bytearray:
    """Flips, overwrites, cuts, repeats, noise."""
    result = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(result))) if result else 0
        kind = rng.integers(5)
        if kind == 0 and result:
            result[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            result[at : at + 8] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 2:
            del result[at:]
        elif kind == 3:
            result[at:at] = result[max(0, at - 30) : at]
        else:
            extreme = int(rng.choice(np.array([0, 1, 0x7F, 0x80, 0xFF])))
            result[at : at + 4] = bytes([extreme]) * 4
    return result


def test_fuzzed_containers(file: bytes) -> None:
    """Half of the mutants have their checksums repaired. Whatever happens is an InputError or a correct read."""
    rng = np.random.default_rng(2026)
    rejected = 0
    for number in range(MUTATIONS):
        data = mutated(file, rng)
        try:
            picture = Picture(repaired(data) if number % 2 else bytes(data))
            picture.info()
            for tile in range(min(picture.header.grid.count, 64)):
                picture.tile(tile)
        except InputError:
            rejected += 1
    assert rejected > MUTATIONS // 2


def test_fuzzed_payloads_through_the_whole_decoder(codec: Codec, photograph: np.ndarray) -> None:
    """Damage inside entropy-coded tiles with valid checksums: an error that names the tile, or bounded pixels."""
    rng = np.random.default_rng(7)
    data = codec.encode(photograph[:96, :160], quality=70, tile=64)
    named = 0
    for _ in range(400):
        picture = Picture(data)
        tiles = [picture.tile(n) for n in range(picture.header.grid.count)]
        victim = int(rng.integers(len(tiles)))
        tiles[victim] = bytes(mutated(tiles[victim], rng))
        try:
            pixels = codec.decode(write_picture(picture.header, tiles))
            assert pixels.shape == (96, 160, 3)
        except InputError as error:
            assert f"tile {victim}:" in str(error)
            named += 1
    assert named > 300


def test_noise_is_not_a_file() -> None:
    rng = np.random.default_rng(3)
    for size in (0, 1, 7, 8, 9, 100, 5000):
        for front in (b"", SIGNATURE):
            with pytest.raises(LinnetError):
                verify(front + rng.bytes(size))
