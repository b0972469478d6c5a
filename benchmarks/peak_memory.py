"""Peak memory of one encode or one decode in a process that does nothing else, step by step from its start.

Run by `speed` in a fresh process for each figure. Nothing is subtracted: what a user's process would need is what
counts, and the earlier steps stand beside the peak so that anyone can subtract for themselves.
"""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

PICTURE, FILE = "picture.npy", "file.bin"


def peak_mib() -> float:
    """The most memory this process has held so far.

    Linux keeps this figure from before a program was started in a process (`ru_maxrss` includes the parent's at that
    moment), so there the value of the present program is preferred.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def reset_peak() -> bool:
    """Let `peak_mib` count from now on (proc(5): writing 5 to clear_refs); False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Peaks in MiB after the imports, with the codec open, with the input loaded, and after the work."""
    import cv2
    import numpy as np

    from .codec import LINNET
    from .single_thread import open_codec

    cv2.setNumThreads(1)
    if request["codec"] == LINNET:
        with suppress(ImportError):  # what opening linnet would import; a peer brings its own library along
            import onnxruntime  # noqa: F401

    peaks = {"imports": peak_mib()}
    codec = open_codec(request["codec"], request["bundle"], request["backend"])
    peaks["open"] = peak_mib()
    folder = Path(request["folder"])
    if request["direction"] == "encode":
        picture = np.load(folder / PICTURE)
        peaks["input"] = peak_mib()
        data = codec.encode(picture, request["setting"])
        peaks["done"] = peak_mib()
        (folder / FILE).write_bytes(data)
    else:
        data = (folder / FILE).read_bytes()
        peaks["input"] = peak_mib()
        codec.decode(data)
        peaks["done"] = peak_mib()
    return {name: round(value, 1) for name, value in peaks.items()}


if __name__ == "__main__":
    from linnet.benchmarks.single_thread import answer

    answer(measure)
