"""The same network with channels in the numbers that ONNX Runtime's 8-bit kernels are made for.

They take inputs in fours (41 channels take twice as long as 44) and outputs in eights (9 to 18 channels take five
times as long as 12 to 24). What is added stands under weights of zero, or is never read.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..runtime.network import FLOAT, MIN_SHIFT, WIDE, Concat, Conv, DepthToSpace, Network, Node, Select

INPUTS, OUTPUTS = 4, 8


def with_fillers(network: Network) -> Network:
    """`network` with other channels inside; what it takes and gives stays as it is."""
    return _filled(_widened(network))


def widened(node: Conv, extra: int) -> Conv:
    """The convolution with `extra` outputs more, all zero."""

    def longer(values: np.ndarray, fill: int) -> np.ndarray:
        return np.concatenate([values, np.full((extra, *values.shape[1:]), fill, values.dtype)])

    scale = None if node.scale is None else longer(node.scale, 1)
    weight, bias, shift = longer(node.weight, 0), longer(node.bias, 1), longer(node.shift, MIN_SHIFT)
    return replace(node, weight=weight, bias=bias, shift=shift, scale=scale)


def _with_inputs(node: Conv, at: int, extra: int) -> Conv:
    """The convolution with `extra` inputs more, from `at` on, which it does not see."""
    return replace(node, weight=np.insert(node.weight, [at] * extra, 0, axis=1))


def _is_quantised(node: Node | None) -> bool:
    return isinstance(node, Conv) and not node.raw and node.format not in (FLOAT, WIDE)


def only_readers(network: Network) -> dict[str, Node]:
    """For each output that one node reads, and nobody else, that node."""
    alone = {name: readers[0] for name, readers in network.readers.items() if len(readers) == 1}
    return {name: reader for name, reader in alone.items() if name not in network.outputs}


def _widened(network: Network) -> Network:
    """Convolutions with outputs in eights, where a convolution reads them, directly or beside others."""
    nodes = {node.output: node for node in network.nodes}
    channels, reader = dict(network.channels), only_readers(network)
    for output in list(nodes):
        node, beside = nodes[output], reader.get(output)
        extra = -channels[output] % OUTPUTS
        target, at = beside, channels[output]
        if isinstance(beside, Concat):
            target = reader.get(beside.output)
            at += sum(channels[name] for name in beside.sources[: beside.sources.index(output)])
        if extra and _is_quantised(node) and _is_quantised(target):
            nodes[output] = widened(node, extra)
            nodes[target.output] = _with_inputs(nodes[target.output], at, extra)
            channels[output] += extra
            if isinstance(beside, Concat):
                channels[beside.output] += extra
    return replace(network, nodes=tuple(nodes.values()))


def _filled(network: Network) -> Network:
    """Convolutions with inputs in fours, where copies of other channels can be had."""
    filler = _Filler(network)
    for node in network.nodes:
        missing = -node.weight.shape[1] % INPUTS if _is_quantised(node) else 0
        if missing and node.source in filler.reader:
            at = filler.fill(node.source, missing)
            if at is not None:
                filler.replaced[node.output] = [_with_inputs(node, at, missing)]
    nodes = [new for node in network.nodes for new in filler.replaced.get(node.output, [node])]
    return replace(network, nodes=tuple(nodes))


class _Filler:
    """Collects what takes the place of nodes, by output, so that some give more channels."""

    def __init__(self, network: Network) -> None:
        self._made = {node.output: node for node in network.nodes}
        self._channels = network.channels
        self.reader = only_readers(network)
        self.replaced: dict[str, list[Node]] = {}

    def fill(self, output: str, missing: int, parts: int = 1) -> int | None:
        """Let `output` have `missing` channels more after each of its `parts`; where the first of them then stand, or
        None where it cannot."""
        node = self._made.get(output)
        if isinstance(node, Select) and parts * missing <= self._channels[node.source]:
            self.replaced[output] = [self._longer(node, missing, parts)]
        elif isinstance(node, DepthToSpace) and parts == 1 and node.source in self.reader:
            inside = (missing, node.block**2) if node.phases_first else (missing * node.block**2, 1)
            if self.fill(node.source, *inside) is None:
                return None
        elif isinstance(node, Concat) and parts == 1:
            return self._fill_beside(node, missing)
        else:
            return None
        return self._channels[output] // parts

    def _longer(self, node: Select, missing: int, parts: int) -> Select:
        channels: list[int] = []
        for part in np.split(np.array(node.channels), parts):
            # Those that follow come with the same run of bytes.
            first = min(part[-1] + 1, self._channels[node.source] - missing)
            channels += [*part.tolist(), *range(first, first + missing)]
        return replace(node, channels=tuple(channels))

    def _fill_beside(self, node: Concat, missing: int) -> int | None:
        at = 0
        for source in node.sources:
            at += self._channels[source]
            if source in self.reader and self.fill(source, missing) is not None:
                return at
        first = node.sources[0]
        if self._channels[first] < missing:
            return None
        copies = Select(f"{node.name}_filler", first, f"{node.output}_filler", tuple(range(missing)))
        self.replaced[node.output] = [copies, replace(node, sources=(*node.sources, copies.output))]
        return at
