"""Builds the native core and maps the tree's folders onto the package `linnet`; the rest is in pyproject.toml."""

from setuptools import Extension, setup

FOLDERS = {
    "linnet": "linnet",
    "linnet.runtime": "runtime",
    "linnet.runtime.backends": "runtime/backends",
    "linnet.export": "export",
    "linnet.export.models": "export/models",
    "linnet.calibration": "calibration",
    "linnet.training": "training",
    "linnet.benchmarks": "benchmarks",
    "linnet.benchmarks.profiling": "benchmarks/profiling",
}

SOURCES = ("companding", "crc32c", "entropy", "errors", "filter_strips", "filters", "latents", "pixels", "search")

# Loaded with ctypes, so one build serves every Python version (hence "limited API", although no Python.h is used).
# -ffp-contract=off: a fused multiply-add would let the encoder round differently from machine to machine.
# -fno-trapping-math: nobody asks which exceptions a comparison raised, and without them it can be vector code.
NATIVE = Extension(
    "linnet.runtime._native",
    sources=[f"runtime/native/{name}.cc" for name in SOURCES],
    depends=[f"runtime/native/{name}.h" for name in ("kernels", "linnet", "tables")],
    language="c++",
    extra_compile_args=[
        "-std=c++17",
        "-O3",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-fvisibility=hidden",
        "-ffp-contract=off",
        "-fno-trapping-math",
        "-fno-exceptions",
        "-fno-rtti",
    ],
    py_limited_api=True,
)

setup(
    packages=list(FOLDERS),
    package_dir=FOLDERS,
    ext_modules=[NATIVE],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
