"""The numpy reference backend: int64 arithmetic, slow, a page long. It *is* the specification of the networks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..network import ACTIVATION_EXP, Add, Concat, Conv, DepthToSpace, Network


def convolve(x: np.ndarray, node: Conv) -> np.ndarray:
    """Accumulators (N, h', w', O) int64 of NHWC int8 `x`, bias included."""
    k = node.weight.shape[2]
    pad = node.padding
    x = np.pad(x.astype(np.int64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))[:, :: node.stride, :: node.stride]
    columns = windows.reshape(*windows.shape[:3], -1)
    weight = node.weight.astype(np.int64).reshape(len(node.weight), -1)
    return columns @ weight.T + node.bias.astype(np.int64)


def requantise(accumulator: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Accumulators to int8: shift right, round to nearest (an odd accumulator never ties), saturate."""
    shift = shift.astype(np.int64)
    rounded = (accumulator + (np.int64(1) << (shift - 1))) >> shift
    return np.clip(rounded, -128, 127).astype(np.int8)


def run_network(network: Network, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Execute `network` on NHWC int8 inputs; outputs NHWC, int8, or float32 where raw."""
    tensors = dict(inputs)
    for node in network.nodes:
        if isinstance(node, Conv):
            accumulator = convolve(tensors[node.source], node)
            if node.raw:
                scale = np.exp2(-(ACTIVATION_EXP + node.shift.astype(np.float64)))
                tensors[node.output] = (accumulator * scale).astype(np.float32)
            else:
                tensors[node.output] = requantise(accumulator, node.shift)
        elif isinstance(node, Add):
            a, b = (tensors[s] for s in node.sources)
            tensors[node.output] = a + b if node.raw else np.clip(a.astype(np.int16) + b, -128, 127).astype(np.int8)
        elif isinstance(node, Concat):
            tensors[node.output] = np.concatenate([tensors[s] for s in node.sources], axis=3)
        elif isinstance(node, DepthToSpace):
            n, h, w, c = tensors[node.source].shape
            b = node.block
            x = tensors[node.source].reshape(n, h, w, c // (b * b), b, b).transpose(0, 1, 4, 2, 5, 3)
            tensors[node.output] = x.reshape(n, h * b, w * b, c // (b * b))
    return [tensors[name] for name in network.outputs]


class ReferenceBackend:
    """Runs a bundle's networks with `run_network`."""

    name = "reference"

    def __init__(self, networks: Mapping[str, Network]) -> None:
        self._networks = networks

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return run_network(self._networks[network], inputs)
