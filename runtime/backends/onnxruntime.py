"""ONNX Runtime on the CPU: the bundle's uint8 graphs, which use VNNI and AMX where the processor has them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import MachineError

ZERO_POINT = np.uint8(128)
"""The graphs shift int8 to uint8 with zero point 128: flipping the top bit converts either way."""


class OnnxRuntimeBackend:
    """Sessions over the `onnxruntime` graphs of a bundle, created when first used; calls may come from several threads.

    `graphs` maps network names to serialized models. `threads` None leaves the choice to ONNX Runtime. `careful` asks
    for exact sums on x86 without VNNI, whose uint8 kernels saturate 16-bit partial sums otherwise.
    """

    name = "onnxruntime"

    def __init__(self, graphs: Mapping[str, bytes], threads: int | None = None, *, careful: bool = False) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MachineError(f"onnxruntime cannot be imported ({error}): pip install onnxruntime") from error
        self._runtime = onnxruntime
        self._graphs = graphs
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 3
        # Frames differ in size: planning memory for one shape and keeping an arena only holds memory.
        options.enable_mem_pattern = False
        options.enable_cpu_mem_arena = False
        if careful:
            options.add_session_config_entry("session.x64quantprecision", "1")
        self._options = options
        self._sessions: dict[str, Any] = {}
        self._creating = threading.Lock()

    def _session(self, network: str) -> Any:
        with self._creating:
            if network not in self._sessions:
                self._sessions[network] = self._runtime.InferenceSession(
                    self._graphs[network], self._options, providers=["CPUExecutionProvider"]
                )
            return self._sessions[network]

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        feed = {name: np.bitwise_xor(value.view(np.uint8), ZERO_POINT) for name, value in inputs.items()}
        try:
            outputs = self._session(network).run(None, feed)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise MachineError(
                f"onnxruntime {self._runtime.__version__} cannot run network {network}: {error}"
            ) from error
        return [
            np.bitwise_xor(value, ZERO_POINT, out=value).view(np.int8) if value.dtype == np.uint8 else value
            for value in outputs
        ]
