"""Networks of linear filters by the native core, against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from linnet.runtime import backends, filtering
from linnet.runtime.backends.filter_plan import plan
from linnet.runtime.backends.filters import FilterBackend
from linnet.runtime.backends.onnxruntime import OnnxRuntimeBackend
from linnet.runtime.backends.reference import run_network
from linnet.runtime.bundle import Bundle
from linnet.runtime.network import (
    FLOAT,
    Add,
    Concat,
    Conv,
    DepthToSpace,
    EdgePad,
    Join,
    Network,
    Node,
    Select,
    SpaceToDepth,
)

RNG = np.random.default_rng(5)


def filters(name: str, source: str, inputs: int, outputs: int, size: int, *, raw: bool = False, bits: int = 12) -> Conv:
    weight = 2 * RNG.integers(-60, 61, (outputs, inputs, size, size)).astype(np.int16)
    bias = 2 * RNG.integers(-900, 900, outputs).astype(np.int32) + 1
    shift = RNG.integers(8, 12, outputs).astype(np.uint8)
    return Conv(name, source, name, weight, bias, shift, 1, size // 2, raw, FLOAT, bits)


def cascade(channels: int = 6) -> Network:
    """Two levels: details of each, packed to one grid with some channels left out, in an order of its own."""
    nodes = (
        filters("fine", "x", channels, 4, 5, raw=True),
        SpaceToDepth("packed_fine", "fine", "packed_fine", 4),
        filters("low", "x", channels, 3, 3),
        SpaceToDepth("packed", "low", "packed", 2),
        filters("middle", "packed", 12, 7, 1, raw=True),
        SpaceToDepth("packed_middle", "middle", "packed_middle", 2),
        Concat("all", ("packed_middle", "packed_fine"), "all"),
        Select("order", "all", "order", tuple(RNG.permutation(28 + 64)[:80].tolist())),
    )
    return Network("cascade", {"x": channels}, ("order",), nodes)


@pytest.mark.parametrize("size", [(4, 4), (8, 100), (64, 36), (132, 60)])
@pytest.mark.parametrize("threads", [1, 3])
def test_they_compute_what_the_reference_computes(size: tuple[int, int], threads: int) -> None:
    for channels in (2, 6, 12):
        network = cascade(channels)
        x = RNG.integers(-128, 128, (2, *size, channels)).astype(np.int8)
        backend = FilterBackend({"cascade": network}, threads)
        assert backend.runs("cascade")
        (got,) = backend.run("cascade", {"x": x})
        (want,) = run_network(network, {"x": x})
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_extreme_sums_saturate_as_in_the_reference() -> None:
    network = cascade()
    low = network.nodes[2]
    for sign in (-1, 1):
        steep = replace(low, weight=np.full_like(low.weight, sign * 4094), shift=np.full_like(low.shift, 8))
        nodes = (*network.nodes[:2], steep, *network.nodes[3:])
        x = RNG.choice(np.array([-128, 127], np.int8), (1, 16, 16, 6))
        changed = replace(network, nodes=nodes)
        (got,) = FilterBackend({"n": changed}, 1).run("n", {"x": x})
        np.testing.assert_array_equal(got, run_network(changed, {"x": x})[0])


def mirror() -> Network:
    """Two levels of a synthesis: what is coarser grows onto details, and a network of 8 bits sees the result."""

    def joined(name: str, first: int, count: int, block: int) -> list[Node]:
        """Details: channels `first`.. of the input, and their fractions in its second half."""
        parts: list[Node] = []
        for part, offset in (("whole", 0), ("part", 90)):
            channels = tuple(range(offset + first, offset + first + count * block**2))
            parts.append(Select(f"{name}_{part}", "x", f"{name}_{part}", channels))
            if block > 1:
                parts.append(DepthToSpace(f"{name}_{part}_grown", f"{name}_{part}", f"{name}_{part}_grown", block))
        last = "_grown" if block > 1 else ""
        return [*parts, Join(name, (f"{name}_whole{last}", f"{name}_part{last}"), name, 10)]

    nodes = [
        Select("few", "more", "few", (1, 0)),
        *joined("coarse", 0, 3, 1),
        EdgePad("edge", "coarse", "edge", 2),
        replace(filters("low2", "edge", 3, 12, 5), padding=0),
        *joined("details2", 3, 9, 1),
        filters("detail2", "details2", 9, 12, 3),
        Add("sum2", ("low2", "detail2"), "sum2", raw=False, bits=12),
        DepthToSpace("up", "sum2", "up", 2),
        EdgePad("edge2", "up", "edge2", 1),
        replace(filters("low1", "edge2", 3, 12, 3), padding=0),
        *joined("details1", 12, 9, 2),
        filters("detail1", "details1", 9, 12, 3),
        Add("narrow", ("low1", "detail1"), "narrow", raw=False, bits=8),
        small("seen", "narrow", 12, 12),
        small("made", "seen", 12, 12),
        Add("whole", ("detail1", "low1"), "whole", raw=False, bits=12),
        Add("out", ("made", "whole"), "out", raw=False, bits=8),
    ]
    return Network("mirror", {"x": 180, "more": 2}, ("out",), tuple(nodes))


def small(name: str, source: str, inputs: int, outputs: int) -> Conv:
    """A convolution in 8 bits."""
    weight = 2 * RNG.integers(-60, 61, (outputs, inputs, 3, 3)).astype(np.int8)
    return Conv(name, source, name, weight, np.ones(outputs, np.int32), np.full(outputs, 7, np.uint8), 1, 1, False)


class Reference:
    """Runs the rest by the reference."""

    name, kernels = "reference", "reference"

    def __init__(self, network: Network) -> None:
        found = plan(network)
        assert found is not None and found.rest is not None
        self.rest = found.rest
        self.seen: list[dict[str, np.ndarray]] = []

    def run(self, network: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.seen.append(inputs)
        return run_network(self.rest, inputs)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (40, 30)])
def test_half_a_synthesis_is_left_to_others(size: tuple[int, int], threads: int) -> None:
    network = mirror()
    rest = Reference(network)
    backend = FilterBackend({"mirror": network}, threads, rest)
    for items in (1, 3):
        inputs = {
            "x": RNG.integers(-128, 128, (items, *size, 180)).astype(np.int8),
            "more": np.zeros((items, *size, 2), np.int8),
        }
        (got,) = backend.run("mirror", inputs)
        (want,) = run_network(network, inputs)
        assert got.dtype == want.dtype == np.int8
        np.testing.assert_array_equal(got, want)
    assert [list(seen) for seen in rest.seen] == 2 * [["narrow"]]
    assert [node.name for node in rest.rest.nodes] == ["seen", "made"]
    assert not FilterBackend({"mirror": network}, threads).runs("mirror")


def test_what_grows_may_have_its_phases_first() -> None:
    network = mirror()
    nodes = tuple(
        replace(node, phases_first=True) if isinstance(node, DepthToSpace) and node.block > 1 else node
        for node in network.nodes
    )
    other = replace(network, nodes=nodes)
    inputs = {
        "x": RNG.integers(-128, 128, (1, 4, 6, 180)).astype(np.int8),
        "more": np.zeros((1, 4, 6, 2), np.int8),
    }
    (got,) = FilterBackend({"mirror": other}, 1, Reference(other)).run("mirror", inputs)
    np.testing.assert_array_equal(got, run_network(other, inputs)[0])
    assert not np.array_equal(got, run_network(network, inputs)[0])


def test_the_shipped_synthesis_is_half_filters() -> None:
    bundle = Bundle.open()
    rest = OnnxRuntimeBackend(bundle.rest_graphs, 1)
    backend = FilterBackend(bundle.networks, 2, rest)
    assert [name for name in bundle.networks if backend.runs(name)] == ["analysis", "synthesis"]
    backends.check_known_answer(backend, bundle, "synthesis")
    inputs = {
        name: RNG.integers(-128, 128, (2, 4, 6, channels)).astype(np.int8)
        for name, channels in bundle.inputs("synthesis").items()
    }
    (got,) = backend.run("synthesis", inputs)
    np.testing.assert_array_equal(got, run_network(bundle.networks["synthesis"], inputs)[0])


@pytest.mark.parametrize("change", ["sum of 8 bits", "another source", "an odd input", "a sum that stays", "steep"])
def test_a_synthesis_of_another_kind_is_left_whole_to_others(change: str) -> None:
    network = mirror()
    nodes = list(network.nodes)
    place = {node.name: number for number, node in enumerate(nodes)}
    if change == "sum of 8 bits":
        nodes[place["whole"]] = replace(nodes[place["whole"]], bits=10)
    elif change == "another source":
        nodes[place["detail2"]] = filters("detail2", "few", 2, 12, 3)
    elif change == "an odd input":
        nodes[place["details2"]] = replace(nodes[place["details2"]], sources=("details2_whole", "few"))
    elif change == "a sum that stays":
        nodes.append(EdgePad("again", "sum2", "again", 1))
    else:
        low = nodes[place["low1"]]
        nodes[place["low1"]] = replace(low, shift=np.full_like(low.shift, 1))
    assert plan(network) is not None
    assert plan(replace(network, nodes=tuple(nodes))) is None


def test_the_shipped_analysis_is_nothing_but_filters() -> None:
    bundle = Bundle.open()
    backend = FilterBackend(bundle.networks, 2)
    assert backend.runs("analysis") and not backend.runs("synthesis")
    backends.check_known_answer(backend, bundle, "analysis")
    x = RNG.integers(-128, 128, (1, 80, 112, 12)).astype(np.int8)
    (got,) = backend.run("analysis", {"planes": x})
    np.testing.assert_array_equal(got, run_network(bundle.networks["analysis"], {"planes": x})[0])


def test_its_layers_are_timed() -> None:
    backend = FilterBackend({"cascade": cascade()}, 1)
    with backend.layer_times() as times:
        backend.run("cascade", {"x": np.zeros((2, 8, 8, 6), np.int8)})
    assert [time.layer for time in times] == 2 * ["x", "fine", "low", "middle"]
    assert all(time.network == "cascade" and time.seconds > 0 for time in times)
    backend.run("cascade", {"x": np.zeros((1, 8, 8, 6), np.int8)})
    assert len(times) == 8


def test_other_networks_are_left_to_others() -> None:
    network = cascade()
    fine, packed_fine, low, *rest = network.nodes
    assert isinstance(fine, Conv) and isinstance(low, Conv)
    others = {
        "another format": (replace(fine, format="int8-exact"), packed_fine, low, *rest),
        "a stride": (replace(fine, stride=2), packed_fine, low, *rest),
        "no padding": (replace(fine, padding=1), packed_fine, low, *rest),
        "an even kernel": (replace(fine, weight=fine.weight[..., :4, :4]), packed_fine, low, *rest),
        "another operator": (fine, packed_fine, low, Add("more", ("low", "low"), "more", raw=False), *rest),
        "a result that nothing reads": (*network.nodes, filters("unread", "x", 6, 3, 3)),
        "a result that two read": (*network.nodes, filters("again", "low", 3, 3, 3, raw=True)),
    }
    for name, nodes in others.items():
        outputs = ("order", "again") if "two" in name else ("order",)
        assert not FilterBackend({"n": replace(network, nodes=tuple(nodes), outputs=outputs)}, 1).runs("n"), name
    assert not FilterBackend({"n": replace(network, nodes=network.nodes[2:3], outputs=("low",))}, 1).runs("n")
    passed = (SpaceToDepth("p", "x", "p", 2), filters("after", "p", 24, 3, 3, raw=True))
    assert not FilterBackend({"n": Network("n", {"x": 6}, ("after",), passed)}, 1).runs("n")


def test_wrong_arguments() -> None:
    operation = filtering.Filter(np.ones((2, 4, 3, 3), np.int16), np.ones(2, np.int32), np.full(2, 4), 10)
    source, target = filtering.Planes(4, 6, 4, 1), filtering.Planes(2, 3, 8, 0)
    places = np.arange(8, dtype=np.int32).reshape(2, 2, 2)
    filtering.filter_rows([(operation, source)], target, places, 0, 4)
    with pytest.raises(ValueError, match=r"values must be int8 \(4, 6, 4\)"):
        source.fill(np.zeros((4, 6, 3), np.int8))
    with pytest.raises(ValueError, match="outside its documented range"):
        filtering.Planes(4, 6, 3, 1).fill(np.zeros((4, 6, 3), np.int8))
    with pytest.raises(ValueError, match=r"places must be int32 \(2, 2, 2\)"):
        filtering.filter_rows([(operation, source)], target, places[..., :1], 0, 4)
    with pytest.raises(ValueError, match="integers go to planes"):
        filtering.filter_rows([(operation, source)], np.zeros((2, 3, 8), np.float32), places, 0, 4)
    with pytest.raises(ValueError, match="target must be float32"):
        filtering.filter_rows([(operation, source)], np.zeros((2, 3, 8), np.float64), places, 0, 4)
    for wrong in (filtering.Planes(2, 4, 8, 0), filtering.Planes(2, 3, 7, 0)):
        with pytest.raises(ValueError, match="outside its documented range"):
            filtering.filter_rows([(operation, source)], wrong, places, 0, 4)
    for first, last in ((0, 5), (3, 2)):
        with pytest.raises(ValueError, match="outside its documented range"):
            filtering.filter_rows([(operation, source)], target, places, first, last)
    with pytest.raises(ValueError, match="outside its documented range"):
        filtering.filter_rows([(operation, filtering.Planes(4, 6, 4, 0))], target, places, 0, 4)
    for wrong in (filtering.Planes(4, 4, 4, 1), filtering.Planes(4, 6, 4, 0), filtering.Planes(4, 6, 2, 1)):
        with pytest.raises(ValueError, match="outside its documented range"):
            filtering.filter_rows([(operation, source), (operation, wrong)], target, places, 0, 4)
    table = np.zeros((2, 2, 4), np.int32)
    source.join(np.zeros((2, 3, 1), np.int8), table, table, 2)
    with pytest.raises(ValueError, match="outside its documented range"):
        source.join(np.zeros((2, 3, 1), np.int8), table, table + 1, 2)
    with pytest.raises(ValueError, match="values must be int8"):
        source.join(np.zeros((4, 3, 1), np.int8), table, table, 2)
    with pytest.raises(ValueError, match="added must be int8"):
        target.narrow(12, np.zeros((2, 3, 4), np.int8))
    with pytest.raises(ValueError, match="outside its documented range"):
        target.narrow(8)
