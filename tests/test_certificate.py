"""The checker proves good networks and refuses each broken rule by layer and rule."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linnet.calibration.certificate import RuleBroken, certificate, needed_halo, prove, prove_bundle
from linnet.cli import main
from linnet.runtime.bundle import Bundle
from linnet.runtime.codec import Codec
from linnet.runtime.errors import InputError
from linnet.runtime.network import Add, Concat, Conv, DepthToSpace, Network


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


def _wide(channels: int, weight: int) -> Conv:
    return _with(weight=np.full((4, channels, 3, 3), weight, np.int8))


REFUSED_CONVOLUTIONS = [
    (_with(weight=np.full((4, 8, 3, 3), 20, np.int16)), "weights are int8"),
    (_with(bias=np.full(4, 101, np.int64)), "biases are int32"),
    (_with(shift=np.full(4, 7.5)), "scales are powers of two"),
    (_with(weight=np.full((4, 8, 3, 1), 20, np.int8)), "kernels are square"),
    (_with(bias=np.full(3, 101, np.int32)), "one bias and one shift per output channel"),
    (_with(shift=np.full(1, 8, np.uint8)), "one bias and one shift per output channel"),
    (_with(stride=0), "strides and paddings count"),
    (_wide(8, 21), "odd accumulators"),
    (_with(bias=np.full(4, 100, np.int32)), "odd accumulators"),
    (_wide(8, -128), "weights within"),
    (_with(shift=np.full(4, 1, np.uint8)), "shift at least"),
    (_with(shift=np.array([8, 8, 8, 25], np.uint8)), "shift at most"),
    (_wide(200, 126), "accumulators below"),
    (_with(bias=np.full(4, 2**24 - 1, np.int32)), "accumulators below"),
    (_with(source="nowhere"), "inputs exist"),
    (_with(output="x"), "tensors are defined once"),
]


@pytest.mark.parametrize(("node", "rule"), REFUSED_CONVOLUTIONS, ids=[rule for _, rule in REFUSED_CONVOLUTIONS])
def test_each_rule_for_convolutions_is_enforced(node: Conv, rule: str) -> None:
    with pytest.raises(RuleBroken, match=r"network net, layer layer breaks the rule") as caught:
        prove(network(node))
    assert caught.value.rule.startswith(rule)


def test_a_sum_of_2_to_the_24_is_the_first_that_is_refused() -> None:
    most = 2**24 - 1 - 128 * 8 * 9 * 20
    assert prove(network(_with(bias=np.full(4, most - 1 + most % 2, np.int32))))[0].accumulator_bound < 2**24
    with pytest.raises(RuleBroken, match=r"channel 2 can reach 16777217"):
        prove(network(_with(bias=np.array([1, 1, -most - 2, 1], np.int32))))


class Softmax:
    """An operator outside of the contract."""

    name = output = "soft"


RAW = replace(good_conv(), raw=True)
REFUSED_GRAPHS = {
    "allowed operators": (good_conv(), Softmax()),
    "inputs are int8": (RAW, Add("sum", ("x", "y"), "z", raw=False)),
    "inputs are raw": (good_conv(), Add("sum", ("x", "y"), "z", raw=True)),
    "channels fit": (good_conv(), replace(good_conv(), name="second", source="y", output="z")),
    "equal scales and channels at adds": (good_conv(), Add("sum", ("x", "y"), "z", raw=False)),
    "planes of one size": (
        replace(good_conv(), stride=2), DepthToSpace("spread", "x", "w", 2), Concat("all", ("y", "w"), "z")
    ),
    "raw sums only in the encoder": (replace(RAW, output="z"),),
    "outputs exist": (good_conv(),),
}  # fmt: skip


@pytest.mark.parametrize("rule", REFUSED_GRAPHS)
def test_each_rule_for_graphs_is_enforced(rule: str) -> None:
    with pytest.raises(RuleBroken, match="network net, layer") as caught:
        prove(Network("net", {"x": 8}, ("z",), REFUSED_GRAPHS[rule]))  # type: ignore[arg-type]
    assert caught.value.rule == rule


def test_depth_to_space_needs_whole_blocks() -> None:
    with pytest.raises(RuleBroken, match="8 channels do not make blocks of 9"):
        prove(Network("net", {"x": 8}, ("y",), (DepthToSpace("spread", "x", "y", 3),)))


def test_raw_sums_leave_the_encoder() -> None:
    assert len(prove(Network("analysis", {"x": 8}, ("y",), (RAW,)))) == 1


def test_the_shipped_bundle_carries_the_proof_of_its_own_weights(bundle: Bundle) -> None:
    proved = prove_bundle(bundle)
    assert bundle.certificate["networks"] == proved["networks"]
    layers = [proof for proofs in proved["networks"].values() for proof in proofs]
    assert len(layers) > 30
    assert all(proof["odd"] for proof in layers)


def test_a_halo_that_is_too_small_is_refused(bundle: Bundle) -> None:
    needed = needed_halo(bundle.networks)
    expected = f"network synthesis, layer .* breaks the rule 'the halo covers .* {needed['synthesis']} blocks"
    with pytest.raises(RuleBroken, match=expected):
        certificate(bundle.networks, {**needed, "synthesis": needed["synthesis"] - 1})


def test_the_halo_is_what_the_synthesis_sees(codec: Codec) -> None:
    """A change of one latent changes pixels as far away as the radius says, and none beyond the halo."""
    network, halo = codec.bundle.networks["synthesis"], needed_halo(codec.bundle.networks)["synthesis"]
    side, rng = 2 * halo + 3, np.random.default_rng(3)
    shapes = {name: (1, side, side, channels) for name, channels in network.inputs.items()}
    before = {name: rng.integers(-128, 128, shape).astype(np.int8) for name, shape in shapes.items()}
    after = {name: value.copy() for name, value in before.items()}
    for value in after.values():
        value[0, halo + 1, halo + 1] = ~value[0, halo + 1, halo + 1]
    changed = codec.backend.run("synthesis", before)[0] != codec.backend.run("synthesis", after)[0]
    step = changed.shape[1] // side
    rows = np.flatnonzero(changed.any(axis=(0, 2, 3))) // step
    assert halo + 1 - network.receptive_radius() - 1 < rows.min() < halo + 1
    assert rows.min() >= 1 and rows.max() <= side - 2


def test_a_bundle_whose_sheet_is_not_its_own_is_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = copy.deepcopy(bundle.certificate)
    sheet["networks"]["synthesis"][0]["accumulator_bound"] -= 2
    monkeypatch.setattr(Bundle, "certificate", sheet)
    with pytest.raises(InputError, match="section 'networks' of its certificate is not what its weights prove"):
        prove_bundle(bundle)


def test_the_command_prints_the_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certificate"]) == 0
    text = capsys.readouterr().out
    bundle = Bundle.open()
    radius, halo = bundle.networks["synthesis"].receptive_radius(), bundle.manifest["halo"]["synthesis"]
    needed = (
        f"synthesis: sees {radius:g} positions to each side, needs a halo of {halo} blocks of 16 pixels, has {halo}"
    )
    assert needed in text
    layers = sum(isinstance(node, Conv) for network in bundle.networks.values() for node in network.nodes)
    assert f"all rules hold for {layers} convolutions" in text
    assert main(["certificate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["halo"]["synthesis"] == {"needed": halo, "stated": halo}


def test_engines_that_round_by_adding_one_half_in_fp32_are_exact_too(bundle: Bundle) -> None:
    for network in bundle.networks.values():
        for node in network.nodes:
            if isinstance(node, Conv):
                weight, bias = node.weight.astype(np.int64), node.bias.astype(np.int64)
                bounds = 128 * np.abs(weight).reshape(len(weight), -1).sum(1) + np.abs(bias)
                assert (bounds + 2 ** (node.shift.astype(np.int64) - 1) <= 2**24).all()


def test_the_check_by_hand_in_the_document_runs() -> None:
    text = (Path(__file__).parent.parent / "docs" / "integers.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    exec(compile(code, "docs/integers.md", "exec"), {})


def test_the_shipped_graphs_spell_the_networks_that_were_proved(bundle: Bundle) -> None:
    onnx = pytest.importorskip("onnx")
    from linnet.calibration.onnx_forms import onnxruntime_form, qdq_form

    for form, spell in (("qdq", qdq_form), ("onnxruntime", onnxruntime_form)):
        for name, stored in bundle.graphs(form).items():
            graph = onnx.load_from_string(stored).graph
            spelled = onnx.load_from_string(spell(bundle.networks[name])).graph
            assert [node.op_type for node in graph.node] == [node.op_type for node in spelled.node]
            # A bundle may name its constants otherwise; the values, node by node, are what counts.
            for ours, theirs in zip(spelled.node, graph.node, strict=True):
                assert ours.attribute == theirs.attribute
                for a, b in zip(ours.input, theirs.input, strict=True):
                    assert _constant(spelled, a) == _constant(graph, b)


def _constant(graph: Any, name: str) -> tuple[tuple[int, ...], str, bytes] | None:
    """Shape, type and bytes of an initializer; None for what a node computes."""
    from onnx import numpy_helper

    for initializer in graph.initializer:
        if initializer.name == name:
            value = numpy_helper.to_array(initializer)
            return value.shape, str(value.dtype), value.tobytes()
    return None
