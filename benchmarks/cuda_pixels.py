"""`python -m linnet.benchmarks.cuda_pixels`: frames to planes and back on a GPU, against its measured copy bandwidth.

Every kernel moves a known number of bytes once, so a plain device-to-device copy is the yardstick: the share of its
bandwidth that a kernel reaches. Both go through more buffers than a cache holds. Needs a CUDA device, and pycuda or
CuPy. The bits are compared with the specification before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np

from ..runtime.backends import cuda_pixels
from ..runtime.backends import pixels_reference as reference
from ..runtime.backends.cuda_pixels import Nv12Frame, PixelKernels, RgbFrame
from ..runtime.backends.pixels_reference import Colour
from ..runtime.errors import Absent, LinnetError, MachineError
from . import host

FORMAT = "linnet-bench-cuda-pixels/1"
SIZE = (3840, 2176)
"""A frame of 3840 x 2160, padded to whole blocks of 64."""
CACHE_BYTES = 512 << 20
"""Buffers take at least this much together: more than a GPU's cache."""
ROUNDS = 20
ASKED = 0.6
"""The share of copy bandwidth that frame-to-planes is meant to reach."""


class Device(Protocol):
    name: str
    kernels: PixelKernels

    def allocate(self, size: int) -> int: ...
    def upload(self, address: int, data: np.ndarray) -> None: ...
    def download(self, address: int, size: int) -> np.ndarray: ...
    def copy(self, to: int, source: int, size: int) -> None: ...
    def milliseconds(self, work: Callable[[], None]) -> float: ...


class CupyDevice:
    """The current device of CuPy."""

    def __init__(self) -> None:
        self.kernels = cuda_pixels.with_cupy()
        import cupy

        self._cupy, self._kept = cupy, []
        self.name = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()

    def allocate(self, size: int) -> int:
        self._kept.append(self._cupy.cuda.alloc(size))
        return int(self._kept[-1].ptr)

    def upload(self, address: int, data: np.ndarray) -> None:
        self._cupy.cuda.runtime.memcpy(address, data.ctypes.data, data.nbytes, 1)

    def download(self, address: int, size: int) -> np.ndarray:
        data = np.empty(size, np.uint8)
        self._cupy.cuda.runtime.memcpy(data.ctypes.data, address, size, 2)
        return data

    def copy(self, to: int, source: int, size: int) -> None:
        self._cupy.cuda.runtime.memcpyAsync(to, source, size, 3, self._cupy.cuda.get_current_stream().ptr)

    def milliseconds(self, work: Callable[[], None]) -> float:
        start, end = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(start, end))


class PycudaDevice:
    """The first device, through pycuda."""

    def __init__(self) -> None:
        try:
            import pycuda.driver as cuda
        except (ImportError, OSError) as error:
            raise Absent(f"pycuda cannot be imported ({error})", "pip install pycuda") from error
        self._cuda, self._kept = cuda, []
        cuda.init()
        device = cuda.Device(0)
        self._context = device.retain_primary_context()
        self._context.push()  # for the rest of the process
        self.name = device.name()
        self.kernels = cuda_pixels.with_pycuda()

    def allocate(self, size: int) -> int:
        self._kept.append(self._cuda.mem_alloc(size))
        return int(self._kept[-1])

    def upload(self, address: int, data: np.ndarray) -> None:
        self._cuda.memcpy_htod(address, data)

    def download(self, address: int, size: int) -> np.ndarray:
        data = np.empty(size, np.uint8)
        self._cuda.memcpy_dtoh(data, address)
        return data

    def copy(self, to: int, source: int, size: int) -> None:
        self._cuda.memcpy_dtod_async(to, source, size)

    def milliseconds(self, work: Callable[[], None]) -> float:
        start, end = self._cuda.Event(), self._cuda.Event()
        start.record()
        work()
        end.record()
        end.synchronize()
        return float(start.time_till(end))


def open_device() -> Device:
    """pycuda's, else CuPy's; raises MachineError where neither finds a device."""
    reasons = []
    for open_one in (PycudaDevice, CupyDevice):
        try:
            return open_one()
        except Exception as error:  # without a device each library raises what it likes
            reasons.append(getattr(error, "detail", str(error)))
    raise MachineError(f"nothing to measure: {'; '.join(reasons)}; pip install pycuda or CuPy where a CUDA device is")


def measure(device: Device, size: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Milliseconds per frame of a copy and of each kernel, one sample a round, in turns; and the bytes each moves."""
    width, height = size
    pixels = width * height
    count = max(2, -(-CACHE_BYTES // (6 * pixels)))
    frames, planes = ([device.allocate(3 * pixels) for _ in range(count)] for _ in range(2))
    rng = np.random.default_rng(0)
    for address in [*frames, *planes]:
        device.upload(address, rng.integers(0, 256, 3 * pixels, np.uint8))
    kernels, blocks = device.kernels, (width // 2, height // 2)

    def rgb(address: int) -> RgbFrame:
        return RgbFrame(address, width, height, 3 * width)

    def nv12(address: int) -> Nv12Frame:
        return Nv12Frame(address, address + pixels, width, height, width, width)

    works: dict[str, tuple[float, Callable[[int, int], None]]] = {
        "copy": (6, lambda frame, to: device.copy(to, frame, 3 * pixels)),
        "rgb_to_planes": (6, lambda frame, to: kernels.to_planes(rgb(frame), 0, 0, width, height, to)),
        "nv12_to_planes": (4.5, lambda frame, to: kernels.to_planes(nv12(frame), 0, 0, width, height, to)),
        "planes_to_rgb": (6, lambda frame, to: kernels.from_planes(to, blocks, 0, 0, rgb(frame))),
        "planes_to_nv12": (4.5, lambda frame, to: kernels.from_planes(to, blocks, 0, 0, nv12(frame))),
    }
    samples: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, (_, work) in works.items():

            def all_frames(work: Callable[[int, int], None] = work) -> None:
                for frame, to in zip(frames, planes, strict=True):
                    work(frame, to)

            elapsed = device.milliseconds(all_frames) / count
            if number:  # the first round warms up
                samples[name].append(elapsed)
    return {
        "size": list(size),
        "bytes_per_pixel": {name: moved for name, (moved, _) in works.items()},
        "ms_per_frame": samples,
    }


def check(device: Device) -> None:
    """Raise MachineError unless a small frame gives the specified bits here."""
    rng, colour = np.random.default_rng(1), Colour()
    luma, chroma = rng.integers(0, 256, (50, 70), np.uint8), rng.integers(0, 256, (25, 35, 2), np.uint8)
    addresses = [device.allocate(data.nbytes) for data in (luma, chroma)]
    for address, data in zip(addresses, (luma, chroma), strict=True):
        device.upload(address, data)
    expected = reference.rgb_to_planes(reference.nv12_to_rgb(luma, chroma, colour), -8, -6, 96, 80)
    planes = device.allocate(expected.nbytes)
    device.kernels.to_planes(Nv12Frame(*addresses, 70, 50, 70, 70, colour), -8, -6, 96, 80, planes)
    if not np.array_equal(device.download(planes, expected.nbytes), expected.reshape(-1).view(np.uint8)):
        raise MachineError(f"nv12_to_planes computes other bits than its specification on {device.name}")


def summarise(document: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of each kernel the median time, gigabytes and gigapixels per second, and its share of the copy's bandwidth."""
    pixels, moved = document["size"][0] * document["size"][1], document["bytes_per_pixel"]
    copies = document["ms_per_frame"]["copy"]
    summary = {}
    for name, times in document["ms_per_frame"].items():
        shares = [moved[name] / moved["copy"] * copy / own for copy, own in zip(copies, times, strict=True)]
        ms = median(times)
        summary[name] = {
            "ms": ms,
            "gigabytes_per_s": moved[name] * pixels / ms / 1e6,
            "gigapixels_per_s": pixels / ms / 1e6,
            "share_of_copy": median(shares),
            "lowest_share": min(shares),
        }
    return summary


def format_table(document: dict[str, Any]) -> str:
    width, height = document["size"]
    lines = [
        f"{width}x{height} on {document['device']}, {len(document['ms_per_frame']['copy'])} rounds; to planes at least "
        f"{ASKED:.0%} of copy bandwidth is asked",
        f"{'kernel':<16}{'ms':>9}{'GB/s':>9}{'GP/s':>9}{'of copy':>10}{'lowest':>10}",
    ]
    for name, row in document["summary"].items():
        lines.append(
            f"{name:<16}{row['ms']:>9.3f}{row['gigabytes_per_s']:>9.0f}{row['gigapixels_per_s']:>9.2f}"
            f"{row['share_of_copy']:>10.1%}{row['lowest_share']:>10.1%}"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m linnet.benchmarks.cuda_pixels", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, choices=range(1, 1001), default=ROUNDS, metavar="N", help="else 20")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples here")
    options = parser.parse_args(argv)
    try:
        device = open_device()
        check(device)
    except LinnetError as error:
        print(f"linnet: {error}", file=sys.stderr)
        return error.exit_status
    document = {"format": FORMAT, "host": host.fingerprint(), "device": device.name}
    document |= measure(device, SIZE, options.rounds)
    document["summary"] = summarise(document)
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(format_table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
