"""`linnet export`: trained weights to a codec bundle, with a report of what that cost."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import images
from .files import require_folders
from .runtime.errors import InputError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from .export.hyperprior_bundle import ExportReport

CAMERA = "camera"
FOREIGN = "compressai:"
MOST_IMAGES = 200
"""Photographs of a folder that are read at most, spread evenly over its sorted names."""


def main(options: argparse.Namespace) -> int:
    out = Path(options.out)
    require_folders(out, options.keep)
    if options.model == CAMERA:
        from .export import bundling

        if options.weights is None:
            raise UsageError("camera needs --weights, a checkpoint of linnet.training.train")
        identity = bundling.export_codec(Path(options.weights), out)
        print(json.dumps({"identity": identity}) if options.json else f"{out}: {identity}")
        return 0
    name, model = _model(options)
    if options.images is None:
        raise UsageError(f"{options.model} needs --images, a folder of photographs to fit its exact layers on")
    from .export.hyperprior_bundle import export_model

    photographs, notes = _photographs(Path(options.images))
    for note in notes:
        print(f"linnet: note: {note}", file=sys.stderr)
    keep = None if options.keep is None else Path(options.keep)
    report = export_model(name, model, photographs, out, options.steps, keep)
    print(json.dumps(_as_json(report, notes), indent=1) if options.json else _as_text(report, out))
    return 0


def _model(options: argparse.Namespace) -> tuple[str, nn.Module]:
    """(name, float model) that MODEL asks for."""
    if options.model.startswith(FOREIGN):
        from .export.models.compressai import MODELS, load_model

        name = options.model.removeprefix(FOREIGN)
        if name not in MODELS:
            raise UsageError(f"{options.model} is not known: use one of {', '.join(FOREIGN + n for n in MODELS)}")
        if options.weights is None:
            raise UsageError(f"{options.model} needs --weights, the published file or one of your training")
        return name, load_model(name, Path(options.weights), options.quality)
    file, colon, function = options.model.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise UsageError(
            f"{options.model} is not known: use {CAMERA}, {FOREIGN}NAME, or FILE.py:FUNCTION for a model of your own"
        )
    return Path(file).stem, _own_model(Path(file), function, options.weights)


def _own_model(file: Path, function: str, weights: str | None) -> nn.Module:
    """What `function` of the user's `file` gives, called with the path of the weights if there are any."""
    if not file.is_file():
        raise InputError(f"{file} does not exist: MODEL is FILE.py:FUNCTION")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make = getattr(module, function, None)
    if not callable(make):
        raise UsageError(f"{file} has no function {function}: MODEL is FILE.py:FUNCTION")
    return make() if weights is None else make(weights)


def _photographs(folder: Path) -> tuple[list[np.ndarray], list[str]]:
    """The pictures of `folder`, and notes on files that are none. InputError where there is no picture."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: --images wants one with photographs")
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    if len(paths) > MOST_IMAGES:
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, MOST_IMAGES).round().astype(int)]
    from tqdm import tqdm

    pictures, notes = [], []
    for path in tqdm(paths, desc="reading images", unit="image", disable=None):
        try:
            pictures.append(images.read(str(path)).pixels)
        except InputError as error:
            notes.append(f"{error}: left out")
    if not pictures:
        raise InputError(f"{folder} holds no picture that can be read: --images wants photographs")
    return pictures, notes


def _rate_loss(report: ExportReport) -> float | None:
    """BD-rate of the integers against the float model in percent."""
    from .benchmarks.metrics import bd_rate

    if not all("float_bpp" in point for point in report.points):
        return None
    true = [(point["float_bpp"], point["float_psnr"]) for point in report.points]
    return bd_rate(true, [(point["bpp"], point["psnr"]) for point in report.points])


def _as_json(report: ExportReport, notes: list[str]) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(report), "bd_rate_percent": _rate_loss(report), "notes": notes}


def _as_text(report: ExportReport, out: Path) -> str:
    found = report.conversion
    lines = [
        f"{out}: {report.identity}",
        "",
        "network           rewriting error   exact network, SQNR   gain of tuning",
    ]
    lines += [
        f"{name:<17} {error:15.1e}   {found.network_sqnr_db[name]:16.1f} dB   {found.tuning_gain_db[name]:11.1f} dB"
        for name, error in found.rewriting_error.items()
    ]
    if found.activation_sqnr_db:
        lines += ["", "fitted activation   SQNR before tuning"]
        lines += [f"{name:<17} {sqnr:17.1f} dB" for name, sqnr in found.activation_sqnr_db.items()]
    lines += ["", f"on {report.measured_images} images that were held out:"]
    lines.append("quality   exact bpp      dB   float bpp      dB")
    for point in report.points:
        line = f"{point['quality']:>7}   {point['bpp']:9.4f}   {point['psnr']:5.2f}"
        if "float_bpp" in point:
            line += f"   {point['float_bpp']:9.4f}   {point['float_psnr']:5.2f}"
        lines.append(line)
    loss = _rate_loss(report)
    if loss is not None:
        lines.append(f"BD-rate of the exact codec against the float model: {loss:+.1f} %")
    return "\n".join(lines)
