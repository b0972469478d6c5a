"""Times encoders and decoders from array to bytes and back, one after another in every round, on one thread.

Interleaving (A B C A B C) lets whatever else the machine does hit all codecs alike; only ratios within a round compare.
Run by `speed` in a process of its own; `time_codecs` and `match_rate` also serve tests directly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import metrics, mosaic
from .codec import LINNET, Codec
from .metrics import Picture


@dataclass
class Timing:
    """The raw samples of one codec, one per round. CPU above wall-clock time means that more than one thread worked."""

    version: str
    about: str
    setting: float
    bytes: int = 0
    bits_per_pixel: float = 0.0
    psnr_rgb: float | None = None
    encode_s: list[float] = field(default_factory=list)
    decode_s: list[float] = field(default_factory=list)
    encode_cpu_s: list[float] = field(default_factory=list)
    decode_cpu_s: list[float] = field(default_factory=list)


def match_rate(codec: Codec, picture: Picture, bits_per_pixel: float) -> float:
    """The setting at which a codec comes nearest to a rate on a picture, interpolated between its listed settings."""

    def log_rate(setting: float) -> float:
        return math.log(8 * len(codec.encode(picture, setting)) / (picture.shape[0] * picture.shape[1]))

    wanted, settings = math.log(bits_per_pixel), codec.settings
    low, high = 0, len(settings) - 1
    rates = {low: log_rate(settings[low]), high: log_rate(settings[high])}
    if wanted <= rates[low]:
        return settings[low]
    if wanted >= rates[high]:
        return settings[high]
    while high - low > 1:
        middle = (low + high) // 2
        rates[middle] = log_rate(settings[middle])
        low, high = (middle, high) if rates[middle] <= wanted else (low, middle)
    share = (wanted - rates[low]) / (rates[high] - rates[low])
    setting = settings[low] + share * (settings[high] - settings[low])
    whole = all(float(s).is_integer() for s in settings)
    return float(round(setting)) if whole else round(setting, 3)


def time_codecs(
    picture: Picture, codecs: Sequence[Codec], settings: Mapping[str, float], repeat: int,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:  # fmt: skip
    """`repeat` rounds over all codecs; bytes and PSNR are those of the first round."""
    timings = {c.name: Timing(c.version, c.about, settings[c.name]) for c in codecs}
    for number in range(repeat):
        for codec in codecs:
            timing = timings[codec.name]
            data, wall, cpu = _timed(lambda codec=codec: codec.encode(picture, settings[codec.name]))
            timing.encode_s.append(wall)
            timing.encode_cpu_s.append(cpu)
            decoded, wall, cpu = _timed(lambda codec=codec, data=data: codec.decode(data))
            timing.decode_s.append(wall)
            timing.decode_cpu_s.append(cpu)
            if number == 0:
                timing.bytes = len(data)
                timing.bits_per_pixel = 8 * len(data) / (picture.shape[0] * picture.shape[1])
                psnr = metrics.psnr_rgb(picture, decoded)
                timing.psnr_rgb = psnr if math.isfinite(psnr) else None
            del data, decoded
            progress()
    return timings


def _timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """What `speed` asks of its child process; see `speed.run` for the request."""
    import cv2
    from tqdm import tqdm

    from . import image_sets
    from .peers import Absent
    from .single_thread import open_codec

    cv2.setNumThreads(1)
    codecs: list[Codec] = []
    absent: dict[str, str] = {}
    for name in request["codecs"]:
        try:
            codecs.append(open_codec(name, request["bundle"], request["backend"]))
        except Absent as reason:
            absent[name] = str(reason)
    if request["images"]:
        photographs = image_sets.find(request["images"])
        pictures, source = [p.read() for p in photographs], f"{len(photographs)} given pictures"
    else:
        pictures, source = mosaic.stand_ins()
    picture = mosaic.build(pictures, request["megapixels"])
    small = mosaic.sample(picture)
    settings = {}
    for codec in codecs:
        settings[codec.name] = match_rate(codec, small, request["bits_per_pixel"])
        if codec.name == LINNET and request["quality"] is not None:
            settings[codec.name] = float(request["quality"])
        codec.decode(codec.encode(small, settings[codec.name]))  # warm-up
    with tqdm(total=request["repeat"] * len(codecs), unit="codec", desc="timing", disable=None) as bar:
        timings = time_codecs(picture, codecs, settings, request["repeat"], bar.update)
    np.save(Path(request["folder"]) / "picture.npy", picture)
    return {
        "picture": {"source": source, "width": picture.shape[1], "height": picture.shape[0]},
        "timings": {name: asdict(timing) for name, timing in timings.items()},
        "absent": absent,
    }


if __name__ == "__main__":
    from linnet.benchmarks.single_thread import answer

    answer(measure)
