"""Dependent quantisation in the native core: its decoder against a plain twin, its search against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_core import SCALES, TwinReader, TwinTables, gaussian_tables

from linnet.calibration.entropy_tables import laplacian_tables
from linnet.runtime import core
from linnet.runtime.errors import InputError
from linnet.runtime.latents import BIT_WORTH, SCALE_TABLES, TRELLIS_BIT_WORTH, TRELLIS_STATES, TRELLIS_STEP

MASKS = {8: (7, 2), 64: (62, 22)}
"""What an odd state and an odd symbol flip of the next state, by the number of states."""
ANY_TRELLIS = pytest.mark.parametrize("trellis", MASKS)


def next_state(trellis: int, state: int, symbol: int) -> int:
    odd, parity = MASKS[trellis]
    return state >> 1 ^ state % 2 * odd ^ symbol % 2 * parity


@ANY_TRELLIS
def test_paths_that_part_stay_apart(trellis):
    """Until as many symbols are coded as states have bits."""
    ends = [0]
    for _ in range(trellis.bit_length() - 1):
        ends = [next_state(trellis, state, symbol) for state in ends for symbol in (0, 1)]
    assert sorted(ends) == [*range(trellis)]
    arrivals = sorted(next_state(trellis, state, symbol) for state in range(trellis) for symbol in (0, 1))
    assert arrivals == sorted([*range(trellis)] * 2)


def test_eight_states_are_those_of_schwarz_et_al():
    """By other names: the same quantiser follows in each, whatever the symbols."""
    theirs = [(0, 2), (5, 7), (1, 3), (6, 4), (2, 0), (4, 6), (3, 1), (7, 5)]
    pairs, found = [(0, 0)], set()
    while pairs:
        pair = ours, other = pairs.pop()
        if pair not in found:
            assert ours % 2 == other % 2
            pairs += [(next_state(8, ours, parity), theirs[other][parity]) for parity in (0, 1)]
        found.add(pair)
    assert len(found) == 8


def paired(*halves: TwinTables) -> TwinTables:
    frequencies = np.concatenate([f for half in halves for f in half.frequencies])
    return TwinTables(frequencies, np.concatenate([half.radii for half in halves]))


def random_tables(rng: np.random.Generator, count: int) -> TwinTables:
    """Pairs of unlike tables: any radius, any distribution, some all but certain, and skips in between."""
    skipped = rng.random(count) < 0.3
    skipped[0] = False

    def half() -> TwinTables:
        radii = np.where(skipped, 0, rng.choice([1, 2, 7, 255], count))
        weights = [rng.random(2 * r + 2) ** rng.choice([1, 8, 40]) if r else None for r in radii]
        return TwinTables.of_weights(radii.tolist(), weights)

    return paired(half(), half())


def extreme_pairs() -> TwinTables:
    """Peaks, edges and tables in which nearly all escapes, each beside another such in the other half."""
    tail, escape = np.full(512, 1e-9), np.array([1e-9, 1e-9, 1e-9, 1])
    tail[-1] = 1
    peak, edge = np.array([1e-9, 1, 1e-9, 1e-9]), np.array([1e-9, 1e-9, 1, 1e-9])
    first = TwinTables.of_weights([0, 255, 1, 1, 1, 255, 0], [None, tail, peak, edge, escape, np.ones(512), None])
    second = TwinTables.of_weights([0, 1, 255, 1, 1, 1, 0], [None, edge, tail, peak, np.ones(4), escape, None])
    return paired(first, second)


SCALAR, LAPLACIAN = TwinTables(*laplacian_tables()), TwinTables(*laplacian_tables(trellis=True))
GAUSSIAN = paired(gaussian_tables(), gaussian_tables())
RANDOM = random_tables(np.random.default_rng(31), 128)
EXTREME = extreme_pairs()
KINDS = {"laplacian": LAPLACIAN, "gaussian": GAUSSIAN, "random": RANDOM, "extreme": EXTREME}


class Paths:
    """The states of one step's four trellises, and what symbols mean in them."""

    def __init__(self, trellis: int) -> None:
        self.trellis, self.states, self.coded = trellis, [0] * 4, 0

    def quantiser(self) -> int:
        return self.states[self.coded % 4] % 2

    def level(self, symbol: int) -> int:
        """Of the next coded symbol."""
        lane = self.coded % 4
        level = 2 * symbol - self.quantiser() * ((symbol > 0) - (symbol < 0))
        self.states[lane] = next_state(self.trellis, self.states[lane], symbol)
        self.coded += 1
        return level


def meaning_of(
    tables: TwinTables, symbols: np.ndarray, table_index: np.ndarray, trellis: int
) -> tuple[list[int], list[int]]:
    """(levels, indices of the tables that code the symbols) of one step whose coded symbols are `symbols`."""
    paths, levels, coded_with, left = Paths(trellis), [], [], symbols.tolist()[::-1]
    for table in table_index.tolist():
        if tables.radii[table]:
            coded_with.append(table + paths.quantiser() * len(tables.radii) // 2)
            levels.append(paths.level(left.pop()))
        else:
            levels.append(0)
    assert not left
    return levels, coded_with


def decode_twin(tables: TwinTables, payload: bytes, steps: list[np.ndarray], trellis: int) -> list[list[int]]:
    """The levels of each step, given the table indices that its parameters choose."""
    reader, found = TwinReader(tables, payload), []
    for table_index in steps:
        paths, levels = Paths(trellis), []
        for table in table_index.tolist():
            if tables.radii[table]:
                symbol = reader.symbol(table + paths.quantiser() * len(tables.radii) // 2)
                levels.append(paths.level(symbol))
            else:
                levels.append(0)
        found.append(levels)
    reader.finish()
    return found


def search(
    tables: TwinTables,
    residual: np.ndarray,
    table_index: np.ndarray,
    bit_worth: float = TRELLIS_BIT_WORTH,
    trellis: int = TRELLIS_STATES,
):
    """The search's three arrays, once it is clear that they belong together."""
    before = table_index.copy()
    levels, symbols, coded_with = core.search(tables.native, residual, table_index, bit_worth, trellis)
    assert symbols.dtype == levels.dtype == np.int16 and coded_with.dtype == np.uint8
    assert symbols.size == 0 or np.abs(symbols).max() <= core.MAX_SYMBOL
    assert np.array_equal(table_index, before)
    assert (levels.tolist(), coded_with.tolist()) == meaning_of(tables, symbols, table_index, trellis)
    return levels, symbols, coded_with


def round_trip(tables: TwinTables, steps: list[tuple[np.ndarray, np.ndarray]], bit_worth: float, trellis: int) -> None:
    """Searches, codes and decodes steps of (residual, table index) in one payload."""
    found = [search(tables, *step, bit_worth, trellis) for step in steps]
    levels, symbols, coded_with = (np.concatenate(parts) for parts in zip(*found, strict=True))
    payload = core.rans_encode(tables.native, symbols, coded_with)
    assert payload == tables.encode(symbols, coded_with)
    twin = decode_twin(tables, payload, [index for _, index in steps], trellis)
    assert np.concatenate(twin).tolist() == levels.tolist()
    decoder = core.RansDecoder(payload)
    for (_, table_index), (expected, _, _) in zip(steps, found, strict=True):
        decoded = decoder.decode(tables.native, table_index, trellis)
        assert decoded.dtype == np.int16 and np.array_equal(decoded, expected)
    decoder.finish()


def random_step(tables: TwinTables, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    table_index = rng.integers(0, len(tables.radii) // 2, count).astype(np.uint8)
    residual = rng.laplace(0, rng.choice([0.3, 2, 30, 400], count)).astype(np.float32)
    residual[rng.random(count) < 0.02] = rng.choice([np.nan, np.inf, -np.inf, 3e38, -1e-40, 510.7, 0.25])
    return residual, table_index


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 1023, 1024, 1025, 3001])
@pytest.mark.parametrize("kind", KINDS)
@ANY_TRELLIS
def test_steps_in_one_payload_come_back_as_their_levels(trellis, kind, count):
    rng = np.random.default_rng(count)
    counts = [count, *rng.integers(0, 12, 4).tolist(), count]
    for bit_worth in (0.0, TRELLIS_BIT_WORTH, 30.0):
        round_trip(KINDS[kind], [random_step(KINDS[kind], n, rng) for n in counts], bit_worth, trellis)


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_any_steps_come_back_as_their_levels(data):
    tables = data.draw(st.sampled_from(list(KINDS.values())))
    number = st.floats(-8, 8, width=32, allow_subnormal=False) | st.floats(width=32, allow_subnormal=False)
    index = st.integers(0, len(tables.radii) // 2 - 1)
    steps = data.draw(st.lists(st.lists(st.tuples(number, index), max_size=30), min_size=1, max_size=5))
    arrays = [(np.array([r for r, _ in s], np.float32), np.array([i for _, i in s], np.uint8)) for s in steps]
    bit_worth = data.draw(st.floats(0, 100, allow_subnormal=False))
    round_trip(tables, arrays, bit_worth, data.draw(st.sampled_from(list(MASKS))))


@ANY_TRELLIS
def test_any_symbols_can_be_coded_along_a_trellis(trellis):
    """Also those that no search would choose: the decoder follows its state machine, not the encoder's habits."""
    rng = np.random.default_rng(33)
    for tables in KINDS.values():
        steps, symbols, levels, coded_with = [], [], [], []
        for count in (7, 0, 1030, 2, 1):
            table_index = rng.integers(0, len(tables.radii) // 2, count).astype(np.uint8)
            own = rng.choice([1, 3, 511], count) * rng.integers(-1, 2, count)
            own[rng.random(count) < 0.1] = core.MIN_SYMBOL
            own = own[tables.radii[table_index] > 0]
            steps.append(table_index)
            symbols.append(own.astype(np.int16))
            for part, whole in zip(meaning_of(tables, own, table_index, trellis), (levels, coded_with), strict=True):
                whole.append(part)
        payload = core.rans_encode(tables.native, np.concatenate(symbols), np.concatenate(coded_with).astype(np.uint8))
        decoder = core.RansDecoder(payload)
        for table_index, expected in zip(steps, levels, strict=True):
            assert decoder.decode(tables.native, table_index, trellis).tolist() == expected
        decoder.finish()


def test_a_call_decodes_a_step_and_no_less():
    """States restart with every call, so a step decoded in two pieces is another one."""
    rng = np.random.default_rng(34)
    residual, table_index = rng.normal(0, 3, 400).astype(np.float32), np.full(400, 40, np.uint8)
    levels, symbols, coded_with = search(LAPLACIAN, residual, table_index)
    payload = core.rans_encode(LAPLACIAN.native, symbols, coded_with)
    decoder = core.RansDecoder(payload)
    assert np.array_equal(decoder.decode(LAPLACIAN.native, table_index[:201], TRELLIS_STATES), levels[:201])
    try:
        rest = decoder.decode(LAPLACIAN.native, table_index[201:], TRELLIS_STATES)
        decoder.finish()
    except InputError:
        return
    assert not np.array_equal(rest, levels[201:])


def test_steps_with_and_without_a_trellis_share_a_payload():
    rng = np.random.default_rng(35)
    residual, table_index = random_step(LAPLACIAN, 301, rng)
    scalar = core.search(LAPLACIAN.native, residual, table_index, BIT_WORTH, 0)
    found = {trellis: search(LAPLACIAN, residual, table_index, trellis=trellis) for trellis in MASKS}
    order = [(scalar, 0), (found[64], 64), (found[8], 8), (scalar, 0), (found[64], 64)]
    payload = core.rans_encode(
        LAPLACIAN.native, *(np.concatenate([found[part] for found, _ in order]) for part in (1, 2))
    )
    decoder = core.RansDecoder(payload)
    for (levels, _, _), trellis in order:
        assert np.array_equal(decoder.decode(LAPLACIAN.native, table_index, trellis), levels)
    decoder.finish()


# ---- What the search finds ----


def candidates(residual: float, quantiser: int, wide: bool) -> set[int]:
    """The symbols on both sides of a residual, and 0; `wide` adds a few further ones."""
    near = math.floor(abs(residual) + quantiser / 2)
    reach = range(near - 2, near + 4) if wide else range(near, near + 2)
    side = -1 if residual < 0 else 1
    return {0, *(side * s for s in reach if s >= 0), *((-side * s for s in (1, 2)) if wide else ())}


def choices(tables: TwinTables, residual: float, table: int, quantiser: int, bit_worth: float, wide: bool):
    """(parity, cost) of each candidate."""
    own = table + quantiser * len(tables.radii) // 2
    for symbol in candidates(residual, quantiser, wide):
        level = math.copysign(abs(symbol) - quantiser / 2, symbol) if symbol else 0
        yield symbol % 2, (residual - level) ** 2 + bit_worth * tables.bits(own, abs(symbol))


def least_cost(
    tables: TwinTables,
    residual: list[float],
    table_index: list[int],
    bit_worth: float,
    trellis: int,
    wide: bool = False,
) -> float:
    """Of every path along one trellis: none is pruned."""
    paths = [(0, 0.0)]
    for r, table in zip(residual, table_index, strict=True):
        least: list[dict[int, float]] = [{}, {}]
        for quantiser in (0, 1):
            for parity, cost in choices(tables, r, table, quantiser, bit_worth, wide):
                least[quantiser][parity] = min(cost, least[quantiser].get(parity, math.inf))
        paths = [
            (next_state(trellis, state, parity), so_far + cost)
            for state, so_far in paths
            for parity, cost in least[state % 2].items()
        ]
    return min(cost for _, cost in paths)


def costs_by_lane(
    tables: TwinTables, residual: np.ndarray, table_index: np.ndarray, bit_worth: float, trellis: int
) -> list[float]:
    levels, symbols, coded_with = search(tables, residual, table_index, bit_worth, trellis)
    coded, costs = tables.radii[table_index] > 0, [0.0] * 4
    both = zip(residual[coded].tolist(), levels[coded].tolist(), strict=True)
    for i, ((r, level), symbol, table) in enumerate(zip(both, symbols.tolist(), coded_with.tolist(), strict=True)):
        costs[i % 4] += (r - level / 2) ** 2 + bit_worth * tables.bits(table, abs(symbol))
    return costs


def short_step(tables: TwinTables, coded: int, widest: float, rng: np.random.Generator):
    """`coded` coded symbols, with skipped ones in between."""
    half = tables.radii[: len(tables.radii) // 2]
    table_index = rng.choice(np.flatnonzero(half), coded)
    table_index = np.insert(table_index, rng.integers(0, coded + 1, 6), rng.choice(np.flatnonzero(half == 0), 6))
    scale = SCALES[table_index] if len(half) == SCALE_TABLES else np.full(len(table_index), 2.0)
    residual = rng.laplace(0, np.minimum(widest, 1.2 * scale)).clip(-500, 500)
    residual[::5] = np.rint(4 * residual[::5]) / 4
    return residual.astype(np.float32), table_index.astype(np.uint8)


def lane_of(tables: TwinTables, residual: np.ndarray, table_index: np.ndarray, lane: int) -> tuple[list, list]:
    own = np.flatnonzero(tables.radii[table_index])[lane::4]
    return residual[own].tolist(), table_index[own].tolist()


@pytest.mark.parametrize("bit_worth", [0.0, TRELLIS_BIT_WORTH, 1.0])
@pytest.mark.parametrize("kind", KINDS)
@ANY_TRELLIS
def test_no_other_path_costs_less(trellis, kind, bit_worth):
    """Of those through the symbols on both sides of each residual and 0, whatever the tables."""
    rng = np.random.default_rng(36)
    tables = KINDS[kind]
    for coded in [*range(1, 13), 17, 28, 40]:  # from the seventh symbol of a lane on paths of 64 states meet
        residual, table_index = short_step(tables, coded, 20, rng)
        for lane, cost in enumerate(costs_by_lane(tables, residual, table_index, bit_worth, trellis)):
            own = lane_of(tables, residual, table_index, lane)
            assert cost <= least_cost(tables, *own, bit_worth, trellis) + 1e-4, (coded, lane)


@pytest.mark.parametrize("bit_worth", [0.0, TRELLIS_BIT_WORTH])
def test_symbols_farther_away_do_not_help(bit_worth):
    """With tables as encoders use them the search misses nothing by looking at the nearest symbols only."""
    rng = np.random.default_rng(37)
    for _ in range(15):
        residual, table_index = short_step(LAPLACIAN, 14, 20, rng)
        for lane, cost in enumerate(costs_by_lane(LAPLACIAN, residual, table_index, bit_worth, 8)):
            own = lane_of(LAPLACIAN, residual, table_index, lane)
            assert cost <= least_cost(LAPLACIAN, *own, bit_worth, 8, wide=True) + 1e-4


def error_and_bits(residual: np.ndarray, scale: float, step: float, worth: float, trellis: int) -> tuple[float, float]:
    """Per residual, coded in steps of `step` under the table of that scale."""
    tables = LAPLACIAN if trellis else SCALAR
    table_index = np.full(residual.size, np.abs(np.log(SCALES * step / scale)).argmin(), np.uint8)
    levels, symbols, coded_with = core.search(
        tables.native, (residual / step).astype(np.float32), table_index, worth / step**2, trellis
    )
    bits = tables.ideal_bits(symbols, coded_with)
    return float(((residual - step * levels / 2) ** 2).mean()), float(bits / residual.size)


@pytest.mark.parametrize("scale", [1.5, 4.0, 12.0])
def test_a_trellis_has_less_error_at_the_same_rate(scale):
    """Than scalar quantisation at whichever step is best for it; by more than a tenth, where theory has 30 % at most,
    and less with more states.

    All minimise error + worth * bits, so at equal rate the errors differ by at least as much as these sums.
    """
    residual = np.random.default_rng(38).laplace(0, scale / math.sqrt(2), 20_000)
    worth = 2 * math.log(2) / 12  # a bit for a step of 1, by high-rate theory
    scalar = [error_and_bits(residual, scale, step, worth, 0) for step in (0.8, 0.9, 1.0, 1.1, 1.25)]
    least, error = min((error + worth * bits, error) for error, bits in scalar)
    along = {trellis: error_and_bits(residual, scale, TRELLIS_STEP, worth, trellis) for trellis in MASKS}
    sums = {trellis: own_error + worth * bits for trellis, (own_error, bits) in along.items()}
    assert least - sums[8] > 0.1 * error and sums[8] - sums[64] > 0.03 * error


def test_not_a_number_counts_as_zero():
    rng = np.random.default_rng(39)
    residual, table_index = rng.normal(0, 2, 200).astype(np.float32), np.full(200, 40, np.uint8)
    residual[::3] = 0
    zeros = search(LAPLACIAN, residual, table_index)
    residual[::3] = np.nan
    for found, expected in zip(search(LAPLACIAN, residual, table_index), zeros, strict=True):
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("value", [np.inf, 3e38, 5000, 600])
def test_what_lies_beyond_every_level_takes_one_of_the_largest(value):
    residual = np.full(40, value, np.float32)
    residual[20:] *= -1
    for tables in KINDS.values():
        coded = np.flatnonzero(tables.radii[: len(tables.radii) // 2])[-1]
        levels, _, _ = search(tables, residual, np.full(40, coded, np.uint8), 0.0)
        assert levels[:20].min() >= 1019 and levels[20:].max() <= -1019


# ---- Damaged streams and wrong arguments ----


def test_damaged_streams_give_an_error_or_bounded_levels():
    rng = np.random.default_rng(40)
    first, second = random_step(RANDOM, 700, rng), random_step(RANDOM, 1300, rng)
    found = [search(RANDOM, *step) for step in (first, second)]
    levels, symbols, coded_with = (np.concatenate(parts) for parts in zip(*found, strict=True))
    payload = core.rans_encode(RANDOM.native, symbols, coded_with)

    def decoded(data: bytes) -> np.ndarray | None:
        try:
            decoder = core.RansDecoder(data)
            parts = [decoder.decode(RANDOM.native, index, TRELLIS_STATES) for _, index in (first, second)]
            decoder.finish()
        except InputError as error:
            assert "payload of" in str(error)
            return None
        return np.concatenate(parts)

    assert np.array_equal(decoded(payload), levels)
    for _ in range(300):
        damaged = np.frombuffer(payload, np.uint8).copy()
        damaged[rng.integers(0, damaged.size, rng.integers(1, 4))] ^= rng.integers(1, 256, dtype=np.uint8)
        result = decoded(damaged.tobytes())
        if result is not None:
            assert result.min() >= 2 * core.MIN_SYMBOL and result.max() <= 2 * core.MAX_SYMBOL
            assert not np.array_equal(result, levels) or damaged.tobytes() == payload
    for size in [*range(40), *range(40, len(payload), 31)]:
        assert decoded(payload[:size]) is None
        decoded(rng.bytes(size))
    assert decoded(payload + b"\0\0") is None


STATES_ALONE = np.full(4, 1 << 16, "<u4").tobytes()
FLAT, SKIP = ([4096] * 4, [1]), ([], [0])


@pytest.mark.parametrize(
    "parts",
    [
        [FLAT],
        [FLAT, FLAT, FLAT],
        [SKIP],
        [FLAT, SKIP],
        [SKIP, FLAT],
        [FLAT, SKIP, SKIP, FLAT],
        [FLAT, FLAT, FLAT, SKIP],
    ],
    ids=lambda parts: "".join("F" if radii[0] else "-" for _, radii in parts),
)
def test_tables_that_are_no_pairs_are_refused(parts):
    tables = core.EntropyTables(
        np.array([f for frequencies, _ in parts for f in frequencies], int), np.array([r for _, [r] in parts])
    )
    residual, table_index = np.zeros(3, np.float32), np.zeros(3, np.uint8)
    core.search(tables, residual, table_index, 0.1, 0)
    for count in (0, 3):
        with pytest.raises(ValueError, match="choice of symbols"):
            core.search(tables, residual[:count], table_index[:count], 0.1, TRELLIS_STATES)
        with pytest.raises(ValueError, match="payload of"):
            core.RansDecoder(STATES_ALONE).decode(tables, table_index[:count], TRELLIS_STATES)


@pytest.mark.parametrize("kind", KINDS)
def test_indices_in_the_second_half_are_refused(kind):
    tables, half = KINDS[kind], len(KINDS[kind].radii) // 2
    for wrong in {half, 2 * half - 1, min(255, 2 * half), 255}:
        table_index = np.array([0, half - 1, wrong, 0], np.uint8)
        with pytest.raises(ValueError, match="choice of symbols"):
            core.search(tables.native, np.zeros(4, np.float32), table_index, 0.1, TRELLIS_STATES)
        with pytest.raises(ValueError, match="payload of"):
            core.RansDecoder(STATES_ALONE).decode(tables.native, table_index, TRELLIS_STATES)


@pytest.mark.parametrize(
    "change",
    [
        {"residual": np.zeros(5, np.float32)}, {"residual": np.zeros(6)}, {"residual": np.zeros((2, 3), np.float32)},
        {"residual": np.zeros(12, np.float32)[::2]}, {"table_index": np.zeros(6, np.int64)},
        {"table_index": np.zeros((2, 3), np.uint8)}, {"bit_worth": -0.1}, {"bit_worth": math.nan}, {"trellis": 1},
        {"trellis": 32}, {"trellis": -8},
    ],
)  # fmt: skip
def test_the_search_checks_its_arguments(change):
    good = {"residual": np.zeros(6, np.float32), "table_index": np.zeros(6, np.uint8), "bit_worth": 0.1, "trellis": 64}
    core.search(LAPLACIAN.native, **good)
    with pytest.raises(ValueError):
        core.search(LAPLACIAN.native, **{**good, **change})
