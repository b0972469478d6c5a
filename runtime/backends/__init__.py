"""Backends compute a bundle's networks; every one must reproduce the bundle's known answers before it is used.

A backend has a `name` and `run(network, inputs) -> outputs` over NHWC tensors: int8, or float32 for raw outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import MachineError, UsageError

if TYPE_CHECKING:
    from ..bundle import Bundle

NAMES = ("auto", "onnxruntime", "tensorrt", "reference")


class Backend(Protocol):
    name: str

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]: ...


class _Tested:
    """A backend that checks each network against its known answer when the network is first used."""

    def __init__(self, backend: Backend, bundle: Bundle) -> None:
        self._backend, self._bundle = backend, bundle
        self._passed: set[str] = set()
        self.name = backend.name

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if network not in self._passed:
            check_known_answer(self._backend, self._bundle, network)
            self._passed.add(network)
        return self._backend.run(network, inputs)


def check_known_answer(backend: Backend, bundle: Bundle, network: str) -> None:
    """Raise MachineError unless `backend` reproduces the known answer of `network` bit for bit."""
    inputs, expected = bundle.known_answer(network)
    for number, (got, want) in enumerate(zip(backend.run(network, inputs), expected, strict=True)):
        if got.shape != want.shape or not np.array_equal(got, want):
            wrong = int(np.count_nonzero(got != want)) if got.shape == want.shape else want.size
            raise MachineError(
                f"backend {backend.name} computes network {network} of bundle {bundle.name} wrongly here: {wrong} of "
                f"{want.size} values of output {number} differ from the known answer; use another backend "
                "(--backend reference is always exact)"
            )


def select(name: str, bundle: Bundle, threads: int | None = None) -> Backend:
    """The backend called `name`, under self-test. "auto" takes the fastest one whose bits are right."""
    if name not in NAMES:
        raise UsageError(f"backend {name!r} is not known: use one of {', '.join(NAMES)}")
    if name == "tensorrt":
        raise MachineError("the TensorRT backend is not part of this version: use --backend onnxruntime")
    if name in ("auto", "onnxruntime"):
        try:
            return _onnxruntime(bundle, threads)
        except MachineError as error:
            if name == "onnxruntime":
                raise
            warnings.warn(f"{error}; falling back to the slow reference", RuntimeWarning, stacklevel=2)
    from .reference import ReferenceBackend

    return ReferenceBackend(bundle.networks)


def _onnxruntime(bundle: Bundle, threads: int | None) -> Backend:
    """Plain kernels if they are exact here, else ONNX Runtime's precise mode; the probe is the smallest network."""
    from .onnxruntime import OnnxRuntimeBackend

    graphs = bundle.graphs("onnxruntime")
    backend = OnnxRuntimeBackend(graphs, threads)
    try:
        check_known_answer(backend, bundle, "context_1")
    except MachineError:
        backend = OnnxRuntimeBackend(graphs, threads, careful=True)
        check_known_answer(backend, bundle, "context_1")
    return _Tested(backend, bundle)


def describe() -> list[dict[str, object]]:
    """What this machine could use: name, available, detail, remedy. Imports nothing heavy."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        runtime = {"available": True, "detail": f"onnxruntime {version('onnxruntime')}", "remedy": ""}
    except PackageNotFoundError:
        runtime = {"available": False, "detail": "onnxruntime is not installed", "remedy": "pip install onnxruntime"}
    return [
        {"name": "tensorrt", "available": False, "detail": "not part of this version", "remedy": "use onnxruntime"},
        {"name": "onnxruntime", **runtime},
        {"name": "reference", "available": True, "detail": f"numpy {np.__version__}: exact and slow", "remedy": ""},
    ]
