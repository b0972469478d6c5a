"""The numpy reference backend: int64 arithmetic, slow, a page long. It *is* the specification of the networks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..network import FREE, Add, Concat, Conv, DepthToSpace, EdgePad, Join, Network, Select, SpaceToDepth


def convolve(x: np.ndarray, node: Conv) -> np.ndarray:
    """Accumulators (N, h', w', O) int64 of NHWC int8 `x`, bias included."""
    k = node.weight.shape[2]
    pad = node.padding
    x = np.pad(x.astype(np.int64), ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(1, 2))[:, :: node.stride, :: node.stride]
    columns = windows.reshape(*windows.shape[:3], -1)
    weight = node.weight.astype(np.int64).reshape(len(node.weight), -1)
    return columns @ weight.T + node.bias.astype(np.int64)


def requantise(accumulator: np.ndarray, shift: np.ndarray, bits: int = 8) -> np.ndarray:
    """Accumulators to numbers of `bits` bits: shift right (left where negative), halves up, saturate. Odd accumulators
    never lie half way."""
    shift = shift.astype(np.int64)
    right, left = np.maximum(shift, 0), np.maximum(-shift, 0)
    half = (np.int64(1) << right) >> 1
    return _saturated(((accumulator + half) >> right) << left, bits)


def _saturated(values: np.ndarray, bits: int) -> np.ndarray:
    largest = (1 << (bits - 1)) - 1
    return np.clip(values, -largest - 1, largest).astype(np.int8 if bits == 8 else np.int16)


def run_network(network: Network, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Execute `network` on NHWC int8 inputs; outputs NHWC, int8, or float32 where raw."""
    tensors, bits = dict(inputs), network.bits
    for node in network.nodes:
        if isinstance(node, Conv):
            accumulator = convolve(tensors[node.source], node)
            exponent = bits[node.source] - 1 + node.shift.astype(np.int64)  # of the accumulator's scale
            if node.raw:
                tensors[node.output] = (accumulator * np.exp2(-exponent.astype(np.float64))).astype(np.float32)
            elif node.format == FREE:
                tensors[node.output] = _saturated(np.rint(accumulator.astype(np.float32) * node.scale), 8)
            else:
                tensors[node.output] = requantise(accumulator, exponent - (node.bits - 1), node.bits)
        elif isinstance(node, Add):
            a, b = (tensors[s] for s in node.sources)
            if node.raw:
                tensors[node.output] = a + b
            else:
                widths = [bits[source] for source in node.sources]
                a, b = (x.astype(np.int64) << (max(widths) - own) for x, own in zip((a, b), widths, strict=True))
                tensors[node.output] = requantise(a + b, np.int64(max(widths) - node.bits), node.bits)
        elif isinstance(node, Join):
            whole, fraction = (tensors[s].astype(np.int16) for s in node.sources)
            tensors[node.output] = (whole << (node.bits - 8)) + fraction
        elif isinstance(node, Concat):
            tensors[node.output] = np.concatenate([tensors[s] for s in node.sources], axis=3)
        elif isinstance(node, DepthToSpace):
            n, h, w, c = tensors[node.source].shape
            b = node.block
            if node.phases_first:
                x = tensors[node.source].reshape(n, h, w, b, b, c // (b * b)).transpose(0, 1, 3, 2, 4, 5)
            else:
                x = tensors[node.source].reshape(n, h, w, c // (b * b), b, b).transpose(0, 1, 4, 2, 5, 3)
            tensors[node.output] = x.reshape(n, h * b, w * b, c // (b * b))
        elif isinstance(node, SpaceToDepth):
            n, h, w, c = tensors[node.source].shape
            b = node.block
            x = tensors[node.source].reshape(n, h // b, b, w // b, b, c).transpose(0, 1, 3, 2, 4, 5)
            tensors[node.output] = x.reshape(n, h // b, w // b, b * b * c)
        elif isinstance(node, Select):
            tensors[node.output] = tensors[node.source].take(node.channels, axis=3)
        elif isinstance(node, EdgePad):
            pad = (node.width, node.width)
            tensors[node.output] = np.pad(tensors[node.source], ((0, 0), pad, pad, (0, 0)), mode="edge")
    return [tensors[name] for name in network.outputs]


class ReferenceBackend:
    """Runs a bundle's networks with `run_network`."""

    name = "reference"

    def __init__(self, networks: Mapping[str, Network]) -> None:
        self._networks = networks

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return run_network(self._networks[network], inputs)
