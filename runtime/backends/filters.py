"""Networks of linear filters in 16-bit integers of the native core: the analysis of the shipped codecs.

ONNX Runtime computes them too, in float32. But few channels leave the units of its convolutions idle, and between them
every number is moved several times; here each result is written to where it is read next.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from .. import core
from ..network import FLOAT, Concat, Conv, Network, Select, SpaceToDepth
from .layers import LayerTime

LEAST_ROWS = 16
"""Rows that a thread computes at once: fewer are not worth the start."""


class _Origin(NamedTuple):
    """A channel that holds at (y, x) what `channel` of `tensor` holds at (block * y + dy, block * x + dx)."""

    tensor: str
    channel: int
    block: int
    dy: int
    dx: int


@dataclass(frozen=True)
class _Layer:
    """A convolution and where its results go: to a later one's source, or an output of the network, whose channels
    `places` (block, block, outputs) names as `core.filter_rows` wants it."""

    node: Conv
    filter: core.Filter
    target: str
    places: np.ndarray


class FilterBackend:
    """Runs those of `networks` that are nothing but filters and have raw outputs, see `runs`, on `threads` (None: all
    cores). Calls may come from several threads."""

    name = "onnxruntime"
    kernels = "filters"

    def __init__(self, networks: Mapping[str, Network], threads: int | None = None) -> None:
        self._networks = networks
        self._layers = {name: layers for name, network in networks.items() if (layers := _layers(network))}
        self._pool = ThreadPoolExecutor(threads) if threads != 1 else None
        self._parts = self._pool._max_workers if self._pool else 1
        self._times: list[LayerTime] | None = None

    def runs(self, network: str) -> bool:
        """Whether `network` is one of them."""
        return network in self._layers

    @contextmanager
    def layer_times(self) -> Iterator[list[LayerTime]]:
        """While open, layers are timed; the list fills as they run."""
        self._times = times = []
        try:
            yield times
        finally:
            self._times = None

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        shapes = self._networks[network].shapes({name: value.shape for name, value in inputs.items()})
        outputs = {name: np.empty(shapes[name], np.float32) for name in self._networks[network].outputs}
        for item in range(shapes[next(iter(inputs))][0]):
            stored: dict[str, core.Planes | np.ndarray] = {name: value[item] for name, value in outputs.items()}
            for source, border in self._borders(network).items():
                stored[source] = planes = core.Planes(*shapes[source][1:], border)
                if source in inputs:
                    planes.fill(inputs[source][item])
            for layer in self._layers[network]:
                self._run_layer(network, layer, stored)
        return list(outputs.values())

    def _borders(self, network: str) -> dict[str, int]:
        """How far the convolutions that read it see beyond each source."""
        borders: dict[str, int] = {}
        for layer in self._layers[network]:
            source = layer.node.source
            borders[source] = max(borders.get(source, 0), layer.node.padding)
        return borders

    def _run_layer(self, network: str, layer: _Layer, stored: Mapping[str, core.Planes | np.ndarray]) -> None:
        started = time.perf_counter_ns()
        source, target = stored[layer.node.source], stored[layer.target]
        parts = max(1, min(self._parts, source.height // LEAST_ROWS))
        edges = [source.height * part // parts for part in range(parts + 1)]
        compute = partial(core.filter_rows, layer.filter, source, target, layer.places)
        list((self._pool.map if parts > 1 else map)(compute, edges[:-1], edges[1:]))
        if self._times is not None:
            seconds = (time.perf_counter_ns() - started) / 1e9
            self._times.append(LayerTime(network, layer.node.name, "Filter", started, seconds))


def _layers(network: Network) -> list[_Layer] | None:
    """The convolutions of `network` in order, None if it is not for this backend."""
    origins = {name: [_Origin(name, c, 1, 0, 0) for c in range(count)] for name, count in network.inputs.items()}
    filters: list[Conv] = []
    for node in network.nodes:
        if isinstance(node, Conv):
            side = node.weight.shape[2]
            if node.format != FLOAT or node.stride != 1 or side % 2 == 0 or node.padding != side // 2:
                return None
            filters.append(node)
            origins[node.output] = [_Origin(node.output, c, 1, 0, 0) for c in range(len(node.weight))]
        elif isinstance(node, SpaceToDepth):
            phases = [(dy, dx) for dy in range(node.block) for dx in range(node.block)]
            origins[node.output] = [
                _Origin(o.tensor, o.channel, o.block * node.block, dy * o.block + o.dy, dx * o.block + o.dx)
                for dy, dx in phases
                for o in origins[node.source]
            ]
        elif isinstance(node, Concat):
            origins[node.output] = [origin for source in node.sources for origin in origins[source]]
        elif isinstance(node, Select):
            origins[node.output] = [origins[node.source][channel] for channel in node.channels]
        else:
            return None
    stored = {node.source for node in filters}.difference(network.inputs) | set(network.outputs)
    if not all(network.raw_outputs) or any(o.tensor in network.inputs for name in stored for o in origins[name]):
        return None
    bits, layers = network.bits, []
    for node in filters:
        targets = [name for name in stored if any(o.tensor == node.output for o in origins[name])]
        own = [(place, o) for place, o in enumerate(origins[targets[0]]) if o.tensor == node.output] if targets else []
        blocks = {o.block for _, o in own}
        if len(targets) != 1 or len(blocks) != 1 or node.raw != (targets[0] in network.outputs):
            return None
        (block,) = blocks
        places = np.full((block, block, len(node.weight)), -1, np.int32)
        for place, o in own:
            places[o.dy, o.dx, o.channel] = place
        shift = bits[node.source] - 1 + node.shift.astype(int) - (0 if node.raw else node.bits - 1)
        weights = core.Filter(node.weight, node.bias, shift.astype(np.uint8), 0 if node.raw else node.bits)
        layers.append(_Layer(node, weights, targets[0], places))
    return layers
