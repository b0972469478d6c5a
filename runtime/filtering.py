"""Linear filters in 16-bit integers: planes of numbers, convolutions, and rows of one computed out of the other.

Thin, as `core` is: it checks what a pointer cannot tell and calls `native/linnet.h`. A wrong argument is a ValueError.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_int, c_uint32, c_void_p

import numpy as np

from .library import check, declare, native, pointer_to

MAX_PLANES = 1 << 30
MAX_TARGETS = 1024
"""Numbers in `Planes` or a target, and block * outputs of `filter_rows`."""


class _PlanesStruct(ctypes.Structure):
    _fields_ = (("data", c_void_p), *((name, c_uint32) for name in ("height", "width", "channels", "border")))


class _FilterStruct(ctypes.Structure):
    _fields_ = (
        *((name, c_uint32) for name in ("inputs", "outputs", "size", "bits")),
        *((name, c_void_p) for name in ("weight", "bias", "shift")),
    )


class _TargetStruct(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        *((name, c_uint32) for name in ("height", "width", "channels", "border", "block", "grow")),
        ("channel", c_void_p),
    )


declare(
    {
        "linnet_planes_fill": (c_int, (POINTER(_PlanesStruct), c_void_p)),
        "linnet_planes_join": (
            c_int,
            (POINTER(_PlanesStruct), c_void_p, c_uint32, c_uint32, c_void_p, c_void_p, c_uint32),
        ),
        "linnet_planes_edge": (c_int, (POINTER(_PlanesStruct),)),
        "linnet_planes_narrow": (c_int, (POINTER(_PlanesStruct), c_uint32, c_void_p, c_void_p)),
        "linnet_filter_rows": (
            c_int,
            (*[POINTER(_FilterStruct), POINTER(_PlanesStruct)] * 2, c_uint32, c_uint32, POINTER(_TargetStruct)),
        ),
    }
)


class Planes:
    """Channels of 16-bit numbers with a `border` around them, zeros at first, laid out for `filter_rows`."""

    def __init__(self, height: int, width: int, channels: int, border: int) -> None:
        self.height, self.width, self.channels, self.border = height, width, channels, border
        # Two channels lie side by side.
        self._data = np.zeros((-(-channels // 2), height + 2 * border, width + 2 * border, 2), np.int16)
        self._struct = _PlanesStruct(self._data.ctypes.data, height, width, channels, border)

    def fill(self, values: np.ndarray) -> None:
        """With `values` (height, width, channels) int8."""
        pointer = pointer_to(values, "values", np.int8, self.shape)
        check(native.linnet_planes_fill(self._struct, pointer), "filling planes")

    def join(self, values: np.ndarray, whole: np.ndarray, part: np.ndarray, shift: int) -> None:
        """With channels of `values` (height / block, width / block, any) int8: at (y, x) channel c becomes
        (whole << shift) + part of position (y // block, x // block).

        `whole` and `part` (block, block, channels) int32 hold at [y % block, x % block, c] which channels these are.
        """
        block = len(whole)
        tables = [pointer_to(table, "table", np.int32, (block, block, self.channels)) for table in (whole, part)]
        shape = (self.height // block, self.width // block, values.shape[-1])
        pointer = pointer_to(values, "values", np.int8, shape)
        error = native.linnet_planes_join(self._struct, pointer, shape[2], block, *tables, shift)
        check(error, "filling planes")

    def repeat_edge(self) -> None:
        """Fill the border with the outermost values."""
        check(native.linnet_planes_edge(self._struct), "filling a border")

    def narrow(self, bits: int, added: np.ndarray | None = None) -> np.ndarray:
        """The numbers, which have `bits` bits (9..15), as (height, width, channels) int8, halves rounded up, saturated.

        `added` int8 of that shape is added first.
        """
        values = np.empty(self.shape, np.int8)
        other = None if added is None else pointer_to(added, "added", np.int8, self.shape)
        check(native.linnet_planes_narrow(self._struct, bits, other, values.ctypes.data), "narrowing planes")
        return values

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels


class Filter:
    """A convolution with zero padding: weight (O, I, k, k) int16 with odd k, bias (O,) int32, shift (O,) uint8.

    Results are (bias + sum) / 2**shift: integers of `bits` bits, rounded half up and saturated (shifts 2..31), or
    float32 where `bits` is 0.
    """

    def __init__(self, weight: np.ndarray, bias: np.ndarray, shift: np.ndarray, bits: int) -> None:
        outputs, inputs, size, _ = weight.shape
        self.outputs, self.bits = outputs, bits
        whole = np.zeros((-(-outputs // 3) * 3, -(-inputs // 2) * 2, size, size), np.int16)
        whole[:outputs, :inputs] = weight
        groups = whole.reshape(-1, 3, whole.shape[1] // 2, 2, size, size).transpose(0, 2, 4, 5, 1, 3)
        self._arrays = np.ascontiguousarray(groups), np.array(bias, np.int32), np.array(shift, np.uint8)
        self._struct = _FilterStruct(inputs, outputs, size, bits, *(array.ctypes.data for array in self._arrays))


def filter_rows(
    terms: Sequence[tuple[Filter, Planes]],
    target: Planes | np.ndarray,
    places: np.ndarray,
    first: int,
    last: int,
    grow: int = 1,
) -> None:
    """Compute the rows [first, last) of the convolution of planes, whose border is at least half the kernel; of two
    such, of integers, the saturated sum.

    What comes out at (y, x) goes to position (y // block, x // block) of `target`, as the channel that `places` (block,
    block, O) int32 has at [y % block, x % block], or nowhere where that is -1. With `grow` above 1, when block is 1, it
    goes to position (grow * y + i, grow * x + j) as channel c, where `places` has (c * grow + i) * grow + j. `target`
    holds integers in planes, or is float32 (height, width, channels).
    """
    (operation, source), *more = terms
    other, other_source = more[0] if more else (None, None)
    block = len(places)
    channels = pointer_to(places, "places", np.int32, (block, block, operation.outputs))
    if isinstance(target, Planes):
        shape, data = (*target.shape, target.border), target._data.ctypes.data
    else:
        shape, data = (*target.shape, 0), pointer_to(target, "target", np.float32, target.shape, writable=True)
    if len(shape) != 4 or isinstance(target, Planes) != (operation.bits > 0):
        raise ValueError("integers go to planes, float32 to an array (height, width, channels)")
    error = native.linnet_filter_rows(
        operation._struct,
        source._struct,
        other and other._struct,
        other_source and other_source._struct,
        first,
        last,
        _TargetStruct(data, *shape, block, grow, channels),
    )
    check(error, "filtering")
