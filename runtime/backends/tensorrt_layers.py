"""What each layer of an engine takes, by TensorRT's own profiler, and what it is, by the engine inspector."""

from __future__ import annotations

import json
from typing import Any

from .layers import LayerTime


def profiler(trt: Any, engine: Any, network: str, times: list[LayerTime]) -> Any:
    """An IProfiler for an execution context of `engine`: adds to `times` after each run, which then waits for the GPU.

    The context must not be replayed from a CUDA graph, which tells a profiler nothing.
    """
    kinds = layer_kinds(trt, engine)

    class Profiler(trt.IProfiler):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times.append(LayerTime(network, layer_name, kinds.get(layer_name, ""), None, ms / 1e3))

    return Profiler()


def layer_kinds(trt: Any, engine: Any) -> dict[str, str]:
    """The type of each layer by its name; empty where the engine was built without these details."""
    inspector = engine.create_engine_inspector()
    try:
        layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))["Layers"]
    except (ValueError, KeyError, TypeError):
        return {}
    return {str(layer["Name"]): str(layer.get("LayerType", "")) for layer in layers if isinstance(layer, dict)}
