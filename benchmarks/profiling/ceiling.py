"""How fast this machine could be: the two ceilings of a roofline for ONNX Runtime's integer kernels.

Computing: the fastest of a few large 8-bit convolutions, run as the codec runs its own, through the same engine with
the same settings and threads. Memory: a copy between two arrays larger than the caches, bytes read plus bytes written,
as STREAM's Copy counts them (McCalpin 1995), by as many threads; numpy makes it, since through the engine every run
would also pay for fresh pages. The model is that of Williams, Waterman and Patterson, "Roofline" (2009).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ...runtime.backends.onnxruntime import OnnxRuntimeBackend
from ...runtime.cores import usable_cores
from ...runtime.network import Conv, Network

SIDE = 64
"""Positions across and down: the work is a few milliseconds, so that the best run is one that nobody interrupted."""
CONVOLUTIONS = ((64, 3), (128, 3), (256, 3), (256, 1), (512, 1))
"""(channels in and out, kernel size)."""
RUNS = 15
COPY_BYTES = 64 << 20
COPIES = 15
WEIGHT, BIAS, SHIFT = 2, 1, 12
"""Of any value: the kernels take the same time for all."""


def measure(settings: dict[str, Any], progress: Callable[[], object]) -> dict[str, Any]:
    """The ceilings for OnnxRuntimeBackend with `settings`; raises ImportError where the package onnx is missing."""
    computing = convolutions(settings, progress)
    best = max(computing, key=lambda name: computing[name])
    threads = settings["threads"] or usable_cores()
    return {
        "gmac_per_s": computing[best],
        "gb_per_s": copy_gb_per_s(threads),
        "threads": threads,
        "convolutions": computing,
        "how": f"the best of {RUNS} runs of the best of {len(computing)} convolutions ({best} channels) through the "
        f"same engine; memory: the best of {COPIES} copies of {COPY_BYTES >> 20} MiB by numpy, bytes read and written",
    }


def convolutions(settings: dict[str, Any], progress: Callable[[], object]) -> dict[str, float]:
    """GMAC/s of each convolution, by kernel and channels."""
    from ...calibration.onnx_forms import onnxruntime_form

    found = {}
    for channels, kernel in CONVOLUTIONS:
        network = _convolution(channels, kernel)
        backend = OnnxRuntimeBackend({network.name: onnxruntime_form(network)}, **settings)
        frame = {"x": np.ones((1, SIDE, SIDE, channels), np.int8)}
        with backend.layer_times() as times:
            for _ in range(RUNS):
                backend.run(network.name, frame)
        macs = channels * channels * kernel * kernel * SIDE * SIDE
        found[network.name] = macs / 1e9 / min(t.seconds for t in times if t.operator == "QLinearConv")
        progress()
    return found


def _convolution(channels: int, kernel: int) -> Network:
    weight = np.full((channels, channels, kernel, kernel), WEIGHT, np.int8)
    bias, shift = np.full(channels, BIAS, np.int32), np.full(channels, SHIFT, np.uint8)
    node = Conv("conv", "x", "y", weight, bias, shift, 1, kernel // 2, False)
    return Network(f"{kernel}x{kernel} of {channels}", {"x": channels}, ("y",), (node,))


def copy_gb_per_s(threads: int) -> float:
    share = COPY_BYTES // threads
    pairs = [(np.ones(share, np.uint8), np.zeros(share, np.uint8)) for _ in range(threads)]
    fastest = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(COPIES):
            started = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(*pair), pairs))
            fastest = min(fastest, time.perf_counter() - started)
    return 2 * share * threads / 1e9 / fastest
