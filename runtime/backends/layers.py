"""What a backend that can time its layers hands on: one `LayerTime` for each time that a layer ran."""

from __future__ import annotations

from typing import NamedTuple


class LayerTime(NamedTuple):
    """`layer` is the engine's name of it. `start` is in nanoseconds of `perf_counter_ns`, None where it is unknown."""

    network: str
    layer: str
    operator: str
    start: int | None
    seconds: float
