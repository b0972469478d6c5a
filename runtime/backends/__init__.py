"""Backends compute a bundle's networks; every one must reproduce the bundle's known answers before it is used.

A backend has a `name` and `run(network, inputs) -> outputs` over NHWC tensors: int8, or float32 for raw outputs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import Absent, MachineError, UsageError
from .layers import LayerTime

if TYPE_CHECKING:
    from ..bundle import Bundle
    from .cuda_pixels import Frame
    from .tensorrt import GpuFrame, TensorRTBackend

NAMES = ("auto", "tensorrt", "onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime", "reference")
AUTOMATIC = ("tensorrt", "onnxruntime-cuda", "onnxruntime", "reference")
"""What "auto" tries, fastest first. Not onnxruntime-tensorrt: it builds engines for minutes during the first calls."""


class Backend(Protocol):
    name: str

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]: ...


class Answers(Protocol):
    """Known answers by network; a `Bundle` has them."""

    name: str

    def known_answer(self, network: str) -> tuple[dict[str, np.ndarray], list[np.ndarray]]: ...


class _Tested:
    """Runs each network on the first of `candidates` that reproduces the network's known answer.

    They are tried when the network is first used. All have one name: they differ in speed.
    """

    def __init__(self, candidates: Sequence[Backend], bundle: Answers) -> None:
        self._candidates, self._bundle = candidates, bundle
        self._chosen: dict[str, Backend] = {}
        self.name = candidates[0].name

    @property
    def inner(self) -> Backend:
        """The backend that was chosen first, for the smallest network; one for whole networks if there is any."""
        chosen = list(self._chosen.values())
        return next((backend for backend in chosen if not hasattr(backend, "runs")), chosen[0])

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return self.choose(network).run(network, inputs)

    def choose(self, network: str) -> Backend:
        """The backend that runs `network`. Raises MachineError, the first candidate's, where none is exact."""
        if network not in self._chosen:
            self._chosen[network] = self._first_exact(network)
        return self._chosen[network]

    def _first_exact(self, network: str) -> Backend:
        failures = []
        for candidate in self._candidates:
            if not getattr(candidate, "runs", lambda _: True)(network):
                continue
            try:
                check_known_answer(candidate, self._bundle, network)
                return candidate
            except MachineError as error:
                failures.append(error)
        raise failures[0]

    @contextmanager
    def layer_times(self) -> Iterator[list[LayerTime]]:
        """Of the backends chosen so far."""
        times: list[LayerTime] = []
        with ExitStack() as stack:
            parts = [stack.enter_context(layer_times(backend)) for backend in dict.fromkeys(self._chosen.values())]
            yield times
        for part in parts:
            times += part


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


def layer_times(backend: Backend) -> AbstractContextManager[list[LayerTime]]:
    """While open, `backend` times its layers; the list is filled at the end. MachineError where it cannot."""
    if not hasattr(backend, "layer_times"):
        raise MachineError(f"backend {backend.name} cannot time its layers: use --backend onnxruntime or tensorrt")
    return backend.layer_times()


class _WithFallback:
    """TensorRT, and for calls that it cannot compute the next best backend: the bits are the same, the time is not."""

    def __init__(self, first: TensorRTBackend, fallback: Callable[[], Backend]) -> None:
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
        return second.run(network, {name: np.asarray(value) for name, value in inputs.items()})

    def gpu_frame(self, frame: Frame) -> GpuFrame:
        """A frame in the GPU's memory for `Codec.encode_frame`; what falls back is copied."""
        return self._first.gpu_frame(frame)

    def layer_times(self) -> AbstractContextManager[list[LayerTime]]:
        """Of the first backend's calls only."""
        return layer_times(self._first)


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
    """On the CPU, network by network the fastest kernels that are exact here; the smallest network is tried at once."""
    from .filters import FilterBackend
    from .onnxruntime import KERNELS, PROVIDERS, OnnxRuntimeBackend

    qdq = bundle.graphs("qdq")
    candidates: list[Backend]
    if name in PROVIDERS:
        candidates = [OnnxRuntimeBackend(qdq, threads, name=name)]
    else:
        graphs = bundle.graphs("onnxruntime")
        left = bundle.rest_graphs
        rests = [OnnxRuntimeBackend(left, threads, kernels=kernels) for kernels in KERNELS[:2]] if left else [None]
        candidates = [FilterBackend(bundle.networks, threads, rest) for rest in rests]
        candidates += [
            OnnxRuntimeBackend(qdq if kernels == "float" else graphs, threads, kernels=kernels) for kernels in KERNELS
        ]
    backend = _Tested(candidates, bundle)
    backend.choose(min(qdq, key=lambda network: len(qdq[network])))
    return backend


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
