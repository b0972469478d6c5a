"""A profile as a Chrome trace: open it in Perfetto (ui.perfetto.dev) or chrome://tracing.

The Trace Event Format: complete events ("X") and counters ("C") in microseconds, named by metadata events ("M").
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

FRAMES, LAYERS, POWER = 1, 2, 3
"""The trace's processes."""
LAYER_THREAD = 100
GAP_US = 10_000


def events(document: Mapping[str, Any]) -> dict[str, Any]:
    """The trace, JSON-ready."""
    return {"traceEvents": [*_frames(document), *_layers(document), *_power(document)], "displayTimeUnit": "ms"}


def _frames(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield _name("process_name", FRAMES, 0, "measured frames")
    seen: set[int] = set()
    for direction, samples in document["samples"].items():
        for number, sample in enumerate(samples):
            start = 1e6 * sample["start_s"]
            yield _event(FRAMES, 0, f"{direction} frame {number}", "frame", start, 1e6 * sample["wall_s"])
            for stage, thread, began, ended, detail in sample["spans"]:
                seen.add(thread)
                yield _event(FRAMES, thread, stage, direction, start + began, ended - began, detail)
    for thread in sorted(seen):
        yield _name("thread_name", FRAMES, thread, f"thread {thread}")


def _layers(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    start = 0.0
    for direction, frame in (document["layer_timeline"] or {}).items():
        if not start:
            yield _name("process_name", LAYERS, 0, "layers, in a pass of their own")
            yield _name("thread_name", LAYERS, LAYER_THREAD, "layers")
        for stage, thread, began, ended, detail in frame["spans"]:
            yield _event(LAYERS, thread, stage, direction, start + began, ended - began, detail)
        for network, unit, operator, began, took in frame["units"]:
            yield _event(LAYERS, LAYER_THREAD, unit, network, start + began, took, operator)
        start += GAP_US + max(span[3] for span in frame["spans"])


def _power(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for moment, watts in (document["energy"] or {}).get("samples", []):
        yield {"ph": "C", "pid": POWER, "tid": 0, "name": "power in W", "ts": 1e6 * moment, "args": {"total": watts}}


def _event(
    process: int, thread: int, name: str, category: str, start_us: float, took_us: float, detail: str = ""
) -> dict[str, Any]:
    arguments = {"args": {"detail": detail}} if detail else {}
    return {
        "ph": "X", "pid": process, "tid": thread, "name": name, "cat": category, "ts": start_us, "dur": took_us,
        **arguments,
    }  # fmt: skip


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": process, "tid": thread, "name": kind, "args": {"name": name}}
