"""Draws the rate-distortion curves of a report: one row per picture set, PSNR on the left and MS-SSIM on the right.

It reads the JSON form of a report and nothing else, so a plot can be drawn again from an old file.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

from ..files import require_folders
from ..runtime.errors import MachineError
from .metrics import ms_ssim_db

PANEL_INCHES = (6.5, 5.0)
LEGEND_LINE_INCHES = 0.21
LEGEND_INCHES = 3.5
RATE_TICKS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


def check_outputs(drawn: Sequence[Path | None], written: Sequence[Path | None]) -> None:
    """Refuse before anything is measured what could not be written after it: pictures where matplotlib is missing, and
    files in folders that do not exist."""
    require_folders(*drawn, *written)
    for path in drawn:
        if path is not None and find_spec("matplotlib") is None:
            raise MachineError(f"{path}: cannot be drawn, matplotlib is missing; pip install 'linnet[bench]'")


def draw(report: dict[str, Any], output: Path | BinaryIO, kind: str | None = None) -> None:
    """Write the plot as `kind` ("svg", ...), else as the suffix of the path says.

    Measured curves are solid, anchors thin and dashed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    curves: dict[str, Any] = report["curves"]
    most = max(sum(len(codecs) for codecs in sources.values()) for sources in curves.values())
    height = max(PANEL_INCHES[1], most * LEGEND_LINE_INCHES + 1)
    size = (2 * PANEL_INCHES[0] + LEGEND_INCHES, height * len(curves))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(curves), 2, squeeze=False)
    for (set_name, sources), (left, right) in zip(curves.items(), panels, strict=True):
        _panel(left, sources, "psnr_rgb", f"{set_name}: PSNR RGB in dB", report["under_test"])
        title = f"{set_name}: MS-SSIM in dB, -10 log10(1 - MS-SSIM)"
        _panel(right, sources, "ms_ssim", title, report["under_test"])
        right.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small")
    figure.savefig(output, dpi=120, format=kind)


def _panel(axes: Any, sources: dict[str, Any], quality: str, title: str, under_test: str | None) -> None:
    number = 0
    for source, codecs in sources.items():
        for codec, points in codecs.items():
            known = [p for p in points if p[quality] is not None]
            rates = [p["bits_per_pixel"] for p in known]
            values = [ms_ssim_db(p[quality]) if quality == "ms_ssim" else p[quality] for p in known]
            style: dict[str, Any] = {"color": f"C{number % 10}", "marker": "o", "markersize": 3, "linewidth": 1.2}
            if source != "measured":
                style |= {"linestyle": "--" if number // 10 % 2 else ":", "marker": None, "linewidth": 1.0}
            if codec == under_test and source == "measured":
                style |= {"color": "black", "linewidth": 2.5, "markersize": 5, "zorder": 10}
            axes.plot(rates, values, label=codec if source == "measured" else f"{codec} ({source})", **style)
            number += 1
    axes.set_xscale("log", base=2)
    axes.set_xticks(RATE_TICKS, [f"{tick:g}" for tick in RATE_TICKS])
    axes.set_xlabel("bits per pixel")
    axes.set_title(title)
    axes.grid(alpha=0.3)
