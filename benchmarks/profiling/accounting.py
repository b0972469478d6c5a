"""From the spans of a frame to seconds per stage that add up to its wall time, also where threads overlap."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

from ...runtime.stages import Span


class Interval(NamedTuple):
    """Nanoseconds in which a thread was in `stage` and in no stage inside it."""

    start: int
    end: int
    stage: str


def innermost(spans: Iterable[Span]) -> list[Interval]:
    """The spans of one thread, which nest, cut into intervals of the innermost stage: disjoint, in order of time."""
    intervals: list[Interval] = []
    open_spans: list[Span] = []
    now = 0

    def advance(until: int) -> None:
        nonlocal now
        if open_spans and until > now:
            intervals.append(Interval(now, until, open_spans[-1].stage))
        now = max(now, until)

    def close(until: int) -> None:
        while open_spans and open_spans[-1].end <= until:
            advance(open_spans[-1].end)
            open_spans.pop()

    for span in sorted(spans, key=lambda s: (s.start, -s.end)):
        close(span.start)
        advance(span.start)
        open_spans.append(span)
        now = span.start
    close(max((span.end for span in open_spans), default=0))
    return intervals


def stage_seconds(spans: Sequence[Span]) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds per stage as (share of the wall time, time that threads were busy).

    At a moment when k threads are in stages, each of these stages gets 1/k of it: the shares add up to the time in
    which any thread was in a stage. Busy times count every thread in full; with one thread both are the same.
    """
    by_thread = groupby(sorted(spans, key=lambda s: s.thread), key=lambda s: s.thread)
    intervals = [interval for _, own in by_thread for interval in innermost(own)]
    busy: dict[str, float] = defaultdict(float)
    edges: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for start, end, stage in intervals:
        busy[stage] += (end - start) / 1e9
        edges[start].append((stage, 1))
        edges[end].append((stage, -1))
    share: dict[str, float] = defaultdict(float)
    active: dict[str, int] = defaultdict(int)
    for moment, following in pairwise(sorted(edges)):
        for stage, change in edges[moment]:
            active[stage] += change
        threads = sum(active.values())
        for stage, count in active.items():
            if count:
                share[stage] += (following - moment) / 1e9 * count / threads
    return dict(share), dict(busy)
