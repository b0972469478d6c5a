"""The native core as Python functions on numpy arrays: checksum, entropy coder, latent arithmetic, pixel layout.

Thin on purpose: it checks what a pointer cannot tell (dtype, shape, contiguity), calls `native/linnet.h` and turns
error numbers into exceptions. The calls release the interpreter lock and keep no state outside their arguments, so
threads may run them side by side. A wrong argument is a ValueError; damaged data is an InputError.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from ctypes import POINTER, byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import InputError
from .latents import FINE_EXP, FREQUENCY_BITS, GAIN_EXP
from .library import check, declare, native, pointer_to

MAX_TABLES = 256
MAX_RADIUS = 255
MAX_BIT_WORTH = 1000
FREQUENCY_SUM = 1 << FREQUENCY_BITS
MIN_SYMBOL, MAX_SYMBOL = -512, 511
STATE_BYTES = 16
"""Size of the shortest entropy-coded payload, the four lanes' states alone."""
PLANES = 12
"""Channels of the network planes: three colours of a 2 x 2 block."""
MAX_COORDINATE = 1 << 40
MIRRORED = 16
"""Pixels outside an image that mirror those inside."""


class _StepStruct(ctypes.Structure):
    _fields_ = (
        *((name, c_uint32) for name in ("height", "width", "channels", "first", "last")),
        ("parity", c_int32),
        *((name, c_void_p) for name in ("gain", "mean_shift", "table_offset", "companding")),
        ("tables", c_uint32),
    )


class _DecoderStruct(ctypes.Structure):
    _fields_ = (("state", c_uint32 * 4), ("lane", c_uint32), ("error", c_int32), ("next", c_void_p), ("end", c_void_p))


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "linnet_crc32c": (c_uint32, (c_uint32, c_void_p, c_size_t)),
    "linnet_tables_create": (c_int, (c_void_p, c_size_t, c_void_p, c_uint32, POINTER(c_void_p))),
    "linnet_tables_destroy": (None, (c_void_p,)),
    "linnet_rans_bound": (c_size_t, (c_size_t,)),
    "linnet_rans_encode": (c_int, (c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, POINTER(c_size_t))),
    "linnet_rans_decode_start": (c_int, (POINTER(_DecoderStruct), c_void_p, c_size_t)),
    "linnet_rans_decode": (c_int, (c_void_p, POINTER(_DecoderStruct), c_int, c_void_p, c_size_t, c_void_p)),
    "linnet_rans_decode_finish": (c_int, (POINTER(_DecoderStruct),)),
    "linnet_step_tables": (c_int, (POINTER(_StepStruct), c_void_p, c_void_p, POINTER(c_size_t))),
    "linnet_step_dequantize": (c_int, (POINTER(_StepStruct), *[c_void_p] * 4)),
    "linnet_step_residuals": (c_int, (POINTER(_StepStruct), *[c_void_p] * 4, POINTER(c_size_t))),
    "linnet_search_size": (c_size_t, (c_size_t,)),
    "linnet_search": (
        c_int,
        (c_void_p, c_int, c_float, c_void_p, c_void_p, c_size_t, *[c_void_p] * 4, POINTER(c_size_t)),
    ),
    "linnet_compand": (c_int, (c_void_p, c_size_t, c_void_p, c_void_p)),
    "linnet_pixels_to_planes": (
        c_int,
        (c_void_p, c_uint32, c_uint32, c_size_t, c_int64, c_int64, c_uint32, c_uint32, c_void_p),
    ),
    "linnet_planes_to_pixels": (c_int, (c_void_p, *[c_uint32] * 6, c_void_p, c_size_t)),
}


declare(_SIGNATURES)


def _vector_pointer(array: np.ndarray, name: str, dtype: type[np.generic], count: int | None = None) -> int:
    if count is None:
        count = array.size if isinstance(array, np.ndarray) else 0
    return pointer_to(array, name, dtype, (count,))


def _row_stride(image: np.ndarray, name: str, *, writable: bool = False) -> int:
    """Bytes from row to row of an (H, W, 3) uint8 image whose rows are dense; the rows themselves may lie apart."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{name} must be a uint8 array (height, width, 3)")
    height, width = image.shape[:2]
    if not (0 < height < 1 << 32 and 0 < width < 1 << 32):
        raise ValueError(f"{name} must not be empty")
    row, column, colour = image.strides
    if colour != 1 or (width > 1 and column != 3) or (height > 1 and row < 3 * width):
        raise ValueError(f"each row of {name} must be contiguous, and rows must be in ascending order")
    if writable and not image.flags.writeable:
        raise ValueError(f"{name} must be writable")
    return row if height > 1 else 3 * width


def _bytes_of(data: bytes | bytearray | memoryview | np.ndarray) -> np.ndarray:
    """The same memory as a vector of bytes, which keeps its owner alive."""
    view = memoryview(data)
    if not view.c_contiguous:
        raise ValueError("data must be contiguous")
    return np.frombuffer(view, np.uint8) if view.nbytes else np.empty(0, np.uint8)


def crc32c(data: bytes | bytearray | memoryview | np.ndarray, crc: int = 0) -> int:
    """CRC-32C (Castagnoli) of contiguous bytes; pass the result as `crc` to continue over the next piece."""
    content = _bytes_of(data)
    return native.linnet_crc32c(crc, content.ctypes.data, content.size)


class EntropyTables:
    """Integer frequency tables of the entropy coder; immutable, shared freely between threads.

    Table i codes the symbols -radii[i]..radii[i] and an escape: 2 * radii[i] + 2 numbers of `frequencies`, each at
    least 1, with sum 2**14. Radius 0 makes a skip table, without frequencies, whose symbol is always 0 at no cost;
    `skip` (tables,) uint8 marks them with 1. Malformed tables, which come from a bundle, are an InputError.
    """

    def __init__(self, frequencies: np.ndarray, radii: np.ndarray) -> None:
        frequencies, radii = np.asarray(frequencies), np.asarray(radii)
        for array, name, limit in ((frequencies, "frequencies", FREQUENCY_SUM), (radii, "radii", MAX_RADIUS)):
            if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
                raise ValueError(f"{name} must be a vector of integers")
            if array.size and not 0 <= int(array.min()) <= int(array.max()) <= limit:
                raise InputError(f"entropy tables: {name} must lie within 0..{limit}")
        frequencies, radii = frequencies.astype(np.uint16), radii.astype(np.uint16)
        self.frequencies, self.radii = frequencies, radii
        handle = c_void_p()
        error = native.linnet_tables_create(
            frequencies.ctypes.data, frequencies.size, radii.ctypes.data, radii.size, byref(handle)
        )
        check(error, f"{radii.size} tables with {frequencies.size} frequencies (sum {FREQUENCY_SUM} in each)")
        self._handle = handle
        self.skip = (radii == 0).astype(np.uint8)
        self.skip.flags.writeable = False
        weakref.finalize(self, native.linnet_tables_destroy, handle)

    def __len__(self) -> int:
        return self.skip.size

    def __deepcopy__(self, memo: dict[int, Any]) -> EntropyTables:
        return self


def rans_encode(tables: EntropyTables, symbols: np.ndarray, table_index: np.ndarray) -> bytes:
    """All symbols (count,) int16 of a tile under their tables (count,) uint8, as one payload.

    ValueError for a symbol outside MIN_SYMBOL..MAX_SYMBOL, one that is not 0 under a skip table, or an unknown table.
    """
    table_pointer = _vector_pointer(table_index, "table_index", np.uint8)
    symbol_pointer = _vector_pointer(symbols, "symbols", np.int16, table_index.size)
    out = np.empty(native.linnet_rans_bound(symbols.size), np.uint8)
    written = c_size_t()
    error = native.linnet_rans_encode(
        tables._handle, symbol_pointer, table_pointer, symbols.size, out.ctypes.data, out.size, byref(written)
    )
    check(error, f"entropy coding of {symbols.size} symbols")
    return out[: written.value].tobytes()


class RansDecoder:
    """Reads one payload back, in as many calls as the tile has coding steps. For one thread at a time.

    A damaged payload gives an InputError, at the latest in `finish`, or symbols that `finish` shows to be wrong.
    """

    def __init__(self, data: bytes | bytearray | memoryview | np.ndarray) -> None:
        self._data = _bytes_of(data)  # for as long as the decoder reads it
        self._decoder = _DecoderStruct()
        self._check(native.linnet_rans_decode_start(self._decoder, self._data.ctypes.data, self._data.size))

    def decode(self, tables: EntropyTables, table_index: np.ndarray, trellis: int = 0) -> np.ndarray:
        """The levels, in half steps, of the next symbols, (count,) int16, one for each entry of `table_index` (count,)
        uint8.

        Along a trellis of so many states, of one coding step's symbols, whose table indices lie in the first half of
        the tables; else levels are twice the symbols.
        """
        pointer = _vector_pointer(table_index, "table_index", np.uint8)
        levels = np.empty(table_index.size, np.int16)
        self._check(
            native.linnet_rans_decode(tables._handle, self._decoder, trellis, pointer, levels.size, levels.ctypes.data)
        )
        return levels

    def finish(self) -> None:
        """Raises InputError unless the payload ends exactly here with all lanes back at their start."""
        self._check(native.linnet_rans_decode_finish(self._decoder))

    def _check(self, error: int) -> None:
        check(error, f"payload of {self._data.size} bytes")


@dataclass(frozen=True, eq=False)
class Step:
    """One coding step of one tile: channels [first, last) of (height, width, channels) latents.

    It covers the positions with (row + column) % 2 == `parity`, or all of them if `parity` is -1. `gain` (n,) int16, in
    1/64 of a quarter latent and at least 64, `mean_shift` (n,) uint8 (2 where means are whole latents, 0 where they are
    quarters) and `table_offset` (n,) int16 have n = last - first entries; `companding` (256,) int8 holds the value for
    the whole latent w at w + 128; `tables` is how many entropy tables the parameters choose from. The arrays are kept,
    not copied, and must not change afterwards.
    """

    height: int
    width: int
    channels: int
    first: int
    last: int
    parity: int
    gain: np.ndarray
    mean_shift: np.ndarray
    table_offset: np.ndarray
    companding: np.ndarray
    tables: int
    _struct: _StepStruct = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not (self.height > 0 and self.width > 0 and self.height * self.width * self.channels <= 1 << 30):
            raise ValueError(f"a step cannot have {self.height} x {self.width} x {self.channels} latents")
        if not 0 <= self.first < self.last <= self.channels:
            raise ValueError(f"channels {self.first}..{self.last} do not lie within 0..{self.channels}")
        if self.parity not in (-1, 0, 1):
            raise ValueError(f"parity must be -1, 0 or 1, not {self.parity}")
        if not 1 <= self.tables <= MAX_TABLES:
            raise ValueError(f"a step needs 1 to {MAX_TABLES} entropy tables, not {self.tables}")
        gain = pointer_to(self.gain, "gain", np.int16, (self.coded_channels,))
        if self.gain.min() < 1 << GAIN_EXP:
            raise ValueError(f"a gain below {1 << GAIN_EXP} would make a quantisation step finer than a quarter")
        shift = pointer_to(self.mean_shift, "mean_shift", np.uint8, (self.coded_channels,))
        if self.mean_shift.max() > FINE_EXP:
            raise ValueError(f"a mean_shift above {FINE_EXP} would make means coarser than whole latents")
        offset = pointer_to(self.table_offset, "table_offset", np.int16, (self.coded_channels,))
        companding = pointer_to(self.companding, "companding", np.int8, (256,))
        numbers = map(int, (self.height, self.width, self.channels, self.first, self.last, self.parity))
        struct = _StepStruct(*numbers, gain, shift, offset, companding, int(self.tables))
        object.__setattr__(self, "_struct", struct)

    @property
    def coded_channels(self) -> int:
        return self.last - self.first

    @property
    def symbols(self) -> int:
        """How many symbols the step codes; they are ordered by row, column, channel."""
        positions = self.height * self.width
        if self.parity >= 0:
            positions = (positions + 1 - self.parity) // 2
        return positions * self.coded_channels

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels

    @property
    def decoded_shape(self) -> tuple[int, int, int]:
        """Whole latents, then their quarters."""
        return self.height, self.width, 2 * self.channels

    @property
    def params_shape(self) -> tuple[int, int, int]:
        """Means, then log-scales."""
        return self.height, self.width, 2 * self.coded_channels


def step_tables(step: Step, params: np.ndarray) -> np.ndarray:
    """Decoder's side, before the symbols are known: the table index of each, (step.symbols,) uint8."""
    table_index = np.empty(step.symbols, np.uint8)
    count = c_size_t()
    error = native.linnet_step_tables(
        step._struct, pointer_to(params, "params", np.int8, step.params_shape), table_index.ctypes.data, byref(count)
    )
    check(error, "choice of tables")
    return table_index


def dequantize(step: Step, params: np.ndarray, levels: np.ndarray, decoded: np.ndarray, companded: np.ndarray) -> None:
    """What `levels` (step.symbols,) int16, in half steps, stand for, into two arrays at the step's positions and
    channels: `decoded` int8 (height, width, 2 * channels), whole latents and then their quarters (-2..1), and
    `companded` int8 (height, width, channels). `params` int8 (height, width, 2n)."""
    error = native.linnet_step_dequantize(
        step._struct,
        pointer_to(params, "params", np.int8, step.params_shape),
        pointer_to(levels, "levels", np.int16, (step.symbols,)),
        pointer_to(decoded, "decoded", np.int8, step.decoded_shape, writable=True),
        pointer_to(companded, "companded", np.int8, step.latent_shape, writable=True),
    )
    check(error, "dequantisation")


def step_residuals(step: Step, latent: np.ndarray, params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encoder's side of a step: how far latents lie from their means, in quantisation steps, float32, and the table
    index of each, uint8, both (step.symbols,).

    `latent` float32 (height, width, channels) in full-scale units (1.0 is 128 latent units).
    """
    residual, table_index = np.empty(step.symbols, np.float32), np.empty(step.symbols, np.uint8)
    count = c_size_t()
    error = native.linnet_step_residuals(
        step._struct,
        pointer_to(latent, "latent", np.float32, step.latent_shape),
        pointer_to(params, "params", np.int8, step.params_shape),
        residual.ctypes.data,
        table_index.ctypes.data,
        byref(count),
    )
    check(error, "distances from the means")
    return residual, table_index


def search(
    tables: EntropyTables, residual: np.ndarray, table_index: np.ndarray, bit_worth: float, trellis: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(levels (count,), symbols (coded,), table index of each (coded,)), int16, int16, uint8: those of least squared
    error (in squared steps) plus `bit_worth` for each bit.

    `residual` float32 and `table_index` uint8, both (count,), are those of one step. Levels are in half steps; symbols
    leave out what skip tables code, and go to `rans_encode`. Along a `trellis` of 8 or 64 states (0: none) they depend
    on the symbols before (dependent quantisation), and the search is Viterbi's algorithm.
    """
    table_pointer = _vector_pointer(table_index, "table_index", np.uint8)
    count = table_index.size
    levels, symbols, coded_with = np.empty(count, np.int16), np.empty(count, np.int16), np.empty(count, np.uint8)
    workspace = np.empty(-(-native.linnet_search_size(count) // 4), np.uint32)
    coded = c_size_t()
    error = native.linnet_search(
        tables._handle,
        trellis,
        bit_worth,
        _vector_pointer(residual, "residual", np.float32, count),
        table_pointer,
        count,
        workspace.ctypes.data,
        levels.ctypes.data,
        symbols.ctypes.data,
        coded_with.ctypes.data,
        byref(coded),
    )
    check(error, "choice of symbols")
    return levels, symbols[: coded.value], coded_with[: coded.value]


def compand(latent: np.ndarray, companding: np.ndarray) -> np.ndarray:
    """What the hyper-analysis sees of float32 `latent` in full-scale units: int8 of the same shape; NaN counts as 0.

    `companding` (256,) int8 holds the value for the latent v at v + 128.
    """
    companded = np.empty(latent.shape, np.int8)
    error = native.linnet_compand(
        pointer_to(latent, "latent", np.float32, latent.shape),
        latent.size,
        pointer_to(companding, "companding", np.int8, (256,)),
        companded.ctypes.data,
    )
    check(error, "companding")
    return companded


def pixels_to_planes(
    image: np.ndarray, x0: int, y0: int, width: int, height: int, *, out: np.ndarray | None = None
) -> np.ndarray:
    """A region of an (H, W, 3) uint8 image as the network's planes (height / 2, width / 2, 12) int8.

    The region may reach outside the image, whose outermost MIRRORED pixels are then mirrored, the border's first;
    beyond them the last one repeats. Rows of `image` may lie apart, so a slice of a larger frame needs no copy.
    """
    stride = _row_stride(image, "image")
    if not (0 < width < 1 << 32 and 0 < height < 1 << 32) or width % 2 or height % 2:
        raise ValueError(f"a region of {width} x {height} pixels must have even, positive sizes")
    if abs(x0) > MAX_COORDINATE or abs(y0) > MAX_COORDINATE:
        raise ValueError(f"region corner ({x0}, {y0}) is out of range")
    shape = (height // 2, width // 2, PLANES)
    if out is None:
        out = np.empty(shape, np.int8)
    error = native.linnet_pixels_to_planes(
        image.ctypes.data,
        image.shape[1],
        image.shape[0],
        stride,
        int(x0),
        int(y0),
        int(width),
        int(height),
        pointer_to(out, "out", np.int8, shape, writable=True),
    )
    check(error, "pixels to planes")
    return out


def planes_to_pixels(planes: np.ndarray, crop: Sequence[int], out: np.ndarray | None = None) -> np.ndarray:
    """The crop (x, y, width, height), in pixels and of any parity, of planes (h, w, 12) int8.

    Gives (height, width, 3) uint8. `out` may be a window of a larger frame; nothing outside it is touched.
    """
    if not isinstance(planes, np.ndarray) or planes.ndim != 3:
        raise ValueError(f"planes must be an array (height, width, {PLANES})")
    pointer = pointer_to(planes, "planes", np.int8, (*planes.shape[:2], PLANES))
    x, y, width, height = map(int, crop)
    if x < 0 or y < 0 or width <= 0 or height <= 0 or max(planes.shape) >= 1 << 31:
        raise ValueError(f"crop {tuple(crop)} is empty or negative")
    if x + width > 2 * planes.shape[1] or y + height > 2 * planes.shape[0]:
        raise ValueError(f"crop {tuple(crop)} leaves planes of {2 * planes.shape[1]} x {2 * planes.shape[0]} pixels")
    if out is None:
        out = np.empty((height, width, 3), np.uint8)
    stride = _row_stride(out, "out", writable=True)
    if out.shape[:2] != (height, width):
        raise ValueError(f"out must be ({height}, {width}, 3), not {out.shape}")
    error = native.linnet_planes_to_pixels(
        pointer, planes.shape[1], planes.shape[0], x, y, width, height, out.ctypes.data, stride
    )
    check(error, "planes to pixels")
    return out
