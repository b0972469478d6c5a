"""Which stage of coding each thread is in, and when: the clock of `linnet profile`. Off unless somebody records.

Marks stand on functions that do a whole piece of a frame or a batch of tiles, never on a row or a tile. While nobody
records, a mark is one comparison per batch and reads no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from threading import get_ident
from time import perf_counter_ns
from typing import NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

READ = "read"
LAYOUT = "colour and layout"
"""Pixels to planes and back, and everything that moves pixels or latents between tiles, pieces and batches."""
ENTROPY = "entropy coding"
"""With quantisation."""
CONTAINER = "container"
WRITE = "write"


class Span(NamedTuple):
    """A thread was in `stage` from `start` to `end` (nanoseconds of `perf_counter_ns`), less the spans inside."""

    stage: str
    thread: int
    start: int
    end: int
    detail: str


class Recorder:
    """Collects the spans of all threads, in the order in which they end."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    @contextmanager
    def span(self, stage: str, detail: str = "") -> Iterator[None]:
        started = perf_counter_ns()
        try:
            yield
        finally:
            self.spans.append(Span(stage, get_ident(), started, perf_counter_ns(), detail))


_recorder: Recorder | None = None


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Record all stages of all threads of this process; one recorder at a time."""
    global _recorder
    if _recorder is not None:
        raise RuntimeError("another recorder is at work in this process")
    _recorder = recorder
    try:
        yield
    finally:
        _recorder = None


def stage(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Mark a function as a stage. For functions that are called per batch, not per row."""

    def mark(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def marked(*args: P.args, **kwargs: P.kwargs) -> R:
            if _recorder is None:
                return function(*args, **kwargs)
            with _recorder.span(name):
                return function(*args, **kwargs)

        return marked

    return mark
