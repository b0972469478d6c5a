"""The container: what it writes it reads; truncated, flipped or noise is one InputError, never anything else."""

from __future__ import annotations

import io
import struct
import tracemalloc

import numpy as np
import pytest
from recordings import METADATA, tile_payload, write_recording

from linnet.runtime import boxes
from linnet.runtime.bitstream import FrameRecord, Metadata
from linnet.runtime.boxes import BOX_HEADER, SIGNATURE
from linnet.runtime.codec import Codec
from linnet.runtime.core import crc32c
from linnet.runtime.errors import InputError, LinnetError
from linnet.runtime.inspection import read_info, verify
from linnet.runtime.reader import Reader
from linnet.runtime.recovery import recover
from linnet.runtime.tiles import TileGrid
from linnet.runtime.writer import SMALL_PICTURE, write_picture

RECORD = FrameRecord(TileGrid(300, 150, 128), (37, 0, 5), bytes(range(32)), timestamp=1_700_000_000_123_456_789)
LARGE = FrameRecord(TileGrid(1200, 150, 128), (37,), bytes(range(32)))
MUTATIONS = 20_000


@pytest.fixture(scope="module")
def payloads() -> list[bytes]:
    return [bytes([n]) * (20 + n) for n in range(RECORD.tile_count)]


@pytest.fixture(scope="module")
def file(payloads: list[bytes]) -> bytes:
    return write_picture(RECORD, payloads, METADATA, b"d" * 32)


def test_what_is_written_is_read(file: bytes, payloads: list[bytes]) -> None:
    reader = Reader(io.BytesIO(file))
    assert RECORD.tile_count == 7 and list(RECORD.levels) == [0, 2]
    assert [reader.tile(n) for n in range(7)] == payloads
    assert reader.record() == RECORD and reader.complete and not reader.recording
    info = verify(file)
    assert info == read_info(file)
    assert (info.width, info.height, info.tile, info.tiles, info.quality) == (300, 150, 128, 7, 37)
    assert info.metadata == METADATA and info.levels == (2,)
    assert info.digest == (b"d" * 32).hex() and info.bundle == bytes(range(32)).hex()
    assert [kind for kind, _, _ in info.boxes] == ["INDX", "EXIF", "XMP ", "ICC ", *["TILE"] * 7]
    assert RECORD.tile_count <= SMALL_PICTURE < LARGE.tile_count
    assert [kind for kind, _, _ in read_info(write_picture(LARGE, [b"x"] * 20)).boxes] == [
        *("FRAM", "INDX"), *["TILE"] * 20
    ]  # fmt: skip


def test_layout_is_the_documented_one(file: bytes) -> None:
    """Parsed by hand as docs/bitstream.md says, without the library's structs."""
    assert file[:8] == bytes.fromhex("894C4E540D0A1A0A")
    assert file[8:12] == b"INDX"
    length = int.from_bytes(file[12:20], "little")
    assert length == 2 + 63 + 1 + 32 + 4 + 12 * 7
    assert int.from_bytes(file[20:24], "little") == crc32c(file[28 : 28 + length])
    assert int.from_bytes(file[24:28], "little") == crc32c(file[8:24])
    assert struct.unpack_from("<H", file, 28) == (63,)
    fields = struct.unpack_from("<HHIqIIHBB", file, 30)
    assert fields == (1, 0, 0, 1_700_000_000_123_456_789, 300, 150, 128, 2, 0)
    assert file[58:90] == bytes(range(32)) and tuple(file[90:93]) == (37, 0, 5)
    assert file[93] == 1 and file[94:126] == b"d" * 32
    count, offset, size = struct.unpack_from("<IQI", file, 126)
    assert count == 7 and file[offset : offset + 4] == b"TILE" and size == 20 + 8 + 20
    assert struct.unpack_from("<II", file, offset + 20) == (0, 0 | 37 << 24)


def test_recording_is_the_documented_one() -> None:
    data = write_recording(5)
    assert data[-32:-28] == b"TAIL"
    checkpoint, frames = struct.unpack("<QI", data[-12:])
    assert frames == 5 and data[checkpoint : checkpoint + 4] == b"CKPT"
    previous, first, count, frame, index, timestamp = struct.unpack_from("<QIIQQq", data, checkpoint + 20)
    assert (previous, first, count, timestamp) == (0, 0, 5, 1000)
    assert data[frame : frame + 4] == b"FRAM" and data[index : index + 4] == b"INDX"


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_recordings_are_read(frames: int) -> None:
    data = write_recording(frames)
    reader = Reader(data)
    assert reader.recording and reader.complete and reader.frame_count == frames
    for number in range(frames):
        assert reader.timestamp(number) == 1000 + number and reader.record(number).number == number
        assert [reader.tile(n, number) for n in range(6)] == [tile_payload(number, n) for n in range(6)]
        assert reader.metadata(number) == (Metadata() if number else METADATA)
    info = verify(data)
    assert info.frames == frames and info.timestamps == (1000, 999 + frames)


def test_unknown_boxes_are_skipped_and_damage_in_them_is_found(file: bytes) -> None:
    body = b"something new"
    head = struct.pack("<4sQI", b"NEWS", len(body), crc32c(body))
    longer = file + head + struct.pack("<I", crc32c(head)) + body
    assert verify(longer).tiles == 7
    with pytest.raises(InputError, match="'NEWS'"):
        verify(longer[:-1] + b"?")


@pytest.mark.parametrize("record", [RECORD, LARGE])
def test_unknown_version_is_refused(record: FrameRecord) -> None:
    file = bytearray(write_picture(record, [b"x"] * record.tile_count))
    length = int.from_bytes(file[12:20], "little")
    file[28 + 2 * (record is RECORD)] = 2
    file[20:24] = crc32c(bytes(file[28 : 28 + length])).to_bytes(4, "little")
    file[24:28] = crc32c(bytes(file[8:24])).to_bytes(4, "little")
    with pytest.raises(InputError, match="version 2 is not known"):
        Reader(bytes(file))


@pytest.mark.parametrize("recording", [False, True])
def test_every_truncation_is_an_error(file: bytes, recording: bool) -> None:
    data = write_recording(3) if recording else file
    for size in range(len(data)):
        with pytest.raises(InputError):
            verify(data[:size])


@pytest.mark.parametrize("recording", [False, True])
def test_every_flipped_bit_is_an_error(file: bytes, recording: bool) -> None:
    data = write_recording(2) if recording else file
    for bit in range(0, 8 * len(data), 9 if recording else 1):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(InputError):
            verify(bytes(damaged))


def test_a_forged_header_allocates_nothing() -> None:
    """A file of two hundred bytes that claims 16 million tiles has none of them, and takes no memory to say so."""
    record = FrameRecord(TileGrid(1 << 18, 1 << 18, 64), (50,), bytes(32))
    assert record.tile_count == 1 << 24
    forged = SIGNATURE + boxes.pack(b"FRAM", record.pack()) + boxes.pack(b"INDX", b"?")
    tracemalloc.start()
    with pytest.raises(InputError, match="tile 7 is not in the file"):
        Reader(forged).tile(7)
    with pytest.raises(InputError, match="no whole tile"):
        recover(forged, io.BytesIO())
    assert tracemalloc.get_traced_memory()[1] < 1 << 18
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
    recording = write_recording(2)
    for number in range(MUTATIONS):
        data = mutated(recording if number % 4 > 1 else file, rng)
        try:
            reader = Reader(repaired(data) if number % 2 else bytes(data))
            read_info(reader)
            for tile in range(min(reader.record().tile_count, 64)):
                reader.tile(tile)
        except InputError:
            rejected += 1
    assert rejected > MUTATIONS // 2


def test_fuzzed_payloads_through_the_whole_decoder(codec: Codec, photograph: np.ndarray) -> None:
    """Damage inside entropy-coded tiles with valid checksums: an error that names the tile, or bounded pixels."""
    rng = np.random.default_rng(7)
    data = codec.encode(photograph[:96, :160], quality=70, tile=64)
    named = 0
    for _ in range(400):
        reader = Reader(data)
        tiles = [reader.tile(n) for n in range(reader.record().tile_count)]
        victim = int(rng.integers(len(tiles)))
        tiles[victim] = bytes(mutated(tiles[victim], rng))
        try:
            pixels = codec.decode(write_picture(reader.record(), tiles))
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
