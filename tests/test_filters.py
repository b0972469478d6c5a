"""Networks of linear filters by the native core, against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from linnet.runtime import backends, core
from linnet.runtime.backends.filters import FilterBackend
from linnet.runtime.backends.reference import run_network
from linnet.runtime.bundle import Bundle
from linnet.runtime.network import FLOAT, Add, Concat, Conv, Network, Select, SpaceToDepth

RNG = np.random.default_rng(5)


def filters(name: str, source: str, inputs: int, outputs: int, size: int, *, raw: bool = False, bits: int = 12) -> Conv:
    weight = 2 * RNG.integers(-60, 61, (outputs, inputs, size, size)).astype(np.int16)
    bias = 2 * RNG.integers(-900, 900, outputs).astype(np.int32) + 1
    shift = RNG.integers(8, 12, outputs).astype(np.uint8)
    return Conv(name, source, name, weight, bias, shift, 1, size // 2, raw, FLOAT, bits)


def cascade(channels: int = 5) -> Network:
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
    for channels in (1, 5, 12):
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
        x = RNG.choice(np.array([-128, 127], np.int8), (1, 16, 16, 5))
        changed = replace(network, nodes=nodes)
        (got,) = FilterBackend({"n": changed}, 1).run("n", {"x": x})
        np.testing.assert_array_equal(got, run_network(changed, {"x": x})[0])


def test_the_shipped_analysis_is_one_of_them() -> None:
    bundle = Bundle.open()
    backend = FilterBackend(bundle.networks, 2)
    assert [name for name in bundle.networks if backend.runs(name)] == ["analysis"]
    backends.check_known_answer(backend, bundle, "analysis")
    x = RNG.integers(-128, 128, (1, 80, 112, 12)).astype(np.int8)
    (got,) = backend.run("analysis", {"planes": x})
    np.testing.assert_array_equal(got, run_network(bundle.networks["analysis"], {"planes": x})[0])


def test_its_layers_are_timed() -> None:
    backend = FilterBackend({"cascade": cascade()}, 1)
    with backend.layer_times() as times:
        backend.run("cascade", {"x": np.zeros((2, 8, 8, 5), np.int8)})
    assert [time.layer for time in times] == 2 * ["fine", "low", "middle"]
    assert all(time.network == "cascade" and time.seconds > 0 for time in times)
    backend.run("cascade", {"x": np.zeros((1, 8, 8, 5), np.int8)})
    assert len(times) == 6


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
        "a result that nothing reads": (*network.nodes, filters("unread", "x", 5, 3, 3)),
        "a result that two read": (*network.nodes, filters("again", "low", 3, 3, 3, raw=True)),
    }
    for name, nodes in others.items():
        outputs = ("order", "again") if "two" in name else ("order",)
        assert not FilterBackend({"n": replace(network, nodes=tuple(nodes), outputs=outputs)}, 1).runs("n"), name
    assert not FilterBackend({"n": replace(network, nodes=network.nodes[2:3], outputs=("low",))}, 1).runs("n")
    passed = (SpaceToDepth("p", "x", "p", 2), filters("after", "p", 20, 3, 3, raw=True))
    assert not FilterBackend({"n": Network("n", {"x": 5}, ("after",), passed)}, 1).runs("n")


def test_wrong_arguments() -> None:
    operation = core.Filter(np.ones((2, 3, 3, 3), np.int16), np.ones(2, np.int32), np.full(2, 4), 8)
    source, target = core.Planes(4, 6, 3, 1), core.Planes(2, 3, 8, 0)
    places = np.arange(8, dtype=np.int32).reshape(2, 2, 2)
    core.filter_rows(operation, source, target, places, 0, 4)
    with pytest.raises(ValueError, match=r"values must be int8 \(4, 6, 3\)"):
        source.fill(np.zeros((4, 6, 2), np.int8))
    with pytest.raises(ValueError, match=r"places must be int32 \(2, 2, 2\)"):
        core.filter_rows(operation, source, target, places[..., :1], 0, 4)
    with pytest.raises(ValueError, match="integers go to planes"):
        core.filter_rows(operation, source, np.zeros((2, 3, 8), np.float32), places, 0, 4)
    with pytest.raises(ValueError, match="target must be float32"):
        core.filter_rows(operation, source, np.zeros((2, 3, 8), np.float64), places, 0, 4)
    for wrong in (core.Planes(2, 4, 8, 0), core.Planes(2, 3, 7, 0)):
        with pytest.raises(ValueError, match="outside its documented range"):
            core.filter_rows(operation, source, wrong, places, 0, 4)
    for first, last in ((0, 5), (3, 2)):
        with pytest.raises(ValueError, match="outside its documented range"):
            core.filter_rows(operation, source, target, places, first, last)
    with pytest.raises(ValueError, match="outside its documented range"):
        core.filter_rows(operation, core.Planes(4, 6, 3, 0), target, places, 0, 4)
