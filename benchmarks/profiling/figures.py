"""What the samples of a run say: percentiles, jitter, shares of the wall time, throughput."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...runtime.stages import CONTAINER, ENTROPY, LAYOUT, READ, WRITE
from .pipeline import DECODE, ENCODE, NETWORK

PERCENTILES = (50, 90, 95, 99)


def distribution(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds: mean, p50 to p99 (linear between samples), max, and jitter.

    Jitter is the mean absolute difference of successive frames, as of packets in RFC 3550 (there smoothed): what a
    buffer has to even out. Of n samples the percentiles above 100 (n - 1) / n only repeat the slowest ones.
    """
    values = np.asarray(seconds, float) * 1e3
    found = {f"p{p}_ms": float(np.percentile(values, p)) for p in PERCENTILES}
    jitter = float(np.abs(np.diff(values)).mean()) if len(values) > 1 else 0.0
    return {"mean_ms": float(values.mean()), **found, "max_ms": float(values.max()), "jitter_ms": jitter}


def stage_order(direction: str, samples: Sequence[Mapping[str, Any]]) -> list[str]:
    """The stages of a direction along a frame's way, the networks in the order in which they are first run."""
    seen = dict.fromkeys(span[0] for sample in samples for span in sample["spans"])
    networks = [stage for stage in seen if stage.startswith(NETWORK)]
    order = {
        ENCODE: [READ, LAYOUT, *networks, ENTROPY, CONTAINER, WRITE],
        DECODE: [READ, CONTAINER, ENTROPY, *networks, LAYOUT, WRITE],
    }[direction]
    return [stage for stage in order if stage in seen] + [stage for stage in seen if stage not in order]


def summarise(direction: str, samples: Sequence[Mapping[str, Any]], pixels: int) -> dict[str, Any]:
    """The figures of one direction. Shares are of the summed wall time of all frames."""
    wall = sum(s["wall_s"] for s in samples)
    stages: dict[str, Any] = {}
    for stage in stage_order(direction, samples):
        seconds = [s["stages_s"].get(stage, 0.0) for s in samples]
        busy = sum(s["busy_s"].get(stage, 0.0) for s in samples)
        stages[stage] = {"share": sum(seconds) / wall, "busy_share": busy / wall, **distribution(seconds)}
    accounted = sum(stage["share"] for stage in stages.values())
    networks = sum(stage["share"] for name, stage in stages.items() if name.startswith(NETWORK))
    return {
        "frames": len(samples),
        "total": distribution([s["wall_s"] for s in samples]),
        "stages": stages,
        "accounted_share": accounted,
        "outside_networks_share": 1 - networks,
        "threads_in_stages": sum(stage["busy_share"] for stage in stages.values()) / accounted,
        "megapixels_per_s": len(samples) * pixels / 1e6 / wall,
        "frames_per_s": len(samples) / wall,
        "cpus_busy": sum(s["cpu_s"] for s in samples) / wall,
        "peak_mib": max(s["peak_mib"] for s in samples),
    }
