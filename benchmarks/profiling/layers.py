"""What each layer of the networks takes, in a pass of its own: timing layers costs time itself.

An engine's own units (fused nodes, or a convolution spelled as patches and a matrix) are put together to the layers of
the bundle's networks by their names, so that reports of different engines have the same rows.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ...runtime.backends import Backend, layer_times
from ...runtime.backends.layers import LayerTime
from ...runtime.bundle import Bundle
from ...runtime.network import Conv, Network, Node, sources
from .pipeline import DIRECTIONS, Pass, Pipeline

FRAMES = 3
UNCOUNTED = 2
"""One without timing and one with, in which new sessions settle."""
BETWEEN = "(between layers)"
"""Where an engine's own additions go: changes of layout, computation of shapes."""
RAW_BYTES = 4
"""Of a raw output, which is float32; everything else is int8."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]


class Work(NamedTuple):
    """Multiply-accumulates, and bytes that have to move at least: every input, weight and output once."""

    macs: int
    bytes: int


def measure(
    pipeline: Pipeline, bundle: Bundle, backend: Backend, progress: Callable[[], object], frames: int = FRAMES
) -> tuple[list[dict[str, Any]], list[LayerTime], dict[str, Pass]]:
    """One row per layer; and for a timeline the raw times, and the stages of the last frame by direction.

    `backend` is the one under the pipeline. Encodes and decodes `frames` frames after UNCOUNTED that do not count, and
    calls `progress` after each. MachineError where the backend cannot time its layers.
    """
    for direction in DIRECTIONS:  # so that every network is past its self-test
        pipeline.run(direction)
    progress()
    pipeline.backend.calls.clear()
    with layer_times(backend) as times:
        for _ in range(1 + frames):
            last = {direction: pipeline.run(direction) for direction in DIRECTIONS}
            progress()
    calls = {key: count // (1 + frames) for key, count in pipeline.backend.calls.items()}
    return rows(times, calls, bundle.networks, 1 + frames), times, last


def rows(
    times: Iterable[LayerTime], calls: Mapping[tuple[str, Shapes], int], networks: Mapping[str, Network], frames: int
) -> list[dict[str, Any]]:
    """Rows by network and layer in the order of their first run. The first of `frames` frames is left out.

    Every frame runs the same units equally often, so the times of a unit split into frames by their number alone.
    """
    seconds: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for time in times:
        seconds[time.network, time.layer, time.operator].append(time.seconds)
    samples: dict[tuple[str, str], np.ndarray] = {}
    operators: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for (network, unit, operator), values in seconds.items():
        key = network, layer_of(networks[network], unit)
        per_frame = np.reshape(values, (frames, -1)).sum(axis=1)[1:]
        samples[key] = samples.get(key, 0) + per_frame
        operators[key][operator] += 1
    work = frame_work(calls, networks)
    total = sum(float(values.sum()) for values in samples.values())
    found = []
    for (network, layer), values in samples.items():
        parts = [work.get((network, part), Work(0, 0)) for part in layer.split("+")]
        done = Work(sum(part.macs for part in parts), sum(part.bytes for part in parts))
        median = float(np.median(values))
        found.append(
            {
                "network": network,
                "layer": layer,
                "operators": dict(operators[network, layer]),
                "samples_ms": [1e3 * float(v) for v in values],
                "p50_ms": 1e3 * median,
                "share": float(values.sum()) / total,
                "gmac": done.macs / 1e9,
                "mib": done.bytes / 2**20,
                "gmac_per_s": done.macs / 1e9 / median,
                "gb_per_s": done.bytes / 1e9 / median,
                "macs_per_byte": done.macs / done.bytes if done.bytes else None,
            }
        )
    return found


def layer_of(network: Network, unit: str) -> str:
    """The layer of `network` that an engine's unit belongs to; BETWEEN where its name says nothing.

    The units are named by the exporter: after a layer or its output, then a slash (`calibration.onnx_forms`). An
    engine that fuses several joins their names; the convolutions among them, joined by "+", give the row its name.
    """
    ours: dict[str, Node] = {node.output: node for node in network.nodes} | {node.name: node for node in network.nodes}
    named = [ours[part] for part in re.split(r"/\w*|[\s+,:()\[\]{}]+", unit) if part in ours]
    convolutions = dict.fromkeys(node.name for node in named if isinstance(node, Conv))
    if convolutions:
        return "+".join(convolutions)
    return named[0].name if named else BETWEEN


def frame_work(calls: Mapping[tuple[str, Shapes], int], networks: Mapping[str, Network]) -> dict[tuple[str, str], Work]:
    """The work of each layer in a frame that makes `calls`."""
    found: dict[tuple[str, str], Work] = {}
    for (name, shapes), count in calls.items():
        for layer, (macs, moved) in layer_work(networks[name], dict(shapes)).items():
            before = found.get((name, layer), Work(0, 0))
            found[name, layer] = Work(before.macs + count * macs, before.bytes + count * moved)
    return found


def layer_work(network: Network, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, Work]:
    """The work of each layer for one call with inputs of the shapes `inputs`, (N, H, W, C)."""
    shapes, raw = network.shapes(inputs), network.raw

    def size(tensor: str) -> int:
        return int(np.prod(shapes[tensor])) * (RAW_BYTES if tensor in raw else 1)

    found = {}
    for node in network.nodes:
        macs, moved = 0, size(node.output) + sum(size(source) for source in sources(node))
        if isinstance(node, Conv):
            macs = node.weight[0].size * int(np.prod(shapes[node.output]))
            moved += node.weight.size
        found[node.name] = Work(macs, moved)
    return found


def against(rows: list[dict[str, Any]], ceiling: Mapping[str, Any] | None) -> None:
    """Add to each row what part of the ceiling it reaches: the least time its work could take over the time it took."""
    for row in rows:
        row["of_ceiling"] = None
        if ceiling and row["mib"] and row["p50_ms"]:
            least_s = max(row["gmac"] / ceiling["gmac_per_s"], row["mib"] * 2**20 / 1e9 / ceiling["gb_per_s"])
            row["of_ceiling"] = least_s / (row["p50_ms"] / 1e3)
