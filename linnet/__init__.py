"""The front door: `linnet.encode`, `linnet.decode`, `linnet.info`, `linnet.open`, and one error family.

Importing this module costs nothing: each name is fetched from where it lives when it is first used, so that
`linnet --help` loads neither numpy nor ONNX Runtime. Nothing is decided here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pictures import File, Frame, decode, encode, info, open
    from .recording import record
    from .runtime.bitstream import Metadata
    from .runtime.codec import Codec
    from .runtime.errors import InputError, LinnetError, MachineError, UsageError
    from .runtime.inspection import Info
    from .runtime.recorder import CapturedFrame, Recorder
    from .runtime.sealing import Protection, read_key

__version__ = "0.1.0"

_HOMES = {
    "File": "pictures", "Frame": "pictures",
    "decode": "pictures", "encode": "pictures", "info": "pictures", "open": "pictures", "record": "recording",
    "CapturedFrame": "runtime.recorder", "Recorder": "runtime.recorder",
    "Codec": "runtime.codec", "Info": "runtime.inspection", "Metadata": "runtime.bitstream",
    "Protection": "runtime.sealing", "read_key": "runtime.sealing",
    "InputError": "runtime.errors", "LinnetError": "runtime.errors", "MachineError": "runtime.errors",
    "UsageError": "runtime.errors",
}  # fmt: skip

__all__ = ["CapturedFrame", "Codec", "File", "Frame", "Info", "InputError", "LinnetError", "MachineError", "Metadata", "Protection", "Recorder", "UsageError", "__version__", "decode", "encode", "info", "open", "read_key", "record"]  # fmt: skip  # noqa: E501


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
