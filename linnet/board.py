"""What the board under us is: its name, power mode and GPU driver, and what OpenCV can open. Read-only, and quick."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

NVPMODEL_SECONDS = 5


def jetson(root: Path = Path("/")) -> dict[str, str] | None:
    """Model, L4T release and power mode of a Jetson; None on anything else. `root` is where its file system is."""
    tree = root / "proc/device-tree"
    compatible = _text(tree / "compatible")
    if "nvidia,tegra" not in compatible:
        return None
    release = re.search(r"R(\d+).*?REVISION: ([\d.]+)", _text(root / "etc/nv_tegra_release"))
    return {
        "model": _text(tree / "model") or "a Jetson that does not say its model",
        "l4t": f"{release[1]}.{release[2]}" if release else "unknown",
        "power_mode": _power_mode(),
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def _power_mode() -> str:
    """What `nvpmodel -q` says, like "15W"."""
    command = shutil.which("nvpmodel")
    if command is None:
        return "unknown: nvpmodel is not in the PATH"
    try:
        said = subprocess.run([command, "-q"], capture_output=True, text=True, timeout=NVPMODEL_SECONDS).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: nvpmodel does not answer ({error})"
    mode = re.search(r"NV Power Mode:\s*(\S+)", said)
    return mode[1] if mode else "unknown: nvpmodel needs more rights (sudo nvpmodel -q)"


def cuda_driver() -> str | None:
    """The CUDA version that the installed driver supports, like "12.6"; None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        version = ctypes.c_int()
        if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def video_backends() -> dict[str, bool] | None:
    """Whether this OpenCV opens videos with FFmpeg and pipelines with GStreamer; None without OpenCV."""
    try:
        import cv2
    except ImportError:
        return None
    opens = cv2.videoio_registry.hasBackend
    return {"FFmpeg": opens(cv2.CAP_FFMPEG), "GStreamer": opens(cv2.CAP_GSTREAMER)}
