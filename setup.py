"""Builds the native core and maps the tree's folders onto the package `linnet`; everything else is in pyproject.toml."""

from setuptools import setup

FOLDERS = {
    "linnet": "linnet",
    "linnet.runtime": "runtime",
    "linnet.runtime.backends": "runtime/backends",
    "linnet.export": "export",
    "linnet.export.models": "export/models",
    "linnet.calibration": "calibration",
    "linnet.training": "training",
    "linnet.benchmarks": "benchmarks",
}

setup(packages=list(FOLDERS), package_dir=FOLDERS)
