"""The kernels of `pixels.cu`: their specification against the CPU's path, the kernels against their specification.

The very source of the kernels runs here on the CPU, thread by thread and under the sanitizers, called through the same
Python code as on a GPU; nvcc compiles it for the GPUs that matter; and where there is a GPU it runs on that, too.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linnet.benchmarks import cuda_pixels as benchmark
from linnet.runtime import core
from linnet.runtime.backends import cuda_pixels
from linnet.runtime.backends import pixels_reference as reference
from linnet.runtime.backends.cuda_pixels import KERNELS, SOURCE, Nv12Frame, PixelKernels, RgbFrame
from linnet.runtime.backends.pixels_reference import Colour
from linnet.runtime.errors import Absent, MachineError, UsageError

DRIVER = Path(__file__).parent / "native" / "run_pixels.cc"
COLOURS = [Colour(matrix, full_range) for matrix in reference.WEIGHTS for full_range in (False, True)]
ARCHITECTURES = ("compute_87", "compute_90", "compute_110", "compute_101")
"""Orin, servers with Hopper, Thor (renamed between CUDA 12 and 13)."""


class CpuDevice:
    """The driver of `run_pixels.cc` as a device: memory by address, kernels in a process under the sanitizers."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._buffers: dict[int, np.ndarray] = {}
        self.kernels = PixelKernels(self._launch)

    def put(self, data: np.ndarray, distance: int = 0) -> int:
        """The address of a copy of `data`, `distance` bytes beyond a multiple of 16."""
        address = (max(self._buffers, default=0) // 2**32 + 1) * 2**32 + distance
        self._buffers[address] = np.array(data).reshape(-1).view(np.uint8)
        return address

    def get(self, address: int) -> np.ndarray:
        return self._buffers[address]

    def _launch(self, name: str, grid: Any, block: Any, arguments: Sequence[Any], stream: Any) -> None:
        tails, numbers = [], []
        for argument in arguments:
            if isinstance(argument, np.uintp):
                start = max(address for address in self._buffers if address <= argument)
                tails.append((int(argument) % 16, self._buffers[start][int(argument) - start :]))
            else:
                assert isinstance(argument, np.int32)
                numbers.append(argument)
        message = np.array([KERNELS.index(name), *grid, *block, len(tails), len(numbers)], np.int32).tobytes()
        for distance, tail in tails:
            message += np.array([tail.size, distance], np.int32).tobytes() + tail.tobytes()
        self._process.stdin.write(message + np.array(numbers, np.int32).tobytes())
        self._process.stdin.flush()
        for _, tail in tails:
            answer = self._process.stdout.read(tail.size)
            assert len(answer) == tail.size, "the kernel touched what it must not: see stderr"
            tail[:] = np.frombuffer(answer, np.uint8)

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


class CupyDevice:
    """A real GPU through CuPy, with the interface of `CpuDevice`."""

    def __init__(self) -> None:
        import cupy

        self._cupy = cupy
        self._buffers: dict[int, Any] = {}
        self.kernels = cuda_pixels.with_cupy()

    def put(self, data: np.ndarray, distance: int = 0) -> int:
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        array = self._cupy.zeros(data.size + distance, np.uint8)[distance:]
        array.set(data)
        self._buffers[array.data.ptr] = array
        return array.data.ptr

    def get(self, address: int) -> np.ndarray:
        return self._buffers[address].get()

    def close(self) -> None: ...


class PycudaDevice:
    """A real GPU through pycuda, with the interface of `CpuDevice`."""

    def __init__(self) -> None:
        import pycuda.driver as cuda

        cuda.init()
        self._cuda, self._context = cuda, cuda.Device(0).retain_primary_context()
        self._context.push()
        self._buffers: dict[int, tuple[Any, int]] = {}
        self.kernels = cuda_pixels.with_pycuda()

    def put(self, data: np.ndarray, distance: int = 0) -> int:
        data = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        allocation = self._cuda.mem_alloc(data.size + distance)
        address = int(allocation) + distance
        self._cuda.memcpy_htod(address, data)
        self._buffers[address] = allocation, data.size
        return address

    def get(self, address: int) -> np.ndarray:
        data = np.empty(self._buffers[address][1], np.uint8)
        self._cuda.memcpy_dtoh(data, address)
        return data

    def close(self) -> None:
        self._buffers.clear()
        self._context.pop()
        self._context.detach()


@pytest.fixture(scope="module", params=["cpu", "pycuda", "cupy"])
def device(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "cpu":
        opened: Any = CpuDevice(request.getfixturevalue("program"))
    else:
        module = pytest.importorskip(request.param, reason=f"needs {request.param} and a CUDA device")
        try:
            opened = CupyDevice() if request.param == "cupy" else PycudaDevice()
        except Exception as error:  # what each raises without a device is its own
            pytest.skip(f"{module.__name__} is here, but no CUDA device: {error}")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels as a program for this processor."""
    folder = tmp_path_factory.mktemp("kernels")
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = folder / "run_pixels"
    flags = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fno-strict-aliasing"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([compiler, *flags, *sanitizers, f"-I{SOURCE.parent}", "-o", program, DRIVER], check=True)
    return program


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def in_rows(rows: np.ndarray, stride: int) -> np.ndarray:
    """Rows of bytes `stride` apart, without anything after the last one."""
    spread = np.full((len(rows), stride), 0x55, np.uint8)
    spread[:, : rows.shape[1]] = rows
    return spread.reshape(-1)[: stride * (len(rows) - 1) + rows.shape[1]]


# The specification


@pytest.mark.parametrize(("width", "height"), [(37, 21), (64, 48), (1, 1), (3, 40)])
@pytest.mark.parametrize("region", [(0, 0, 32, 16), (-16, -10, 64, 64), (34, 20, 16, 2), (100, 80, 8, 8), (3, 5, 8, 4)])
def test_rgb_is_laid_out_like_on_the_cpu(width: int, height: int, region: tuple[int, int, int, int]) -> None:
    frame = noise(height, width, 3)
    planes = reference.rgb_to_planes(frame, *region)
    np.testing.assert_array_equal(planes, core.pixels_to_planes(frame, *region))
    crop = (1, 0, region[2] - 3, region[3] - 1)
    np.testing.assert_array_equal(reference.planes_to_rgb(planes, *crop), core.planes_to_pixels(planes, crop))


@pytest.mark.parametrize("colour", COLOURS, ids=str)
def test_colours_are_those_of_the_standards(colour: Colour) -> None:
    """Within half a step of the formulas in floating point; grey and the ends of the range exactly."""
    red, blue = (float(weight) for weight in reference.WEIGHTS[colour.matrix])
    luma_span, chroma_span = (255, 255) if colour.full_range else (219, 224)
    rgb = noise(64, 64, 3).repeat(2, 0).repeat(2, 1)
    r, g, b = np.moveaxis(rgb / 255, 2, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    pairs = np.stack([(b - y) / (2 * (1 - blue)), (r - y) / (2 * (1 - red))], axis=2)
    luma, chroma = reference.rgb_to_nv12(rgb, colour)
    assert np.abs(luma - (colour.y_offset + luma_span * y)).max() < 0.52
    exact = np.clip(128 + chroma_span * pairs[::2, ::2], 0, 255)
    assert np.abs(chroma - exact).max() < 0.52

    back = reference.nv12_to_rgb(luma, chroma, colour)
    y, u, v = (luma - float(colour.y_offset)) / luma_span, *np.moveaxis((chroma - 128.0) / chroma_span, 2, 0)
    u, v = u.repeat(2, 0).repeat(2, 1), v.repeat(2, 0).repeat(2, 1)
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    exact = np.stack([r, (y - red * r - blue * b) / (1 - red - blue), b], axis=2)
    assert np.abs(back - np.clip(255 * exact, 0, 255)).max() < 0.52
    assert np.abs(back - rgb.astype(int)).max() <= (2 if colour.full_range else 3)

    greys = np.arange(256, dtype=np.uint8).repeat(12).reshape(2, -1, 3)
    luma, chroma = reference.rgb_to_nv12(greys, colour)
    assert (chroma == 128).all()
    assert (luma.min(), luma.max()) == ((0, 255) if colour.full_range else (16, 235))
    np.testing.assert_array_equal(np.ptp(reference.nv12_to_rgb(luma, chroma, colour).astype(int), axis=2), 0)


def test_luma_below_black_and_above_white_is_clipped() -> None:
    luma, chroma = np.array([[0, 15], [236, 255]], np.uint8), np.full((1, 1, 2), 128, np.uint8)
    assert reference.nv12_to_rgb(luma, chroma, Colour())[..., 0].tolist() == [[0, 0], [255, 255]]


def test_an_unknown_matrix_is_refused() -> None:
    with pytest.raises(UsageError, match="'bt2020' is not known: use one of bt601, bt709"):
        Colour("bt2020")


# The kernels against it

REGIONS = [
    (0, 0, 32, 16), (-16, -10, 64, 64), (16, 8, 24, 6), (34, 20, 16, 2), (100, 80, 8, 8), (-64, -64, 16, 16),
    (2, 4, 400, 8),
]  # fmt: skip


@pytest.mark.parametrize(("width", "height"), [(64, 48), (37, 21), (350, 18), (1, 1), (3, 40)])
def test_rgb_to_planes(device: Any, width: int, height: int) -> None:
    pixels = noise(height, width, 3)
    rows = (3 * width, 0), (3 * width + 5, 0), (3 * width + 1, 3), (4 * width + 64, 2)
    for (stride, distance), region in itertools.product(rows, REGIONS):
        frame = RgbFrame(device.put(in_rows(pixels.reshape(height, -1), stride), distance), width, height, stride)
        expected = core.pixels_to_planes(pixels, *region)
        planes = device.put(np.zeros_like(expected))
        device.kernels.to_planes(frame, *region, planes)
        np.testing.assert_array_equal(device.get(planes), expected.reshape(-1).view(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(64, 48), (38, 22), (350, 18), (2, 2), (6, 40)])
def test_nv12_to_planes(device: Any, width: int, height: int) -> None:
    luma, chroma = noise(height, width), noise(height // 2, width // 2, 2, seed=1)
    rows = zip((width, width + 3, width + 64, width), (0, 1, 2, 0), COLOURS, strict=True)
    for (stride, distance, colour), region in itertools.product(rows, REGIONS):
        frame = Nv12Frame(
            device.put(in_rows(luma, stride), distance),
            device.put(in_rows(chroma.reshape(height // 2, -1), stride + 2), distance),
            width, height, stride, stride + 2, colour,
        )  # fmt: skip
        expected = core.pixels_to_planes(reference.nv12_to_rgb(luma, chroma, colour), *region)
        planes = device.put(np.zeros_like(expected))
        device.kernels.to_planes(frame, *region, planes)
        np.testing.assert_array_equal(device.get(planes), expected.reshape(-1).view(np.uint8))


CROPS = [(0, 0, 64, 32), (8, 2, 40, 20), (6, 10, 30, 16), (62, 30, 2, 2), (16, 0, 2, 32)]


def test_planes_to_rgb_writes_the_window_only(device: Any) -> None:
    planes = noise(16, 32, 12).view(np.int8)
    crops = [*CROPS, (7, 3, 50, 17), (63, 31, 1, 1), (5, 0, 1, 9), (1, 1, 62, 30), (8, 2, 21, 4)]
    for crop, (left, more, distance) in itertools.product(crops, ((0, 0, 0), (8, 72, 0), (8, 73, 0), (3, 28, 5))):
        x, y, width, height = crop
        expected, stride = core.planes_to_pixels(planes, crop), 3 * width + more
        whole = noise(height + 4, stride, seed=3)
        frame = RgbFrame(device.put(whole, distance), stride // 3, height + 4, stride)
        window = frame.window(left, 2, width, height)
        device.kernels.from_planes(device.put(planes), (32, 16), x, y, window)
        whole[2 : 2 + height, 3 * left : 3 * (left + width)] = expected.reshape(height, -1)
        np.testing.assert_array_equal(device.get(frame.address), whole.reshape(-1))


def test_planes_to_nv12_writes_the_window_only(device: Any) -> None:
    planes = noise(16, 32, 12).view(np.int8)
    for crop, (left, colour) in itertools.product(CROPS, zip((0, 8, 6, 2), COLOURS, strict=True)):
        x, y, width, height = crop
        size = width + 16, height + 4
        luma, chroma = noise(size[1], size[0] + 3, seed=3), noise(size[1] // 2, size[0] + 8, seed=4)
        frame = Nv12Frame(device.put(luma), device.put(chroma), *size, luma.shape[1], chroma.shape[1], colour)
        device.kernels.from_planes(device.put(planes), (32, 16), x, y, frame.window(left, 2, width, height))
        y_plane, pairs = reference.rgb_to_nv12(core.planes_to_pixels(planes, crop), colour)
        luma[2 : 2 + height, left : left + width] = y_plane
        chroma[1 : 1 + height // 2, left : left + width] = pairs.reshape(height // 2, -1)
        np.testing.assert_array_equal(device.get(frame.luma), luma.reshape(-1))
        np.testing.assert_array_equal(device.get(frame.chroma), chroma.reshape(-1))


def test_every_colour_survives_the_kernels(device: Any) -> None:
    """All luma with a grid over chroma to RGB, a grid over RGB to NV12: clipping at every end."""
    steps = np.array([0, 1, 15, 16, 17, 64, 127, 128, 129, 200, 235, 240, 241, 254, 255], np.uint8)
    u, v = (part.reshape(-1) for part in np.meshgrid(steps, steps))
    chroma = np.stack([u, v], axis=1)[:, None].repeat(64, axis=1)
    luma = np.arange(256, dtype=np.uint8).reshape(64, 4).repeat(len(u), 0).reshape(64, len(u), 2, 2)
    luma = np.ascontiguousarray(luma.transpose(1, 2, 0, 3)).reshape(2 * len(u), 128)
    height, width = luma.shape
    rgb = np.stack(np.meshgrid(*[steps] * 3), axis=3).reshape(-1, 3)
    rgb = np.resize(rgb, (64, 64, 3))
    for colour in COLOURS:
        frame = Nv12Frame(device.put(luma), device.put(chroma), width, height, width, width, colour)
        planes = device.put(np.zeros(3 * luma.size, np.uint8))
        device.kernels.to_planes(frame, 0, 0, width, height, planes)
        expected = reference.rgb_to_planes(reference.nv12_to_rgb(luma, chroma, colour), 0, 0, width, height)
        np.testing.assert_array_equal(device.get(planes), expected.reshape(-1).view(np.uint8))

        planes = device.put(reference.rgb_to_planes(rgb, 0, 0, 64, 64))
        out = Nv12Frame(
            device.put(np.zeros(4096, np.uint8)), device.put(np.zeros(2048, np.uint8)), 64, 64, 64, 64, colour
        )
        device.kernels.from_planes(planes, (32, 32), 0, 0, out)
        for address, want in zip((out.luma, out.chroma), reference.rgb_to_nv12(rgb, colour), strict=True):
            np.testing.assert_array_equal(device.get(address), want.reshape(-1))


# What is refused, before a kernel runs


def kernels_that_must_not_run() -> PixelKernels:
    def launch(*_: object) -> None:
        raise AssertionError("a kernel was started")

    return PixelKernels(launch)


@pytest.mark.parametrize(
    ("region", "planes", "said"),
    [
        ((1, 0, 16, 16), 0, "x, y and height must be even"),
        ((0, 0, 12, 16), 0, "a multiple of 8"),
        ((0, 0, 0, 16), 0, "a multiple of 8"),
        ((1 << 40, 0, 16, 16), 0, "out of range"),
        ((0, 0, 16, 1 << 18), 0, "out of range"),
        ((0, 0, 16, 16), 8, "a multiple of 16 is needed"),
    ],
)
def test_regions_are_checked(region: tuple[int, int, int, int], planes: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        kernels_that_must_not_run().to_planes(RgbFrame(0, 64, 64, 192), *region, planes)


def test_closed_kernels_say_so() -> None:
    kernels = kernels_that_must_not_run()
    kernels.close()
    with pytest.raises(UsageError, match="the kernels are closed"):
        kernels.to_planes(RgbFrame(0, 64, 64, 192), 0, 0, 16, 16, 0)


def test_frames_and_windows_are_checked() -> None:
    nv12 = Nv12Frame(0, 0, 64, 64, 64, 64)
    for said, frame in {
        "sides must be 1 to": lambda: RgbFrame(0, 0, 5, 15),
        "cannot lie 14 bytes apart": lambda: RgbFrame(0, 5, 5, 14),
        "cannot lie 62 bytes apart": lambda: Nv12Frame(0, 0, 64, 64, 64, 62),
        "its sides must be even": lambda: Nv12Frame(0, 0, 63, 64, 64, 64),
        "both must be even": lambda: nv12.window(1, 0, 2, 2),
        "not inside the frame of 64x64": lambda: nv12.window(60, 0, 6, 2),
        "leaves planes of 64x64 pixels": lambda: kernels_that_must_not_run().from_planes(0, (32, 32), 2, 0, nv12),
        "NV12 cannot begin at": lambda: kernels_that_must_not_run().from_planes(0, (64, 64), 1, 0, nv12),
        "must be a multiple of 4": lambda: kernels_that_must_not_run().from_planes(0, (33, 32), 0, 0, nv12),
    }.items():
        with pytest.raises(UsageError, match=said):
            frame()


# The benchmark


class TimedCpuDevice(CpuDevice):
    """`CpuDevice` as the benchmark uses a device; a copy takes one millisecond, each kernel two."""

    name = "a processor"

    def allocate(self, size: int) -> int:
        return self.put(np.zeros(size, np.uint8))

    def upload(self, address: int, data: np.ndarray) -> None:
        self.get(address)[:] = data.reshape(-1).view(np.uint8)

    def download(self, address: int, size: int) -> np.ndarray:
        return self.get(address)[:size]

    def copy(self, to: int, source: int, size: int) -> None:
        self.get(to)[:size] = self.get(source)[:size]
        self.copied = True

    def milliseconds(self, work: Any) -> float:
        self.copied = False
        work()
        return 2.0 if self.copied else 4.0  # for two frames


def test_the_benchmark_measures_every_kernel(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = TimedCpuDevice(program)
    monkeypatch.setattr(benchmark, "open_device", lambda: measured)
    monkeypatch.setattr(benchmark, "SIZE", (64, 32))
    monkeypatch.setattr(benchmark, "CACHE_BYTES", 1)
    assert benchmark.main(["--rounds", "3", "--json", str(tmp_path / "samples.json")]) == 0
    measured.close()
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[2:]}
    assert set(rows) == {"copy", *KERNELS}
    assert rows["copy"][0] == "1.000"
    assert rows["rgb_to_planes"][-2:] == ["50.0%", "50.0%"]
    assert rows["nv12_to_planes"][-1] == "37.5%"
    document = json.loads((tmp_path / "samples.json").read_text())
    assert document["ms_per_frame"]["planes_to_rgb"] == [2.0] * 3
    assert document["host"]["cores"]


def test_the_benchmark_refuses_kernels_with_other_bits(program: Path) -> None:
    wrong = TimedCpuDevice(program)
    wrong.kernels = PixelKernels(lambda *_: None)
    with pytest.raises(MachineError, match="computes other bits than its specification on a processor"):
        benchmark.check(wrong)
    wrong.close()


def test_without_a_device_the_benchmark_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("pycuda", "pycuda.driver", "cupy"):
        monkeypatch.setitem(sys.modules, name, None)
    assert benchmark.main([]) == 3
    assert re.fullmatch(r"linnet: nothing to measure: pycuda .*; cupy .*; pip install .*\n", capsys.readouterr().err)


# Compiling


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvcc_compiles_the_kernels(architecture: str, tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("needs nvcc of the CUDA toolkit")
    known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout.split()
    if architecture not in known:
        pytest.skip(f"this nvcc does not know {architecture}")
    ptx = tmp_path / "pixels.ptx"
    command = [nvcc, "--ptx", f"-arch={architecture}", *cuda_pixels.OPTIONS, "-Werror", "all-warnings", "-o", ptx]
    subprocess.run([*command, SOURCE], check=True)
    text = ptx.read_text()
    assert all(f".entry {name}(" in text for name in KERNELS)
    assert ".local" not in text, "a kernel keeps an array in memory"


@pytest.mark.parametrize(("module", "load"), [("pycuda", "with_pycuda"), ("cupy", "with_cupy")])
def test_a_missing_library_is_named(module: str, load: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Absent, match=f"{module} cannot be imported"):
        getattr(cuda_pixels, load)()
