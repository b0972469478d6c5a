"""`linnet bench speed`: megapixels per second and peak memory of linnet beside AVIF, JPEG XL, JPEG and WebP.

All codecs encode and decode one large picture on one thread at nearly the same bits per pixel, in turns within each
round of one run. Absolute figures belong to the machine; the ratios per round are what compares.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from ..argument_types import above_zero
from ..files import require_folders
from ..runtime.errors import MachineError
from .codec import LINNET

FORMAT = "linnet-bench-speed/1"
MEGAPIXELS = 24.0
REPEAT = 3
BITS_PER_PIXEL = 0.65


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGES", help="pictures or folders for the mosaic (default: scikit-image's)")
    add("--megapixels", type=above_zero, default=MEGAPIXELS, metavar="MP", help="size of the mosaic (default: 24)")
    add("--repeat", type=int, choices=range(1, 101), default=REPEAT, metavar="N", help="rounds (default: 3)")
    add("--bpp", type=above_zero, default=BITS_PER_PIXEL, help="bits per pixel all codecs aim at (default: 0.65)")
    add("--quality", type=int, choices=range(1, 101), metavar="Q", help="quality of linnet (default: what gives --bpp)")
    add("--no-linnet", action="store_true", help="measure the peers only")
    add("--no-memory", action="store_true", help="leave out the peak memory")
    add("--bundle", help="codec bundle of linnet (default: the shipped one)")
    add("--backend", default="auto", help="backend of linnet (default: auto)")
    add("--json", type=Path, metavar="FILE", help="write all samples here")


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark and return the exit status."""
    from . import host
    from .peers import SPEED_PEERS
    from .single_thread import call

    require_folders(arguments.json)
    names = list(SPEED_PEERS) if arguments.no_linnet else [LINNET, *SPEED_PEERS]
    with tempfile.TemporaryDirectory(prefix="linnet-bench-") as folder:
        common = {"bundle": arguments.bundle, "backend": arguments.backend, "folder": folder}
        request = common | {
            "codecs": names,
            "images": arguments.images,
            "megapixels": arguments.megapixels,
            "repeat": arguments.repeat,
            "bits_per_pixel": arguments.bpp,
            "quality": arguments.quality,
        }
        document: dict[str, Any] = {"format": FORMAT, "host": host.fingerprint()} | call("timing", request)
        if not document["timings"]:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in document["absent"].items())
            raise MachineError(f"no codec to measure here ({reasons})")
        if not arguments.no_memory:
            document["peak_mib"] = {
                name: {
                    direction: call("peak_memory", common | {"codec": name, "direction": direction} | setting)
                    for direction in ("encode", "decode")
                }
                for name, setting in ((n, {"setting": t["setting"]}) for n, t in document["timings"].items())
            }
    document["summary"] = summarise(document)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(format_table(document))
    return 0


def summarise(document: dict[str, Any]) -> dict[str, Any]:
    """Median MP/s of each codec, and its speed over that of linnet (or of the first codec) in each round."""
    timings, picture = document["timings"], document["picture"]
    megapixels = picture["width"] * picture["height"] / 1e6
    reference = LINNET if LINNET in timings else next(iter(timings))
    summary: dict[str, Any] = {"reference": reference, "codecs": {}}
    for name, timing in timings.items():
        row: dict[str, Any] = {}
        for direction in ("encode", "decode"):
            seconds, reference_seconds = timing[f"{direction}_s"], timings[reference][f"{direction}_s"]
            ratios = [theirs / own for own, theirs in zip(seconds, reference_seconds, strict=True)]
            row[direction] = {
                "megapixels_per_s": megapixels / median(seconds),
                "ratio": {"min": min(ratios), "median": median(ratios), "max": max(ratios)},
                "threads_busy": sum(timing[f"{direction}_cpu_s"]) / sum(seconds),
            }
        summary["codecs"][name] = row
    return summary


def format_table(document: dict[str, Any]) -> str:
    """One wide row per codec, then the memory and what is absent."""
    picture, summary = document["picture"], document["summary"]
    rounds = len(next(iter(document["timings"].values()))["encode_s"])
    megapixels = picture["width"] * picture["height"] / 1e6
    lines = [
        f"{picture['width']}x{picture['height']} ({megapixels:.1f} megapixels) from {picture['source']}; one thread, "
        f"{rounds} rounds; ratios are times the speed of {summary['reference']} in the same round: median (min-max)",
        f"{'codec':<20}{'setting':>8}{'bits/pixel':>11}{'PSNR RGB':>9}"
        f"{'encode MP/s':>13}{'ratio':>20}{'decode MP/s':>13}{'ratio':>20}{'threads busy':>14}",
    ]
    for name, timing in document["timings"].items():
        row = summary["codecs"][name]
        psnr = "lossless" if timing["psnr_rgb"] is None else f"{timing['psnr_rgb']:.2f}"
        speeds = "".join(f"{r['megapixels_per_s']:>13.2f}{_ratio(r['ratio']):>20}" for r in row.values())
        busy = f"{row['encode']['threads_busy']:.2f} / {row['decode']['threads_busy']:.2f}"
        lines.append(f"{name:<20}{timing['setting']:>8g}{timing['bits_per_pixel']:>11.3f}{psnr:>9}{speeds}{busy:>14}")
    if "peak_mib" in document:
        lines += ["", f"{'peak memory in MiB':<20}{'imports':>9}{'codec open':>12}{'encode':>9}{'decode':>9}"]
        for name, peak in document["peak_mib"].items():
            done = "".join(f"{peak[direction]['done']:>9.0f}" for direction in ("encode", "decode"))
            lines.append(f"{name:<20}{peak['encode']['imports']:>9.0f}{peak['encode']['open']:>12.0f}{done}")
    return "\n".join(lines + [f"{name}: absent, {reason}" for name, reason in document["absent"].items()])


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"
