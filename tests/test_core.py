"""The native core against plain twins written from its definitions, on random, extreme and damaged input."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linnet.calibration.entropy_tables import laplacian_tables
from linnet.runtime import core, filtering, library
from linnet.runtime.errors import InputError
from linnet.runtime.latents import (
    BIT_WORTH,
    SCALE_STEPS_PER_OCTAVE,
    SCALE_TABLES,
    SMALLEST_SCALE,
    TRELLIS_BIT_WORTH,
    compand_whole,
    companding_table,
)

NATIVE = Path(__file__).parent.parent / "runtime" / "native"
DRIVER = Path(__file__).parent / "native" / "fuzz_core.cc"
SCALES = SMALLEST_SCALE * 2 ** (np.arange(SCALE_TABLES) / SCALE_STEPS_PER_OCTAVE)
STATE_LOW = 1 << 16


# ---- Checksum ----


def crc32c_twin(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_crc32c_has_the_published_check_value():
    assert core.crc32c(b"123456789") == 0xE3069283
    assert core.crc32c(b"") == 0
    assert core.crc32c(bytes(32)) == 0x8A9136AA  # RFC 3720, B.4
    assert core.crc32c(b"\xff" * 32) == 0x62A8AB43


def test_crc32c_equals_its_definition_at_every_length_and_offset():
    data = np.random.default_rng(1).bytes(80)
    for start in range(9):
        for end in range(start, 80):
            assert core.crc32c(memoryview(data)[start:end]) == crc32c_twin(data[start:end])


def test_crc32c_continues_and_takes_any_buffer():
    data = np.random.default_rng(2).bytes(1000)
    whole = core.crc32c(data)
    for cut in (0, 1, 7, 500, 1000):
        assert core.crc32c(data[cut:], core.crc32c(data[:cut])) == whole
    for buffer in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8).reshape(10, 100)):
        assert core.crc32c(buffer) == whole
    with pytest.raises(ValueError):
        core.crc32c(np.frombuffer(data, np.uint8)[::2])


# ---- Entropy coder ----


class TwinTables:
    """The native tables, and what the twins need, from the same numbers."""

    def __init__(self, frequencies: np.ndarray, radii: np.ndarray) -> None:
        self.radii = np.asarray(radii, int)
        sizes = np.where(self.radii, 2 * self.radii + 2, 0)
        self.frequencies = np.split(np.asarray(frequencies, int), np.cumsum(sizes)[:-1])
        self.native = core.EntropyTables(frequencies, radii)

    @classmethod
    def of_weights(cls, radii: list[int], weights: list[np.ndarray | None]) -> TwinTables:
        frequencies = [integers(w) for r, w in zip(radii, weights, strict=True) if r]
        return cls(np.concatenate(frequencies), np.array(radii))

    def interval(self, table: int, index: int) -> tuple[int, int]:
        frequencies = self.frequencies[table]
        return int(frequencies[:index].sum()), int(frequencies[index])

    def ideal_bits(self, symbols: np.ndarray, table_index: np.ndarray) -> float:
        bits = 0.0
        for table in np.unique(table_index):
            radius = self.radii[table]
            if radius:
                own = symbols[table_index == table].astype(int)
                escaped = np.abs(own) > radius
                frequency = self.frequencies[table][np.where(escaped, 2 * radius + 1, own + radius)]
                bits += (14 - np.log2(frequency)).sum() + 10 * escaped.sum()
        return bits

    def encode(self, symbols: np.ndarray, table_index: np.ndarray) -> bytes:
        """The definition run backwards, with division and without any trick."""
        operations = []  # (lane, start, frequency, bits of the frequency sum) in decoding order
        lane = 0
        for symbol, table in zip(symbols.tolist(), table_index.tolist(), strict=True):
            radius = int(self.radii[table])
            if not radius:
                assert symbol == 0
                continue
            if abs(symbol) <= radius:
                operations.append((lane, *self.interval(table, symbol + radius), 14))
            else:
                operations.append((lane, *self.interval(table, 2 * radius + 1), 14))
                operations.append((lane, symbol + 512, 1, 10))
            lane = (lane + 1) % 4
        states, words = [STATE_LOW] * 4, []
        for lane, start, frequency, bits in reversed(operations):
            state = states[lane]
            if state >= frequency << (32 - bits):
                words.append(state & 0xFFFF)
                state >>= 16
            states[lane] = (state // frequency << bits) + start + state % frequency
        return np.array(states, "<u4").tobytes() + np.array(words[::-1], "<u2").tobytes()

    def decode(self, payload: bytes, table_index: np.ndarray) -> np.ndarray:
        reader = TwinReader(self, payload)
        symbols = [reader.symbol(table) for table in table_index.tolist()]
        reader.finish()
        return np.array(symbols, np.int16)

    def bits(self, table: int, magnitude: int) -> float:
        """What the search takes a symbol of this magnitude to cost, in 1/4096 bit."""
        radius = int(self.radii[table])
        if not radius:
            return 0.0 if magnitude == 0 else math.inf
        length = 14 - math.log2(self.frequencies[table][min(radius + magnitude, 2 * radius + 1)])
        return round(4096 * length) / 4096 + 10 * (magnitude > radius)


class TwinReader:
    """The definition of the stream, symbol by symbol."""

    def __init__(self, tables: TwinTables, payload: bytes) -> None:
        self.tables = tables
        self.states = np.frombuffer(payload[:16], "<u4").tolist()
        self.words = np.frombuffer(payload[16:], "<u2").tolist()[::-1]
        self.lane = 0

    def _renew(self) -> None:
        if self.states[self.lane] < STATE_LOW:
            self.states[self.lane] = self.states[self.lane] << 16 | self.words.pop()

    def symbol(self, table: int) -> int:
        states, lane, radius = self.states, self.lane, int(self.tables.radii[table])
        if not radius:
            return 0
        slot = states[lane] & 16383
        index = int(np.searchsorted(np.cumsum(self.tables.frequencies[table]), slot, side="right"))
        start, frequency = self.tables.interval(table, index)
        states[lane] = frequency * (states[lane] >> 14) + slot - start
        self._renew()
        symbol = index - radius
        if symbol > radius:
            symbol = (states[lane] & 1023) - 512
            states[lane] >>= 10
            self._renew()
        self.lane = (lane + 1) % 4
        return symbol

    def finish(self) -> None:
        assert not self.words and self.states == [STATE_LOW] * 4


def integers(weights: np.ndarray) -> np.ndarray:
    """Weights to frequencies: at least 1 each, sum 2**14, the rounding error on the largest."""
    frequencies = np.maximum(1, np.floor(weights / weights.sum() * core.FREQUENCY_SUM)).astype(int)
    frequencies[np.argmax(frequencies)] += core.FREQUENCY_SUM - frequencies.sum()
    return frequencies


def gaussian_tables(skipped: int = 8) -> TwinTables:
    radii, weights = [], []
    for number, scale in enumerate(SCALES):
        radius = 0 if number < skipped else min(core.MAX_RADIUS, max(1, math.ceil(4 * scale)))
        edges = np.array([math.erf((k - 0.5) / scale / math.sqrt(2)) for k in range(-radius, radius + 2)])
        inside = np.diff(edges) / 2
        radii.append(radius)
        weights.append(np.append(inside, max(0.0, 1 - inside.sum())))
    return TwinTables.of_weights(radii, weights)


def extreme_tables() -> TwinTables:
    """Skip, all but certain, all but impossible, flat and widest: what Gaussians never ask of the coder."""
    tail = np.full(512, 1e-9)
    tail[-1] = 1  # nearly everything escapes
    peak = np.array([1e-9, 1, 1e-9, 1e-9])  # 16381 of 16384
    edge = np.array([1, 1e-9, 1e-9, 1e-9])
    return TwinTables.of_weights([0, 255, 1, 1, 255, 1, 0], [None, tail, peak, edge, np.ones(512), np.ones(4), None])


GAUSSIAN = gaussian_tables()
EXTREME = extreme_tables()
LAPLACIAN = TwinTables(*laplacian_tables())


def gaussian_symbols(tables: TwinTables, table_index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    symbols = np.rint(rng.normal(0, SCALES[table_index])).clip(core.MIN_SYMBOL, core.MAX_SYMBOL)
    return np.where(tables.radii[table_index] == 0, 0, symbols).astype(np.int16)


def extreme_symbols(table_index: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    radius = EXTREME.radii[table_index]
    reach = np.where(rng.random(table_index.size) < 0.5, radius, 511)
    symbols = rng.integers(-reach - (reach == 511), reach + 1)
    return np.where(radius == 0, 0, symbols).astype(np.int16)


def decoded_in_pieces(tables: TwinTables, payload: bytes, table_index: np.ndarray, cuts: list[int]) -> np.ndarray:
    """The symbols, which without a trellis are half the levels."""
    decoder = core.RansDecoder(payload)
    pieces = [decoder.decode(tables.native, piece) for piece in np.split(table_index, sorted(cuts))]
    decoder.finish()
    levels = np.concatenate(pieces)
    assert levels.dtype == np.int16 and not (levels % 2).any()
    return levels // 2


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 100, 1023, 1024, 1025, 3001])
@pytest.mark.parametrize("kind", ["gaussian", "extreme"])
def test_rans_equals_its_definition(kind, count):
    rng = np.random.default_rng(count)
    tables = GAUSSIAN if kind == "gaussian" else EXTREME
    table_index = rng.integers(0, len(tables.radii), count).astype(np.uint8)
    symbols = gaussian_symbols(tables, table_index, rng) if kind == "gaussian" else extreme_symbols(table_index, rng)
    payload = core.rans_encode(tables.native, symbols, table_index)
    assert payload == tables.encode(symbols, table_index)
    assert np.array_equal(tables.decode(payload, table_index), symbols)
    for pieces in (1, 2, 7):
        cuts = rng.integers(0, count + 1, pieces - 1).tolist()
        assert np.array_equal(decoded_in_pieces(tables, payload, table_index, cuts), symbols)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_rans_round_trip(data):
    """Any mixture of tables and symbols, decoded in any pieces."""
    tables = data.draw(st.sampled_from([GAUSSIAN, EXTREME]))
    table_index = data.draw(st.lists(st.integers(0, len(tables.radii) - 1), max_size=200))
    table_index = np.array(table_index, np.uint8)
    number = st.integers(-3, 3) | st.integers(core.MIN_SYMBOL, core.MAX_SYMBOL)
    symbols = np.array([data.draw(number) if tables.radii[t] else 0 for t in table_index], np.int16)
    cuts = data.draw(st.lists(st.integers(0, table_index.size), max_size=5))
    payload = core.rans_encode(tables.native, symbols, table_index)
    assert len(payload) <= core.STATE_BYTES + 4 * symbols.size
    assert np.array_equal(decoded_in_pieces(tables, payload, table_index, cuts), symbols)


def test_skipped_symbols_cost_nothing():
    table_index = np.zeros(5000, np.uint8)
    payload = core.rans_encode(EXTREME.native, np.zeros(5000, np.int16), table_index)
    assert payload == np.full(4, STATE_LOW, "<u4").tobytes()
    assert not decoded_in_pieces(EXTREME, payload, table_index, [17]).any()
    assert EXTREME.native.skip.tolist() == [1, 0, 0, 0, 0, 0, 1] and len(EXTREME.native) == 7


@pytest.mark.parametrize("low, high", [(15, 19), (15, 37), (27, 67), (60, 80), (0, 80)])
def test_size_is_within_half_a_percent_of_the_entropy(low, high):
    rng = np.random.default_rng(high)
    table_index = rng.integers(low, high, 200_000).astype(np.uint8)
    symbols = gaussian_symbols(GAUSSIAN, table_index, rng)
    payload = core.rans_encode(GAUSSIAN.native, symbols, table_index)
    ideal = GAUSSIAN.ideal_bits(symbols, table_index) / 8
    assert ideal <= len(payload) <= 1.005 * ideal


def test_the_reciprocal_divides_exactly():
    """The encoder multiplies where the definition divides; the largest state below a multiple is the worst case."""
    for frequency in range(1, core.FREQUENCY_SUM - 2):
        inverse = -(-(1 << 46) // frequency)
        state = (frequency << 18) - 1
        assert state * inverse < 1 << 64 and state * inverse >> 46 == state // frequency
    for frequency in [*range(1, 200), 2**13, 2**14 - 3, *range(3, 16382, 37)]:
        rest = core.FREQUENCY_SUM - frequency - 2
        tables = TwinTables.of_weights([1], [np.array([frequency, rest, 1, 1]) / core.FREQUENCY_SUM])
        assert tables.frequencies[0].sum() == core.FREQUENCY_SUM
        symbols = np.array([-1, 0, -1, 1, -1] * 8, np.int16)
        table_index = np.zeros(symbols.size, np.uint8)
        assert core.rans_encode(tables.native, symbols, table_index) == tables.encode(symbols, table_index)


@pytest.mark.parametrize(
    "frequencies, radii",
    [
        ([], []),
        ([4096] * 4, [2]),
        ([4096] * 4, [0]),
        ([4096] * 5, [1]),
        ([4096] * 3 + [4095], [1]),
        ([4096] * 3 + [4097], [1]),
        ([8192, 8192, 0, 0], [1]),
        ([16384, 16384, 16384, 16384], [1]),
        ([32] * 512, [256]),
        ([4096] * 4 * 257, [1] * 257),
        ([4096, 4096, 4096, 4096 + 65536], [1]),
        ([-1, 8193, 4096, 4096], [1]),
    ],
)
def test_malformed_tables_are_refused(frequencies, radii):
    with pytest.raises(InputError):
        core.EntropyTables(np.array(frequencies), np.array(radii))


def test_table_arrays_must_be_vectors_of_integers():
    for frequencies in (np.full(4, 4096.0), np.full((2, 2), 4096)):
        with pytest.raises(ValueError, match="vector of integers"):
            core.EntropyTables(frequencies, np.array([1]))


@pytest.mark.parametrize(
    "symbols, table_index",
    [([512], [1]), ([-513], [1]), ([1], [0]), ([-1], [0]), ([0], [7]), ([0], [255]), ([0, 32767, 0], [0, 1, 0])],
)
def test_encoder_refuses_what_it_cannot_code(symbols, table_index):
    with pytest.raises(ValueError, match="entropy coding"):
        core.rans_encode(EXTREME.native, np.array(symbols, np.int16), np.array(table_index, np.uint8))


def test_wrong_arrays_are_value_errors():
    symbols, table_index = np.zeros(6, np.int16), np.ones(6, np.uint8)
    for bad in (symbols[:5], symbols.astype(np.int32), np.zeros(12, np.int16)[::2], symbols.reshape(2, 3), [0] * 6):
        with pytest.raises(ValueError):
            core.rans_encode(EXTREME.native, bad, table_index)
    decoder = core.RansDecoder(core.rans_encode(EXTREME.native, symbols, table_index))
    for bad in (table_index.astype(np.int64), table_index[::2], [1] * 6):
        with pytest.raises(ValueError):
            decoder.decode(EXTREME.native, bad)
    assert not decoder.decode(EXTREME.native, table_index).any()
    decoder.finish()
    with pytest.raises(ValueError, match="documented range"):
        core.RansDecoder(bytes(np.full(4, STATE_LOW, "<u4"))).decode(EXTREME.native, np.array([9], np.uint8))


def decode_or_error(payload: bytes, table_index: np.ndarray) -> np.ndarray | None:
    try:
        symbols = decoded_in_pieces(GAUSSIAN, payload, table_index, [100, 1100])
    except InputError as error:
        assert "payload of" in str(error)
        return None
    return symbols


def test_damaged_streams_give_an_error_or_bounded_symbols():
    rng = np.random.default_rng(7)
    table_index = rng.integers(0, SCALE_TABLES, 2000).astype(np.uint8)
    symbols = gaussian_symbols(GAUSSIAN, table_index, rng)
    payload = core.rans_encode(GAUSSIAN.native, symbols, table_index)
    for _ in range(500):
        damaged = np.frombuffer(payload, np.uint8).copy()
        damaged[rng.integers(0, damaged.size, rng.integers(1, 4))] ^= rng.integers(1, 256, dtype=np.uint8)
        result = decode_or_error(damaged.tobytes(), table_index)
        if result is not None:
            assert result.min() >= core.MIN_SYMBOL and result.max() <= core.MAX_SYMBOL
            assert not np.array_equal(result, symbols) or damaged.tobytes() == payload
    for size in [*range(40), *range(40, len(payload), 31)]:
        assert decode_or_error(payload[:size], table_index) is None
        decode_or_error(rng.bytes(size), table_index)
    assert decode_or_error(payload + b"\0\0", table_index) is None
    assert decode_or_error(payload + b"\0", table_index) is None
    assert np.array_equal(decode_or_error(payload, table_index), symbols)


def test_an_escape_within_the_radius_is_refused():
    """One symbol has one code: streams are canonical, so equal symbols mean equal bytes."""
    start, frequency = EXTREME.interval(5, 3)
    state = (STATE_LOW << 10) + 512  # ten bits saying 0, which table 5 codes directly
    words = []
    if state >= frequency << 18:
        words.append(state & 0xFFFF)
        state >>= 16
    state = (state // frequency << 14) + start + state % frequency
    payload = np.array([state, *[STATE_LOW] * 3], "<u4").tobytes() + np.array(words, "<u2").tobytes()
    with pytest.raises(InputError, match="damaged"):
        core.RansDecoder(payload).decode(EXTREME.native, np.array([5], np.uint8))


def test_a_failed_decoder_stays_failed():
    decoder = core.RansDecoder(np.full(4, 0xFFFFFFFF, "<u4").tobytes())
    with pytest.raises(InputError, match="ends too early"):
        decoder.decode(GAUSSIAN.native, np.full(1000, 40, np.uint8))
    with pytest.raises(InputError, match="ends too early"):
        decoder.decode(GAUSSIAN.native, np.full(1, 0, np.uint8))
    with pytest.raises(InputError, match="ends too early"):
        decoder.finish()


def test_threads_share_tables():
    rng = np.random.default_rng(3)
    table_index = rng.integers(0, SCALE_TABLES, 50_000).astype(np.uint8)
    symbols = gaussian_symbols(GAUSSIAN, table_index, rng)

    def round_trip(_: int) -> bytes:
        payload = core.rans_encode(GAUSSIAN.native, symbols, table_index)
        assert np.array_equal(decoded_in_pieces(GAUSSIAN, payload, table_index, [1000]), symbols)
        return payload

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(round_trip, range(16)))) == 1


# ---- Latent arithmetic ----


def step_of(rng, height, width, channels, first, last, parity, tables=SCALE_TABLES, widest=1200) -> core.Step:
    n = last - first
    return core.Step(
        height, width, channels, first, last, parity, rng.integers(64, widest, n).astype(np.int16),
        rng.integers(0, 3, n).astype(np.uint8), rng.integers(-100, 200, n).astype(np.int16), companding_table(), tables,
    )  # fmt: skip


def mask_of(step: core.Step) -> np.ndarray:
    row, column = np.indices((step.height, step.width))
    return np.full(row.shape, True) if step.parity == -1 else (row + column) % 2 == step.parity


def step_tables_twin(step, params):
    scale = params[mask_of(step)][:, step.coded_channels :].astype(int)
    return np.clip(scale + step.table_offset, 0, step.tables - 1).astype(np.uint8).ravel()


def step_residuals_twin(step, latent, params):
    """In float32, and in the order of the definition."""
    mask, n = mask_of(step), step.coded_channels
    mean = (params[mask][:, :n].astype(int) << step.mean_shift).astype(np.float32)
    with np.errstate(all="ignore"):
        value = np.float32(512) * latent[mask][:, step.first : step.last]
        return ((value - mean) * np.float32(64) / step.gain.astype(np.float32)).ravel()


def dequantize_twin(step, params, levels, decoded, companded):
    mask, n = mask_of(step), step.coded_channels
    mean = params[mask][:, :n].astype(int) << step.mean_shift
    latent = np.clip(mean + ((levels.reshape(-1, n).astype(int) * step.gain + 64) >> 7), -512, 509)
    whole = np.floor(latent / 4 + 0.5).astype(int)
    decoded, companded = decoded.copy(), companded.copy()
    decoded[mask, step.first : step.last] = whole
    decoded[mask, step.channels + step.first : step.channels + step.last] = latent - 4 * whole
    companded[mask, step.first : step.last] = step.companding[whole + 128]
    return decoded, companded


@pytest.mark.parametrize("parity", [-1, 0, 1])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 3), (5, 7, 33), (8, 8, 96), (16, 3, 17), (2, 3, 600)])
def test_steps_equal_their_definition(shape, parity):
    rng = np.random.default_rng(abs(hash((shape, parity))) % 1000)
    height, width, channels = shape
    for first, last in {(0, channels), (channels // 3, channels), (channels // 2, channels // 2 + 1)}:
        step = step_of(rng, height, width, channels, first, last, parity, widest=int(rng.choice([160, 32767])))
        latent = rng.normal(0, 0.5, shape).astype(np.float32)
        latent[rng.random(shape) < 0.05] = rng.choice([np.nan, np.inf, -np.inf, 3e38, -1e-40, 0.0])
        params = rng.integers(-128, 128, step.params_shape).astype(np.int8)
        before = [rng.integers(-128, 128, (height, width, n * channels)).astype(np.int8) for n in (2, 1)]

        residual, table_index = core.step_residuals(step, latent, params)
        assert residual.size == table_index.size == step.symbols == mask_of(step).sum() * step.coded_channels
        assert np.array_equal(table_index, step_tables_twin(step, params))
        assert np.array_equal(table_index, core.step_tables(step, params))
        assert residual.dtype == np.float32
        assert np.array_equal(residual, step_residuals_twin(step, latent, params), equal_nan=True)

        found, _, _ = core.search(GAUSSIAN.native, residual, table_index, BIT_WORTH, 0)
        any_levels = rng.integers(-32768, 32768, found.size).astype(np.int16)
        for levels in (found, any_levels):
            decoded, companded = (array.copy() for array in before)
            core.dequantize(step, params, levels, decoded, companded)
            expected = dequantize_twin(step, params, levels, *before)
            assert np.array_equal(decoded, expected[0]) and np.array_equal(companded, expected[1])


def test_levels_are_half_steps_and_latents_are_clamped():
    latent = np.array([0.4, -0.6, 1.7, -3.2, 100, 508.6, -509.7, np.nan], np.float32).reshape(1, 8, 1) / 512
    params, rows = np.zeros((1, 8, 2), np.int8), np.zeros(8, np.uint8)
    tables = TwinTables.of_weights([255], [np.ones(512)])
    for gain, expected in ((64, [0, -1, 2, -3, 100, 509, -510, 0]), (128, [0, 0, 2, -4, 100, 508, -510, 0])):
        step = core.Step(
            1, 8, 1, 0, 1, -1, np.full(1, gain, np.int16), np.zeros(1, np.uint8), np.zeros(1, np.int16),
            companding_table(), 1,
        )  # fmt: skip
        residual, table_index = core.step_residuals(step, latent, params)
        assert np.array_equal(table_index, rows)
        levels, _, _ = core.search(tables.native, residual, table_index, 0.0, 0)
        assert (levels // 2 * gain // 64).tolist() == expected
        decoded, companded = np.zeros((1, 8, 2), np.int8), np.zeros((1, 8, 1), np.int8)
        core.dequantize(step, params, levels, decoded, companded)
        assert (decoded.astype(int) @ [4, 1]).ravel().tolist() == expected
        for level in (1, -1, 3, 1022, -1022, 32767, -32768):
            core.dequantize(step, params, np.full(8, level, np.int16), decoded, companded)
            latents = (decoded.astype(int) @ [4, 1]).ravel()
            assert (latents == np.clip(math.floor(level * gain / 128 + 0.5), -512, 509)).all()


# ---- The search without a trellis ----


def search_cost(tables: TwinTables, residual: float, table: int, symbol: int, bit_worth: float) -> float:
    return (residual - symbol) ** 2 + bit_worth * tables.bits(table, abs(symbol))


def searched(tables: TwinTables, residual: np.ndarray, table_index: np.ndarray, bit_worth: float) -> list[int]:
    before = table_index.copy()
    levels, symbols, coded_with = core.search(tables.native, residual, table_index, bit_worth, 0)
    assert symbols.dtype == levels.dtype == np.int16 and coded_with.dtype == np.uint8
    assert np.array_equal(table_index, before)
    coded = tables.radii[table_index] > 0
    assert np.array_equal(levels[coded], 2 * symbols) and not levels[~coded].any()
    assert np.array_equal(coded_with, table_index[coded])
    return (levels // 2).tolist()


@pytest.mark.parametrize("bit_worth", [0.0, TRELLIS_BIT_WORTH, BIT_WORTH])
def test_a_symbol_is_the_best_of_all(bit_worth):
    """With tables as encoders use them, no symbol at all has a smaller cost than the one found."""
    rng = np.random.default_rng(21)
    table_index = rng.integers(0, SCALE_TABLES, 600).astype(np.uint8)
    residual = rng.laplace(0, np.maximum(0.5, SCALES[table_index])).clip(-509, 509).astype(np.float32)
    residual[::7] = rng.uniform(-509, 509, residual[::7].size)
    residual[::5] = np.rint(2 * residual[::5]) / 2
    symbols = searched(LAPLACIAN, residual, table_index, bit_worth)
    every = np.arange(-511, 512)
    for r, table, symbol in zip(residual.tolist(), table_index.tolist(), symbols, strict=True):
        if LAPLACIAN.radii[table]:
            bits = np.array([LAPLACIAN.bits(table, s) for s in range(512)])[abs(every)]
            least = ((r - every) ** 2 + bit_worth * bits).min()
            assert search_cost(LAPLACIAN, r, table, symbol, bit_worth) <= least + 1e-4, (r, table, symbol)


@pytest.mark.parametrize("bit_worth", [0.0, 0.08, 0.5, 10.0])
@pytest.mark.parametrize("tables", [GAUSSIAN, EXTREME], ids=["gaussian", "extreme"])
def test_a_symbol_is_the_best_of_both_sides_and_zero(tables, bit_worth):
    """With any tables, however odd."""
    rng = np.random.default_rng(22)
    table_index = rng.integers(0, len(tables.radii), 3000).astype(np.uint8)
    residual = (rng.choice([0.5, 3, 100], 3000) * rng.normal(0, 1, 3000)).clip(-509, 509).astype(np.float32)
    symbols = searched(tables, residual, table_index, bit_worth)
    for r, table, symbol in zip(residual.tolist(), table_index.tolist(), symbols, strict=True):
        if tables.radii[table]:
            candidates = (0, math.floor(r), math.floor(r) + 1)
            least = min(search_cost(tables, r, table, s, bit_worth) for s in candidates)
            assert search_cost(tables, r, table, symbol, bit_worth) <= least + 1e-3, (r, table, symbol)


def test_not_a_number_counts_as_zero():
    table_index = np.arange(7, dtype=np.uint8)
    assert searched(EXTREME, np.full(7, np.nan, np.float32), table_index, BIT_WORTH) == [0] * 7


def test_what_lies_beyond_the_largest_symbol_takes_it():
    residual = np.array([np.inf, 3e38, 600, 511, 510.9, 510.4, -510.4, -510.9, -511, -600, -3e38, -np.inf], np.float32)
    for table in (1, 2, 3, 4, 5):
        symbols = searched(EXTREME, residual, np.full(12, table, np.uint8), BIT_WORTH)
        assert symbols == [511] * 5 + [510, -510] + [-511] * 5


def test_the_search_checks_its_arguments():
    residual, table_index = np.zeros(6, np.float32), np.ones(6, np.uint8)
    good = {"residual": residual, "table_index": table_index, "bit_worth": 0.1}
    bad = [
        ("residual", residual[:5]), ("residual", residual.astype(np.float64)), ("residual", residual.reshape(2, 3)),
        ("residual", np.zeros(12, np.float32)[::2]), ("table_index", table_index.astype(np.int64)),
        ("table_index", table_index.reshape(2, 3)), ("table_index", np.full(6, 7, np.uint8)),
        ("table_index", np.full(6, 255, np.uint8)), ("bit_worth", -1e-6), ("bit_worth", math.nan),
        ("bit_worth", 1000.1), ("bit_worth", math.inf), ("table_index", [1] * 6), ("table_index", None),
    ]  # fmt: skip
    for name, value in bad:
        with pytest.raises(ValueError):
            core.search(EXTREME.native, **{**good, name: value}, trellis=0)
    assert [a.size for a in core.search(EXTREME.native, residual[:0], table_index[:0], 0.1, 0)] == [0] * 3


def test_companding_of_latents():
    rng = np.random.default_rng(4)
    latent = rng.normal(0, 0.7, (3, 5, 33)).astype(np.float32)
    latent[0, 0, :4] = [np.inf, -np.inf, 0.99, -1]
    table = companding_table()
    expected = table[np.clip(np.floor(128 * latent.astype(np.float64) + 0.5), -128, 127).astype(int) + 128]
    assert np.array_equal(core.compand(latent, table), expected)
    assert core.compand(np.full(2, np.nan, np.float32), table).tolist() == [table[128]] * 2
    with pytest.raises(ValueError, match="latent"):
        core.compand(latent.astype(np.float64), table)


def test_companding_of_whole_latents():
    latent = np.arange(-128, 128, dtype=np.int8).reshape(2, 8, 16)
    table = np.random.default_rng(6).permutation(np.arange(-128, 128)).astype(np.int8)
    for part in (latent, latent[..., :5], latent[:, ::2]):
        assert np.array_equal(compand_whole(part, table), table[part.astype(int) + 128])


def test_steps_check_their_arguments():
    rng = np.random.default_rng(5)
    step = step_of(rng, 4, 5, 6, 1, 4, 0)
    latent, params = np.zeros((4, 5, 6), np.float32), np.zeros((4, 5, 6), np.int8)
    core.step_residuals(step, latent, params)
    for name, bad in [
        ("latent", np.zeros((4, 5, 6))), ("latent", np.zeros((5, 4, 6), np.float32)),
        ("latent", np.zeros((4, 5, 12), np.float32)[..., ::2]), ("latent", None),
        ("params", np.zeros((4, 5, 12), np.int8)), ("params", params.astype(np.uint8)),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=name):
            core.step_residuals(step, **{"latent": latent, "params": params, name: bad})
    good = {
        "params": params, "levels": np.zeros(step.symbols, np.int16),
        "decoded": np.zeros((4, 5, 12), np.int8), "companded": np.zeros((4, 5, 6), np.int8),
    }  # fmt: skip
    core.dequantize(step, **good)
    frozen = np.zeros((4, 5, 6), np.int8)
    frozen.flags.writeable = False
    for name, bad in [
        ("levels", np.zeros(3, np.int16)), ("levels", np.zeros(step.symbols, np.int32)), ("params", params[:3]),
        ("decoded", np.zeros((4, 5, 6), np.int8)), ("decoded", np.zeros((4, 5, 12), np.uint8)),
        ("companded", frozen), ("decoded", None),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=name):
            core.dequantize(step, **{**good, name: bad})
    with pytest.raises(ValueError, match="params"):
        core.step_tables(step, params[:3])


@pytest.mark.parametrize(
    "change",
    [
        {"height": 0}, {"width": -1}, {"width": 1 << 28}, {"first": 4}, {"last": 7}, {"first": -1}, {"parity": 2},
        {"tables": 0}, {"tables": 257}, {"gain": np.full(3, 63, np.int16)}, {"gain": np.full(2, 64, np.int16)},
        {"gain": np.full(3, 64, np.int32)}, {"table_offset": np.zeros(4, np.int16)},
        {"companding": np.zeros(255, np.int8)}, {"mean_shift": np.full(3, 3, np.uint8)},
    ],
)  # fmt: skip
def test_impossible_steps_are_refused(change):
    arrays = {
        "gain": np.full(3, 64, np.int16),
        "mean_shift": np.zeros(3, np.uint8),
        "table_offset": np.zeros(3, np.int16),
    }
    good = {"height": 4, "width": 5, "channels": 6, "first": 1, "last": 4, "parity": -1, "tables": 80, **arrays}
    core.Step(companding=companding_table(), **good)
    with pytest.raises(ValueError):
        core.Step(**{"companding": companding_table(), **good, **change})


# ---- Pixels and planes ----


def pixels_to_planes_twin(image, x0, y0, width, height):
    def seen(place, length):
        if place < 0:
            return min(-1 - place, 15, length - 1)
        return place if place < length else length - 1 - min(place - length, 15, length - 1)

    rows = [seen(y, image.shape[0]) for y in range(y0, y0 + height)]
    columns = [seen(x, image.shape[1]) for x in range(x0, x0 + width)]
    region = image[rows][:, columns].reshape(height // 2, 2, width // 2, 2, 3)
    planes = region.transpose(0, 2, 4, 1, 3).reshape(height // 2, width // 2, 12)
    return (planes.astype(int) - 128).astype(np.int8)


def planes_to_pixels_twin(planes, x, y, width, height):
    h, w, _ = planes.shape
    pixels = planes.reshape(h, w, 3, 2, 2).transpose(0, 3, 1, 4, 2).reshape(2 * h, 2 * w, 3)
    return (pixels[y : y + height, x : x + width].astype(int) + 128).astype(np.uint8)


def test_planes_equal_their_definition_inside_and_outside_the_frame():
    rng = np.random.default_rng(11)
    for _ in range(400):
        image = rng.integers(0, 256, (*rng.integers(1, 30, 2), 3)).astype(np.uint8)
        width, height = (2 * rng.integers(1, 16, 2)).tolist()
        reach = int(rng.choice([5, 40]))
        x0, y0 = rng.integers(-reach, reach, 2).tolist()
        planes = core.pixels_to_planes(image, x0, y0, width, height)
        assert np.array_equal(planes, pixels_to_planes_twin(image, x0, y0, width, height))
    far = core.MAX_COORDINATE
    assert (core.pixels_to_planes(image, -far, far, 2, 2) == image[-16:, :16][0, -1].astype(int).repeat(4) - 128).all()


def test_pixels_equal_their_definition_for_every_crop():
    rng = np.random.default_rng(12)
    planes = rng.integers(-128, 128, (4, 5, 12)).astype(np.int8)
    for x in range(10):
        for y in range(8):
            for width in range(1, 11 - x):
                for height in range(1, 9 - y):
                    pixels = core.planes_to_pixels(planes, (x, y, width, height))
                    assert np.array_equal(pixels, planes_to_pixels_twin(planes, x, y, width, height))


def test_windows_of_a_large_frame_need_no_copy_and_leave_the_rest_alone():
    rng = np.random.default_rng(13)
    frame = rng.integers(0, 256, (50, 60, 3)).astype(np.uint8)
    window = frame[7:40, 9:50]
    planes = core.pixels_to_planes(window, -2, -2, 46, 38)
    assert np.array_equal(planes, pixels_to_planes_twin(np.ascontiguousarray(window), -2, -2, 46, 38))
    target = rng.integers(0, 256, (50, 60, 3)).astype(np.uint8)
    expected = target.copy()
    expected[7:40, 9:50] = window
    assert core.planes_to_pixels(planes, (2, 2, 41, 33), target[7:40, 9:50]).base is target
    assert np.array_equal(target, expected)
    tall, wide = frame[:, 5:6], frame[5:6]
    for thin in (tall, wide, tall[3:4]):
        assert np.array_equal(core.pixels_to_planes(thin, 0, 0, 64, 64), pixels_to_planes_twin(thin, 0, 0, 64, 64))
    out = np.empty((19, 23, 12), np.int8)
    assert core.pixels_to_planes(window, -2, -2, 46, 38, out=out) is out and np.array_equal(out, planes)


@pytest.mark.parametrize(
    "make",
    [
        lambda image: image[:, ::2], lambda image: image[::-1], lambda image: image.transpose(1, 0, 2),
        lambda image: image[..., ::-1], lambda image: image.astype(np.int8), lambda image: image[..., 0],
        lambda image: image[:0], lambda image: image[..., :2], lambda image: image.tolist(),
        lambda image: np.broadcast_to(image[:1], image.shape),
    ],
)  # fmt: skip
def test_images_of_the_wrong_layout_are_value_errors(make):
    image = make(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="image"):
        core.pixels_to_planes(image, 0, 0, 8, 8)
    with pytest.raises(ValueError, match="out"):
        core.planes_to_pixels(np.zeros((4, 4, 12), np.int8), (0, 0, 8, 8), image)


def test_impossible_regions_and_crops_are_value_errors():
    image, planes = np.zeros((8, 8, 3), np.uint8), np.zeros((4, 4, 12), np.int8)
    for region in ((0, 0, 3, 2), (0, 0, 2, 0), (0, 0, -2, 2), (1 << 60, 0, 2, 2), (0, -(1 << 70), 2, 2)):
        with pytest.raises(ValueError, match="region"):
            core.pixels_to_planes(image, *region)
    for crop in ((0, 0, 9, 1), (-1, 0, 2, 2), (0, 0, 0, 1), (8, 0, 1, 1), (0, 7, 1, 2), (1 << 40, 0, 1, 1)):
        with pytest.raises(ValueError, match="crop"):
            core.planes_to_pixels(planes, crop)
    for bad in (planes[..., :11], planes.astype(np.uint8), planes[:, ::2], planes[0]):
        with pytest.raises(ValueError, match="planes"):
            core.planes_to_pixels(bad, (0, 0, 2, 2))
    with pytest.raises(ValueError, match="out"):
        core.planes_to_pixels(planes, (0, 0, 8, 8), np.zeros((8, 7, 3), np.uint8))
    with pytest.raises(ValueError, match="out"):
        core.pixels_to_planes(image, 0, 0, 8, 8, out=np.zeros((4, 4, 11), np.int8))


# ---- The header and the sources ----


def test_error_numbers_and_limits_are_pinned():
    header = (NATIVE / "linnet.h").read_text()
    numbers = {name: int(number) for name, number in re.findall(r"#define LINNET_(\w+) \(?(-?\d+)\)?", header)}
    assert numbers == {
        "API_VERSION": library.API_VERSION, "OK": 0, "ERROR_ARGUMENT": -1, "ERROR_MEMORY": -2, "ERROR_CAPACITY": -3,
        "ERROR_TABLES": -4, "ERROR_SYMBOL": -5, "ERROR_TRUNCATED": -6, "ERROR_CORRUPT": -7,
        "MAX_TABLES": core.MAX_TABLES, "MAX_RADIUS": core.MAX_RADIUS, "MAX_BIT_WORTH": core.MAX_BIT_WORTH,
        "FREQUENCY_BITS": 14,
        "MIN_SYMBOL": core.MIN_SYMBOL, "MAX_SYMBOL": core.MAX_SYMBOL,
        "MAX_PLANES": filtering.MAX_PLANES, "MAX_TARGETS": filtering.MAX_TARGETS,
    }  # fmt: skip


def test_the_header_compiles_alone_as_c():
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c"]
    subprocess.run([compiler, *flags, str(NATIVE / "linnet.h")], check=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs the sanitizers of GCC or Clang")
def test_sanitizers(tmp_path):
    """The native sources and the fuzz driver under the address and undefined behaviour sanitizers."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    flags = ["-std=c++17", "-g", "-ffp-contract=off", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    probe = tmp_path / "probe.cc"
    probe.write_text("int main() { return 0; }\n")
    built = subprocess.run([compiler, *flags, str(probe), "-o", str(tmp_path / "probe")], capture_output=True)
    if built.returncode or subprocess.run([tmp_path / "probe"], capture_output=True).returncode:
        pytest.skip("the sanitizer runtime is missing")
    driver = tmp_path / "fuzz_core"
    sources = [str(DRIVER), *sorted(map(str, NATIVE.glob("*.cc")))]
    warnings = ["-O1", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *flags, *warnings, f"-I{NATIVE}", *sources, "-o", str(driver)], check=True)
    result = subprocess.run([driver, "1000"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
