"""Encrypted tiles: what they open to, what they refuse, where keys come from, and that a rectangle hides its pixels."""

from __future__ import annotations

import builtins
import hashlib
import hmac
import os
import random
import re
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from linnet.runtime.bitstream import FrameRecord, TilePlace
from linnet.runtime.codec import Codec
from linnet.runtime.errors import InputError, MachineError, UsageError
from linnet.runtime.reader import Reader
from linnet.runtime.sealing import Protection, Sealer, read_key, sealed_tiles
from linnet.runtime.tiles import BLOCK, Rect, TileGrid

KEY = bytes(range(32))
SALT = bytes(range(100, 116))
TAG_SIZE = 16


@pytest.fixture
def cipher() -> None:
    pytest.importorskip("cryptography")


# The seal


def at(frame: int, tile: int, quality: int = 0) -> TilePlace:
    return TilePlace(frame, tile, quality)


@pytest.mark.usefixtures("cipher")
def test_a_seal_vouches_for_the_frame_record() -> None:
    sealer = Sealer(KEY)
    sealer.record = b"quality 50"
    sealed = sealer.seal(b"a number plate", at(3, 5))
    assert Sealer(KEY, sealer.salt, b"quality 50").open(sealed, at(3, 5)) == b"a number plate"
    with pytest.raises(InputError, match="wrong key or modified"):
        Sealer(KEY, sealer.salt, b"quality 51").open(sealed, at(3, 5))


@pytest.mark.usefixtures("cipher")
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 40_000])
def test_what_is_sealed_opens_again(size: int) -> None:
    payload = random.Random(size).randbytes(size)
    sealer = Sealer(KEY)
    sealed = sealer.seal(payload, at(12, 34))
    assert len(sealed) == size + TAG_SIZE
    assert size < 16 or payload[:16] not in sealed
    assert sealer.open(sealed, at(12, 34)) == payload
    assert Sealer(KEY, sealer.salt).open(sealed, at(12, 34)) == payload


@pytest.mark.usefixtures("cipher")
def test_known_answer() -> None:
    """What another implementation must make of the same bytes; docs/bitstream.md describes it."""
    subkey = hmac.digest(hmac.digest(SALT, KEY, "sha256"), b"linnet sealed tile 1\x01", "sha256")  # HKDF, RFC 5869
    assert subkey.hex() == "f786568b3759b6f9904ebaa9aa2e2cd4cf2116476b563c146976e047144b580c"
    sealed = bytes.fromhex("2ccdba2b8fced65af5aa325de411f8485d40a91d7f49")
    assert Sealer(KEY, SALT).open(sealed, at(7, 0x020304, 1)) == b"linnet"
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    nonce = bytes.fromhex("07000000 04030201 00000000")
    assert ChaCha20Poly1305(subkey).encrypt(nonce, b"linnet", SALT + nonce[:8]) == sealed


def refused(sealer: Sealer, sealed: bytes, frame: int = 3, tile: int = 5) -> None:
    with pytest.raises(InputError, match=f"frame {frame}, tile {tile}: wrong key or modified tile"):
        sealer.open(sealed, at(frame, tile))


@pytest.mark.usefixtures("cipher")
def test_wrong_key_or_salt() -> None:
    sealer = Sealer(KEY)
    sealed = sealer.seal(b"a number plate", at(3, 5))
    refused(Sealer(KEY[::-1], sealer.salt), sealed)
    refused(Sealer(KEY, SALT), sealed)
    for bit in range(256):
        other = bytearray(KEY)
        other[bit // 8] ^= 1 << bit % 8
        refused(Sealer(bytes(other), sealer.salt), sealed)


@pytest.mark.usefixtures("cipher")
def test_modified_tiles() -> None:
    sealer = Sealer(KEY)
    sealed = sealer.seal(b"a number plate", at(3, 5))
    for bit in range(8 * len(sealed)):
        flipped = bytearray(sealed)
        flipped[bit // 8] ^= 1 << bit % 8
        refused(sealer, bytes(flipped))
    for length in range(len(sealed)):
        refused(sealer, sealed[:length])
    refused(sealer, sealed + b"\0")


@pytest.mark.usefixtures("cipher")
def test_tiles_cannot_change_places() -> None:
    sealer = Sealer(KEY)
    places = [(frame, tile) for frame in (0, 1, 3) for tile in (0, 1, 5)]
    sealed = {place: sealer.seal(b"the same content", at(*place)) for place in places}
    for here in places:
        for there in places:
            if here == there:
                assert sealer.open(sealed[here], at(*there)) == b"the same content"
            else:
                refused(sealer, sealed[here], *there)


class Recorded:
    """Stands in for the cipher and keeps the nonces and associated data that it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[bytes, bytes]] = []

    def encrypt(self, nonce: bytes, data: bytes, associated: bytes) -> bytes:
        self.calls.append((nonce, associated))
        return data


@pytest.mark.usefixtures("cipher")
def test_nonces_never_repeat() -> None:
    sealer, recorded = Sealer(KEY), Recorded()
    sealer._cipher = recorded
    numbers = [0, 1, 2, 255, 256, 257, 65_535, 65_536, (1 << 24) - 1]
    frames = sorted({*range(500), *numbers, *(number << 8 for number in numbers), (1 << 32) - 1})
    for frame in frames:
        for tile in numbers:
            sealer.seal(b"", at(frame, tile))
    nonces = {nonce for nonce, _ in recorded.calls}
    assert len(nonces) == len(recorded.calls) == len(frames) * len(numbers)
    assert {len(nonce) for nonce in nonces} == {12}
    assert all(associated == sealer.salt + nonce[:8] for nonce, associated in recorded.calls)
    for place in [(1 << 32, 0), (1 << 32, 1 << 32)]:
        with pytest.raises(struct.error):  # numbers do not wrap round
            sealer.seal(b"", at(*place))


@pytest.mark.usefixtures("cipher")
def test_one_salt_seals_each_place_once() -> None:
    sealer = Sealer(KEY)
    for place in [(4, 1), (4, 0), (7, 1), (7, 9)]:
        sealer.seal(b"", at(*place))
    for place in [(7, 1), (7, 9), (4, 2), (0, 0)]:
        with pytest.raises(UsageError, match="this salt has served already"):
            sealer.seal(b"", at(*place))
    sealer.seal(b"", at(7, 2))
    with ThreadPoolExecutor(8) as pool:
        tries = [pool.submit(sealer.seal, b"", at(8, tile % 50)) for tile in range(400)]
        assert sum(attempt.exception() is None for attempt in tries) == 50


@pytest.mark.usefixtures("cipher")
def test_the_salt_of_a_file_only_opens() -> None:
    with pytest.raises(UsageError, match="make a new Sealer"):
        Sealer(KEY, SALT).seal(b"", at(0, 0))


@pytest.mark.usefixtures("cipher")
def test_each_sealer_has_a_salt_of_its_own() -> None:
    assert len({Sealer(KEY).salt for _ in range(100)}) == 100


@pytest.mark.usefixtures("cipher")
def test_another_process_may_not_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    sealer = Sealer(KEY)
    sealed = sealer.seal(b"here", at(0, 0))
    monkeypatch.setattr(os, "getpid", lambda: -1)  # as it is after a fork
    with pytest.raises(UsageError, match="make a new Sealer"):
        sealer.seal(b"there", at(0, 1))
    assert sealer.open(sealed, at(0, 0)) == b"here"


@pytest.mark.usefixtures("cipher")
def test_several_threads_may_open() -> None:
    sealer = Sealer(KEY)
    payloads = [bytes([n]) * 5000 for n in range(64)]
    sealed = [sealer.seal(payload, at(0, n)) for n, payload in enumerate(payloads)]
    with ThreadPoolExecutor(8) as pool:
        places = [at(0, n) for n in range(64)] * 10
        assert list(pool.map(sealer.open, sealed * 10, places)) == payloads * 10


@pytest.mark.usefixtures("cipher")
@pytest.mark.parametrize(("key", "salt"), [(b"", SALT), (KEY[:31], None), (KEY + b"\0", SALT), (KEY, b""), (KEY, KEY)])
def test_keys_and_salts_of_other_lengths(key: bytes, salt: bytes | None) -> None:
    with pytest.raises(UsageError, match="32 and 16 needed"):
        Sealer(key, salt)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def missing(name: str, *rest: object) -> object:
        if name.startswith("cryptography"):
            raise ImportError("No module named 'cryptography'")
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MachineError, match=re.escape("pip install 'linnet[privacy]'")):
        Sealer(KEY)


@pytest.mark.usefixtures("cipher")
def test_openssl_without_the_cipher(monkeypatch: pytest.MonkeyPatch) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.ciphers import aead

    def unsupported(key: bytes) -> None:
        raise UnsupportedAlgorithm("ChaCha20Poly1305 is not supported by this version of OpenSSL")

    monkeypatch.setattr(aead, "ChaCha20Poly1305", unsupported)
    with pytest.raises(MachineError, match="FIPS"):
        Sealer(KEY)


def test_keys_are_not_printed() -> None:
    shown = repr(Protection(KEY, [Rect(0, 0, 1, 1)]))
    assert "Rect" in shown and repr(KEY) not in shown and KEY.hex() not in shown


# Keys


@pytest.fixture
def key_file(tmp_path: Path):
    def write(content: bytes, mode: int = 0o600) -> str:
        path = tmp_path / "linnet.key"
        path.write_bytes(content)
        path.chmod(mode)
        return str(path)

    return write


RAW = hashlib.sha256(b"not text").digest()
HEX = RAW.hex().encode()


@pytest.mark.parametrize("content", [RAW, HEX, HEX + b"\n", HEX.upper() + b"\r\n", b" " + HEX + b" \n\n"])
def test_key_files(content: bytes, key_file) -> None:
    path = key_file(content)
    assert read_key(path) == read_key(f"file:{path}") == RAW


def test_key_in_the_home_folder(key_file, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(key_file(HEX))
    monkeypatch.setenv("HOME", str(path.parent))
    assert read_key(f"file:~/{path.name}") == RAW


def test_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINNET_TEST_KEY", HEX.decode() + "\n")
    assert read_key("env:LINNET_TEST_KEY") == RAW


def test_key_through_a_pipe() -> None:
    reading, writing = os.pipe()
    os.write(writing, HEX)
    os.close(writing)
    try:
        assert read_key(f"/dev/fd/{reading}") == RAW  # what a shell's <(...) gives
    finally:
        os.close(reading)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", HEX[:-1], HEX + b"0", HEX[:-1] + b"g", RAW[:-1], RAW + b"\n", b"correct horse battery staple etc",
     HEX[:32], HEX[:32] + b" " + HEX[32:], HEX * 2, HEX.decode().encode("utf-16"), bytes(100_000)],
)  # fmt: skip
def test_files_that_hold_no_key(content: bytes, key_file) -> None:
    path = key_file(content)
    with pytest.raises(InputError, match=re.escape(path)) as caught:
        read_key(path)
    assert "openssl rand -hex 32" in str(caught.value)
    assert HEX[:31].decode() not in str(caught.value)


@pytest.mark.parametrize("name", ["absent.key", "."])
def test_files_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(str(tmp_path / name))):
        read_key(f"file:{tmp_path / name}")


def test_bad_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LINNET_TEST_KEY", raising=False)
    with pytest.raises(UsageError, match=r"LINNET_TEST_KEY is not set.*openssl rand -hex 32"):
        read_key("env:LINNET_TEST_KEY")
    for value in ["", HEX.decode()[:-1], "x" * 32, "\udcff" * 32]:
        monkeypatch.setenv("LINNET_TEST_KEY", value)
        with pytest.raises(InputError, match=r"variable LINNET_TEST_KEY: .*openssl rand -hex 32"):
            read_key("env:LINNET_TEST_KEY")


@pytest.mark.parametrize("source", ["", "file:", "env:"])
def test_sources_that_name_nothing(source: str) -> None:
    with pytest.raises(UsageError, match="pass file:PATH or env:NAME"):
        read_key(source)


@pytest.mark.parametrize("prefix", ["", "file:", "env:"])
def test_a_key_itself_is_refused_and_not_repeated(prefix: str) -> None:
    with pytest.raises(UsageError, match="make another one") as caught:
        read_key(prefix + HEX.decode())
    assert HEX.decode() not in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="file modes mean nothing here")
def test_a_key_that_everybody_can_read_is_a_warning(key_file, recwarn: pytest.WarningsRecorder) -> None:
    for mode in (0o400, 0o600, 0o640):
        read_key(key_file(HEX, mode))
    assert not recwarn.list
    with pytest.warns(UserWarning, match="every user of this machine.*chmod 600"):
        assert read_key(key_file(HEX, 0o644)) == RAW


# Which tiles


def record(width: int, height: int, tile: int = 64, qualities: tuple[int, ...] = (60,)) -> FrameRecord:
    return FrameRecord(TileGrid(width, height, tile), qualities, bytes(32))


def touched(frame: FrameRecord, rectangles: list[Rect], margin: int) -> set[int]:
    """`sealed_tiles` by painting: a mask of the pixels, halved level by level, spread by the margin."""
    mask = np.zeros((frame.grid.height, frame.grid.width), bool)
    for x, y, width, height in rectangles:
        mask[max(y, 0) : max(y + height, 0), max(x, 0) : max(x + width, 0)] = True
    found: set[int] = set()
    number = 0
    for level, quality in enumerate(frame.qualities):
        if level:
            mask = np.pad(mask, ((0, mask.shape[0] % 2), (0, mask.shape[1] % 2)), mode="edge")
            mask = mask[::2, ::2] | mask[1::2, ::2] | mask[::2, 1::2] | mask[1::2, 1::2]
        if not quality:
            continue
        height, width = mask.shape
        seen = np.pad(mask, ((0, -height % 64), (0, -width % 64)), mode="edge")  # as the encoder pads
        for axis in (0, 1):
            steps = np.cumsum(seen, axis, dtype=np.int64)
            after = np.take(steps, np.minimum(np.arange(seen.shape[axis]) + margin, seen.shape[axis] - 1), axis)
            first = np.arange(seen.shape[axis]) - margin - 1
            before = np.take(steps, np.maximum(first, 0), axis)
            before[(first < 0, slice(None)) if axis == 0 else (slice(None), first < 0)] = 0
            seen = after > before
        for y in range(0, height, frame.grid.tile):
            for x in range(0, width, frame.grid.tile):
                if seen[y : y + frame.grid.tile, x : x + frame.grid.tile].any():
                    found.add(number)
                number += 1
    assert number == frame.tile_count
    return found


@pytest.mark.parametrize("seed", range(60))
def test_sealed_tiles_are_those_a_mask_touches(seed: int) -> None:
    chance = random.Random(seed)
    coarser = chance.choices([0, 30], k=chance.randrange(5))
    qualities = (60, *coarser, 20) if coarser else (60,)
    frame = record(chance.randint(1, 700), chance.randint(1, 700), 64 * chance.randint(1, 3), qualities)
    margin = chance.choice([0, 1, 16, 32, 80])
    rectangles = []
    for _ in range(chance.randint(1, 3)):
        x, y = chance.randrange(frame.grid.width), chance.randrange(frame.grid.height)
        left, above = chance.choice([0, 0, 5, 900]), chance.choice([0, 0, 5, 900])
        rectangles.append(Rect(x - left, y - above, left + chance.randint(1, 90), above + chance.randint(1, 90)))
    assert sealed_tiles(frame, rectangles, margin) == touched(frame, rectangles, margin)


def test_the_margin_reaches_the_neighbours() -> None:
    frame = record(320, 320)
    inside = [Rect(128, 128, 64, 64)]
    assert sealed_tiles(frame, inside, 0) == {12}
    assert sealed_tiles(frame, inside, 1) == {6, 7, 8, 11, 12, 13, 16, 17, 18}
    assert sealed_tiles(frame, [Rect(160, 160, 1, 1)], 31) == {12}
    assert sealed_tiles(frame, [Rect(160, 160, 1, 1)], 33) == {6, 7, 8, 11, 12, 13, 16, 17, 18}


def test_levels_are_numbered_through_and_rounded_outwards() -> None:
    frame = record(300, 130, 64, (60, 0, 40, 0, 20))  # 5 x 3 tiles, 75 x 33 in 2 tiles, 19 x 9 in 1
    assert sealed_tiles(frame, [Rect(0, 0, 1, 1)], 0) == {0, 15, 17}
    assert sealed_tiles(frame, [Rect(255, 0, 1, 1)], 0) == {3, 15, 17}
    assert sealed_tiles(frame, [Rect(255, 0, 2, 1)], 0) == {3, 4, 15, 16, 17}
    assert sealed_tiles(frame, [Rect(257, 0, 1, 1)], 2) == {3, 4, 15, 16, 17}


def test_whole_frames_and_nothing() -> None:
    frame = record(300, 200, 64, (60, 0, 40))
    everything = frozenset(range(frame.tile_count))
    assert sealed_tiles(frame, None, 0) == everything
    assert sealed_tiles(frame, [Rect(0, 0, 300, 200)], 0) == everything
    assert sealed_tiles(frame, [Rect(-10, -10, 10_000, 10_000)], 32) == everything
    assert sealed_tiles(frame, [], 32) == frozenset()
    assert sealed_tiles(frame, [(0, 0, 1, 1)], 0) == {0, 20}


@pytest.mark.parametrize("rectangle", [(0, 0, 0, 5), (5, 5, -1, 1), (300, 0, 9, 9), (0, 200, 9, 9), (-5, 0, 5, 5)])
def test_rectangles_that_protect_nothing_are_refused(rectangle: tuple[int, int, int, int]) -> None:
    with pytest.raises(UsageError, match=re.escape(f"rectangle {rectangle} has no pixel in the frame of 300x200")):
        sealed_tiles(record(300, 200), [Rect(0, 0, 9, 9), Rect(*rectangle)], 32)


def test_other_tiles_say_nothing_about_protected_pixels(codec: Codec) -> None:
    """Two frames that differ inside a rectangle only: every tile that is not sealed is the same, byte for byte."""
    random_pixels = np.random.default_rng(1)
    one = random_pixels.integers(0, 256, (397, 413, 3), dtype=np.uint8)
    differing: dict[Rect, set[int]] = {}
    for rectangle in (Rect(130, 131, 60, 59), Rect(413 - 70, 397 - 3, 70, 3), Rect(191, 63, 2, 2)):
        other = one.copy()
        area = other[rectangle.y : rectangle.bottom, rectangle.x : rectangle.right]
        area[...] = 255 - area
        readers = [Reader(codec.encode(image, quality=90, tile=64, levels=3)) for image in (one, other)]
        frame = readers[0].record()
        assert len(frame.levels) > 1
        differing[rectangle] = {n for n in range(frame.tile_count) if readers[0].tile(n) != readers[1].tile(n)}
        assert differing[rectangle] <= sealed_tiles(frame, [rectangle], codec.analysis_halo * BLOCK)
    assert any(not found <= sealed_tiles(frame, [rect], 0) for rect, found in differing.items())  # so margins matter
