"""A decoder of .lnt files in plain Python that follows docs/bitstream.md section by section: slow, and the oracle.

The comments name the document's sections. It shares with the library only what the document leaves to the bundle: its
tables, and the reference arithmetic of the networks (docs/integers.md). Whole frames, at any level.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field

import numpy as np

from linnet.runtime.backends.reference import run_network
from linnet.runtime.bundle import Bundle

KINDS = (b"FRAM", b"INDX", b"TILE", b"SEAL", b"CKPT", b"TAIL", b"EXIF", b"XMP ", b"ICC ")
LOST = (0, 0)


class BadFileError(Exception):
    """The document says that a reader must reject this."""


class UnknownVersionError(BadFileError):
    """Nothing is damaged, and nothing else is to be tried."""


def require(condition: bool, why: str, error: type[BadFileError] = BadFileError) -> None:
    if not condition:
        raise error(why)


def divide_up(value: int, by: int) -> int:
    return -(-value // by)


# Box


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # 0x1EDC6F41 with its bits reversed
    return crc ^ 0xFFFFFFFF


@dataclass(frozen=True)
class Box:
    kind: bytes
    offset: int
    payload: bytes
    payload_crc: int

    @property
    def end(self) -> int:
        return self.offset + 20 + len(self.payload)

    def checked(self) -> bytes:
        require(crc32c(self.payload) == self.payload_crc, "payload checksum")
        return self.payload


def box_at(data: bytes, offset: int) -> Box:
    require(offset + 20 <= len(data), "truncated box header")
    kind, length, payload_crc, header_crc = struct.unpack_from("<4sQII", data, offset)
    require(crc32c(data[offset : offset + 16]) == header_crc, "header checksum")
    require(offset + 20 + length <= len(data), "box beyond the end of the file")
    return Box(kind, offset, data[offset + 20 : offset + 20 + length], payload_crc)


# FRAM: the frame record


@dataclass(frozen=True)
class Record:
    number: int
    timestamp: int
    width: int
    height: int
    tile: int
    bundle: bytes
    qualities: bytes
    salt: bytes | None
    packed: bytes
    """As seals vouch for it: without bytes behind the salt, the reserved byte 0."""

    def size(self, level: int) -> tuple[int, int]:
        """(width, height) of a level."""
        return divide_up(self.width, 1 << level), divide_up(self.height, 1 << level)

    def grid(self, level: int) -> tuple[int, int]:
        """(columns, rows) of a level's tiles."""
        width, height = self.size(level)
        return divide_up(width, self.tile), divide_up(height, self.tile)

    def first_tile(self, level: int) -> int:
        """Tiles of the stored levels before this one."""
        return sum(c * r for c, r in (self.grid(n) for n in range(level) if self.qualities[n]))

    @property
    def tiles(self) -> int:
        return self.first_tile(len(self.qualities))


def parse_record(payload: bytes) -> Record:
    require(payload[:2] == b"\1\0" or len(payload) < 2, "unknown version", UnknownVersionError)
    require(len(payload) >= 60, "short record")
    _, flags, number, timestamp, width, height, tile, levels, _ = struct.unpack_from("<HHIqIIHBB", payload)
    end = 61 + levels + (16 if flags & 1 else 0)
    require(len(payload) >= end, "short record")
    require(flags & ~1 == 0, "unknown flag")
    require(1 <= width <= 1 << 20 and 1 <= height <= 1 << 20, "size")
    require(64 <= tile <= 4096 and tile % 64 == 0, "tile size")
    qualities = payload[60 : 61 + levels]
    require(levels <= 16 and 1 <= qualities[0] <= 100 and max(qualities) <= 100, "quality")
    salt, packed = payload[61 + levels : end] or None, payload[:27] + b"\0" + payload[28:end]
    record = Record(number, timestamp, width, height, tile, payload[28:60], qualities, salt, packed)
    require(record.tiles <= 1 << 24, "too many tiles")
    return record


def halve(pixels: np.ndarray) -> np.ndarray:
    """Levels: the rounded mean of 2 x 2 pixels, the last column and row repeated where a side is odd."""
    height, width = pixels.shape[:2]
    wide = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge").astype(int)
    return (wide[::2, ::2] + wide[::2, 1::2] + wide[1::2, ::2] + wide[1::2, 1::2] + 2 >> 2).astype(np.uint8)


# INDX


@dataclass(frozen=True)
class Frame:
    record: Record
    digest: bytes | None
    entries: list[tuple[int, int]]
    """(offset, length) of each tile's box."""


def parse_index(payload: bytes) -> Frame:
    require(len(payload) >= 2, "short index")
    at = 2 + struct.unpack_from("<H", payload)[0]
    record = parse_record(payload[2:at])
    require(at < len(payload) and payload[at] & ~1 == 0, "unknown flag")
    digest = payload[at + 1 : at + 33] if payload[at] else None
    at += 33 if digest is not None else 1
    require(len(payload) == at + 4 + 12 * record.tiles, "length of the index")
    require(struct.unpack_from("<I", payload, at)[0] == record.tiles, "number of tiles")
    return Frame(record, digest, [struct.unpack_from("<QI", payload, at + 4 + 12 * n) for n in range(record.tiles)])


# Signature, and what a reader tries


def open_file(data: bytes) -> list[Frame]:
    """All frames: of a picture its one, of a recording those of the checkpoints, else those that a scan finds."""
    require(data[:8] == bytes.fromhex("894C4E540D0A1A0A"), "signature")
    try:
        return open_picture(data)
    except UnknownVersionError:
        raise
    except BadFileError as error:
        no_picture = error
    try:
        return open_recording(data)
    except BadFileError:
        frames = recover(data)
    if not frames:
        raise no_picture
    return frames


def open_picture(data: bytes) -> list[Frame]:
    box, record = box_at(data, 8), None
    if box.kind == b"FRAM":
        record = parse_record(box.checked())
        box = box_at(data, box.end)
    require(box.kind == b"INDX", "no index")
    frame = parse_index(box.checked())
    require(record in (None, frame.record), "FRAM and INDX differ")
    return [frame]


# CKPT and TAIL


def open_recording(data: bytes) -> list[Frame]:
    require(len(data) >= 40, "no footer")
    tail = box_at(data, len(data) - 32)
    require(tail.kind == b"TAIL" and len(tail.payload) == 12, "no footer")
    offset, frames = struct.unpack("<QI", tail.checked())
    indices: list[int] = []
    while len(indices) < frames:
        box = box_at(data, offset)
        require(box.kind == b"CKPT" and box.offset < tail.offset and len(box.payload) >= 16, "not a checkpoint")
        offset, first, count = struct.unpack_from("<QII", box.checked())
        require(len(box.payload) == 16 + 24 * count and count > 0, "length of the checkpoint")
        require(first + count == frames - len(indices), "gap between the checkpoints")
        indices = [struct.unpack_from("<8xQ8x", box.payload, 16 + 24 * n)[0] for n in range(count)] + indices
    return [index_at(data, at) for at in indices]


def index_at(data: bytes, offset: int) -> Frame:
    box = box_at(data, offset)
    require(box.kind == b"INDX", "no index")
    return parse_index(box.checked())


# Recovery


@dataclass
class Remains:
    """What a scan found of one frame."""

    record: Record | None = None
    index: Frame | None = None
    tiles: dict[int, tuple[int, int]] = field(default_factory=dict)


def recover(data: bytes) -> list[Frame]:
    found: dict[int, Remains] = {}
    for box in whole_boxes(data):
        try:
            if box.kind == b"FRAM":
                record = parse_record(box.checked())
                found.setdefault(record.number, Remains()).record = record
            elif box.kind == b"INDX":
                frame = parse_index(box.checked())
                found.setdefault(frame.record.number, Remains()).index = frame
            elif box.kind in (b"TILE", b"SEAL"):
                number, tile, _ = tile_place(box.checked())
                found.setdefault(number, Remains()).tiles[tile] = box.offset, box.end - box.offset
        except BadFileError:
            continue  # a box that is damaged, or a tile that is: it is lost, and named when it is asked for
    return [frame for _, remains in sorted(found.items()) if (frame := assemble(remains)) is not None]


def whole_boxes(data: bytes):  # type: ignore[no-untyped-def]
    """Every box whose header is whole; behind damage, the next one of a known type."""
    at, damaged = 8, False
    while at + 20 <= len(data):
        try:
            require(not damaged or data[at : at + 4] in KINDS, "no box starts here")
            box = box_at(data, at)
        except BadFileError:
            at, damaged = at + 1, True
            continue
        yield box
        at, damaged = box.end, False


def assemble(remains: Remains) -> Frame | None:
    if remains.index is not None or remains.record is None:
        return remains.index
    return Frame(remains.record, None, [remains.tiles.get(n, LOST) for n in range(remains.record.tiles)])


# TILE


def tile_place(payload: bytes) -> tuple[int, int, int]:
    """(frame number, tile number, quality)."""
    frame, word = struct.unpack_from("<II", payload)
    return frame, word & 0xFFFFFF, word >> 24


def tile_bytes(data: bytes, frame: Frame, number: int, key: bytes | None) -> tuple[bytes | None, int]:
    """The entropy-coded bytes, None for an encrypted tile without a key, and the quality."""
    record, (offset, length) = frame.record, frame.entries[number]
    require((offset, length) != LOST, "lost tile")
    box = box_at(data, offset)
    require(box.kind in (b"TILE", b"SEAL") and box.end == offset + length, "not the tile that the index names")
    payload = box.checked()
    require(len(payload) >= 8 and len(payload) <= 1 << 28, "length of the tile")
    *place, quality = tile_place(payload)
    require(place == [record.number, number], "another tile")
    require(1 <= quality <= 100, "quality of the tile")
    if box.kind == b"TILE":
        return payload[8:], quality
    return None if key is None or record.salt is None else unsealed(payload, record, key), quality


# SEAL


def unsealed(payload: bytes, record: Record, key: bytes) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    subkey = HKDF(hashes.SHA256(), 32, record.salt, b"linnet sealed tile 1").derive(key)
    place, sealed = payload[:8], payload[8:]
    try:
        return ChaCha20Poly1305(subkey).decrypt(place + bytes(4), sealed, record.salt + place + record.packed)
    except InvalidTag:
        raise BadFileError("wrong key or modified tile") from None


# Order of symbols


FLIPS = {False: (0, 0), True: (7, 2), 8: (7, 2), 64: (62, 22)}
"""What q and p flip of the next state, by the bundle's `trellis`."""


class TileDecoder:
    def __init__(self, bundle: Bundle, quality: int) -> None:
        self.bundle, self.quality = bundle, quality
        tables = bundle._arrays("tables.npz")
        self.mean_shifts = tables["mean_shifts"]
        self.radii = [int(radius) for radius in tables["radii"]]
        trellis = bundle.manifest.get("trellis", False)
        self.flips = FLIPS[trellis]
        self.first_tables = len(self.radii) // 2 if trellis else len(self.radii)
        numbers, self.frequencies = [int(n) for n in tables["frequencies"]], []
        for radius in self.radii:
            count = 2 * radius + 2 if radius else 0
            self.frequencies.append(numbers[:count])
            numbers = numbers[count:]

    def decode(self, payload: bytes, height: int, width: int) -> np.ndarray:
        """Latents (height, width, C) of one tile, in quarters."""
        bundle, rans = self.bundle, Rans(payload)
        channels = bundle.latent_channels
        if bundle.hyper_channels:
            features, parameters = self._hyper(rans, height // 4, width // 4)
        else:
            parameters = np.broadcast_to(bundle.latent_parameters, (height, width, 2 * channels))
        latents = np.zeros((height, width, channels), np.int64)
        for index, step in enumerate(bundle.steps):
            if index:
                coded = companded(bundle, latents) * (latents_done(latents.shape, bundle.steps[:index]))
                *own, parameters = run(bundle, f"context_{index}", features=features, coded=coded[..., : step.context])
                features = own[0] if own else features
            if bundle.log_scales is not None:
                means, scales = np.split(parameters, 2, axis=2)
                parameters = np.concatenate([means, bundle.log_scales[scales.astype(int) + 128]], axis=2)
            self._step(rans, latents, parameters, step.first, step.last, step.parity, 0)
        rans.finish()
        return latents

    def _hyper(self, rans: Rans, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """The features and the first step's parameters."""
        bundle, channels = self.bundle, self.bundle.hyper_channels
        hyper = np.zeros((height, width, channels), np.int64)
        parameters = np.broadcast_to(bundle.hyper_parameters, (height, width, 2 * channels))
        self._step(rans, hyper, parameters, 0, channels, None, bundle.latent_channels)
        seen = companded(bundle, hyper)
        if bundle.networks["hyper_synthesis"].inputs["hyper"] > channels:
            seen = with_quality(seen, np.full(hyper.shape[:2], quality_value(self.quality), np.int8))
        outputs = run(bundle, "hyper_synthesis", hyper=seen)
        return outputs[0], outputs[-1]

    def _step(self, rans, latents, parameters, first, last, parity, table_base) -> None:  # type: ignore[no-untyped-def]
        bundle, count = self.bundle, last - first
        gains, offsets = bundle.gains[self.quality - 1], bundle.table_offsets[self.quality - 1]
        states = [0] * 4
        for row in range(latents.shape[0]):
            for column in range(latents.shape[1]):
                if parity is not None and (row + column) % 2 != parity:
                    continue
                for channel in range(first, last):
                    mean = int(parameters[row, column, channel - first]) << int(self.mean_shifts[table_base + channel])
                    log_scale = int(parameters[row, column, channel - first + count])
                    offset, gain = int(offsets[table_base + channel]), int(gains[table_base + channel])
                    table = min(max(log_scale + offset, 0), self.first_tables - 1)
                    if self.radii[table] == 0:
                        latents[row, column, channel] = min(max(mean, -512), 509)
                        continue
                    lane = rans.coded % 4
                    odd = states[lane] & 1
                    table += odd * self.first_tables
                    symbol = rans.symbol(self.frequencies[table], self.radii[table])
                    level = 2 * symbol - odd * ((symbol > 0) - (symbol < 0))
                    latents[row, column, channel] = min(max(mean + (level * gain + 64 >> 7), -512), 509)
                    flipped_by_q, flipped_by_p = self.flips
                    states[lane] = states[lane] >> 1 ^ odd * flipped_by_q ^ (symbol & 1) * flipped_by_p


def quality_value(quality: int) -> int:
    return round((quality - 1) * 254 / 99) - 127


# Pixels


def companded(bundle: Bundle, latents: np.ndarray) -> np.ndarray:
    return bundle.companding[(latents + 2 >> 2) + 128]


def with_quality(values: np.ndarray, plane: np.ndarray) -> np.ndarray:
    return np.concatenate([values, plane[..., None]], axis=2)


def run(bundle: Bundle, network: str, **inputs: np.ndarray) -> list[np.ndarray]:
    batch = {name: np.ascontiguousarray(value)[None] for name, value in inputs.items()}
    return [output[0] for output in run_network(bundle.networks[network], batch)]


def synthesise(bundle: Bundle, latents: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Latents in quarters (h, w, C) and quality values (h, w) to the padded frame, (16 h, 16 w, 3) uint8."""
    whole = latents + 2 >> 2
    both = np.concatenate([whole, latents - 4 * whole], axis=2).astype(np.int8)
    inputs = {"latent": both, "companded": with_quality(companded(bundle, latents), values)}
    (planes,) = run(bundle, "synthesis", **{name: inputs[name] for name in bundle.networks["synthesis"].inputs})
    height, width = planes.shape[:2]
    grid = planes.reshape(height, width, 3, 2, 2).transpose(0, 3, 1, 4, 2)
    return (grid.reshape(2 * height, 2 * width, 3).astype(np.int16) + 128).astype(np.uint8)


def latents_done(shape: tuple[int, ...], steps) -> np.ndarray:  # type: ignore[no-untyped-def]
    """1 where the latents were decoded in `steps`, 0 elsewhere: what is not decoded is 0 to the networks."""
    done = np.zeros(shape, np.int8)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    for step in steps:
        here = np.ones(shape[:2], bool) if step.parity is None else (rows + columns) % 2 == step.parity
        done[here, step.first : step.last] = 1
    return done


# Entropy coder


class Rans:
    def __init__(self, payload: bytes) -> None:
        require(len(payload) >= 16 and len(payload) % 2 == 0, "payload length")
        self.states = list(struct.unpack_from("<4I", payload))
        require(all(state >= 1 << 16 for state in self.states), "state")
        self.words = list(struct.unpack_from(f"<{(len(payload) - 16) // 2}H", payload, 16))[::-1]
        self.coded = 0

    def _renormalise(self, lane: int) -> None:
        if self.states[lane] < 1 << 16:
            require(bool(self.words), "words used up")
            self.states[lane] = self.states[lane] << 16 | self.words.pop()

    def symbol(self, frequencies: list[int], radius: int) -> int:
        """One symbol of the table with `frequencies` of -radius..radius and the escape."""
        lane, self.coded = self.coded % 4, self.coded + 1
        state = self.states[lane]
        slot, start, index = state & 0x3FFF, 0, 0
        while slot >= start + frequencies[index]:
            start += frequencies[index]
            index += 1
        self.states[lane] = frequencies[index] * (state >> 14) + slot - start
        self._renormalise(lane)
        if index <= 2 * radius:
            return index - radius
        escaped = (self.states[lane] & 0x3FF) - 512
        self.states[lane] >>= 10
        self._renormalise(lane)
        require(abs(escaped) > radius, "an escape for a symbol of the table")
        return escaped

    def finish(self) -> None:
        require(self.states == [1 << 16] * 4 and not self.words, "left-over states or words")


# A whole level of a frame


def decode(data: bytes, bundle: Bundle, *, frame: int = 0, level: int = 0, key: bytes | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB of one level of one frame."""
    frames = open_file(data)
    require(frame < len(frames), "no such frame")
    opened, record = frames[frame], frames[frame].record
    require(record.bundle.hex() == bundle.identity, "another bundle")
    if level >= len(record.qualities) or not record.qualities[level]:
        return halve(decode(data, bundle, frame=frame, level=level - 1, key=key))
    (width, height), (columns, rows), side = record.size(level), record.grid(level), record.tile
    padded_width, padded_height = (64 * divide_up(length, 64) for length in (width, height))
    latents = np.zeros((padded_height // 16, padded_width // 16, bundle.latent_channels), np.int64)
    values, blank = np.full(latents.shape[:2], quality_value(record.qualities[level]), np.int8), []
    for number in range(columns * rows):
        y, x = number // columns * side, number % columns * side
        tile_height, tile_width = min(side, padded_height - y), min(side, padded_width - x)
        payload, quality = tile_bytes(data, opened, record.first_tile(level) + number, key)
        if payload is None:
            blank.append(np.s_[y : y + tile_height, x : x + tile_width])
            continue
        place = np.s_[y // 16 : (y + tile_height) // 16, x // 16 : (x + tile_width) // 16]
        latents[place] = TileDecoder(bundle, quality).decode(payload, tile_height // 16, tile_width // 16)
        values[place] = quality_value(quality)
    pixels = synthesise(bundle, latents, values)
    for tile in blank:
        pixels[tile] = 128
    return pixels[:height, :width]


def verify(data: bytes, bundle: Bundle) -> None:
    """What a checker of a picture file rejects, while a decoder goes on: see "Errors"."""
    for box in whole_boxes(data):
        box.checked()
    (frame,) = open_picture(data)
    found = decode(data, bundle)
    require(frame.digest in (None, hashlib.sha256(found.tobytes()).digest()), "the digest is that of other pixels")
