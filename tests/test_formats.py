"""The formats of a layer: PyTorch, the numpy reference and ONNX Runtime compute the same integers, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="calibration needs the export extra")
pytest.importorskip("onnx", reason="calibration needs the export extra")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from linnet.calibration import tensorrt_rules  # noqa: E402
from linnet.calibration.certificate import RuleBroken, prove  # noqa: E402
from linnet.calibration.formats import FORMATS, set_format  # noqa: E402
from linnet.calibration.freezing import split_weight  # noqa: E402
from linnet.calibration.onnx_forms import onnxruntime_form, qdq_form  # noqa: E402
from linnet.calibration.qat import ExactConv2d, SaturatingAdd, set_exact  # noqa: E402
from linnet.export.tracing import trace  # noqa: E402
from linnet.runtime.backends.onnxruntime import OnnxRuntimeBackend  # noqa: E402
from linnet.runtime.backends.reference import run_network  # noqa: E402
from linnet.runtime.errors import UsageError  # noqa: E402
from linnet.runtime.network import Add, Concat, Conv, Join, Network, arrays, describe, rebuild  # noqa: E402

RNG = np.random.default_rng(11)


class EveryOperator(nn.Module):
    """Strides, residuals, shuffles, concatenation and a bypass, as the camera codec has them."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = ExactConv2d(6, 16, 3)
        self.spatial = ExactConv2d(16, 16, 3)
        self.mix = ExactConv2d(16, 16, 1)
        self.add = SaturatingAdd()
        self.side = ExactConv2d(16, 16, 3)
        self.down = ExactConv2d(32, 24, 3, 2)
        self.up = ExactConv2d(24, 20, 3)
        self.bypass = ExactConv2d(6, 5, 1)
        self.join = SaturatingAdd()

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        y = self.add(y, self.mix(self.spatial(y)))
        y = functional.pixel_shuffle(self.up(self.down(torch.cat([y, self.side(y)], 1))), 2)
        return self.join(y, self.bypass(x))


class Encoder(nn.Module):
    """Ends in raw accumulators that are added."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ExactConv2d(3, 8, 3)
        self.out = ExactConv2d(8, 4, 3, 2, raw=True)
        self.bypass = ExactConv2d(3, 4, 2, 2, padding=0, raw=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.first(x)) + self.bypass(x)


def extremes(channels: int, side: int = 8) -> np.ndarray:
    """(2, side, side, channels) int8, half of it at the bounds."""
    uniform = RNG.integers(-128, 128, (2, side, side, channels))
    return np.where(RNG.random(uniform.shape) < 0.5, RNG.choice([-128, 127], uniform.shape), uniform).astype(np.int8)


def build(module: nn.Module, name: str, channels: int, format: str, loudness: float) -> tuple[nn.Module, Network]:
    torch.manual_seed(5)
    for layer in module.modules():
        if isinstance(layer, ExactConv2d):
            layer.weight.data.mul_(loudness)
            layer.bias.data.uniform_(-0.5, 0.5)
    set_format(name, module, format)
    set_exact(module, True)
    return module.eval(), trace(name, module, {"x": channels})


@pytest.mark.parametrize("loudness", [0.02, 1.0, 6.0])
@pytest.mark.parametrize("format", FORMATS)
def test_everyone_computes_the_same(format: str, loudness: float) -> None:
    module, network = build(EveryOperator(), "synthesis", 6, format, loudness)
    prove(network)
    x = extremes(6)
    (want,) = run_network(network, {"x": x})
    (got,) = OnnxRuntimeBackend({"synthesis": onnxruntime_form(network)}, 1).run("synthesis", {"x": x})
    np.testing.assert_array_equal(got, want)
    assert want.dtype == got.dtype == np.int8
    with torch.no_grad():
        y = 128 * module(torch.from_numpy(x.transpose(0, 3, 1, 2)).float() / 128)
    np.testing.assert_array_equal(y.numpy().transpose(0, 2, 3, 1), want)
    assert network.formats == {format}


@pytest.mark.parametrize("format", ["int8-exact", "w8a16b32"])
def test_raw_accumulators(format: str) -> None:
    module, network = build(Encoder(), "analysis", 3, format, 1.0)
    x = extremes(3)
    (want,) = run_network(network, {"x": x})
    (got,) = OnnxRuntimeBackend({"analysis": onnxruntime_form(network)}, 1).run("analysis", {"x": x})
    assert want.dtype == got.dtype == np.float32
    np.testing.assert_array_equal(got, want)
    with torch.no_grad():
        y = module(torch.from_numpy(x.transpose(0, 3, 1, 2)).float() / 128)
    np.testing.assert_array_equal(y.numpy().transpose(0, 2, 3, 1), want)


def wide_conv(weight: np.ndarray, bias: int, shift: int, bits: int = 8) -> Conv:
    biases, shifts = np.full(len(weight), bias, np.int32), np.full(len(weight), shift, np.uint8)
    return Conv("b", "a", "b", weight.astype(np.int8), biases, shifts, 1, 1, raw=False, format="w8a16b32", bits=bits)


def test_the_largest_sums_of_16_bits_stay_exact() -> None:
    """Every product at its bound: sums just below 2**31, which fp32 could not hold."""
    copy = np.eye(8).reshape(8, 8, 1, 1)
    widen = replace(wide_conv(copy, 1, 0, 16), name="a", source="x", output="a", padding=0)  # 256 x + 256
    network = Network("n", {"x": 8}, ("b",), (widen, wide_conv(np.full((4, 8, 3, 3), 127), 12345, 16)))
    assert prove(network)[1].accumulator_bound == 32768 * 127 * 72 + 12345
    for value in (-128, 127):
        x = np.full((1, 6, 6, 8), value, np.int8)
        got = OnnxRuntimeBackend({"n": onnxruntime_form(network)}, 1).run("n", {"x": x})
        np.testing.assert_array_equal(got[0], run_network(network, {"x": x})[0])


def test_halves_round_up_from_16_bits_to_8() -> None:
    """The accumulator 256 x + 128 lies half way between two outputs for every x."""
    node = replace(wide_conv(np.full((1, 1, 1, 1), 2), 1, 2), source="x", padding=0)
    network = Network("n", {"x": 1}, ("b",), (node,))
    x = np.arange(-128, 128).astype(np.int8).reshape(1, 16, 16, 1)
    want = np.clip(np.floor((2.0 * x + 1) / 4 + 0.5), -128, 127)
    np.testing.assert_array_equal(run_network(network, {"x": x})[0], want)
    tie = replace(node, bias=np.array([2], np.int32))  # (2 x + 2) / 4 is a half for even x
    network = Network("n", {"x": 1}, ("b",), (tie,))
    want = np.floor((2.0 * x + 2) / 4 + 0.5)
    np.testing.assert_array_equal(run_network(network, {"x": x})[0], want)
    got = OnnxRuntimeBackend({"n": onnxruntime_form(network)}, 1).run("n", {"x": x})
    np.testing.assert_array_equal(got[0], want)


def test_only_what_feeds_nothing_back_may_have_free_scales() -> None:
    assert build(EveryOperator(), "context_1", 6, "int8", 1.0)[1].formats == {"int8-exact"}


def test_the_checker_knows_the_formats() -> None:
    def refused(network: Network, rule: str) -> None:
        with pytest.raises(RuleBroken, match="layer b") as caught:
            prove(network)
        assert caught.value.rule.startswith(rule)

    node = replace(wide_conv(np.full((4, 8, 3, 3), 127), 0, 8), source="x")
    assert prove(Network("n", {"x": 8}, ("b",), (node,)))[0].format == "w8a16b32"
    refused(Network("n", {"x": 8}, ("b",), (replace(node, bits=16),)), "outputs have 8 bits")
    refused(Network("n", {"x": 8}, ("b",), (replace(node, weight=np.full_like(node.weight, -128)),)), "weights within")
    refused(Network("n", {"x": 8}, ("b",), (replace(node, format="int8-exact", bits=16),)), "at most 8 bits in")
    refused(Network("n", {"x": 8}, ("b",), (replace(node, format="int8"),)), "free scales")
    widen = replace(node, name="a", output="a", bits=16)
    many = wide_conv(np.full((4, 600, 3, 3), 127), 0, 8)
    refused(
        Network("n", {"x": 8}, ("b",), (widen, Concat("c", ("a",) * 150, "c"), replace(many, source="c"))),
        "accumulators below 2^31",
    )
    add = Add("b", ("x", "a"), "b", raw=False, bits=12)
    refused(Network("n", {"x": 4}, ("b",), (replace(widen, weight=widen.weight[:, :4]), add)), "adds keep the width")
    join = Join("b", ("x", "a"), "b", 10)
    refused(Network("n", {"x": 4}, ("b",), (replace(widen, weight=widen.weight[:, :4]), join)), "inputs are int8")
    refused(Network("n", {"x": 4}, ("b",), (replace(join, sources=("x", "x"), bits=13),)), "9 to 12 bits")
    fine = replace(node, format="fp32-exact", weight=2 * node.weight.astype(np.int16), bias=node.bias + 1)
    assert prove(Network("n", {"x": 8}, ("b",), (fine,)))[0].odd
    refused(Network("n", {"x": 8}, ("b",), (replace(fine, bits=16),)), "at most 12 bits in fp32-exact")
    refused(Network("n", {"x": 8}, ("b",), (replace(fine, weight=fine.weight.astype(np.int8)),)), "weights are int16")
    refused(Network("n", {"x": 8}, ("b",), (replace(fine, weight=fine.weight * 20),)), "weights within")
    refused(Network("n", {"x": 8}, ("b",), (replace(fine, bias=node.bias + 2),)), "odd accumulators")
    # From 8 bits to 12 the accumulator is shifted by four bits less.
    refused(Network("n", {"x": 8}, ("b",), (replace(fine, shift=node.shift - 3, bits=12),)), "shift at least")


def test_networks_keep_their_formats_as_json() -> None:
    for format in FORMATS:
        _, network = build(EveryOperator(), "synthesis", 6, format, 1.0)
        again = rebuild("synthesis", describe(network), arrays(network))
        x = extremes(6)
        np.testing.assert_array_equal(run_network(again, {"x": x})[0], run_network(network, {"x": x})[0])
        assert describe(again) == describe(network)
        if format != "int8-exact":
            with pytest.raises(UsageError, match="not exact in fp32"):
                qdq_form(network)


@pytest.mark.parametrize("copies", [2, 3])
def test_wide_layers_stay_within_the_contract(copies: int) -> None:
    torch.manual_seed(2)
    module = nn.Sequential(ExactConv2d(6, 16, 3))
    narrow = module[0].integers()[2]
    module[0].copies = copies
    set_exact(module, True)
    network = trace("n", module, {"input_1": 6})
    conv = network.nodes[1]
    assert isinstance(conv, Conv) and conv.weight.shape == (16, 6 * copies, 3, 3)
    assert (conv.shift >= narrow.numpy()).all() and (conv.shift > narrow.numpy()).any()
    assert prove(network)[0].odd
    x = extremes(6)
    (want,) = run_network(network, {"input_1": x})
    (got,) = OnnxRuntimeBackend({"n": onnxruntime_form(network)}, 1).run("n", {"input_1": x})
    np.testing.assert_array_equal(got, want)
    tensorrt_rules.check({"n": qdq_form(network)})
    with torch.no_grad():
        y = 128 * module.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2)).float() / 128)
    np.testing.assert_array_equal(y.numpy().transpose(0, 2, 3, 1), want)


def test_split_weights_sum_and_stay_even() -> None:
    weight = 2 * RNG.integers(-126, 127, (4, 3, 1, 1))
    parts = split_weight(weight, 2)
    np.testing.assert_array_equal(sum(part.astype(int) for part in parts), weight)
    assert all((part % 2 == 0).all() and np.abs(part.astype(int)).max() <= 126 for part in parts)
