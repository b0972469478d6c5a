"""Backends compute a bundle's networks; every one must reproduce the bundle's known answers before it is used.

A backend has a `name` and `run(network, inputs) -> outputs` over NHWC tensors: int8, or float32 for raw outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import Absent, MachineError, UsageError

if TYPE_CHECKING:
    from ..bundle import Bundle

NAMES = ("auto", "tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime", "reference")
AUTOMATIC = ("tensorrt", "onnxruntime-cuda", "onnxruntime", "reference")
"""What "auto" tries, fastest first. Not onnxruntime-tensorrt: it builds engines for minutes during the first calls."""
PROBES = ("context_1", "synthesis")
"""The network that is tried before a backend of ONNX Runtime is taken: the first that the bundle has."""


class Backend(Protocol):
    name: str

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]: ...


class Answers(Protocol):
    """Known answers by network; a `Bundle` has them."""

    name: str

    def known_answer(self, network: str) -> tuple[dict[str, np.ndarray], list[np.ndarray]]: ...


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


def check_known_answer(backend: Backend, bundle: Answers, network: str) -> None:
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


class _WithFallback:
    """`first`, and for calls that it cannot compute the next best backend: the bits are the same, the time is not."""

    def __init__(self, first: Backend, fallback: Callable[[], Backend]) -> None:
        self._first, self._open = first, cache(fallback)
        self._warned: set[tuple[str, type]] = set()
        self.name = first.name

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return self._first.run(network, inputs)
        except MachineError as error:
            second = self._open()
            if (network, type(error)) not in self._warned:
                self._warned.add((network, type(error)))
                warnings.warn(f"{error}; using {second.name} instead", RuntimeWarning, stacklevel=2)
        return second.run(network, inputs)


def select(name: str, bundle: Bundle, threads: int | None = None) -> Backend:
    """The backend called `name`, under self-test. "auto" takes the fastest one whose bits are right.

    What is absent is passed over in silence (`describe` tells), what is there and does not work with a warning.
    """
    if name not in NAMES:
        raise UsageError(f"backend {name!r} is not known: use one of {', '.join(NAMES)}")
    if name != "auto":
        return _open(name, bundle, threads)
    for candidate in AUTOMATIC[:-1]:
        try:
            return _open(candidate, bundle, threads)
        except MachineError as error:
            reason = error
        if not isinstance(reason, Absent):
            warnings.warn(f"{reason}; trying the next backend", RuntimeWarning, stacklevel=2)
    warnings.warn(f"{reason}; falling back to the slow reference", RuntimeWarning, stacklevel=2)
    return _open("reference", bundle, threads)


def _open(name: str, bundle: Bundle, threads: int | None) -> Backend:
    """Raises Absent or MachineError where `name` is not here or is wrong."""
    if name == "reference":
        from .reference import ReferenceBackend

        return ReferenceBackend(bundle.networks)
    if name == "tensorrt":
        from .tensorrt import TensorRTBackend

        return _WithFallback(TensorRTBackend(bundle), lambda: _next_after_tensorrt(bundle, threads))
    return _onnxruntime(name, bundle, threads)


def _next_after_tensorrt(bundle: Bundle, threads: int | None) -> Backend:
    for name in AUTOMATIC[1:]:
        with suppress(MachineError):
            return _open(name, bundle, threads)
    raise MachineError("no backend works here: run `linnet doctor`")


def _onnxruntime(name: str, bundle: Bundle, threads: int | None) -> Backend:
    """On the CPU plain kernels if they are exact here, else the precise mode; one small network tells."""
    from .onnxruntime import PROVIDERS, OnnxRuntimeBackend

    graphs = bundle.graphs("qdq" if name in PROVIDERS else "onnxruntime")
    probe = next(network for network in PROBES if network in graphs)
    backend = OnnxRuntimeBackend(graphs, threads, name=name)
    try:
        check_known_answer(backend, bundle, probe)
    except MachineError:
        if name in PROVIDERS:
            raise
        backend = OnnxRuntimeBackend(graphs, threads, careful=True)
        check_known_answer(backend, bundle, probe)
    return _Tested(backend, bundle)


def describe(bundle: Bundle | None = None) -> list[dict[str, object]]:
    """What this machine could use for `bundle` (None: the shipped one): name, available, detail, remedy.

    Nothing is built and no network is run.
    """
    return [_describe(name, bundle) for name in NAMES[1:]]


def _describe(name: str, bundle: Bundle | None) -> dict[str, object]:
    detail, remedy = f"numpy {np.__version__}: exact and slow", ""
    try:
        if name == "tensorrt":
            from ..bundle import Bundle
            from .tensorrt import TensorRTBackend

            backend = TensorRTBackend(bundle or Bundle.open())
            detail = backend.detail
            backend.close()
        elif name != "reference":
            from .onnxruntime import find

            detail = find(name)
            if name not in AUTOMATIC:
                detail += ": builds engines at the first calls, so only when asked for"
    except Absent as error:
        return {"name": name, "available": False, "detail": error.detail, "remedy": error.remedy}
    except MachineError as error:
        return {"name": name, "available": False, "detail": str(error), "remedy": ""}
    return {"name": name, "available": True, "detail": detail, "remedy": remedy}
