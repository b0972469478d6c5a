"""The checker proves good networks and refuses each broken rule by layer and rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from linnet.calibration.certificate import RuleBroken, certificate, prove
from linnet.runtime.network import Add, Conv, Network


def good_conv(channels: int = 8) -> Conv:
    weight = np.full((4, channels, 3, 3), 20, np.int8)
    return Conv("layer", "x", "y", weight, np.full(4, 101, np.int32), np.full(4, 8, np.uint8), 1, 1, raw=False)


def network(node: Conv) -> Network:
    return Network("net", {"x": node.weight.shape[1]}, (node.output,), (node,))


def test_proof_states_the_bound() -> None:
    proof = prove(network(good_conv()))[0]
    assert proof.accumulator_bound == 128 * 8 * 9 * 20 + 101
    assert proof.odd and proof.weight_peak == 20
    assert proof.headroom_bits == pytest.approx(np.log2(2**24 / proof.accumulator_bound), abs=0.01)


def _with(**fields: object) -> Conv:
    return replace(good_conv(), **fields)


@pytest.mark.parametrize(
    ("node", "rule"),
    [
        (_with(weight=np.full((4, 8, 3, 3), 21, np.int8)), "odd accumulators"),
        (_with(bias=np.full(4, 100, np.int32)), "odd accumulators"),
        (_with(weight=np.full((4, 8, 3, 3), -128, np.int8)), "weights within"),
        (_with(shift=np.full(4, 1, np.uint8)), "shift at least"),
        (_with(shift=np.full(4, 30, np.uint8)), "shift at most"),
        (_with(weight=np.full((4, 200, 3, 3), 126, np.int8)), "accumulators below"),
        (_with(bias=np.full(4, 2**24 - 1, np.int32)), "accumulators below"),
        (_with(weight=np.full((4, 8, 3, 3), 20, np.int16)), "weights are int8"),
        (_with(source="nowhere"), "inputs exist"),
    ],
)
def test_each_rule_is_enforced(node: Conv, rule: str) -> None:
    with pytest.raises(RuleBroken, match=r"network net, layer layer") as caught:
        prove(network(node))
    assert caught.value.rule.startswith(rule)


def test_raw_sums_cannot_enter_an_int8_operator() -> None:
    raw = replace(good_conv(), raw=True)
    with pytest.raises(RuleBroken, match="inputs are int8"):
        prove(Network("net", {"x": 8}, ("z",), (raw, Add("sum", ("x", "y"), "z", raw=False))))


def test_the_shipped_bundle_carries_the_proof_of_its_own_weights() -> None:
    from linnet.runtime.bundle import Bundle

    bundle = Bundle.open()
    assert certificate(bundle.networks) == bundle.certificate
    layers = [proof for proofs in bundle.certificate["networks"].values() for proof in proofs]
    assert len(layers) > 30
    assert all(proof["odd"] for proof in layers)
