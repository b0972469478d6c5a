"""Tensors computed in pieces of an engine's shape: bit by bit what the whole gives, with few engines for a frame."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from linnet import building
from linnet.runtime.backends.cutting import Geometry, few_places, spans
from linnet.runtime.bundle import Bundle
from linnet.runtime.codec import Codec

CUTS = {
    "analysis": [((120, 136), (64, 72)), ((80, 64), (56, 64)), ((200, 64), (72, 56))],
    "hyper_analysis": [((32, 32), (16, 12)), ((24, 8), (12, 8))],
    "hyper_synthesis": [((9, 8), (5, 6)), ((8, 3), (7, 3))],
    "context_1": [((17, 16), (3, 5)), ((8, 9), (7, 9))],
    "context_2": [((12, 16), (8, 16))],
    "context_3": [((12, 16), (5, 4))],
    "context_4": [((12, 16), (8, 7))],
    "context_6": [((9, 16), (9, 6))],
    "context_7": [((12, 11), (5, 4))],
    "synthesis": [((24, 23), (12, 14)), ((13, 16), (11, 16))],
}
"""Network -> (height and width of a tensor, of a piece)."""


def computed_in_pieces(
    codec: Codec, network: str, inputs: dict[str, np.ndarray], size: tuple[int, int], geometry: Geometry
) -> list[np.ndarray]:
    structure = codec.bundle.networks[network]
    shapes = {name: value.shape for name, value in inputs.items()}
    whole = next(iter(shapes.values()))
    outputs = [np.full(shape, 77, np.float32) for shape in structure.output_shapes(shapes)]
    pieces = geometry.pieces(whole[0], whole[1:3], size)
    assert pieces
    for piece in pieces:
        results = codec.backend.run(network, {n: value[piece.source(*size)][None] for n, value in inputs.items()})
        for output, result in zip(outputs, results, strict=True):
            inside, outside = piece.kept(size[0], result.shape[1])
            output[outside] = result[0][inside]
    return outputs


@pytest.mark.parametrize(
    ("network", "tensor", "size"), [(name, *cut) for name, cuts in CUTS.items() for cut in cuts], ids=str
)
def test_pieces_give_the_bits_of_the_whole(
    codec: Codec, network: str, tensor: tuple[int, int], size: tuple[int, int]
) -> None:
    rng = np.random.default_rng(5)
    structure = codec.bundle.networks[network]
    inputs = {n: rng.integers(-128, 128, (2, *tensor, c)).astype(np.int8) for n, c in structure.inputs.items()}
    expected = codec.backend.run(network, inputs)
    found = computed_in_pieces(codec, network, inputs, size, Geometry.of(structure))
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("network", ["analysis", "synthesis", "context_1"])
def test_a_smaller_margin_is_not_enough(codec: Codec, network: str) -> None:
    """So the test above would find a margin that is too small."""
    structure = codec.bundle.networks[network]
    geometry = Geometry.of(structure)
    smaller = replace(geometry, margin=geometry.margin - geometry.step)
    tensor, size = CUTS[network][0]
    rng = np.random.default_rng(5)
    inputs = {n: rng.integers(-128, 128, (1, *tensor, c)).astype(np.int8) for n, c in structure.inputs.items()}
    found = computed_in_pieces(codec, network, inputs, size, smaller)
    assert not all(map(np.array_equal, found, codec.backend.run(network, inputs)))


@pytest.mark.parametrize("geometry", [Geometry(1, 0), Geometry(1, 2), Geometry(4, 4), Geometry(8, 16)], ids=str)
def test_spans_cover_every_position_once_and_keep_their_margin(geometry: Geometry) -> None:
    step, margin = geometry.step, geometry.margin
    for length in range(step, 30 * step, step):
        for piece in range(step, length + 2 * step, step):
            found = spans(length, piece, geometry)
            if not found:
                assert piece > length or piece <= 2 * margin
                continue
            assert [span.first for span in found] == [0, *(span.last for span in found[:-1])]
            assert found[-1].last == length
            for span in found:
                assert span.start % step == 0
                assert span.start >= 0
                assert span.start + piece <= length
                assert span.start == 0 or span.first >= span.start + margin
                assert span.start + piece == length or span.last <= span.start + piece - margin


def test_a_frame_of_4k_needs_half_the_engines(bundle: Bundle) -> None:
    """For a quarter more work at the most; without any more, one engine for each shape."""
    asked = building.asked_for(bundle, [(3840, 2160)], tile=512, levels=0, decoder=True)
    assert len(building.targets(bundle, asked, 8)) == 24
    assert len(building.targets(bundle, asked, 8, more_work=0)) == 46


def test_the_limit_on_work_holds(bundle: Bundle) -> None:
    wanted = {"synthesis": {(69, 133): [1], (74, 133): [1], (13, 117): [1]}, "context_1": {(32, 32): [8], (8, 16): [1]}}
    geometries = {name: Geometry.of(bundle.networks[name]) for name in wanted}
    exact = sum(
        sum(calls) * geometries[name].work(place) for name, places in wanted.items() for place, calls in places.items()
    )
    counts = []
    for more_work in (0.0, 0.1, 0.3, 3.0):
        found = few_places(bundle.networks, wanted, 8, more_work)
        work = 0.0
        for name, places in wanted.items():
            geometry, sizes = geometries[name], [size for n, size, _ in found if n == name]
            for place, calls in places.items():
                costs = [geometry.count(place, size) * geometry.work(size) for size in sizes]
                work += sum(calls) * min(cost for cost in costs if cost)
        assert work <= (1 + more_work) * exact * (1 + 1e-9)
        assert all(1 <= batch <= 8 for *_, batch in found)
        counts.append(len(found))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 5
    assert counts[-1] < counts[0]


def test_no_engine_serves_a_smaller_tensor(bundle: Bundle) -> None:
    geometry = Geometry.of(bundle.networks["context_1"])
    assert geometry.pieces(1, (7, 16), (8, 16)) == []
    assert geometry.count((8, 32), (8, 16)) == 3
