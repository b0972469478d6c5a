"""`linnet calibrate`: a float codec and a folder of photographs in, an integer bundle and a report out.

The work is done in `linnet.calibration` and `linnet.export`; here are the pictures, the progress bar and the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from . import images
from .benchmarks.metrics import bd_rate
from .calibration.assessment import collect, mean_bd_rate, measure, sensitivity
from .calibration.ptq import QUALITIES, Method, check_layers, quantise
from .calibration.qat import to_full_scale
from .calibration.report import Report
from .export.bundling import bundle_codec, count_symbols, load_float_codec
from .export.hyperprior_bundle import load_hyperprior, write_hyperprior
from .files import require_folders
from .runtime.errors import InputError

CROP = 256
"""Side of the squares that are cut from the middle of each picture."""
MEASURED_EVERY = 4
"""Every fourth picture is kept for the report, as long as there are some."""
SENSITIVITY_IMAGES = 4
ORIENTATION_TAG = images.ORIENTATION_TAG
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What EXIF orientations ask a viewer to do."""
Remark = tuple[str, str]


def main(options: argparse.Namespace) -> int:
    require_folders(options.out, options.report, options.json)
    method = Method(
        observer=options.observer,
        weight_observer=options.weight_observer,
        rounding=options.rounding,
        format=options.format,
        equalise=options.equalise,
        wide=dict(options.wide or ()),
    )
    started = perf_counter()
    name, codec, write = _float_codec(Path(options.codec))
    check_layers(codec, method)
    pictures, skipped, notes = read_pictures(Path(options.images), options.count)
    kept, shown = split(pictures)
    with _Progress() as progress:
        before = collect(progress.over(measure(codec, shown.split(4)), "float model", len(shown) * len(QUALITIES)))
        twin = quantise(codec, kept, method, progress.tell)
        after = collect(progress.over(measure(codec, shown.split(4)), "integer model", len(shown) * len(QUALITIES)))
        costs = []
        if options.sensitivity:
            costs = sensitivity(twin, codec, shown[:SENSITIVITY_IMAGES], bd_rate, progress.tell)
        identity = write(codec.eval(), kept, Path(options.out))
    report = Report(
        codec=name,
        identity=identity,
        format=method.format,
        method={
            "observer": method.observer,
            "weight observer": method.weight_observer,
            "rounding": method.rounding,
            "equalisation": "on" if method.equalise else "off",
        },
        calibration_images=len(kept),
        measured_images=len(shown),
        same_images=kept is shown,
        skipped=skipped,
        notes=notes,
        seconds=perf_counter() - started,
        qualities=QUALITIES,
        float_curve=before.mean_curve(),
        integer_curve=after.mean_curve(),
        bd_rate_percent=mean_bd_rate(before, after, bd_rate),
        layers=costs,
        wide=method.wide,
    )
    if options.report:
        Path(options.report).write_text(report.html(), encoding="utf-8")
    if options.json:
        Path(options.json).write_text(json.dumps(report.as_json(), indent=1), encoding="utf-8")
    print(report.text())
    return 0


Writer = Callable[[Any, Tensor, Path], str]
"""Writes the bundle of a codec, its entropy tables counted on pictures (N, 3, CROP, CROP); returns the identity."""


def _float_codec(path: Path) -> tuple[str, Any, Writer]:
    """(name, float codec, what writes its bundle) of a training checkpoint, or of what `linnet export --keep` wrote."""
    try:
        codec = load_float_codec(path)
        return codec.architecture, codec, _write_camera
    except InputError:
        try:
            name, codec = load_hyperprior(path)
        except InputError as error:
            raise InputError(
                f"{path} is neither a training checkpoint of linnet nor a codec that `linnet export --keep` wrote"
            ) from error
    codec.set_exact(False)
    return name, codec.eval(), partial(_write_hyperprior, name)


def _write_camera(codec: Any, pictures: Tensor, out: Path) -> str:
    return bundle_codec(codec, count_symbols(codec, pictures).numpy(), out)


def _write_hyperprior(name: str, codec: Any, pictures: Tensor, out: Path) -> str:
    codec.set_exact(True)
    crops = (pictures * 128 + 128).round().byte().permute(0, 2, 3, 1).numpy()
    return write_hyperprior(name, codec, np.ascontiguousarray(crops), out)


def read_pictures(folder: Path, count: int) -> tuple[Tensor, list[Remark], list[Remark]]:
    """Up to `count` upright squares (N, 3, CROP, CROP) in full-scale units, spread evenly over the folder's pictures;
    then what was skipped and what was reduced, and why. Raises InputError where no picture can be used."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give one with photographs like those the codec will see")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in images.FORMATS)
    squares: list[np.ndarray] = []
    skipped: list[Remark] = []
    notes: list[Remark] = []
    for path in tqdm(_spread(paths), desc="reading pictures", total=min(count, len(paths)), disable=None, leave=False):
        if len(squares) == count:
            break
        name = str(path.relative_to(folder))
        try:
            picture = images.read(str(path))
        except InputError as error:
            skipped.append((name, str(error).removeprefix(f"{path}: ")))
            continue
        pixels = _upright(picture)
        if min(pixels.shape[:2]) < CROP:
            skipped.append((name, f"{pixels.shape[1]}x{pixels.shape[0]} is smaller than {CROP}x{CROP} pixels"))
            continue
        notes += [(name, note) for note in picture.notes]
        y, x = ((side - CROP) // 2 for side in pixels.shape[:2])
        squares.append(pixels[y : y + CROP, x : x + CROP])
    if not squares:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
        raise InputError(
            f"{folder}: no picture of at least {CROP}x{CROP} pixels can be read ({reasons or 'there is none'}); "
            f"give {', '.join(images.FORMATS)} files"
        )
    return to_full_scale(np.stack(squares)), skipped, notes


def _spread(paths: list[Path]) -> Iterator[Path]:
    """All paths, in an order whose every beginning is spread evenly (a stride that is coprime to their number)."""
    stride = max(1, round(len(paths) * 0.618))
    while paths and np.gcd(stride, len(paths)) != 1:
        stride += 1
    return (paths[i * stride % len(paths)] for i in range(len(paths)))


def _upright(picture: images.Picture) -> np.ndarray:
    orientation = None
    if picture.metadata.exif is not None:
        tags = Image.Exif()
        try:
            tags.load(images.EXIF_PREFIX + picture.metadata.exif)
            orientation = tags.get(ORIENTATION_TAG)
        except (ValueError, TypeError, SyntaxError, KeyError, OSError):
            return picture.pixels  # damaged EXIF says nothing
    if orientation not in UPRIGHT:
        return picture.pixels
    return np.asarray(Image.fromarray(picture.pixels).transpose(UPRIGHT[orientation]))


def split(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """(pictures to calibrate on, pictures to measure on); the same where there are too few to part."""
    if len(pictures) < MEASURED_EVERY:
        return pictures, pictures
    measured = torch.arange(len(pictures)) % MEASURED_EVERY == MEASURED_EVERY - 1
    return pictures[~measured], pictures[measured]


class _Progress:
    """One bar on a terminal that says what is being done; silent in a pipe."""

    def __enter__(self) -> _Progress:
        self._bar = tqdm(disable=None, leave=False, file=sys.stderr, dynamic_ncols=True)
        self._doing = ""
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def tell(self, what: str, done: int, total: int) -> None:
        if self._doing != what:
            self._doing = what
            self._bar.reset(total)
            self._bar.set_description(what, refresh=False)
        self._bar.update(done - self._bar.n)

    def over(self, rows: Iterable, what: str, total: int) -> Iterator:  # type: ignore[type-arg]
        for done, row in enumerate(rows, 1):
            yield row
            self.tell(what, done, total)
