"""Convolutions over few channels, done for 2x2 positions at once: how graphs are fast on planes with a dozen channels.

A convolution of k = 3 or 5 over C channels whose output only `SpaceToDepth` reads is one of 3 x 3 over 4 C channels at
a quarter of the positions. It multiplies by zeros, too, and still is faster: runs of memory are four times as long, and
channels are enough to fill vectors. Integers and their sums stay the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ..runtime.network import EXACT, Add, Concat, Conv, Network, Node, Select, SpaceToDepth

FEW_CHANNELS = 16


def folded(network: Network) -> Network:
    """The same network; convolutions that read one of its inputs, or copies of one, are folded where they can be."""
    origins, readers = _origins(network), network.readers
    packed = {
        node.output: node
        for node in network.nodes
        if isinstance(node, Conv) and _can_be_folded(node, origins, readers[node.output], network.outputs)
    }
    inputs = dict.fromkeys(origins[node.source][0] for node in packed.values())
    nodes: list[Node] = [SpaceToDepth(_pairs(name), name, _pairs(name), 2) for name in inputs]
    to_copy = {node.source for node in packed.values()} - set(inputs)
    renamed: dict[str, str] = {}
    for node in network.nodes:
        if isinstance(node, Conv) and node.output in packed:
            origin, copies = origins[node.source]
            if node.source in to_copy:
                to_copy.remove(node.source)
                nodes.append(Concat(_pairs(node.source), (_pairs(origin),) * copies, _pairs(node.source)))
            nodes.append(_folded_convolution(node, copies))
        elif isinstance(node, SpaceToDepth) and node.source in packed:
            if node.block == 2:
                renamed[node.output] = _pairs(node.source)
            else:
                nodes += _packed_further(node, len(packed[node.source].weight))
        elif node.output in network.outputs or any(reader.output not in packed for reader in readers[node.output]):
            nodes.append(_reading(node, renamed))
    return replace(network, nodes=tuple(nodes))


def _pairs(name: str) -> str:
    """The tensor `name`, or its copies, packed by `SpaceToDepth(2)`."""
    return f"{name}/pairs"


def _origins(network: Network) -> dict[str, tuple[str, int]]:
    """(input, copies) for each tensor that is an input of the network or several copies of one."""
    origins = {name: (name, 1) for name in network.inputs}
    for node in network.nodes:
        if isinstance(node, Concat) and len(set(node.sources)) == 1 and node.sources[0] in network.inputs:
            origins[node.output] = node.sources[0], len(node.sources)
    return origins


def _can_be_folded(
    node: Conv, origins: Mapping[str, tuple[str, int]], readers: list[Node], outputs: tuple[str, ...]
) -> bool:
    side = node.weight.shape[2]
    return (
        node.format == EXACT
        and node.source in origins
        and node.weight.shape[1] <= FEW_CHANNELS * origins[node.source][1]
        and (side, node.stride, node.padding) in ((3, 1, 1), (5, 1, 2))
        and node.output not in outputs
        and bool(readers)
        and all(isinstance(reader, SpaceToDepth) and reader.block % 2 == 0 for reader in readers)
        # What is packed by 2 is the folded output itself, which leaves the network under no other name.
        and all(reader.output not in outputs for reader in readers if reader.block == 2)
    )


def _folded_convolution(node: Conv, copies: int) -> Conv:
    """`node` on its packed source, which is `copies` copies of an input."""
    outputs, _, side, _ = node.weight.shape
    # The output at (y, x) of a group sees the group's window from y + 2 - side // 2 on, in a window of 3 x 3 groups.
    kernels = np.zeros((2, 2, *node.weight.shape[:2], 6, 6), np.int8)
    for y in range(2):
        for x in range(2):
            top, left = y + 2 - side // 2, x + 2 - side // 2
            kernels[y, x, :, :, top : top + side, left : left + side] = node.weight
    # Channels of a packed tensor are (dy, dx, channel), those of copies (copy, dy, dx, channel).
    groups = kernels.reshape(4 * outputs, copies, -1, 3, 2, 3, 2).transpose(0, 1, 4, 6, 2, 3, 5)
    weight = np.ascontiguousarray(groups.reshape(4 * outputs, -1, 3, 3))
    source, output = _pairs(node.source), _pairs(node.output)
    bias, shift = np.tile(node.bias, 4), np.tile(node.shift, 4)
    return replace(node, source=source, output=output, weight=weight, bias=bias, shift=shift, padding=1)


def _packed_further(node: SpaceToDepth, channels: int) -> list[Node]:
    """What `node` gives of a tensor of `channels`, from that tensor packed by 2."""
    half = node.block // 2
    order = tuple(
        ((y // 2 * half + x // 2) * 4 + 2 * (y % 2) + x % 2) * channels + channel
        for y in range(node.block)
        for x in range(node.block)
        for channel in range(channels)
    )
    rest = f"{node.output}_groups"
    return [
        SpaceToDepth(node.name, _pairs(node.source), rest, half),
        Select(f"{node.name}_order", rest, node.output, order),
    ]


def _reading(node: Node, renamed: Mapping[str, str]) -> Node:
    if isinstance(node, Add | Concat):
        return replace(node, sources=tuple(renamed.get(source, source) for source in node.sources))
    return replace(node, source=renamed.get(node.source, node.source))
