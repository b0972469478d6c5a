"""Folded convolutions compute, on groups of positions, what they stand for."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="export needs the export extra")

from linnet.calibration.folding import folded
from linnet.runtime.backends.reference import ReferenceBackend
from linnet.runtime.bundle import Bundle, shipped
from linnet.runtime.network import Concat, Conv, Network, SpaceToDepth


def convolution(name: str, source: str, channels: int, side: int, *, raw: bool = False, outputs: int = 5) -> Conv:
    rng = np.random.default_rng(side)
    return Conv(
        name, source, name, (2 * rng.integers(-60, 60, (outputs, channels, side, side))).astype(np.int8),
        (2 * rng.integers(-900, 900, outputs) + 1).astype(np.int32), np.full(outputs, 9, np.uint8), 1, side // 2, raw,
    )  # fmt: skip


def cascade(block: int, raw: bool) -> Network:
    """Two convolutions of planes, one of copies of them, packed; a third convolution reads what one of them gives."""
    return Network("cascade", {"planes": 3}, ("fine", "coarse"), (
        convolution("detail", "planes", 3, 5, raw=raw), SpaceToDepth("pack", "detail", "fine", block),
        Concat("copies", ("planes", "planes"), "copies"), convolution("low", "copies", 6, 3),
        SpaceToDepth("half", "low", "half", 2), convolution("coarse", "half", 20, 3, raw=True),
    ))  # fmt: skip


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("block", [2, 4, 8])
def test_a_folded_network_computes_the_same(block: int, raw: bool) -> None:
    network = cascade(block, raw)
    planes = np.random.default_rng(1).integers(-128, 128, (2, 16, 24, 3)).astype(np.int8)
    expected = ReferenceBackend({"cascade": network}).run("cascade", {"planes": planes})
    # What leaves the network packed by 2 would be a folded convolution's output under another name.
    outputs = {node.output for node in folded(network).nodes}
    assert "low/pairs" in outputs and ("detail/pairs" in outputs) == (block > 2)
    found = ReferenceBackend({"cascade": folded(network)}).run("cascade", {"planes": planes})
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_copies_that_two_convolutions_and_the_caller_read() -> None:
    network = cascade(4, True)
    second = convolution("other", "copies", 6, 3, outputs=7)
    nodes = (*network.nodes, second, SpaceToDepth("pack_other", "other", "packed", 4))
    network = Network("cascade", network.inputs, (*network.outputs, "packed", "copies"), nodes)
    outputs = [node.output for node in folded(network).nodes]
    assert {"low/pairs", "other/pairs", "copies"} <= set(outputs) and len(outputs) == len(set(outputs))
    planes = np.random.default_rng(2).integers(-128, 128, (1, 16, 8, 3)).astype(np.int8)
    expected, found = (
        ReferenceBackend({"cascade": each}).run("cascade", {"planes": planes}) for each in (network, folded(network))
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_cannot_be_folded_stays() -> None:
    network = cascade(4, True)
    read_twice = Network("n", network.inputs, ("fine", "detail"), network.nodes[:2])
    assert folded(read_twice) == read_twice
    wide = Network("n", {"planes": 32}, ("fine",), (convolution("detail", "planes", 32, 5), network.nodes[1]))
    assert folded(wide) == wide


@pytest.mark.parametrize("name", ["camera", "micro"])
def test_the_first_level_of_shipped_codecs_is_folded(name: str) -> None:
    assert name in shipped()
    analysis = Bundle.open(name).networks["analysis"]
    first = {node.name: node.weight.shape for node in folded(analysis).nodes if isinstance(node, Conv)}
    assert first["detail1"] == (36, 48, 3, 3) and first["low1"] == (12, 96, 3, 3) and first["detail2"][1] == 12
