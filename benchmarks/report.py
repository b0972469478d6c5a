"""From raw measurements to the report of a rate-distortion run: averages, BD-rates, monotonicity, printed tables.

Averages are those of the anchor files: for each setting the mean over pictures of bits per pixel, of PSNR in decibels
and of MS-SSIM. The BD-rate of a set is that of the averaged curves; beside it stands the mean of each picture's own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from . import peers
from .anchors import Point, mismatch
from .measure import Measurement
from .metrics import bd_rate, ms_ssim_db

Curves = dict[str, list[Point]]


@dataclass(frozen=True)
class Row:
    """One codec on one set against the reference; None where the curves do not overlap or a metric is missing."""

    codec: str
    source: str  # "measured", or the name of the anchor file
    points: int
    bits_per_pixel: tuple[float, float]
    psnr_rgb: tuple[float, float]
    bd_psnr_rgb: float | None
    bd_psnr_rgb_mean_of_pictures: float | None
    bd_psnr_y: float | None
    bd_ms_ssim: float | None


@dataclass(frozen=True)
class Reversal:
    """A higher setting that cost no more bits, or gave no better quality, on one picture."""

    set_name: str
    image: str
    codec: str
    quantity: str  # bits_per_pixel, psnr_rgb or ms_ssim
    settings: tuple[float, float]
    values: tuple[float, float]


def averages(measurements: Iterable[Measurement]) -> dict[str, Curves]:
    """Mean curves by set and codec, in order of rate. MS-SSIM is the mean over the pictures large enough for it."""
    groups: dict[tuple[str, str, float], list[Measurement]] = defaultdict(list)
    for m in measurements:
        groups[m.set_name, m.codec, m.setting].append(m)
    curves: dict[str, Curves] = defaultdict(lambda: defaultdict(list))
    for (set_name, codec, setting), group in groups.items():
        similarities = [m.ms_ssim for m in group if m.ms_ssim is not None]
        point = Point(
            bits_per_pixel=fmean(m.bits_per_pixel for m in group),
            psnr_rgb=fmean(m.psnr_rgb for m in group),
            psnr_y=fmean(m.psnr_y for m in group),
            ms_ssim=fmean(similarities) if similarities else None,
            setting=setting,
        )
        curves[set_name][codec].append(point)
    return {
        set_name: {codec: sorted(points, key=lambda p: p.bits_per_pixel) for codec, points in of_set.items()}
        for set_name, of_set in curves.items()
    }


QUALITIES: dict[str, Callable[[Point], float | None]] = {
    "psnr_rgb": lambda p: p.psnr_rgb,
    "psnr_y": lambda p: p.psnr_y,
    "ms_ssim": lambda p: None if p.ms_ssim is None else ms_ssim_db(p.ms_ssim),
}


def _bd(reference: list[Point] | None, test: list[Point], quality: str) -> float | None:
    of = QUALITIES[quality]

    def pairs(points: list[Point]) -> list[tuple[float, float]]:
        return [(p.bits_per_pixel, q) for p in points if (q := of(p)) is not None]

    return None if reference is None else bd_rate(pairs(reference), pairs(test))


def _mean_of_pictures(measurements: list[Measurement], set_name: str, codec: str, reference: str) -> float | None:
    """The mean over pictures of each picture's BD-rate; None unless every picture has one."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for m in measurements:
        if m.set_name == set_name and m.codec in (codec, reference):
            curves[m.codec, m.digest].append((m.bits_per_pixel, m.psnr_rgb))
    digests = {digest for name, digest in curves if name == codec}
    rates = [bd_rate(curves[reference, d], curves[codec, d]) for d in digests if (reference, d) in curves]
    known = [r for r in rates if r is not None]
    return fmean(known) if known and len(known) == len(digests) else None


def set_strangers_aside(
    measurements: list[Measurement], anchors: dict[str, dict[str, Curves]], pictures: Mapping[str, int]
) -> list[str]:
    """Takes out anchor files that are visibly about other pictures, and says which and why."""
    reasons = []
    curves = averages(measurements)
    for set_name, files in anchors.items():
        reference = curves.get(set_name, {}).get(peers.REFERENCE, [])
        for name in list(files):
            reason = mismatch(files[name], peers.REFERENCE, reference, pictures[set_name])
            if reason is not None:
                del files[name]
                reasons.append(f"{name}: left out, {reason}")
    return reasons


def rows(
    measurements: list[Measurement], anchors: Mapping[str, Mapping[str, Curves]], reference: str
) -> tuple[dict[str, list[Row]], dict[str, dict[str, Curves]]]:
    """The table of each set, best first, and the curves behind it by set and source.

    `anchors` holds curves by set and file name. BD-rates, those of anchors too, are against the run's own `reference`.
    """
    curves: dict[str, dict[str, Curves]] = {name: {"measured": c} for name, c in averages(measurements).items()}
    for set_name, files in anchors.items():
        curves.setdefault(set_name, {}).update(files)
    tables = {}
    for set_name, sources in curves.items():
        against = sources.get("measured", {}).get(reference)
        table = []
        for source, of_source in sources.items():
            for codec, points in of_source.items():
                rates = [p.bits_per_pixel for p in points]
                psnrs = [p.psnr_rgb for p in points if p.psnr_rgb is not None]
                if not psnrs:
                    continue
                own_mean = None
                if source == "measured":
                    own_mean = _mean_of_pictures(measurements, set_name, codec, reference)
                row = Row(
                    codec=codec,
                    source=source,
                    points=len(points),
                    bits_per_pixel=(min(rates), max(rates)),
                    psnr_rgb=(min(psnrs), max(psnrs)),
                    bd_psnr_rgb=_bd(against, points, "psnr_rgb"),
                    bd_psnr_rgb_mean_of_pictures=own_mean,
                    bd_psnr_y=_bd(against, points, "psnr_y"),
                    bd_ms_ssim=_bd(against, points, "ms_ssim"),
                )
                table.append(row)
        tables[set_name] = sorted(table, key=lambda r: (r.bd_psnr_rgb is None, r.bd_psnr_rgb or 0.0))
    return tables, curves


def reversals(measurements: Iterable[Measurement], codec: str) -> list[Reversal]:
    """Where rate, PSNR or MS-SSIM does not rise with the setting, for a codec whose settings rise with quality."""
    by_picture: dict[tuple[str, str], list[Measurement]] = defaultdict(list)
    for m in measurements:
        if m.codec == codec:
            by_picture[m.set_name, m.image].append(m)
    found = []
    for (set_name, image), group in by_picture.items():
        group.sort(key=lambda m: m.setting)
        for lower, higher in pairwise(group):
            for quantity in ("bits_per_pixel", "psnr_rgb", "ms_ssim"):
                values = getattr(lower, quantity), getattr(higher, quantity)
                if None not in values and values[1] <= values[0]:
                    settings = lower.setting, higher.setting
                    found.append(Reversal(set_name, image, codec, quantity, settings, values))
    return found


def as_json(
    tables: Mapping[str, list[Row]], curves: Mapping[str, Mapping[str, Curves]], reference: str
) -> dict[str, Any]:
    return {
        "reference": reference,
        "tables": {name: [asdict(row) for row in table] for name, table in tables.items()},
        "curves": {
            set_name: {
                source: {codec: [asdict(p) for p in points] for codec, points in of_source.items()}
                for source, of_source in sources.items()
            }
            for set_name, sources in curves.items()
        },
    }


def format_table(set_name: str, pictures: int, table: list[Row], reference: str) -> str:
    """One wide row per codec."""
    lines = [
        f"{set_name}: {pictures} pictures; BD-rate in % against {reference} of this run (negative: fewer bits)",
        f"{'codec':<28}{'PSNR RGB':>9}{'per pict.':>10}{'PSNR Y':>8}{'MS-SSIM':>9}"
        f"{'bits per pixel':>17}{'PSNR RGB dB':>15}{'points':>8}  source",
    ]
    for row in table:
        rate, psnr = (f"{low:.{d}f}-{high:.{d}f}" for (low, high), d in ((row.bits_per_pixel, 3), (row.psnr_rgb, 2)))
        lines.append(
            f"{row.codec:<28}{_percent(row.bd_psnr_rgb):>9}{_percent(row.bd_psnr_rgb_mean_of_pictures):>10}"
            f"{_percent(row.bd_psnr_y):>8}{_percent(row.bd_ms_ssim):>9}"
            f"{rate:>17}{psnr:>15}{row.points:>8}  {row.source}"
        )
    return "\n".join(lines)


def format_points(codec: str, points: list[Point]) -> str:
    """The averaged points of the codec under test."""
    lines = [f"{codec + ' at':<14}{'bits/pixel':>11}{'PSNR RGB':>10}{'PSNR Y':>9}{'MS-SSIM':>9}"]
    for p in points:
        similarity = "-" if p.ms_ssim is None else f"{p.ms_ssim:.4f}"
        lines.append(f"{p.setting:<14g}{p.bits_per_pixel:>11.4f}{p.psnr_rgb:>10.2f}{p.psnr_y:>9.2f}{similarity:>9}")
    return "\n".join(lines)


def format_reversals(codec: str, pictures: int, found: list[Reversal]) -> str:
    if not found:
        return f"{codec}: rate, PSNR and MS-SSIM rise with the setting on all {pictures} pictures"
    lines = [f"{codec}: not monotone in {len(found)} places"]
    for r in found:
        values = f"{r.values[0]:.4f} -> {r.values[1]:.4f}"
        lines.append(f"  {r.set_name}/{r.image}: {r.quantity} {values} from {r.settings[0]:g} to {r.settings[1]:g}")
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{round(value, 1) + 0.0:+.1f}"  # no -0.0
