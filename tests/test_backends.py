"""Every backend against the numpy reference, bit for bit: one table of operator cases, and the shipped codec whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linnet.runtime.backends.reference import convolve, requantise, run_network
from linnet.runtime.bundle import Bundle
from linnet.runtime.codec import Codec
from linnet.runtime.network import (
    ACCUMULATOR_LIMIT,
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

Runner = Callable[[Network, Mapping[str, np.ndarray]], list[np.ndarray]]

RNG = np.random.default_rng(7)


def conv(
    name: str,
    source: str,
    channels_in: int,
    channels_out: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: int | None = None,
    raw: bool = False,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    shift: int | None = None,
    bits: int = 8,
) -> Conv:
    if weight is None:
        weight = 2 * RNG.integers(-63, 64, (channels_out, channels_in, kernel, kernel))
    shift_array = np.full(channels_out, shift) if shift is not None else RNG.integers(5, 12, channels_out)
    if bias is None:
        bias = 2 * RNG.integers(-4000, 4000, channels_out) + 1
    return Conv(
        name,
        source,
        name,
        weight.astype(np.int8),
        bias.astype(np.int32),
        shift_array.astype(np.uint8),
        stride,
        kernel // 2 if padding is None else padding,
        raw,
        bits=bits,
    )


def extreme(kernel: int) -> np.ndarray:
    """Weights that reach the largest sums: all at the limit, alternating signs in half of the channels."""
    weight = np.full((8, 64, kernel, kernel), 126)
    weight[4:, ::2] = -126
    return weight


def near_ties() -> np.ndarray:
    """Weights of which every sum is a multiple of half an output step, before the odd bias moves it off by one."""
    return np.where(RNG.random((16, 8, 1, 1)) < 0.5, -64, 64)


def fine_conv(name: str, source: str, channels_in: int, channels_out: int, kernel: int, **options: Any) -> Conv:
    """A convolution in format "fp32-exact"."""
    weight = 2 * RNG.integers(-200, 201, (channels_out, channels_in, kernel, kernel))
    node = conv(name, source, channels_in, channels_out, kernel, **{"weight": weight, "shift": 12, **options})
    return replace(node, weight=weight.astype(np.int16), format=FLOAT)


FINE = (
    Join("a", ("x", "y"), "a", 10), EdgePad("b", "a", "b", 1), fine_conv("c", "b", 5, 8, 3, padding=0, bits=12),
    fine_conv("d", "y", 5, 8, 1, bits=12),
)  # fmt: skip
"""From two int8 tensors of 5 channels to two of 12 bits."""

CASES = {
    "sums of 12 bits": Network(
        "case",
        {"x": 5, "y": 5},
        ("g",),
        (
            *FINE,
            Add("e", ("c", "d"), "e", raw=False, bits=12),
            DepthToSpace("f", "e", "f", 2, phases_first=True),
            fine_conv("g", "f", 2, 3, 3),
        ),
    ),
    "12 bits to 8, halves up": Network(
        "case",
        {"x": 5, "y": 5},
        ("f",),
        (*FINE, Add("e", ("c", "d"), "e", raw=False), conv("f", "e", 8, 6, 3)),
    ),
    "8 bits and 12 added": Network(
        "case", {"x": 5, "y": 5, "z": 8}, ("e",), (*FINE, Add("e", ("z", "d"), "e", raw=False))
    ),
    "raw sums of 12 bits": Network(
        "case",
        {"x": 5, "y": 5},
        ("f",),
        (*FINE, fine_conv("e", "c", 8, 4, 5, raw=True), SpaceToDepth("f", "e", "f", 3)),
    ),
    "largest sums of 12 bits": Network(
        "case",
        {"x": 8},
        ("b",),
        (
            fine_conv("a", "x", 8, 8, 1, weight=4094 * np.eye(8, dtype=int)[:, :, None, None], shift=12, bits=12),
            fine_conv("b", "a", 8, 4, 1, weight=np.full((4, 8, 1, 1), 1020), shift=17),
        ),
    ),
    "conv1x1": Network("case", {"x": 16}, ("a",), (conv("a", "x", 16, 24, 1),)),
    "conv3x3": Network("case", {"x": 12}, ("a",), (conv("a", "x", 12, 24, 3),)),
    "conv3x3 stride 2": Network("case", {"x": 12}, ("a",), (conv("a", "x", 12, 20, 3, stride=2),)),
    "conv2x2 stride 2": Network("case", {"x": 12}, ("a",), (conv("a", "x", 12, 20, 2, stride=2, padding=0),)),
    "conv3x3 unpadded": Network("case", {"x": 9}, ("a",), (conv("a", "x", 9, 16, 3, padding=0),)),
    "conv5x5": Network("case", {"x": 6}, ("a",), (conv("a", "x", 6, 16, 5),)),
    "conv5x5 stride 2": Network("case", {"x": 3}, ("a",), (conv("a", "x", 3, 8, 5, stride=2),)),
    "conv3x3 stride 2 raw": Network("case", {"x": 12}, ("a",), (conv("a", "x", 12, 20, 3, stride=2, raw=True),)),
    "two raw sums added": Network(
        "case",
        {"x": 12},
        ("c",),
        (
            conv("a", "x", 12, 20, 3, raw=True, shift=9),
            conv("b", "x", 12, 20, 1, raw=True, shift=9),
            Add("c", ("a", "b"), "c", raw=True),
        ),
    ),
    "conv3x3 raw": Network("case", {"x": 12}, ("a",), (conv("a", "x", 12, 20, 3, raw=True),)),
    "largest sums": Network("case", {"x": 64}, ("a",), (conv("a", "x", 64, 8, 3, weight=extreme(3), shift=16),)),
    "least shift": Network(
        "case", {"x": 4}, ("a",), (conv("a", "x", 4, 8, 1, weight=2 * RNG.integers(-1, 2, (8, 4, 1, 1)), shift=2),)
    ),
    "next to a tie": Network(
        "case", {"x": 8}, ("a",), (conv("a", "x", 8, 16, 1, weight=near_ties(), bias=RNG.choice([-1, 1], 16), shift=7),)
    ),
    "add saturates": Network("case", {"x": 8, "y": 8}, ("a",), (Add("a", ("x", "y"), "a", raw=False),)),
    "concat": Network("case", {"x": 8, "y": 4}, ("b",), (Concat("a", ("x", "y"), "a"), conv("b", "a", 12, 8, 3))),
    "depth to space": Network("case", {"x": 16}, ("b",), (DepthToSpace("a", "x", "a", 2), conv("b", "a", 4, 8, 3))),
    "depth to space, phases first": Network(
        "case", {"x": 16}, ("b",), (DepthToSpace("a", "x", "a", 2, phases_first=True), conv("b", "a", 4, 8, 3))
    ),
    "space to depth": Network(
        "case",
        {"x": 16},
        ("c",),
        (DepthToSpace("a", "x", "a", 2), conv("b", "a", 4, 6, 3), SpaceToDepth("c", "b", "c", 2)),
    ),
    "raw sums packed and selected": Network(
        "case",
        {"x": 16},
        ("d",),
        (
            DepthToSpace("a", "x", "a", 2),
            conv("b", "a", 4, 4, 3, raw=True),
            SpaceToDepth("c", "b", "c", 2),
            Select("d", "c", "d", (15, 3, 0, 7, 8)),
        ),
    ),
    "select": Network("case", {"x": 9}, ("b",), (Select("a", "x", "a", (8, 1, 4, 0)), conv("b", "a", 4, 8, 3))),
    "edges repeated": Network(
        "case", {"x": 5}, ("b",), (EdgePad("a", "x", "a", 1), conv("b", "a", 5, 8, 3, padding=0))
    ),
    "edges repeated twice": Network("case", {"x": 5}, ("a",), (EdgePad("a", "x", "a", 2),)),
    "conv then depth to space": Network(
        "case", {"x": 6}, ("b",), (conv("a", "x", 6, 27, 3), DepthToSpace("b", "a", "b", 3))
    ),
    "12 channels": Network("case", {"x": 16}, ("b",), (conv("a", "x", 16, 12, 3), conv("b", "a", 12, 20, 1))),
    "residual": Network(
        "case",
        {"x": 8},
        ("c",),
        (conv("a", "x", 8, 8, 3), conv("b", "a", 8, 8, 1), Add("c", ("x", "b"), "c", raw=False)),
    ),
}


def inputs_of(network: Network, side: int = 9) -> dict[str, np.ndarray]:
    """Random int8 with many extremes."""
    return {
        name: RNG.choice(
            np.array([-128, -127, -1, 0, 1, 126, 127, *range(-100, 100, 7)]), (2, side, side, channels)
        ).astype(np.int8)
        for name, channels in network.inputs.items()
    }


def assert_equal(got: list[np.ndarray], want: list[np.ndarray]) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def _onnxruntime(kernels: str) -> Runner:
    def run(network: Network, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        onnx_forms = pytest.importorskip("linnet.calibration.onnx_forms")
        from linnet.runtime.backends.onnxruntime import OnnxRuntimeBackend

        form = onnx_forms.qdq_form if kernels == "float" else onnx_forms.onnxruntime_form
        return OnnxRuntimeBackend({network.name: form(network)}, 1, kernels=kernels).run(network.name, inputs)

    return run


def _qdq_optimised(network: Network, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """ONNX Runtime finds the integer operators in the Q/DQ graph by itself."""
    onnx_forms = pytest.importorskip("linnet.calibration.onnx_forms")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx_forms.qdq_form(network), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))


def _torch(dtype: str) -> Runner:
    """PyTorch: values with their scales in fp32, or operands in bf16 whose products are summed in fp32.

    The CPU's own bf16 convolution rounds its sums to bf16 on the way out, so here bf16 operands go through fp32
    arithmetic: what is shown is that bf16 holds every operand of int8 layers. Its sums: the test of bf16 units below.
    """

    def run(network: Network, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        torch = pytest.importorskip("torch")
        functional = torch.nn.functional

        def held(values: np.ndarray, dtype: str = dtype) -> torch.Tensor:
            return torch.from_numpy(values).float().to(getattr(torch, dtype)).float()

        def moved(node: Node, x: torch.Tensor) -> torch.Tensor:
            if isinstance(node, DepthToSpace):
                if node.phases_first:
                    square = node.block**2
                    x = x.unflatten(1, (square, -1)).transpose(1, 2).flatten(1, 2)
                return functional.pixel_shuffle(x, node.block)
            if isinstance(node, SpaceToDepth):
                x = functional.pixel_unshuffle(x, node.block)
                return x.unflatten(1, (-1, node.block**2)).transpose(1, 2).flatten(1, 2)
            if isinstance(node, EdgePad):
                return functional.pad(x, [node.width] * 4, mode="replicate")
            return x[:, list(node.channels)]

        def quantised(x: torch.Tensor, bits: int, rounding: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
            unit = 2 ** (bits - 1)
            return rounding(x * unit).clamp(-unit, unit - 1) / unit

        bits = network.bits

        tensors = {name: held(value.transpose(0, 3, 1, 2) / 128) for name, value in inputs.items()}
        for node in network.nodes:
            if isinstance(node, Conv):
                step = np.exp2(-node.shift.astype(np.float64))
                bias = torch.from_numpy(node.bias * step * 2.0 ** (1 - bits[node.source])).float()
                weight = held(node.weight * step[:, None, None, None], "float32" if node.format == FLOAT else dtype)
                x = functional.conv2d(tensors[node.source], weight, bias, node.stride, node.padding)
                tensors[node.output] = x if node.raw else quantised(x, node.bits, torch.round)
            elif isinstance(node, Add):
                x = tensors[node.sources[0]] + tensors[node.sources[1]]
                up = quantised(x, node.bits, lambda x: torch.floor(x + 0.5))
                tensors[node.output] = x if node.raw else up
            elif isinstance(node, Join):
                whole, fraction = (tensors[source] for source in node.sources)
                tensors[node.output] = whole + fraction * 2.0 ** (8 - node.bits)
            elif isinstance(node, Concat):
                tensors[node.output] = torch.cat([tensors[source] for source in node.sources], 1)
            else:
                tensors[node.output] = moved(node, tensors[node.source])
        outputs = [tensors[name].permute(0, 2, 3, 1).numpy() for name in network.outputs]
        return [x if raw else (x * 128).astype(np.int8) for x, raw in zip(outputs, network.raw_outputs, strict=True)]

    return run


BACKENDS: dict[str, Runner] = {
    "onnxruntime integer kernels": _onnxruntime("integer"),
    "onnxruntime precise integer kernels": _onnxruntime("precise integer"),
    "onnxruntime float kernels": _onnxruntime("float"),
    "onnxruntime, Q/DQ optimised": _qdq_optimised,
    "pytorch fp32": _torch("float32"),
    "pytorch bf16 operands": _torch("bfloat16"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_operators(case: str, backend: str) -> None:
    network = CASES[case]
    inputs = inputs_of(network)
    assert_equal(BACKENDS[backend](network, inputs), run_network(network, inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_network_of_the_shipped_codec(bundle: Bundle, backend: str) -> None:
    """The known answers drive the networks into saturation; the reference computed them."""
    for name, network in bundle.networks.items():
        inputs, expected = bundle.known_answer(name)
        assert_equal(BACKENDS[backend](network, inputs), expected)


def test_every_layer_of_the_shipped_codec_at_its_largest_sums(bundle: Bundle) -> None:
    """The benchmark for GPUs, on what a CPU has: inputs that reach every layer's bound."""
    exact = pytest.importorskip("linnet.benchmarks.exact_on_gpu")
    layers = exact.layers_of(bundle.networks)
    bounds = {
        proof["layer"]: proof["accumulator_bound"]
        for name in bundle.networks
        for proof in bundle.certificate["networks"][name]
    }
    tried = [outcome for outcome in exact.compare(layers, "cpu", channels=1, side=8) if not outcome.missing]
    assert len(tried) >= 4
    for outcome in tried:
        formats = next(a.formats for a in exact.ARITHMETICS if a.name == outcome.arithmetic)
        own = [node for node, _ in layers if node.format in formats]
        assert outcome.layers_exact == len(own) > 30
        assert outcome.sums_that_differ == outcome.outputs_that_differ == 0
        assert outcome.largest_sum > 0.9 * max(bounds[node.name] for node in own)


def test_the_gpu_comparison_finds_and_reports_what_differs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = pytest.importorskip("linnet.benchmarks.exact_on_gpu")
    monkeypatch.setattr(exact, "networks", lambda path: {"case": CASES["conv3x3"]})
    report = tmp_path / "report.json"
    assert exact.main(["--device", "cpu", "--json", str(report)]) == 0
    assert "fp32 product                        1 of 1" in capsys.readouterr().out
    fp32 = exact.ARITHMETICS[0].sums
    rounded = exact.Arithmetic("bf16 sums", ("cpu",), lambda x, node: fp32(x, node).bfloat16(), scaled=True)
    monkeypatch.setattr(exact, "ARITHMETICS", (rounded, *exact.ARITHMETICS))
    assert exact.main(["--device", "cpu", "--json", str(report)]) == 1
    first, second, missing = json.loads(report.read_text())["outcomes"][:3]
    assert first["layers_exact"] == 0 and first["sums_that_differ"] > 100 and first["outputs_that_differ"] > 0
    assert second["layers_exact"] == 1 and second["sums_that_differ"] == 0
    assert missing["missing"] == "not on cpu"


def test_the_gpu_comparison_refuses_what_is_no_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    exact = pytest.importorskip("linnet.benchmarks.exact_on_gpu")
    with pytest.raises(SystemExit) as caught:
        exact.main(["--bundle", __file__])
    assert caught.value.code == 2
    assert "is not a bundle that can be read" in capsys.readouterr().err


def test_bf16_units_of_the_cpu_sum_exactly(bundle: Bundle) -> None:
    """PyTorch gives their fp32 sums rounded to bf16: those must be the exact sums, rounded once at the very end."""
    torch = pytest.importorskip("torch")
    exact = pytest.importorskip("linnet.benchmarks.exact_on_gpu")
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bf16 products (AVX-512 BF16, AMX or ARM's BFMMLA)")
    for node in bundle.networks["synthesis"].nodes:
        if isinstance(node, Conv) and node.format != FLOAT:
            x = exact.input_at_the_bounds(node, RNG, channels=1, side=8)
            planes = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).bfloat16()
            weight = torch.from_numpy(node.weight).bfloat16()
            found = torch.nn.functional.conv2d(planes, weight, None, node.stride, node.padding)
            sums = torch.from_numpy(convolve(x, node) - node.bias).permute(0, 3, 1, 2)
            assert torch.equal(found, sums.float().bfloat16()), node.name


def test_whole_files_on_float_kernels(codec: Codec, reference_codec: Codec, photograph: np.ndarray) -> None:
    """A file that integer kernels wrote, decoded by float kernels and by the reference: the same pixels."""
    from linnet.runtime.backends.onnxruntime import OnnxRuntimeBackend

    floats = Codec(codec.bundle, OnnxRuntimeBackend(codec.bundle.graphs("qdq"), 1, kernels="float"), 1)
    picture = photograph[60:188, 150:300]
    data = codec.encode(picture, quality=70, tile=64)
    assert floats.encode(picture, quality=70, tile=64) == data
    pixels = codec.decode(data)
    np.testing.assert_array_equal(floats.decode(data), pixels)
    np.testing.assert_array_equal(reference_codec.decode(data), pixels)


def test_any_order_of_the_sum_is_exact_below_the_limit_and_not_above() -> None:
    """fp32 sums of products of bf16 operands in shuffled orders, at the bound and at eight times the bound."""
    rng = np.random.default_rng(5)
    for terms, bias, always_exact in ((1030, 2**24 - 1030 * 16128 - 1, True), (8240, 1, False)):
        weight, x = np.full(terms, 126), np.full(terms, -128)
        x[rng.random(terms) < 0.01] = -127
        products = np.append(weight * x, -bias).astype(np.float32)
        exact = int((weight * x).sum()) - bias
        assert (128 * np.abs(weight).sum() + abs(bias) < ACCUMULATOR_LIMIT) == always_exact
        orders = [rng.permutation(len(products)) for _ in range(20)]
        sums = [np.add.accumulate(products[order], dtype=np.float32)[-1] for order in orders]
        assert all(int(total) == exact for total in sums) == always_exact


def test_parity_rule_matters() -> None:
    """Plain int8 weights do produce ties, on which rounding rules differ; even weights and odd biases never do."""
    x = RNG.integers(-128, 128, (4096, 27))
    plain, shift = RNG.integers(-127, 128, 27), 6
    tie = (x @ plain) % (1 << shift) == 1 << (shift - 1)
    exact = (x @ plain) / 2**shift
    assert tie.any()
    assert (np.rint(exact) != np.floor(exact + 0.5)).any(), "half-even and half-up must differ on ties"
    odd = x @ (2 * (plain // 2)) + 1
    exact = odd / 2**shift
    np.testing.assert_array_equal(np.rint(exact), np.floor(exact + 0.5))


@pytest.mark.parametrize("shift_right", [0, 1])
def test_without_the_parity_rule_real_layers_tie(bundle: Bundle, shift_right: int) -> None:
    """The shipped layers as plain int8 (every weight and bias halved) tie; as they are, they never do."""
    ties = 0
    for network in bundle.networks.values():
        for node in network.nodes:
            if isinstance(node, Conv) and not node.raw and node.shift.min() > 2:
                x = RNG.integers(-128, 128, (1, 6, 6, node.weight.shape[1])).astype(np.int8)
                changed = replace(node, weight=node.weight >> shift_right, bias=node.bias >> shift_right)
                sums, step = convolve(x, changed), 1 << (node.shift.astype(np.int64) - shift_right)
                up, even = np.floor(sums / step + 0.5), np.rint(sums / step)
                away = np.sign(sums) * np.floor(np.abs(sums) / step + 0.5)
                differ = (up != even) | (up != away)
                assert not differ[sums % step != step // 2].any(), "rounding rules differ only at ties"
                ties += int(np.count_nonzero(sums % step == step // 2))
                assert shift_right or not differ.any()
    assert (ties > 0) == bool(shift_right)


def test_requantise_rounds_to_nearest_for_every_odd_accumulator() -> None:
    for shift in (2, 3, 9):
        accumulator = np.arange(-(1 << 14) + 1, 1 << 14, 2)
        want = np.clip(np.rint(accumulator / 2**shift), -128, 127)
        np.testing.assert_array_equal(requantise(accumulator, np.array(shift)), want)
