"""ONNX Runtime: a bundle's graphs on the CPU by one of three kinds of kernels, or on a GPU by an execution provider."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Absent, MachineError
from .engines import default_folder
from .layers import LayerTime

ZERO_POINT = np.uint8(128)
"""The CPU's graphs shift int8 to uint8 with zero point 128: flipping the top bit converts either way."""
PROVIDERS: dict[str, tuple[str, dict[str, str]]] = {
    # TF32 and the convolution algorithms that transform their inputs (Winograd, FFT) are kept out of the sums.
    "onnxruntime-cuda": ("CUDAExecutionProvider", {"cudnn_conv_algo_search": "DEFAULT", "use_tf32": "0"}),
    # Precision comes from the Q/DQ nodes; the flag only allows int8 kernels. Its engines are kept between sessions.
    "onnxruntime-tensorrt": (
        "TensorrtExecutionProvider",
        {"trt_int8_enable": "True", "trt_engine_cache_enable": "True", "trt_timing_cache_enable": "True"},
    ),
}
"""Backend name -> execution provider of onnxruntime-gpu, and its options."""
KERNELS = ("integer", "precise integer", "float")
"""How the CPU may compute, fastest first. On x86 without VNNI the integer kernels saturate sums of two products to 16
bits; the precise ones widen first and take several times as long. Float kernels know nothing of integers, and are
as exact: no sum leaves what fp32 holds (`docs/integers.md`)."""


def _import() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise Absent(f"onnxruntime cannot be imported ({error})", "pip install onnxruntime") from error
    return onnxruntime


def find(name: str) -> str:
    """What would run the backend `name`; raises Absent where this machine lacks it."""
    runtime = _import()
    if name in PROVIDERS and PROVIDERS[name][0] not in runtime.get_available_providers():
        raise Absent(
            f"onnxruntime {runtime.__version__} has no {PROVIDERS[name][0]}",
            "pip install onnxruntime-gpu, or use --backend onnxruntime",
        )
    return f"onnxruntime {runtime.__version__}"


class OnnxRuntimeBackend:
    """Sessions over graphs of a bundle, created when first used; calls may come from several threads.

    `graphs` maps network names to serialized models: of the form "onnxruntime" for the integer KERNELS, "qdq" for the
    float ones and where `name` is one of PROVIDERS, which choose kernels themselves. `threads` None leaves the choice
    to ONNX Runtime.
    """

    def __init__(
        self,
        graphs: Mapping[str, bytes],
        threads: int | None = None,
        *,
        name: str = "onnxruntime",
        kernels: str = KERNELS[0],
    ) -> None:
        find(name)
        self.name, self.kernels = name, kernels
        self.settings = {"threads": threads, "name": name, "kernels": kernels}
        """The arguments beside the graphs, for a backend like this one over other graphs."""
        self._runtime = _import()
        self._graphs = graphs
        self._provider: tuple[str, dict[str, str]] | None = PROVIDERS.get(name)
        if self._provider is not None and "trt_engine_cache_enable" in self._provider[1]:
            folder = default_folder() / "onnxruntime"
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._provider = self._provider[0], {**self._provider[1], "trt_engine_cache_path": str(folder)}
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        # Its threads would spin on after each network, on the cores that the native core's threads then want.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what fails raises, and is told by us
        # Frames differ in size: planning memory for one shape and keeping an arena only holds memory.
        options.enable_mem_pattern = False
        options.enable_cpu_mem_arena = False
        if kernels == "precise integer":
            options.add_session_config_entry("session.x64quantprecision", "1")
        elif kernels == "float":
            options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._options = options
        self._sessions: dict[str, Any] = {}
        self._creating = threading.Lock()

    def _session(self, network: str) -> Any:
        with self._creating:
            if network not in self._sessions:
                self._sessions[network] = self._create(network)
            return self._sessions[network]

    @contextmanager
    def layer_times(self) -> Iterator[list[LayerTime]]:
        """While open, ONNX Runtime times every node, which costs time too; the list is filled at the end.

        Sessions are created anew for it, and calls must come from one thread. MachineError on a GPU, where ONNX Runtime
        times how long it took to start a kernel and not the kernel.
        """
        if self._provider is not None:
            raise MachineError(f"{self.name} cannot time its layers: use --backend tensorrt or onnxruntime")
        times: list[LayerTime] = []
        plain, self._sessions = self._sessions, {}
        with tempfile.TemporaryDirectory(prefix="linnet-layers-") as folder:
            self._options.enable_profiling, self._options.profile_file_prefix = True, str(Path(folder) / "trace")
            try:
                yield times
                for network, session in self._sessions.items():
                    times += _node_times(network, session)
            finally:
                self._options.enable_profiling = False
                self._sessions = plain

    def _create(self, network: str) -> Any:
        providers = [self._provider] if self._provider else ["CPUExecutionProvider"]
        try:
            session = self._runtime.InferenceSession(self._graphs[network], self._options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions share no base class
            raise MachineError(self._cannot("load", network, error)) from error
        if self._provider and self._provider[0] not in session.get_providers():
            # ONNX Runtime goes on without a provider whose libraries do not load.
            raise MachineError(
                f"{self._provider[0]} of onnxruntime {self._runtime.__version__} does not start here: its CUDA, cuDNN "
                "or TensorRT libraries are missing or do not fit; use --backend onnxruntime"
            )
        return session

    def _cannot(self, what: str, network: str, error: Exception) -> str:
        reason = " ".join(str(error).split())
        return f"{self.name} {self._runtime.__version__} cannot {what} network {network}: {reason}"

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        session = self._session(network)
        shifted = self._provider is None and self.kernels != "float"
        feed = {k: np.bitwise_xor(v.view(np.uint8), ZERO_POINT) for k, v in inputs.items()} if shifted else dict(inputs)
        try:
            outputs = session.run(None, feed)
        except Exception as error:
            raise MachineError(self._cannot("run", network, error)) from error
        return [
            np.bitwise_xor(value, ZERO_POINT, out=value).view(np.int8) if value.dtype == np.uint8 else value
            for value in outputs
        ]


def _node_times(network: str, session: Any) -> list[LayerTime]:
    """Ends the profiling of `session` and reads its trace: events of Chrome's trace format, in microseconds."""
    # ONNX Runtime starts at the time of day.
    started = session.get_profiling_start_time_ns() - time.time_ns() + time.perf_counter_ns()
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return [
        LayerTime(
            network,
            event["name"].removesuffix("_kernel_time"),
            event["args"]["op_name"],
            started + 1000 * event["ts"],
            event["dur"] / 1e6,
        )
        for event in events
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time")
    ]
