"""What a profile hands on: one JSON-ready document with every sample, from which all reports are made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import host, peak_memory
from .accounting import stage_seconds
from .figures import summarise
from .pipeline import Pass

if TYPE_CHECKING:
    from .session import Session

FORMAT = "linnet-profile/1"


def build(session: Session) -> dict[str, Any]:
    """The document; `summary` is empty where no frame was measured.

    Spans are [stage, thread, start, end, detail] in microseconds from the start of their frame.
    """
    request, pipeline = session.request, session.pipeline
    origin = min((done.started for passes in session.samples.values() for done in passes), default=0)
    samples = {name: [_sample(done, origin) for done in passes] for name, passes in session.samples.items()}
    measured = all(samples.values())
    return {
        "format": FORMAT,
        "host": host.fingerprint(),
        "partial": session.partial,
        "settings": {
            "bundle": session.bundle.name,
            "bundle_identity": session.bundle.identity,
            "backend": session.backend.name,
            "threads": request.threads,
            "batch": request.batch,
            "quality": request.quality,
            "tile": request.tile,
            "warmup": request.warmup,
        },
        "frame": {
            "source": session.source,
            "width": pipeline.width,
            "height": pipeline.height,
            "bytes": pipeline.coded_bytes,
            "bits_per_pixel": 8 * pipeline.coded_bytes / pipeline.pixels,
        },
        "start": {"open_s": session.open_s, **{f"first_{name}_s": value for name, value in session.first.items()}},
        "resident_mib": session.resident_mib,
        "peak_per_direction": peak_memory.reset_peak(),
        "summary": {n: summarise(n, own, pipeline.pixels) for n, own in samples.items()} if measured else {},
        "layers": session.layer_rows,
        "layer_timeline": {name: _units(session, done) for name, done in session.layer_passes.items()} or None,
        "ceiling": session.ceiling,
        "no_ceiling": session.no_ceiling,
        "energy": _energy(session, origin) if measured else None,
        "samples": samples,
    }


def _sample(done: Pass, origin: int) -> dict[str, Any]:
    shares, busy = stage_seconds(done.spans)
    return {
        "start_s": (done.started - origin) / 1e9,
        "wall_s": done.wall_s,
        "cpu_s": done.cpu_s,
        "peak_mib": done.peak_mib,
        "stages_s": shares,
        "busy_s": busy,
        "spans": _spans(done),
    }


def _spans(done: Pass) -> list[list[Any]]:
    threads = {thread: number for number, thread in enumerate(dict.fromkeys(s.thread for s in done.spans))}
    return [
        [s.stage, threads[s.thread], (s.start - done.started) / 1e3, (s.end - done.started) / 1e3, s.detail]
        for s in done.spans
    ]


def _units(session: Session, done: Pass) -> dict[str, Any]:
    """The last timed frame of a direction: its stages, and the engine's units whose start is known."""
    units = []
    for time in session.layer_times:
        if time.start is not None and 0 <= time.start - done.started <= 1e9 * done.wall_s:
            start_us = (time.start - done.started) / 1e3
            units.append([time.network, time.layer, time.operator, start_us, 1e6 * time.seconds])
    return {"spans": _spans(done), "units": units}


def _energy(session: Session, origin: int) -> dict[str, Any] | None:
    if session.meter is None or not session.meter.has_readings:
        return None
    passes = {name: [(done.started, done.wall_s) for done in own] for name, own in session.samples.items()}
    return session.meter.report(passes, session.pipeline.pixels, origin)
