"""Rate-distortion points that others published or measured earlier, from anchor files, for the tables and the plot.

A file is JSON: `{"about": ..., "codecs": {name: [point, ...]}}`, or `{"settings": ..., "points": [...]}` for the list,
a point having `bpp`, `psnr_rgb` and perhaps `ms_ssim`. Luma PSNR is not taken over, since each
source has a luma of its own.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError, UsageError

SAME_RATE = 0.01  # relative, and
SAME_PSNR_DB = 0.05  # between two measurements of one codec on the same pictures with neighbouring library versions


@dataclass(frozen=True)
class Point:
    """One setting of one codec, averaged over a set: mean bits per pixel and mean qualities."""

    bits_per_pixel: float
    psnr_rgb: float | None
    psnr_y: float | None = None
    ms_ssim: float | None = None
    setting: float | None = None
    pictures: int | None = None


def read(path: Path) -> dict[str, list[Point]]:
    """The curves of an anchor file by codec name."""
    try:
        codecs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["codecs"]
        curves = {}
        for name, entry in codecs.items():
            points = entry["points"] if isinstance(entry, dict) else entry
            curves[name] = [_point(p) for p in points]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the path of an anchor file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not an anchor file ({error!r}); see docs/benchmarks.md for the form") from error
    return curves


def _point(p: dict[str, Any]) -> Point:
    ms_ssim = p.get("ms_ssim", p.get("msssim"))
    return Point(float(p["bpp"]), p.get("psnr_rgb"), ms_ssim=ms_ssim, setting=p.get("q"), pictures=p.get("n"))


def assign(arguments: Collection[str], set_names: Collection[str]) -> list[tuple[str, Path]]:
    """(set, file) of each `SET=FILE` or bare file; a bare file belongs to the set that its name begins with.

    Points on other pictures say nothing about these, so a file that fits no set is a usage error, not a guess.
    """
    assigned = []
    for argument in arguments:
        set_name, separator, rest = argument.partition("=")
        path = Path(rest) if separator else Path(argument)
        if not separator:
            fitting = [name for name in set_names if path.name.lower().startswith(name.lower())]
            set_name = max(fitting, key=len, default="")
        if set_name not in set_names:
            raise UsageError(f"{argument}: which of the sets {', '.join(set_names)} is it about? Write SET={path}")
        assigned.append((set_name, path))
    return assigned


def choose(curves: Mapping[str, list[Point]], parts: Sequence[str]) -> dict[str, list[Point]]:
    """The curves whose names contain one of the parts, whatever the case."""
    wanted = [part.lower() for part in parts]
    return {name: points for name, points in curves.items() if any(part in name.lower() for part in wanted)}


def mismatch(
    curves: Mapping[str, Sequence[Point]], reference: str, measured: Sequence[Point], pictures: int
) -> str | None:
    """Why these anchors are about other pictures than this run, as far as their file lets one see; None if they fit."""
    for point in (p for points in curves.values() for p in points):
        if point.pictures not in (None, pictures):
            return f"averages over {point.pictures} pictures, this run has {pictures}"
    by_setting = {p.setting: p for p in measured}
    for point in curves.get(reference, ()):
        ours = by_setting.get(point.setting)
        if ours is None or ours.psnr_rgb is None or point.psnr_rgb is None:
            continue
        same_rate = abs(ours.bits_per_pixel / point.bits_per_pixel - 1) <= SAME_RATE
        if not same_rate or abs(ours.psnr_rgb - point.psnr_rgb) > SAME_PSNR_DB:
            return f"its {reference} differs from that of this run at setting {point.setting:g}: other pictures"
    return None
