"""Integers of more than 8 bits in the ONNX spellings of a network: float32 holds them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..runtime.network import Add, Conv, Join
from .onnx_graph import Graph, conv_geometry, slice_bounds


class WideIntegers:
    """Operators over integers of more than 8 bits, or sums on the way to fewer, in float32, which holds them exactly.

    `widened` gives the numbers of an int8 tensor times a power of two, `narrowed` quantises multiples of a power of
    two, to nearest: the two forms differ in how.
    """

    def __init__(
        self, graph: Graph, widened: Callable[[str, float, str], str], narrowed: Callable[[str, float, str], str]
    ) -> None:
        self._graph, self._widened, self._narrowed = graph, widened, narrowed
        self._made: dict[tuple[str, int], str] = {}

    def floats(self, name: str, source: str, bits: int) -> str:
        """The tensor `name` of the network, whose alias is `source`, as numbers of `bits` bits; made on first use."""
        graph, missing = self._graph, bits - self._graph.bits[name]
        if graph.bits[name] > 8 and not missing:
            return source
        output = f"{source}/{bits}_bits"
        if (name, bits) not in self._made:
            if graph.bits[name] == 8:
                self._widened(source, 2.0**missing, output)
            else:
                factor = graph.constant(f"factor_{missing}", np.float32(2.0**missing))
                graph.add("Mul", [source, factor], output)
            self._made[name, bits] = output
        return output

    def convolutions(self, nodes: Sequence[Conv], source: str, outs: Sequence[str]) -> None:
        """Convolutions that read the same tensor, of one stride, each with the padding that keeps the planes, as one:
        few output channels cost as much as many.

        Every product and sum is exact, however it is ordered.
        """
        graph, side = self._graph, max(node.weight.shape[2] for node in nodes)
        bits = graph.bits[nodes[0].source]
        weights, biases = [], []
        for node in nodes:
            exponent = bits - 1 + node.shift.astype(np.float64)  # of the accumulator's scale
            scale = np.exp2(-exponent if node.raw else node.bits - 1 - exponent)
            around = (side - node.weight.shape[2]) // 2
            kernels = np.pad(node.weight, ((0, 0), (0, 0), (around, around), (around, around)))
            weights.append((kernels * scale[:, None, None, None]).astype(np.float32))
            biases.append((node.bias * scale).astype(np.float32))
        name = "+".join(node.name for node in nodes)
        inputs = [
            self.floats(nodes[0].source, source, bits),
            graph.constant(f"{name}/weight", np.concatenate(weights)),
            graph.constant(f"{name}/bias", np.concatenate(biases)),
        ]
        geometry = conv_geometry(next(node for node in nodes if node.weight.shape[2] == side))
        results = [out if node.raw else f"{out}/wide" for node, out in zip(nodes, outs, strict=True)]
        if len(nodes) == 1:
            graph.add("Conv", inputs, results[0], **geometry)
        else:
            together = graph.add("Conv", inputs, f"{name}/wide", **geometry)
            ends = np.cumsum([len(node.weight) for node in nodes])
            for node, end, result in zip(nodes, ends, results, strict=True):
                graph.add("Slice", [together, *slice_bounds(graph, int(end) - len(node.weight), int(end), 1)], result)
        for node, result, out in zip(nodes, results, outs, strict=True):
            if not node.raw:
                self._rounded(result, node.bits, out)

    def _rounded(self, x: str, bits: int, out: str) -> None:
        """Clipping before rounding is clipping after it: the bounds are integers."""
        if bits == 8:
            self._narrowed(x, 1.0, out)
        else:
            self._graph.add("Round", [self._clipped(x, bits, f"{out}/clipped")], out)

    def addition(self, node: Add, sources: list[str], out: str) -> None:
        graph, wide = self._graph, max(self._graph.bits[name] for name in node.sources)
        terms = [self.floats(name, source, wide) for name, source in zip(node.sources, sources, strict=True)]
        total = graph.add("Add", terms, f"{out}/sum")
        if node.bits == wide:
            self._clipped(total, wide, out)
            return
        # The sum is whole, so that a half more moves halves up and nothing else.
        half = graph.add("Add", [total, graph.constant("half", np.float32(0.5))], f"{out}/half")
        self._narrowed(half, 2.0 ** (wide - node.bits), out)

    def join(self, node: Join, sources: list[str], out: str) -> None:
        whole, fraction = (
            self._widened(source, 2.0**exponent, f"{out}/{part}")
            for source, exponent, part in zip(sources, (node.bits - 8, 0), ("whole", "fraction"), strict=True)
        )
        self._graph.add("Add", [whole, fraction], out)

    def _clipped(self, x: str, bits: int, out: str) -> str:
        bounds = {"least": -(1 << (bits - 1)), "largest": (1 << (bits - 1)) - 1}
        names = [self._graph.constant(f"{key}_{bits}", np.float32(bound)) for key, bound in bounds.items()]
        return self._graph.add("Clip", [x, *names], out)
