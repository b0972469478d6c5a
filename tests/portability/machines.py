"""Machines that we do not have, as commands that run Python on them under qemu's user-mode emulation.

x86 without VNNI is this machine's own Python on another CPU model. ARM is a small Debian root for arm64 (Python and
libraries, from packages), with numpy and ONNX Runtime from their ARM wheels and the native core cross-compiled.
Everything is kept in `.portability/`, so a second run downloads nothing.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".portability"
COMPILER = "aarch64-linux-gnu-g++"
FLAGS = (
    "-std=c++17", "-O3", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-ffp-contract=off",
    "-fno-trapping-math", "-fno-exceptions", "-fno-rtti",
)  # fmt: skip
"""Those of setup.py."""
ARM_CPU = """processor\t: {number}
BogoMIPS\t: 100.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""
"""What the emulated /proc/cpuinfo says for each core: without an ARM one ONNX Runtime reads this machine's and crashes.
The features that kernels are chosen by come from qemu, through the auxiliary vector."""


class Lacking(Exception):
    """This machine cannot emulate that one; the text says what to install."""


@dataclass(frozen=True)
class Machine:
    """`about` says what its CPU has; `prepare` gives the command that starts Python there, and its environment."""

    name: str
    about: str
    prepare: Callable[[], tuple[list[str], dict[str, str]]] = field(repr=False)


def program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise Lacking(f"{name} is not here: apt-get install {package}")
    return found


def _here() -> tuple[list[str], dict[str, str]]:
    return [sys.executable], {}


def _x86(cpu: str) -> Callable[[], tuple[list[str], dict[str, str]]]:
    def prepare() -> tuple[list[str], dict[str, str]]:
        if os.uname().machine != "x86_64":
            raise Lacking("this Python is not one for x86-64")
        return [program("qemu-x86_64", "qemu-user"), "-cpu", cpu, sys.executable], {}

    return prepare


def _arm(cpu: str) -> Callable[[], tuple[list[str], dict[str, str]]]:
    def prepare() -> tuple[list[str], dict[str, str]]:
        qemu = program("qemu-aarch64", "qemu-user")
        root = _arm_root()
        python = _arm_python(root)
        tree, wheels = _arm_tree(), _arm_wheels(python)
        return [qemu, "-cpu", cpu, "-L", str(root), str(python)], {"PYTHONPATH": f"{tree}:{wheels}"}

    return prepare


def _arm_root() -> Path:
    """A folder with Debian's Python for arm64 and the libraries that it and the wheels need; no root rights wanted."""
    root = FOLDER / "aarch64"
    if (root / "proc" / "cpuinfo").exists():
        return root
    program("apt-get", "apt, on Debian")
    state = FOLDER / "apt"
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    options = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "APT::Sandbox::User": "",
        "Dir::State": state, "Dir::State::lists": state / "lists", "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache", "Debug::NoLocking": "true",
    }  # fmt: skip
    apt = ["apt-get", "-qq", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
    # Sources without arm64 packages make `update` complain; what counts is whether the packages come.
    subprocess.run([*apt, "update"], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wanted = ["python3", "libstdc++6"]
    download = [*apt, "install", "--download-only", "--yes", "--no-install-recommends", *wanted]
    done = subprocess.run(download, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Lacking(f"no arm64 packages from this machine's apt sources: {done.stderr.strip()[-300:]}")
    for package in sorted((state / "cache" / "archives").glob("*.deb")):
        subprocess.run(["dpkg", "--extract", package, root], check=True)
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc" / "cpuinfo").write_text("".join(ARM_CPU.format(number=n) for n in range(os.cpu_count() or 1)))
    return root


def _arm_python(root: Path) -> Path:
    return max(path for path in (root / "usr" / "bin").glob("python3.*") if path.name[8:].isdigit())


def _arm_wheels(python: Path) -> Path:
    """numpy and onnxruntime as this machine has them, from their wheels for ARM."""
    folder = FOLDER / "wheels"
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "onnxruntime", "cryptography")}
    marker, wanted = folder / "installed", "\n".join(f"{name}=={version}" for name, version in versions.items())
    if not marker.exists() or marker.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "--only-binary=:all:"]
        version = f"--python-version={python.name[6:]}"
        done = subprocess.run(
            [*pip, *platforms, "--platform=manylinux2014_aarch64", version, *wanted.split()],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Lacking(f"no ARM wheels from the package index: {done.stderr.strip()[-300:]}")
        marker.write_text(wanted)
    return folder


def _arm_tree() -> Path:
    """The package as it would be installed there: `linnet`, `linnet.runtime`, and the native core for ARM."""
    program(COMPILER, "g++-aarch64-linux-gnu")
    tree = FOLDER / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "linnet", tree / "linnet", ignore=ignored)
    shutil.copytree(ROOT / "runtime", tree / "linnet" / "runtime", ignore=ignored)
    sources = sorted((ROOT / "runtime" / "native").glob("*.cc"))
    library = tree / "linnet" / "runtime" / "_native.abi3.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", *FLAGS, "-o", library, *sources], check=True)
    return tree


MACHINES = (
    Machine("here", "this machine, not emulated", _here),
    Machine("x86-64-haswell", "AVX2, no VNNI: sums of two products saturate at 16 bits", _x86("Haswell")),
    Machine("x86-64-nehalem", "SSE4.2, no AVX", _x86("Nehalem")),
    Machine("aarch64-cortex-a72", "Raspberry Pi 4: NEON, no dot product", _arm("cortex-a72")),
    Machine("aarch64-cortex-a76", "Raspberry Pi 5, much like Jetson Orin: dot product", _arm("cortex-a76")),
    Machine("aarch64-max", "SVE and 8-bit matrix product", _arm("max")),
)
