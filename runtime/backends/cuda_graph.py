"""CUDA graphs: work that was enqueued once on a stream, replayed with a single call.

pycuda has no interface to them, so these few functions of the driver's own C library are called directly. They exist
under these names since CUDA 11.4.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from ..errors import MachineError

LIBRARY = "libcuda.so.1"
THREAD_LOCAL = 1
"""Capture mode: what other threads do meanwhile neither fails nor enters the graph."""
_HANDLE, _POINTER = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
FUNCTIONS = {
    "cuStreamBeginCapture_v2": (_HANDLE, ctypes.c_int),
    "cuStreamEndCapture": (_HANDLE, _POINTER),
    "cuGraphInstantiateWithFlags": (_POINTER, _HANDLE, ctypes.c_ulonglong),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuGraphExecDestroy": (_HANDLE,),
    "cuGraphDestroy": (_HANDLE,),
}
"""Name -> parameter types; all return 0 for success."""


@cache
def driver() -> Any:
    """The CUDA driver's library with typed functions."""
    try:
        library = ctypes.CDLL(LIBRARY)
        for name, parameters in FUNCTIONS.items():
            getattr(library, name).argtypes = parameters
    except (OSError, AttributeError) as error:
        raise MachineError(f"{LIBRARY} has no CUDA graphs ({error}): update the driver") from error
    return library


def _call(name: str, *arguments: object) -> None:
    status = getattr(driver(), name)(*arguments)
    if status:
        raise MachineError(f"{name} failed with CUDA error {status}")


class Graph:
    """What `enqueue` puts on the stream `handle`, captured without being run. The CUDA context must be current."""

    def __init__(self, handle: int, enqueue: Callable[[], None]) -> None:
        graph, self._executable = _HANDLE(), _HANDLE()
        _call("cuStreamBeginCapture_v2", handle, THREAD_LOCAL)
        try:
            enqueue()
        finally:
            # Also after an error: a stream that is left capturing can do nothing else.
            _call("cuStreamEndCapture", handle, ctypes.byref(graph))
        try:
            _call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, 0)
        finally:
            _call("cuGraphDestroy", graph)

    def launch(self, handle: int) -> None:
        """Run it on the stream `handle`."""
        _call("cuGraphLaunch", self._executable, handle)

    def destroy(self) -> None:
        _call("cuGraphExecDestroy", self._executable)
