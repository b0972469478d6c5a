"""The figures of `linnet bench region` as tables, verdict and plot; from the JSON document alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .codec import LINNET
from .region_frames import WINDOW
from .region_timing import PASSES
from .tile_rates import RATE_TILES, around

GOAL_RATIO = 25
GOAL_GROWTH = 0.2
GOAL_MEGAPIXELS = 24.0, 96.0
"""At these sizes a window takes at most 1/25 of the full decode, and its time grows by at most 20 %."""


def summarise(document: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per reader, frame and window: medians, and ratios that are taken within each round."""
    rows = []
    first = {s["reader"]: s for s in document["samples"] if s["frame"] == 0}
    for sample in document["samples"]:
        frame = document["frames"][sample["frame"]]
        for placement, placed in sample["windows"].items():
            rounds, first_rounds = placed["seconds"], first[sample["reader"]]["windows"][placement]["seconds"]
            ratios = [full / median(passes) for full, passes in zip(sample["full_s"], rounds, strict=True)]
            growths = [
                median(a / b for a, b in zip(passes, first_passes, strict=True))
                for passes, first_passes in zip(rounds, first_rounds, strict=True)
            ]
            rows.append(
                {
                    "reader": sample["reader"],
                    "megapixels": frame["megapixels"],
                    "placement": placement,
                    "bits_per_pixel": sample["bits_per_pixel"],
                    "window_ms": 1e3 * median(s for passes in rounds for s in passes),
                    "full_ms": 1e3 * median(sample["full_s"]),
                    "threads_busy": sum(sample["full_cpu_s"]) / sum(sample["full_s"]),
                    "full_over_window": _spread(ratios),
                    "over_first_size": _spread(growths),
                    "bytes_read": placed["bytes_read"],
                    "reads": placed["reads"],
                    "file_bytes": sample["file_bytes"],
                    "same_pixels": placed["same_pixels"],
                }
            )
    return rows


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": median(values), "max": max(values)}


def format_table(document: dict[str, Any]) -> str:
    """One wide row per reader, frame and window, then what the readers do and which are absent."""
    side, rounds = document["window"], len(document["samples"][0]["full_s"])
    to_first = f"to {document['frames'][0]['megapixels']:g} MP"
    quality = "" if document["quality"] is None else f"linnet at quality {document['quality']}, "
    lines = [
        f"a window of {side}x{side} in the middle of a frame from {document['source']}, opened and decoded from a file "
        f"in the page cache; one thread, {rounds} rounds of 1 full decode and {PASSES} windows; {quality}"
        f"all near {document['bits_per_pixel_wanted']:.2f} bits per pixel; ratios within a round: median (min-max)",
        f"{'codec':<20}{'megapixels':>11}{'bits/pixel':>11}{'window':>11}{'window ms':>11}{'full ms':>10}"
        f"{'full/window':>19}{to_first:>18}{'KiB read':>10}{'reads':>7}{'of file':>9}{'same pixels':>13}"
        f"{'threads busy':>14}",
    ]
    for row in document["summary"]:
        read = row["bytes_read"]
        share = "-" if read is None else f"{read / row['file_bytes']:.1%}"
        kib, reads = ("-", "-") if read is None else (f"{read / 2**10:.1f}", row["reads"])
        lines.append(
            f"{row['reader']:<20}{row['megapixels']:>11g}{row['bits_per_pixel']:>11.3f}{row['placement']:>11}"
            f"{row['window_ms']:>11.1f}{row['full_ms']:>10.0f}{_ratio(row['full_over_window'], 1):>19}"
            f"{_ratio(row['over_first_size'], 2):>18}{kib:>10}{reads:>7}{share:>9}"
            f"{'yes' if row['same_pixels'] else 'NO':>13}{row['threads_busy']:>14.2f}"
        )
    lines += [f"{name}: {about['about']}; {about['version']}" for name, about in document["readers"].items()]
    return "\n".join(lines + [f"{name}: absent, {reason}" for name, reason in document["absent"].items()])


def _ratio(spread: dict[str, float], digits: int) -> str:
    low, middle, high = (f"{spread[key]:.{digits}f}" for key in ("min", "median", "max"))
    return f"{middle} ({low}-{high})"


def format_rates(document: dict[str, Any]) -> str:
    """One row per set."""
    low, high = around(document["quality"])
    lines = [
        f"rate of tiles against one tile per frame, linnet between quality {low} and {high}: BD-rate, mean (largest) "
        "over the pictures that tiles of that size cut, and the change of PSNR RGB at one quality",
        f"{'set':<30}{'pictures':>9}{'bits/pixel':>11}" + "".join(f"{f'tiles of {tile}':>31}" for tile in RATE_TILES),
    ]
    for row in document["rates"]:
        cells = [row["overhead_percent"].get(str(tile)) for tile in RATE_TILES]
        texts = [
            "-" if c is None else f"{c['mean']:+.2f} % ({c['max']:+.2f} %) {c['psnr_change_db']:+.3f} dB" for c in cells
        ]
        line = f"{row['set']:<30}{row['pictures']:>9}{row['bits_per_pixel']:>11.3f}"
        lines.append(line + "".join(f"{text:>31}" for text in texts))
    return "\n".join(lines)


def format_verdict(document: dict[str, Any]) -> str:
    """The worst of linnet's windows, beside the goals where the frames have the sizes that the goals are about."""
    own = [row for row in document["summary"] if row["reader"] == LINNET]
    if not own:
        return "linnet: not measured"
    at_goal = tuple(f["megapixels"] for f in document["frames"]) == GOAL_MEGAPIXELS and document["window"] == WINDOW
    smallest, largest = (document["frames"][i]["megapixels"] for i in (0, -1))
    ratio = min(row["full_over_window"]["median"] for row in own if row["megapixels"] == smallest)
    parts = [f"1/{ratio:.1f} of the full decode at {smallest:g} megapixels" + (f" (goal: 1/{GOAL_RATIO})" * at_goal)]
    if largest > smallest:
        growth = max(abs(row["over_first_size"]["median"] - 1) for row in own if row["megapixels"] == largest)
        goal = f" (goal: {100 * GOAL_GROWTH:.0f} %)" * at_goal
        parts.append(f"that time to within {100 * growth:.0f} % at {largest:g} megapixels{goal}")
    windows = sum(len(passes) for s in document["samples"] if s["reader"] == LINNET
                  for placed in s["windows"].values() for passes in placed["seconds"])  # fmt: skip
    same = all(row["same_pixels"] for row in own)
    parts.append(f"all {windows} windows equal their crop" if same else "some windows DIFFER from their crop")
    return f"{LINNET}: a window takes at worst " + ", ".join(parts)


def draw(document: dict[str, Any], path: Path) -> None:
    """Times over the size of the frame, and beside them what tiles cost; from the JSON form alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from .plot import LEGEND_INCHES, PANEL_INCHES

    panels = 2 if document["rates"] else 1
    figure = Figure(figsize=(panels * PANEL_INCHES[0] + LEGEND_INCHES, PANEL_INCHES[1]), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for number, reader in enumerate(document["readers"]):
        rows = [row for row in document["summary"] if row["reader"] == reader]
        style: dict[str, Any] = {"color": f"C{number % 10}", "marker": "o", "markersize": 3, "linewidth": 1.2}
        if reader == LINNET:
            style |= {"color": "black", "linewidth": 2.5, "markersize": 5, "zorder": 10}
        for placement, line in (("aligned", "-"), ("unaligned", "--")):
            own = [row for row in rows if row["placement"] == placement]
            sizes, times = [row["megapixels"] for row in own], [row["window_ms"] for row in own]
            axes[0].plot(sizes, times, linestyle=line, label=f"{reader}, {placement} window", **style)
        times = [row["full_ms"] for row in own]
        axes[0].plot(sizes, times, linestyle=":", label=f"{reader}, full frame", **style)
    axes[0].set_xscale("log", base=2)
    axes[0].set_yscale("log")
    axes[0].set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes[0].set_xlabel("megapixels of the frame")
    axes[0].set_title(f"window of {document['window']}x{document['window']}: milliseconds")
    for row in document["rates"]:
        cells = row["overhead_percent"]
        axes[1].plot([int(t) for t in cells], [c["mean"] for c in cells.values()], marker="o", label=row["set"])
        axes[1].axhline(0, color="grey", linewidth=1)
        axes[1].set_title("BD-rate of tiles against one tile per frame, %")
        axes[1].set_xscale("log", base=2)
        axes[1].set_xticks(RATE_TILES, [str(tile) for tile in RATE_TILES])
        axes[1].set_xlabel("side of the tiles")
        axes[1].legend(fontsize="small")
    for panel in axes:
        panel.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=120)
