"""Every backend against the numpy reference, bit for bit, over single layers at their bounds."""

from __future__ import annotations

import numpy as np
import pytest

from linnet.runtime.backends.reference import requantise, run_network
from linnet.runtime.network import Add, Concat, Conv, DepthToSpace, Network

RNG = np.random.default_rng(7)


def conv(
    name: str,
    source: str,
    channels_in: int,
    channels_out: int,
    kernel: int,
    *,
    stride: int = 1,
    raw: bool = False,
    weight: np.ndarray | None = None,
    shift: int | None = None,
) -> Conv:
    if weight is None:
        weight = 2 * RNG.integers(-63, 64, (channels_out, channels_in, kernel, kernel))
    shift_array = np.full(channels_out, shift) if shift is not None else RNG.integers(5, 12, channels_out)
    bias = 2 * RNG.integers(-4000, 4000, channels_out) + 1
    return Conv(
        name,
        source,
        name,
        weight.astype(np.int8),
        bias.astype(np.int32),
        shift_array.astype(np.uint8),
        stride,
        kernel // 2,
        raw,
    )


def extreme(kernel: int) -> np.ndarray:
    """Weights that reach the largest sums: all at the limit, alternating signs in half of the channels."""
    weight = np.full((8, 64, kernel, kernel), 126)
    weight[4:, ::2] = -126
    return weight


CASES = {
    "conv1x1": Network("case", {"x": 16}, ("a",), (conv("a", "x", 16, 24, 1),)),
    "conv3x3": Network("case", {"x": 12}, ("a",), (conv("a", "x", 12, 24, 3),)),
    "conv3x3 stride 2": Network("case", {"x": 12}, ("a",), (conv("a", "x", 12, 20, 3, stride=2),)),
    "conv3x3 raw": Network("case", {"x": 12}, ("a",), (conv("a", "x", 12, 20, 3, raw=True),)),
    "largest sums": Network("case", {"x": 64}, ("a",), (conv("a", "x", 64, 8, 3, weight=extreme(3), shift=16),)),
    "least shift": Network(
        "case", {"x": 4}, ("a",), (conv("a", "x", 4, 8, 1, weight=2 * RNG.integers(-1, 2, (8, 4, 1, 1)), shift=2),)
    ),
    "add saturates": Network("case", {"x": 8, "y": 8}, ("a",), (Add("a", ("x", "y"), "a", raw=False),)),
    "concat": Network("case", {"x": 8, "y": 4}, ("b",), (Concat("a", ("x", "y"), "a"), conv("b", "a", 12, 8, 3))),
    "depth to space": Network("case", {"x": 16}, ("b",), (DepthToSpace("a", "x", "a", 2), conv("b", "a", 4, 8, 3))),
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


@pytest.mark.parametrize("case", CASES)
def test_onnxruntime_uint8_form(case: str) -> None:
    onnx_forms = pytest.importorskip("linnet.calibration.onnx_forms")
    from linnet.runtime.backends.onnxruntime import OnnxRuntimeBackend

    network = CASES[case]
    inputs = inputs_of(network)
    backend = OnnxRuntimeBackend({"case": onnx_forms.onnxruntime_form(network)}, 1)
    assert_equal(backend.run("case", inputs), run_network(network, inputs))


@pytest.mark.parametrize("optimised", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_qdq_form_in_float_and_integer_kernels(case: str, optimised: bool) -> None:
    """With optimisations off ONNX Runtime computes the Q/DQ graph in fp32; with them on in integers."""
    onnx_forms = pytest.importorskip("linnet.calibration.onnx_forms")
    import onnxruntime

    network = CASES[case]
    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(onnx_forms.qdq_form(network), options, providers=["CPUExecutionProvider"])
    inputs = inputs_of(network)
    assert_equal(session.run(None, inputs), run_network(network, inputs))


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


def test_requantise_rounds_to_nearest_for_every_odd_accumulator() -> None:
    for shift in (2, 3, 9):
        accumulator = np.arange(-(1 << 14) + 1, 1 << 14, 2)
        want = np.clip(np.rint(accumulator / 2**shift), -128, 127)
        np.testing.assert_array_equal(requantise(accumulator, np.array(shift)), want)


def test_int64_and_float32_sums_agree_at_the_accumulator_limit() -> None:
    network = CASES["largest sums"]
    inputs = {"x": np.full((1, 5, 5, 64), -128, np.int8)}
    node = network.nodes[0]
    assert isinstance(node, Conv)
    bound = 128 * np.abs(node.weight.astype(np.int64)).reshape(8, -1).sum(1).max() + np.abs(node.bias).max()
    assert 2**23 < bound < 2**24
    from linnet.runtime.backends.reference import convolve

    windows = np.pad(inputs["x"].astype(np.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    weight = node.weight.astype(np.float32)
    total = sum(
        windows[:, dy : dy + 5, dx : dx + 5] @ weight[:, :, dy, dx].T for dy in range(3) for dx in range(3)
    ) + node.bias.astype(np.float32)
    np.testing.assert_array_equal(total.astype(np.int64), convolve(inputs["x"], node))
