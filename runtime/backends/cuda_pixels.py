"""Frames in the GPU's memory to the networks' planes there, and back, by the kernels of `pixels.cu`.

What they compute is stated in `pixels_reference.py`. A kernel reads the frame where it lies, halo and mirrored edges
included, and writes planes where a network's engine reads them; nothing is copied in between. Frames are rows of bytes
("pitch linear"): other layouts, such as the block-linear buffers of Jetson's camera stack, are converted before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Absent, MachineError, UsageError
from ..tiles import MAX_SIDE
from .pixels_reference import Colour

SOURCE = Path(__file__).with_name("pixels.cu")
OPTIONS = ("-std=c++14",)
BLOCK = (96, 2)
"""Threads across and down in one block: three threads for each of 32 groups of four blocks of pixels."""
GROUP_PIXELS = 8
PLANES_ALIGNMENT = 16
MAX_REGION = 1 << 17
"""The longest side of a region, within what CUDA allows of a grid; networks see far smaller ones."""
KERNELS = ("rgb_to_planes", "nv12_to_planes", "planes_to_rgb", "planes_to_nv12")
Launch = Callable[[str, tuple[int, int], tuple[int, int], Sequence[Any], Any], None]
"""Called with a kernel's name, grid, block, arguments (numpy scalars: int32 and, for addresses, uintp), and a stream.
"""


def _check_sizes(width: int, height: int, even: bool) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise UsageError(f"frame is {width}x{height} pixels: sides must be 1 to {MAX_SIDE}")
    if even and (width % 2 or height % 2):
        raise UsageError(f"NV12 frame is {width}x{height} pixels: its sides must be even")


@dataclass(frozen=True)
class RgbFrame:
    """(height, width, 3) uint8 RGB at a device `address`, `stride` bytes from row to row."""

    address: int
    width: int
    height: int
    stride: int

    def __post_init__(self) -> None:
        _check_sizes(self.width, self.height, even=False)
        if not 3 * self.width <= self.stride < 1 << 31:
            raise UsageError(f"rows of {self.width} RGB pixels cannot lie {self.stride} bytes apart")

    def window(self, x: int, y: int, width: int, height: int) -> RgbFrame:
        """A part of the frame, as a frame."""
        _check_inside(self, x, y, width, height)
        return replace(self, address=self.address + y * self.stride + 3 * x, width=width, height=height)


@dataclass(frozen=True)
class Nv12Frame:
    """uint8 luma (height, width) and pairs (U, V) (height / 2, width / 2, 2) at device addresses; even sizes."""

    luma: int
    chroma: int
    width: int
    height: int
    luma_stride: int
    chroma_stride: int
    colour: Colour = field(default_factory=Colour)

    def __post_init__(self) -> None:
        _check_sizes(self.width, self.height, even=True)
        for stride in (self.luma_stride, self.chroma_stride):
            if not self.width <= stride < 1 << 31:
                raise UsageError(f"rows of {self.width} NV12 pixels cannot lie {stride} bytes apart")

    def window(self, x: int, y: int, width: int, height: int) -> Nv12Frame:
        """A part of the frame, its four numbers even, as a frame."""
        _check_inside(self, x, y, width, height)
        if x % 2 or y % 2:
            raise UsageError(f"an NV12 window cannot begin at ({x}, {y}): both must be even")
        luma = self.luma + y * self.luma_stride + x
        chroma = self.chroma + y // 2 * self.chroma_stride + x
        return replace(self, luma=luma, chroma=chroma, width=width, height=height)


Frame = RgbFrame | Nv12Frame


def _check_inside(frame: Frame, x: int, y: int, width: int, height: int) -> None:
    if not (0 <= x < x + width <= frame.width and 0 <= y < y + height <= frame.height):
        raise UsageError(f"window {x},{y},{width},{height} is not inside the frame of {frame.width}x{frame.height}")


class PixelKernels:
    """The kernels, compiled for the GPU at hand. Calls only enqueue; they may come from several threads.

    What has written a frame must be done before, or be on the same stream.
    """

    def __init__(self, launch: Launch) -> None:
        self._launch: Launch | None = launch

    def close(self) -> None:
        """Let go of the compiled code, while its context is current."""
        self._launch = None

    def to_planes(self, frame: Frame, x: int, y: int, width: int, height: int, planes: int, stream: Any = None) -> None:
        """A region of `frame` as planes (height / 2, width / 2, 12) int8 at the device address `planes`.

        The region may reach outside the frame, which then is mirrored. `x`, `y` and `height` are even,
        `width` is a multiple of 8, `planes` one of 16.
        """
        if x % 2 or y % 2 or height % 2 or width % GROUP_PIXELS or width <= 0 or height <= 0:
            raise UsageError(
                f"region {x},{y},{width},{height}: x, y and height must be even, the width a multiple of {GROUP_PIXELS}"
            )
        if max(abs(x), abs(y)) > MAX_SIDE or max(width, height) > MAX_REGION:
            raise UsageError(f"region {x},{y},{width},{height} is out of range")
        _check_planes(planes)
        blocks = width // 2, height // 2
        region = x, y, *blocks
        grid = _grid(3 * blocks[0] // 4, blocks[1])
        if isinstance(frame, RgbFrame):
            self._run(
                "rgb_to_planes", grid, stream,
                frame.address, frame.width, frame.height, frame.stride, *region, planes, addresses=(0, 8),
            )  # fmt: skip
        else:
            self._run(
                "nv12_to_planes", grid, stream,
                frame.luma, frame.chroma, frame.width, frame.height, frame.luma_stride, frame.chroma_stride, *region,
                frame.colour.y_offset, *frame.colour.to_rgb, planes, addresses=(0, 1, 16),
            )  # fmt: skip

    def from_planes(
        self, planes: int, planes_size: tuple[int, int], x: int, y: int, frame: Frame, stream: Any = None
    ) -> None:
        """What planes (h, w, 12) int8 of `planes_size` (w, h) show from pixel (x, y) on fills `frame`.

        Nothing outside `frame` is written, so that threads may fill neighbouring windows of one frame. w is a multiple
        of 4, `planes` one of 16; for NV12 x and y are even.
        """
        across, down = planes_size
        even = isinstance(frame, Nv12Frame)
        if across % (GROUP_PIXELS // 2) or min(across, down) <= 0 or 2 * max(across, down) > MAX_REGION:
            raise UsageError(
                f"planes are {across}x{down}: the width must be a multiple of {GROUP_PIXELS // 2}, and both at most "
                f"{MAX_REGION // 2}"
            )
        if min(x, y) < 0 or x + frame.width > 2 * across or y + frame.height > 2 * down:
            raise UsageError(
                f"a frame of {frame.width}x{frame.height} from ({x}, {y}) on leaves planes of {2 * across}x{2 * down} "
                "pixels"
            )
        if even and (x % 2 or y % 2):
            raise UsageError(f"NV12 cannot begin at ({x}, {y}): both must be even")
        _check_planes(planes)
        crop = across, x, y, frame.width, frame.height
        groups = -(-(x + frame.width) // GROUP_PIXELS) - x // GROUP_PIXELS
        rows = -(-(y + frame.height) // 2) - y // 2
        if isinstance(frame, RgbFrame):
            self._run(
                "planes_to_rgb", _grid(3 * groups, rows), stream,
                planes, *crop, frame.address, frame.stride, addresses=(0, 6),
            )  # fmt: skip
        else:
            self._run(
                "planes_to_nv12", _grid(groups, rows), stream,
                planes, *crop, frame.luma, frame.luma_stride, frame.chroma, frame.chroma_stride,
                frame.colour.y_offset, *frame.colour.from_rgb, addresses=(0, 6, 8),
            )  # fmt: skip

    def _run(self, name: str, grid: tuple[int, int], stream: Any, *values: int, addresses: tuple[int, ...]) -> None:
        arguments = [np.uintp(v) if i in addresses else np.int32(v) for i, v in enumerate(values)]
        if self._launch is None:
            raise UsageError("the kernels are closed")
        self._launch(name, grid, BLOCK, arguments, stream)


def _check_planes(address: int) -> None:
    if address % PLANES_ALIGNMENT:
        raise UsageError(f"planes begin at {address:#x}: a multiple of {PLANES_ALIGNMENT} is needed")


def _grid(across: int, down: int) -> tuple[int, int]:
    return -(-across // BLOCK[0]), -(-down // BLOCK[1])


def with_pycuda() -> PixelKernels:
    """For the current context. pycuda keeps what it compiled in the user's cache folder; it needs nvcc on the PATH.

    Streams are pycuda's.
    """
    try:
        from pycuda import compiler
        from pycuda import driver as cuda
    except (ImportError, OSError) as error:
        raise Absent(f"pycuda cannot be imported ({error})", "pip install pycuda where the CUDA toolkit is") from error
    try:
        module = compiler.SourceModule(SOURCE.read_text(), options=list(OPTIONS), no_extern_c=True)
    except (cuda.Error, OSError) as error:  # pycuda's CompileError is an Error; no nvcc is an OSError
        reason = " ".join(str(error).split())
        raise MachineError(
            f"{SOURCE.name} does not compile here ({reason}): put the toolkit's nvcc on the PATH"
        ) from error

    functions = {name: module.get_function(name) for name in KERNELS}

    def launch(name: str, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[Any], stream: Any) -> None:
        functions[name](*arguments, grid=grid, block=(*block, 1), stream=stream)

    return PixelKernels(launch)


def with_cupy() -> PixelKernels:
    """The same for programs whose frames are CuPy's; compiled by the NVRTC that CuPy brings. Streams are CuPy's."""
    try:
        import cupy
    except (ImportError, OSError) as error:
        raise Absent(f"cupy cannot be imported ({error})", "pip install cupy-cuda12x or cupy-cuda13x") from error
    try:
        module = cupy.RawModule(code=SOURCE.read_text(), options=OPTIONS)
        module.compile()
    except (cupy.cuda.runtime.CUDARuntimeError, cupy.cuda.compiler.CompileException) as error:
        raise MachineError(f"{SOURCE.name} does not compile here: {' '.join(str(error).split())}") from error

    functions = {name: module.get_function(name) for name in KERNELS}

    def launch(name: str, grid: tuple[int, int], block: tuple[int, int], arguments: Sequence[Any], stream: Any) -> None:
        with stream or cupy.cuda.get_current_stream():
            functions[name](grid, block, tuple(arguments))

    return PixelKernels(launch)
