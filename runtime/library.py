"""The native library: found and loaded, its error numbers as exceptions, and arrays as the pointers that it takes."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
from collections.abc import Mapping
from ctypes import c_char_p, c_int, c_uint32
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError, MachineError

API_VERSION = 3
"""LINNET_API_VERSION of the header that the signatures were written for."""

_ERROR_MEMORY, _ERROR_TABLES, _ERROR_TRUNCATED, _ERROR_CORRUPT = -2, -4, -6, -7


def _library_path() -> Path:
    """The built extension: beside this module, or wherever the installation says."""
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name("_native" + suffix)
        if path.exists():
            return path
    found = importlib.util.find_spec(f"{__package__}._native")
    if found is None or found.origin is None:
        raise MachineError(
            "linnet's native core is not built: run `pip install .` (or `pip install -e .`) in the source tree, "
            "which needs a C++17 compiler"
        )
    return Path(found.origin)


def _load() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(_library_path()))
    except OSError as error:
        raise MachineError(f"linnet's native core cannot be loaded ({error}): reinstall linnet") from None


def declare(signatures: Mapping[str, tuple[Any, tuple[Any, ...]]]) -> None:
    """Say what functions of `native` give and take, (result, arguments) by name. MachineError where one is missing."""
    try:
        for name, (result, arguments) in signatures.items():
            function = getattr(native, name)
            function.restype, function.argtypes = result, arguments
    except AttributeError as error:
        raise MachineError(f"linnet's native core cannot be used ({error}): reinstall linnet") from None


native = _load()
declare({"linnet_api_version": (c_uint32, ()), "linnet_strerror": (c_char_p, (c_int,))})
if (_version := native.linnet_api_version()) != API_VERSION:
    raise MachineError(f"{_library_path()} has interface version {_version}, not {API_VERSION}: reinstall linnet")


def check(error: int, what: str) -> None:
    """Raise what the number stands for: InputError for damaged data, ValueError for a wrong argument, MemoryError."""
    if error == 0:
        return
    if error == _ERROR_MEMORY:
        raise MemoryError(what)
    message = f"{what}: {native.linnet_strerror(error).decode()}"
    raise (InputError if error in (_ERROR_TABLES, _ERROR_TRUNCATED, _ERROR_CORRUPT) else ValueError)(message)


def pointer_to(
    array: np.ndarray, name: str, dtype: type[np.generic], shape: tuple[int, ...], *, writable: bool = False
) -> int:
    """The address of a dense array of exactly this dtype and shape; ValueError for any other."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ValueError(f"{name} must be {np.dtype(dtype)} {shape}, not {found}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous")
    if writable and not array.flags.writeable:
        raise ValueError(f"{name} must be writable")
    return array.ctypes.data
