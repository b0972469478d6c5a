"""Networks with more channels than they need, for ONNX Runtime's kernels: they compute what they computed before."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx", reason="ONNX forms need the export extra")

from linnet.calibration.onnx_fillers import INPUTS, OUTPUTS, with_fillers
from linnet.calibration.onnx_forms import onnxruntime_form
from linnet.runtime.backends.onnxruntime import OnnxRuntimeBackend
from linnet.runtime.backends.reference import run_network
from linnet.runtime.bundle import Bundle, shipped
from linnet.runtime.network import Add, Concat, Conv, DepthToSpace, Network, Node, Select, SpaceToDepth

RNG = np.random.default_rng(8)


def conv(name: str, source: str, inputs: int, outputs: int, size: int = 3, *, raw: bool = False) -> Conv:
    weight = 2 * RNG.integers(-30, 31, (outputs, inputs, size, size)).astype(np.int8)
    bias = 2 * RNG.integers(-900, 900, outputs).astype(np.int32) + 1
    return Conv(name, source, name, weight, bias, RNG.integers(6, 9, outputs).astype(np.uint8), 1, size // 2, raw)


NETWORKS: dict[str, tuple[Node, ...]] = {
    "one after the other": (conv("a", "x", 36, 9), conv("b", "a", 9, 13), conv("y", "b", 13, 5)),
    "beside others": (
        conv("a", "x", 36, 9),
        conv("b", "x", 36, 6),
        Concat("all", ("a", "b", "x"), "all"),
        conv("y", "all", 51, 16),
    ),
    "unpacked, phases first": (
        Select("some", "x", "some", tuple(range(8, 36))),
        DepthToSpace("apart", "some", "apart", 2, phases_first=True),
        conv("y", "apart", 7, 18),
    ),
    "unpacked beside others": (
        Select("some", "x", "some", tuple(RNG.permutation(36)[:20].tolist())),
        DepthToSpace("apart", "some", "apart", 2),
        DepthToSpace("whole", "x", "whole", 2),
        conv("a", "whole", 9, 6, 1),
        Concat("all", ("a", "apart"), "all"),
        conv("y", "all", 11, 18),
    ),
    "read twice": (
        conv("a", "x", 36, 9),
        conv("b", "a", 9, 9),
        Add("sum", ("a", "b"), "sum", False),
        conv("y", "sum", 9, 3, 1),
    ),
    "selected": (
        conv("a", "x", 36, 10),
        Select("low", "a", "low", (0, 1, 2, 3, 4)),
        Select("high", "a", "high", (9, 7, 5, 6, 8)),
        Concat("y", ("high", "low"), "y"),
    ),
    "packed, its sums kept": (conv("a", "x", 36, 9), SpaceToDepth("p", "a", "p", 2), conv("y", "p", 36, 5, raw=True)),
    "kept sums read it": (conv("a", "x", 36, 9), conv("y", "a", 9, 5, raw=True)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_changes_but_the_channels_inside(name: str) -> None:
    network = Network("n", {"x": 36}, ("y",), NETWORKS[name])
    x = RNG.integers(-128, 128, (2, 8, 12, 36)).astype(np.int8)
    (want,) = run_network(network, {"x": x})
    assert len(np.unique(want)) > 20
    filled = with_fillers(network)
    (got,) = run_network(filled, {"x": x})
    np.testing.assert_array_equal(got, want)
    (got,) = OnnxRuntimeBackend({"n": onnxruntime_form(network)}, 1).run("n", {"x": x})
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("one after the other", {"a": (16, 36), "b": (16, 16), "y": (5, 16)}),
        ("beside others", {"a": (16, 36), "b": (8, 36), "y": (16, 60)}),
        ("unpacked, phases first", {"y": (18, 8)}),
        ("unpacked beside others", {"a": (8, 9), "y": (18, 16)}),
        ("read twice", {"a": (9, 36), "b": (9, 9), "y": (3, 9)}),
    ],
)
def test_what_is_added(name: str, shapes: dict[str, tuple[int, int]]) -> None:
    filled = with_fillers(Network("n", {"x": 36}, ("y",), NETWORKS[name]))
    assert {node.name: node.weight.shape[:2] for node in filled.nodes if isinstance(node, Conv)} == shapes


def test_the_shipped_networks_have_inputs_in_fours() -> None:
    """But those that read an input of the network itself, which nobody can fill."""
    assert (INPUTS, OUTPUTS) == (4, 8)
    for bundle in shipped():
        for network in Bundle.open(bundle).networks.values():
            for node in with_fillers(network).nodes:
                if isinstance(node, Conv) and not node.raw and node.weight.dtype == np.int8:
                    odd = node.weight.shape[1] % INPUTS and node.source not in network.inputs
                    assert not odd, f"{network.name}/{node.name}"
