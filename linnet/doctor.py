"""What this machine brings to linnet: processor, libraries, backends, and for what is missing the remedy.

Nothing is changed and nothing is timed. A report is a plain dictionary, printed as lines or as JSON.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import warnings
from pathlib import Path
from typing import Any

from . import __version__, board, defaults
from .runtime.cores import usable_cores

CPU_FEATURES = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "amx_bf16",  # x86
    "asimd", "asimddp", "i8mm", "sve", "sve2",  # ARM; asimddp is the dot product
)  # fmt: skip
FAST_INTEGER_FEATURES = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})
LIBRARIES = {
    "numpy": ("numpy", "pip install numpy"),
    "onnxruntime": ("onnxruntime", "pip install onnxruntime"),
    "opencv": ("cv2", "pip install opencv-python-headless"),
    "pillow": ("PIL", "pip install Pillow"),
    "tqdm": ("tqdm", "pip install tqdm"),
    "torch": ("torch", "only `linnet export` and training need it: pip install 'linnet[export]'"),
    "onnx": ("onnx", "only `linnet export` needs it: pip install 'linnet[export]'"),
    "tensorrt": ("tensorrt", "only the TensorRT backend needs it: it comes with JetPack, or pip install tensorrt"),
    "pycuda": ("pycuda", "only the TensorRT backend needs it: pip install pycuda"),
}
DISTRIBUTIONS = {
    "cv2": ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    "PIL": ("Pillow",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
}
REQUIRED = ("numpy", "onnxruntime", "opencv", "pillow", "tqdm")


def report() -> dict[str, Any]:
    """Everything `linnet doctor` says."""
    libraries = {name: _library(*where) for name, where in LIBRARIES.items()}
    native, backends, codec = _native_core(), _backends(), _codec()
    absent = [name for name in REQUIRED if not libraries[name]["version"]]
    problems = [f"{name} is missing: {libraries[name]['remedy']}" for name in absent]
    problems += [found["remedy"] for found in (native, codec) if found["remedy"]]
    return {
        "linnet": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "jetson": board.jetson(),
        "cuda_driver": board.cuda_driver(),
        "video": board.video_backends(),
        "libraries": libraries,
        "onnxruntime_providers": _providers(),
        "native_core": native,
        "backends": backends,
        "codec": codec,
        "problems": problems,
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The report for people."""
    cpu = found["cpu"]
    fast = "yes" if FAST_INTEGER_FEATURES & set(cpu["features"]) else "no: integer networks run several times slower"
    rows = [
        ("linnet", found["linnet"]),
        ("python", f"{found['python']} on {found['system']}"),
        ("cpu", f"{cpu['model']}, {cpu['cores']} cores"),
        ("  features", " ".join(cpu["features"]) or "none of those that matter here"),
        ("  8-bit dot products", fast),
    ]
    if found["jetson"]:
        jetson = found["jetson"]
        rows += [("board", f"{jetson['model']}, L4T {jetson['l4t']}"), ("  power mode", jetson["power_mode"])]
    rows.append(("CUDA driver", found["cuda_driver"] or "none: no NVIDIA GPU, or its driver is not installed"))
    for name, library in found["libraries"].items():
        rows.append((name, library["version"] or f"absent; {library['remedy']}"))
    if found["video"] is not None:
        gstreamer = "yes" if found["video"]["GStreamer"] else "no: gst: sources need an OpenCV that was built with it"
        rows.append(("  videos and streams", "yes" if found["video"]["FFmpeg"] else "no: this OpenCV lacks FFmpeg"))
        rows.append(("  GStreamer pipelines", gstreamer))
    rows.append(("ONNX Runtime providers", ", ".join(found["onnxruntime_providers"]) or "none"))
    rows.append(("native core", found["native_core"]["detail"]))
    for backend in found["backends"]:
        state = "works" if backend["available"] else "not available"
        remedy = f"; {backend['remedy']}" if backend.get("remedy") and not backend["available"] else ""
        rows.append((f"backend {backend['name']}", f"{state}: {backend['detail']}{remedy}"))
    codec = found["codec"]
    rows.append(("codec", codec["detail"]))
    rows.append(("in use", codec["backend"] or "nothing: see below"))
    rows += [("  note", note) for note in codec["notes"]]
    text = [f"{name:<30}{value}" for name, value in rows]
    if found["problems"]:
        text += ["", "To be done:"] + [f"- {problem}" for problem in found["problems"]]
    return text


def _cpu() -> dict[str, Any]:

    fields = _proc_cpuinfo()
    flags = set(f"{fields.get('flags', '')} {fields.get('Features', '')}".split())
    model = fields.get("model name") or fields.get("Model") or platform.processor() or platform.machine()
    cores = usable_cores()
    return {"model": model, "cores": cores, "features": [name for name in CPU_FEATURES if name in flags]}


def _proc_cpuinfo() -> dict[str, str]:
    """The first processor's entries; empty where the kernel has no such file."""
    fields: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return fields
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def _library(module: str, remedy: str) -> dict[str, str | None]:
    version = None
    if importlib.util.find_spec(module) is not None:
        version = "present"
        for distribution in DISTRIBUTIONS.get(module, (module,)):
            try:
                version = importlib.metadata.version(distribution)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return {"version": version, "remedy": None if version else remedy}


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())


def _native_core() -> dict[str, str | None]:
    remedy = "the native core does not load: reinstall linnet where a C++ compiler is present"
    try:
        from .runtime import core
    except Exception as error:  # whatever a half-built or foreign library raises is the finding
        return {"detail": f"does not load ({error})", "remedy": remedy}
    return {"detail": f"works, {core.__name__}", "remedy": None}


def _backends() -> list[dict[str, Any]]:
    try:
        from .runtime import backends

        return backends.describe()
    except Exception as error:
        return [{"name": "all", "available": False, "detail": str(error), "remedy": "repair what is missing above"}]


def _codec() -> dict[str, Any]:
    """Opens the shipped codec as `encode` would, and has its backend reproduce every known answer now.

    Engines of TensorRT have shapes of their own: they were compared when they were built, and are when they load.
    """
    try:
        from .runtime.backends import check_known_answer
        from .runtime.codec import Codec

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            codec = Codec.open(None, defaults.BACKEND)
        proof = "its engines are checked when they load"
        if codec.backend.name != "tensorrt":
            proof = "reproduces its known answers"
            for network in codec.bundle.networks:
                check_known_answer(codec.backend, codec.bundle, network)
    except Exception as error:
        remedy = f"the shipped codec does not open: {error}"
        detail = "does not open"
        return {"name": None, "identity": None, "backend": None, "detail": detail, "notes": [], "remedy": remedy}
    return {
        "name": codec.bundle.name,
        "identity": codec.bundle.identity,
        "backend": codec.backend.name,
        "kmac_per_pixel": codec.bundle.kmac_per_pixel,
        "detail": f"{codec.bundle.name} {codec.bundle.identity[:16]}, {proof}",
        "notes": [str(warning.message) for warning in caught],
        "remedy": None,
    }


def main(*, as_json: bool) -> int:
    """Prints the report; exit status 3 where something that linnet needs is missing."""
    import json

    found = report()
    print(json.dumps(found, indent=2) if as_json else "\n".join(lines(found)))
    return 3 if found["problems"] else 0
