"""The calibration report that a person can act on: as text, as JSON and as one HTML page that needs nothing else.

It draws what `assessment` measured: rate and distortion in float and in integers, what each layer costs alone, and
which of them deserve more precision.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .assessment import GLUE, Curve, LayerCost

WORTH_MENDING = 0.2
"""Layers that cost at least so much BD-rate, in percent, get advice."""
PLOT = (560, 340)
MARGIN = 46
BAR_HEIGHT = 18
LABEL_WIDTH = 250


@dataclass(frozen=True)
class Report:
    """Everything about one calibration. `skipped` and `notes` are (file, sentence) pairs; `wide` as in `ptq.Method`."""

    codec: str
    identity: str
    format: str
    method: Mapping[str, Any]
    calibration_images: int
    measured_images: int
    same_images: bool
    skipped: Sequence[tuple[str, str]]
    notes: Sequence[tuple[str, str]]
    seconds: float
    qualities: Sequence[float]
    float_curve: Curve
    integer_curve: Curve
    bd_rate_percent: float | None
    layers: Sequence[LayerCost]
    wide: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "advice": self.advice()}

    def advice(self) -> list[str]:
        """What would win back most, the dearest layer first."""
        sentences = []
        for cost in self.layers:
            if cost.layer == GLUE or cost.rounding_share is None or (cost.bd_rate_percent or 0) < WORTH_MENDING:
                continue
            copies = 2 * self.wide.get(cost.layer, 1)
            if cost.rounding_share < 0.5:
                remedy = f"its weights are too coarse: --wide {cost.layer}={copies}"
            else:
                remedy = "its activations are too coarse: --format w8a16b32, or train it in exact arithmetic"
            sentences.append(f"{cost.layer} costs {cost.bd_rate_percent:.2f} % alone; {remedy}")
        return sentences

    def text(self) -> str:
        """The report as plain text, some 80 columns wide."""
        lines = [
            f"codec      {self.codec}, {self.format}, {self.identity}",
            f"method     {', '.join(f'{key} {value}' for key, value in self.method.items())}",
            f"pictures   {self.calibration_images} calibrated, {self.measured_images} measured"
            f"{' (the same)' if self.same_images else ''}, {len(self.skipped)} skipped; {self.seconds:.0f} s",
            *(f"           {name}: {reason}" for name, reason in (*self.skipped, *self.notes)),
            f"BD-rate    {_percent(self.bd_rate_percent)} against the float model",
            "",
            "quality   float bpp   PSNR dB   integer bpp   PSNR dB",
        ]
        for quality, (rate, psnr), (rate_int, psnr_int) in zip(
            self.qualities, self.float_curve, self.integer_curve, strict=True
        ):
            lines.append(f"{quality:7.2f}{rate:12.4f}{psnr:10.3f}{rate_int:14.4f}{psnr_int:10.3f}")
        if self.layers:
            lines += ["", "one layer in integers, the rest in float, dearest first:"]
            lines.append(f"{'layer':34} SQNR dB  rounding   rate %  PSNR dB  BD-rate %")
        for cost in self.layers:
            sqnr = (
                "      -         -"
                if cost.sqnr_db is None
                else f"{cost.sqnr_db:7.1f}{100 * cost.rounding_share:8.0f} %"
            )
            bd_rate = "-" if cost.bd_rate_percent is None else f"{cost.bd_rate_percent:.2f}"
            lines.append(f"{cost.layer:34} {sqnr}{cost.rate_percent:9.2f}{cost.psnr_db:9.3f}{bd_rate:>11}")
        if self.advice():
            lines += ["", "worth more precision:", *(f"  {sentence}" for sentence in self.advice())]
        return "\n".join(lines)

    def html(self) -> str:
        """The report as one page with two plots; no scripts, no other files."""
        title = html.escape(f"Calibration of {self.codec}")
        rows = "".join(
            f"<tr><td>{html.escape(c.layer)}</td><td>{_number(c.sqnr_db, 1)}</td>"
            f"<td>{_number(c.rounding_share, 2)}</td><td>{c.rate_percent:.2f}</td>"
            f"<td>{c.psnr_db:.3f}</td><td>{_number(c.bd_rate_percent, 2)}</td></tr>"
            for c in self.layers
        )
        advice = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.advice())
        files = "".join(
            f"<li>{html.escape(name)}: {html.escape(reason)}</li>" for name, reason in (*self.skipped, *self.notes)
        )
        same = " (the same)" if self.same_images else ""
        method = html.escape(", ".join(f"{key} {value}" for key, value in self.method.items()))
        return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}}
table{{border-collapse:collapse}}td,th{{padding:.1em .8em;text-align:right}}
td:first-child,th:first-child{{text-align:left}}
svg text{{font:12px sans-serif}}</style>
<h1>{title}</h1>
<p><b>BD-rate {_percent(self.bd_rate_percent)}</b> against the float model.
Format {html.escape(self.format)}; {method}.
{self.calibration_images} pictures calibrated, {self.measured_images} measured{same},
{len(self.skipped)} skipped. Bundle {self.identity}.</p>
<h2>Rate and distortion</h2>{self._curves()}
<h2>One layer in integers, the rest in float</h2>{self._bars()}
{f"<h2>Worth more precision</h2><ul>{advice}</ul>" if advice else ""}
<h2>All layers</h2><p>SQNR: power of the layer's float output over that of its error. Rounding: the share of that error
that comes from rounding the output; the rest comes from the weights.</p>
<table><tr><th>layer<th>SQNR dB<th>rounding<th>rate %<th>PSNR dB<th>BD-rate %</tr>{rows}</table>
{f"<h2>Pictures</h2><ul>{files}</ul>" if files else ""}
</html>
"""

    def _curves(self) -> str:
        points = [*self.float_curve, *self.integer_curve]
        x_range = _span([math.log2(rate) for rate, _ in points])
        y_range = _span([psnr for _, psnr in points])

        def place(rate: float, psnr: float) -> tuple[float, float]:
            x = MARGIN + (math.log2(rate) - x_range[0]) / (x_range[1] - x_range[0]) * (PLOT[0] - 2 * MARGIN)
            y = PLOT[1] - MARGIN - (psnr - y_range[0]) / (y_range[1] - y_range[0]) * (PLOT[1] - 2 * MARGIN)
            return round(x, 1), round(y, 1)

        parts = [f'<rect x="{MARGIN}" y="{MARGIN}" width="{PLOT[0] - 2 * MARGIN}" height="{PLOT[1] - 2 * MARGIN}" '
                 'fill="none" stroke="#bbb"/>']  # fmt: skip
        for name, curve, colour, dy in (
            ("float", self.float_curve, "#888", 16), ("integer", self.integer_curve, "#c33", 34)
        ):  # fmt: skip
            path = " ".join(f"{x},{y}" for x, y in (place(*point) for point in curve))
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in (place(*p) for p in curve)]
            parts.append(f'<text x="{MARGIN + 10}" y="{MARGIN + dy}" fill="{colour}">{name}</text>')
        for rate, psnr in self.float_curve:
            x, y = place(rate, psnr)
            parts.append(f'<text x="{x}" y="{PLOT[1] - MARGIN + 16}" text-anchor="middle">{rate:.3g}</text>')
            parts.append(f'<text x="{MARGIN - 6}" y="{y + 4}" text-anchor="end">{psnr:.1f}</text>')
        parts.append(f'<text x="{PLOT[0] / 2}" y="{PLOT[1] - 8}" text-anchor="middle">bits per pixel</text>')
        parts.append(f'<text x="{MARGIN}" y="{MARGIN - 10}">PSNR in dB</text>')
        return _svg(*PLOT, parts)

    def _bars(self) -> str:
        costs = [(cost.layer, cost.bd_rate_percent) for cost in self.layers if cost.bd_rate_percent is not None]
        largest = max((abs(value) for _, value in costs), default=0) or 1
        room = PLOT[0] - LABEL_WIDTH
        parts = []
        for number, (name, value) in enumerate(costs):
            y, length = number * BAR_HEIGHT, abs(value) / largest * room
            colour = "#c33" if value > 0 else "#393"
            parts.append(f'<text x="{LABEL_WIDTH - 8}" y="{y + 13}" text-anchor="end">{html.escape(name)}</text>')
            parts.append(
                f'<rect x="{LABEL_WIDTH}" y="{y + 3}" width="{length:.1f}" height="{BAR_HEIGHT - 6}" fill="{colour}"/>'
            )
            parts.append(f'<text x="{LABEL_WIDTH + length + 4:.1f}" y="{y + 13}">{value:.2f} %</text>')
        return _svg(PLOT[0] + 60, BAR_HEIGHT * len(costs), parts)


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return f'<svg width="{width}" height="{height}" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'


def _span(values: Sequence[float]) -> tuple[float, float]:
    """The range of `values` with some room around it."""
    low, high = min(values), max(values)
    room = 0.05 * (high - low) or 1.0
    return low - room, high + room


def _percent(value: float | None) -> str:
    return "cannot be said (one quality only)" if value is None else f"{value:+.2f} %"


def _number(value: float | None, digits: int) -> str:
    return "&ndash;" if value is None else f"{value:.{digits}f}"
