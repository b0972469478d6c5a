"""What a result was measured on: processor, memory, versions, commit and date, as one dictionary for the JSON files.

It names the machine's kind, never the machine or its owner: no host name, no user, no paths.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from ..runtime.cores import usable_cores

PACKAGES = (
    "linnet", "numpy", "onnxruntime", "opencv-python-headless", "opencv-python", "pillow", "imagecodecs",
    "tifffile", "rasterio", "glymur",
)  # fmt: skip
FLAGS_THAT_MATTER = (
    *("sse4_1", "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16"),
    *("amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)


def fingerprint() -> dict[str, Any]:
    """A JSON-ready description of this host at this moment; unknown things are None or left out."""
    model, flags = _processor()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": model,
        "cpu_flags": flags,
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "memory_mib": _memory_mib(),
        "load_average": [round(v, 2) for v in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": package_versions(),
        "commit": commit(),
    }


def package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def commit() -> str | None:
    """The commit of the source tree this module runs from, `-dirty` when it has changes; None outside a git tree."""
    try:
        command = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty", "--abbrev=12"]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def _processor() -> tuple[str, list[str]]:
    model, flags = platform.processor() or platform.machine(), set()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags.update(value.split())
    return model, [flag for flag in FLAGS_THAT_MATTER if flag in flags]


def _memory_mib() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    except (AttributeError, ValueError, OSError):
        return None
