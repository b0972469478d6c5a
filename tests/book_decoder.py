"""A decoder of .lnt pictures in plain Python that follows docs/bitstream.md section by section: slow, and the oracle.

It shares with the library only what the document leaves to the bundle: its tables, and the reference arithmetic of the
networks (docs/integers.md). Whole frames at full size, clear tiles.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from linnet.runtime.backends.reference import run_network
from linnet.runtime.bundle import Bundle


class BadFileError(Exception):
    """The document says that a reader must reject this."""


def require(condition: bool, why: str) -> None:
    if not condition:
        raise BadFileError(why)


# Box


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # 0x1EDC6F41 with its bits reversed
    return crc ^ 0xFFFFFFFF


def box_at(data: bytes, offset: int) -> tuple[bytes, bytes, int]:
    """(type, payload, offset of the next box)."""
    require(offset + 20 <= len(data), "truncated box header")
    kind, length, payload_crc, header_crc = struct.unpack_from("<4sQII", data, offset)
    require(crc32c(data[offset : offset + 16]) == header_crc, "header checksum")
    require(offset + 20 + length <= len(data), "box beyond the end of the file")
    payload = data[offset + 20 : offset + 20 + length]
    require(crc32c(payload) == payload_crc, "payload checksum")
    return kind, payload, offset + 20 + length


# FRAM: the frame record


def parse_record(payload: bytes) -> dict:
    require(len(payload) >= 2 and struct.unpack_from("<H", payload)[0] == 1, "unknown version")
    require(len(payload) >= 60, "short record")
    _, flags, number, timestamp, width, height, tile, levels, _ = struct.unpack_from("<HHIqIIHBB", payload)
    require(len(payload) >= 61 + levels, "short record")
    qualities = payload[60 : 61 + levels]
    require(flags & ~1 == 0, "unknown flag")
    require(1 <= width <= 1 << 20 and 1 <= height <= 1 << 20, "size")
    require(64 <= tile <= 4096 and tile % 64 == 0, "tile size")
    require(levels <= 16 and 1 <= qualities[0] <= 100 and max(qualities) <= 100, "quality")
    tiles = 0
    for level, stored in enumerate(qualities):
        columns, rows = (math.ceil(math.ceil(side / 2**level) / tile) for side in (width, height))
        tiles += columns * rows if stored else 0
    require(tiles <= 1 << 24, "too many tiles")
    return {
        "number": number, "timestamp": timestamp, "width": width, "height": height, "tile": tile,
        "quality": qualities[0], "bundle": payload[28:60], "tiles": tiles,
    }  # fmt: skip


# INDX


def parse_index(payload: bytes) -> tuple[dict, bytes | None, list[tuple[int, int]]]:
    require(len(payload) >= 2, "short index")
    at = 2 + struct.unpack_from("<H", payload)[0]
    record = parse_record(payload[2:at])
    require(at < len(payload) and payload[at] & ~1 == 0, "unknown flag")
    digest = payload[at + 1 : at + 33] if payload[at] else None
    at += 33 if digest is not None else 1
    require(len(payload) == at + 4 + 12 * record["tiles"], "length of the index")
    require(struct.unpack_from("<I", payload, at)[0] == record["tiles"], "number of tiles")
    return record, digest, [struct.unpack_from("<QI", payload, at + 4 + 12 * n) for n in range(record["tiles"])]


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
        if radius == 0:
            return 0
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


# TILE: order of symbols


class TileDecoder:
    def __init__(self, bundle: Bundle, quality: int) -> None:
        self.bundle, self.quality = bundle, quality
        self.quality_value = round((quality - 1) * 254 / 99) - 127
        tables = bundle._arrays("tables.npz")
        self.mean_shifts = tables["mean_shifts"]
        self.radii = [int(radius) for radius in tables["radii"]]
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
                coded = self._companded(latents) * (latents_done(latents.shape, bundle.steps[:index]))
                (parameters,) = self._run(f"context_{index}", features=features, coded=coded[..., : step.context])
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
        seen = self._companded(hyper)
        if bundle.networks["hyper_synthesis"].inputs["hyper"] > channels:
            seen = self._with_quality(seen)
        outputs = self._run("hyper_synthesis", hyper=seen)
        return outputs[0], outputs[-1]

    def _step(self, rans, latents, parameters, first, last, parity, table_base) -> None:  # type: ignore[no-untyped-def]
        bundle, count = self.bundle, last - first
        gains, offsets = bundle.gains[self.quality - 1], bundle.table_offsets[self.quality - 1]
        for row in range(latents.shape[0]):
            for column in range(latents.shape[1]):
                if parity is not None and (row + column) % 2 != parity:
                    continue
                for channel in range(first, last):
                    mean = int(parameters[row, column, channel - first]) << int(self.mean_shifts[table_base + channel])
                    log_scale = int(parameters[row, column, channel - first + count])
                    offset, gain = int(offsets[table_base + channel]), int(gains[table_base + channel])
                    table = min(max(log_scale + offset, 0), len(self.radii) - 1)
                    symbol = rans.symbol(self.frequencies[table], self.radii[table])
                    latents[row, column, channel] = min(max(mean + (symbol * gain + 32 >> 6), -512), 509)

    def _companded(self, latents: np.ndarray) -> np.ndarray:
        return self.bundle.companding[(latents + 2 >> 2) + 128]

    def _with_quality(self, values: np.ndarray) -> np.ndarray:
        plane = np.full((*values.shape[:2], 1), self.quality_value, np.int8)
        return np.concatenate([values, plane], axis=2)

    def _run(self, network: str, **inputs: np.ndarray) -> list[np.ndarray]:
        batch = {name: np.ascontiguousarray(value)[None] for name, value in inputs.items()}
        return [output[0] for output in run_network(self.bundle.networks[network], batch)]

    def pixels(self, latents: np.ndarray) -> np.ndarray:
        """The synthesis over a whole padded frame: (16 h, 16 w, 3) uint8."""
        whole = latents + 2 >> 2
        both = np.concatenate([whole, latents - 4 * whole], axis=2).astype(np.int8)
        inputs = {"latent": both, "companded": self._with_quality(self._companded(latents))}
        declared = self.bundle.networks["synthesis"].inputs
        (planes,) = self._run("synthesis", **{name: inputs[name] for name in declared})
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


def decode(data: bytes, bundle: Bundle) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a picture file."""
    require(data[:8] == bytes.fromhex("894C4E540D0A1A0A"), "signature")
    kind, payload, after = box_at(data, 8)
    if kind == b"FRAM":
        parse_record(payload)
        kind, payload, _ = box_at(data, after)
    require(kind == b"INDX", "no index")
    record, _, entries = parse_index(payload)
    require(record["bundle"].hex() == bundle.identity, "another bundle")
    padded_height, padded_width = (-(-record[side] // 64) * 64 for side in ("height", "width"))
    columns, side = -(-record["width"] // record["tile"]), record["tile"]
    latents = np.zeros((padded_height // 16, padded_width // 16, bundle.latent_channels), np.int64)
    decoder = TileDecoder(bundle, record["quality"])
    for number in range(columns * -(-record["height"] // side)):
        offset, length = entries[number]
        require(length > 0, "lost tile")
        kind, payload, end = box_at(data, offset)
        require(kind == b"TILE" and end == offset + length, "not the tile that the index names")
        require(struct.unpack_from("<II", payload) == (record["number"], number), "another tile")
        y, x = number // columns * side, number % columns * side
        height, width = min(side, padded_height - y), min(side, padded_width - x)
        part = decoder.decode(payload[8:], height // 16, width // 16)
        latents[y // 16 : (y + height) // 16, x // 16 : (x + width) // 16] = part
    return decoder.pixels(latents)[: record["height"], : record["width"]]
