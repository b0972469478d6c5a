"""The plots of a report as SVG, drawn here: matplotlib would be a heavy guest on the device that is profiled.

Colours are classes, so that the page's style decides them; what a mark stands for is its <title>, which browsers show
under the pointer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from .pipeline import NETWORK

WIDTH = 960
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 14, 44
"""Margins of plots with axes."""
BAR, BAR_GAP, BAR_LABEL, BAR_VALUE = 20, 6, 190, 150
LANE = 22
CHARACTER = 6.6
"""Width of a character of the plots' text, about."""


def tag(name: str, *children: str, **attributes: Any) -> str:
    """An element. Underscores in attribute names become dashes; children are markup, `escape` text before."""
    listed = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"' for key, value in attributes.items()
    )
    return f"<{name}{listed}>{''.join(children)}</{name}>"


def _number(value: Any) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _svg(identity: str, what: str, height: float, *children: str) -> str:
    return tag(
        "svg", tag("title", escape(what)), *children, id=identity, role="img",
        viewBox=f"0 0 {WIDTH} {math.ceil(height)}", xmlns="http://www.w3.org/2000/svg",
    )  # fmt: skip


def _text(x: float, y: float, content: str, anchor: str = "start", class_: str = "") -> str:
    return tag("text", escape(content), x=x, y=y, text_anchor=anchor, **({"class_": class_} if class_ else {}))


def _mark(shape: str, what: str, **attributes: Any) -> str:
    return tag(shape, tag("title", escape(what)), **attributes)


def stage_class(stage: str) -> str:
    """The CSS class of a stage's colour: one per network, one per other stage."""
    return "stage-" + "".join(c if c.isalnum() else "-" for c in stage.removeprefix(NETWORK))


def stage_bars(summary: Mapping[str, Any]) -> str:
    """A bar per stage up to its median, and a line on to its 95th percentile."""
    longest = max(stage["p95_ms"] for one in summary.values() for stage in one["stages"].values())
    scale = (WIDTH - BAR_LABEL - BAR_VALUE) / longest
    parts, y = [], 0.0
    for direction, one in summary.items():
        y += 18
        parts.append(_text(0, y, f"{direction}: {one['total']['p50_ms']:.1f} ms a frame", class_="heading"))
        y += 10
        for name, stage in one["stages"].items():
            middle = y + BAR / 2
            what = f"{name}: p50 {stage['p50_ms']:.2f} ms, p95 {stage['p95_ms']:.2f} ms, {100 * stage['share']:.1f} %"
            parts += [
                _text(BAR_LABEL - 8, middle + 4, name, "end"),
                _mark(
                    "rect", what, class_=f"bar {stage_class(name)}", x=BAR_LABEL, y=y,
                    width=max(0.5, scale * stage["p50_ms"]), height=BAR,
                ),
                tag(
                    "path", class_="whisker", d=f"M{BAR_LABEL + scale * stage['p50_ms']:.1f} {middle:.1f}"
                    f"H{BAR_LABEL + scale * stage['p95_ms']:.1f}m0 -4v8",
                ),
                _text(
                    BAR_LABEL + scale * stage["p95_ms"] + 8, middle + 4,
                    f"{stage['p50_ms']:.1f} ms, {100 * stage['share']:.1f} %", class_="value",
                ),
            ]  # fmt: skip
            y += BAR + BAR_GAP
        y += 12
    return _svg("stages", "Time per stage: median and 95th percentile", y, *parts)


def distribution(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What part of the frames took at most so long: the empirical distribution, one step per frame."""
    height = 260.0
    times = {direction: sorted(1e3 * s["wall_s"] for s in own) for direction, own in samples.items()}
    low, high = min(t[0] for t in times.values()), max(t[-1] for t in times.values())
    margin = max(0.04 * (high - low), 0.01 * high)
    low, high = low - margin, high + margin
    ticks = nice_ticks(low, high, 8)

    def x(ms: float) -> float:
        return LEFT + (ms - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(part: float) -> float:
        return height - BOTTOM - part * (height - TOP - BOTTOM)

    parts = [_vertical(x(t), y(1), y(0), f"{t:g}") for t in ticks]
    parts += [_horizontal(y(p / 100), f"{p} %") for p in (0, 25, 50, 75, 90, 100)]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, "milliseconds a frame", "middle"))
    for direction, own in times.items():
        path, before = f"M{x(low):.1f} {y(0):.1f}", 0.0
        for number, ms in enumerate(own, 1):
            path += f"H{x(ms):.1f}V{y(number / len(own)):.1f}"
            parts.append(
                _mark("circle", f"{direction}: {ms:.2f} ms", class_=f"dot {direction}", cx=x(ms), cy=y(before), r=2.5)
            )
            before = number / len(own)
        parts.append(tag("path", class_=f"line {direction}", d=f"{path}H{x(high):.1f}"))
    legend = {direction: f"{direction} ({len(own)} frames)" for direction, own in times.items()}
    return _svg(
        "distribution", "Distribution of the frame times", height, *parts, _legend(legend, height - BOTTOM - 12)
    )


def timeline(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The frame nearest to the median of each direction: a lane per thread and level of nesting."""
    parts, y = [], 0.0
    for direction, own in samples.items():
        middle = median(s["wall_s"] for s in own)
        frame = min(own, key=lambda s: abs(s["wall_s"] - middle))
        wall_us = 1e6 * frame["wall_s"]
        scale = WIDTH / wall_us
        y += 18
        parts.append(_text(0, y, f"{direction}: a frame of {wall_us / 1e3:.1f} ms", class_="heading"))
        y += 8
        for lane, spans in enumerate(lanes(frame["spans"])):
            top = y + LANE * lane
            parts.append(tag("rect", class_="lane", x=0, y=top, width=WIDTH, height=LANE - 2))
            for stage, _, start, end, detail in spans:
                width = scale * (end - start)
                what = f"{stage}: {(end - start) / 1e3:.2f} ms from {start / 1e3:.2f} ms on"
                what += f", {detail}" if detail else ""
                parts.append(
                    _mark(
                        "rect", what, class_=f"span {stage_class(stage)}", x=scale * start, y=top,
                        width=max(0.4, width), height=LANE - 2,
                    )
                )  # fmt: skip
                label = stage.removeprefix(NETWORK)
                if width > CHARACTER * len(label) + 8:
                    parts.append(_text(scale * start + 4, top + 14, label, class_="inside"))
        y += LANE * len(lanes(frame["spans"]))
        for tick in nice_ticks(0, wall_us / 1e3, 10):
            place = min(max(1e3 * tick * scale, 4), WIDTH - 4)
            anchor = "start" if tick == 0 else "end" if place > WIDTH - 40 else "middle"
            parts.append(_text(place, y + 14, f"{tick:g} ms", anchor, "tick"))
        y += 26
    return _svg("timeline", "Timeline of one frame", y, *parts)


def lanes(spans: Sequence[Sequence[Any]]) -> list[list[Sequence[Any]]]:
    """Spans [stage, thread, start, end, detail] by thread and level of nesting, so that nothing overlaps in a lane."""
    found: dict[tuple[int, int], list[Sequence[Any]]] = {}
    open_ends: dict[int, list[float]] = {}
    for span in sorted(spans, key=lambda s: (s[1], s[2], -s[3])):
        ends = open_ends.setdefault(span[1], [])
        while ends and ends[-1] <= span[2]:
            ends.pop()
        found.setdefault((span[1], len(ends)), []).append(span)
        ends.append(span[3])
    return [found[key] for key in sorted(found)]


def roofline(layers: Sequence[Mapping[str, Any]], ceiling: Mapping[str, Any] | None) -> str:
    """Layers that multiply, by arithmetic intensity and speed, under what the machine could reach; both axes log."""
    height = 420.0
    shown = [row for row in layers if row["gmac"] and row["gmac_per_s"]]
    xs, ys = [row["macs_per_byte"] for row in shown], [row["gmac_per_s"] for row in shown]
    knee = None
    if ceiling:
        knee = ceiling["gmac_per_s"] / ceiling["gb_per_s"]
        xs, ys = [*xs, knee], [*ys, ceiling["gmac_per_s"]]
    (left, right), (low, high) = (_log_range(values) for values in (xs, ys))

    def x(value: float) -> float:
        return LEFT + math.log(value / left) / math.log(right / left) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return height - BOTTOM - math.log(value / low) / math.log(high / low) * (height - TOP - BOTTOM)

    parts = [_vertical(x(t), TOP, y(low), f"{t:g}") for t in log_ticks(left, right)]
    parts += [_horizontal(y(t), f"{t:g}") for t in log_ticks(low, high)]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, height - 8, "MAC per byte that must move", "middle"))
    parts.append(_text(LEFT + 6, TOP + 12, "GMAC/s"))
    if ceiling and knee:
        start = max(left, low / ceiling["gb_per_s"])
        path = f"M{x(start):.1f} {y(start * ceiling['gb_per_s']):.1f}L{x(knee):.1f} {y(ceiling['gmac_per_s']):.1f}"
        parts.append(tag("path", class_="roof", d=f"{path}H{x(right):.1f}"))
        roof = f"{ceiling['gmac_per_s']:.0f} GMAC/s"
        parts.append(_text(x(right) - 4, y(ceiling["gmac_per_s"]) - 6, roof, "end", "value"))
        parts.append(
            _text(x(knee) - 12, y(ceiling["gmac_per_s"]) + 4, f"{ceiling['gb_per_s']:.1f} GB/s", "end", "value")
        )
    for row in sorted(shown, key=lambda r: -r["share"]):
        what = (
            f"{row['network']} {row['layer']}: {row['p50_ms']:.2f} ms a frame ({100 * row['share']:.1f} %), "
            f"{row['gmac_per_s']:.1f} GMAC/s"
        )
        parts.append(
            _mark(
                "circle", what, class_=f"layer {stage_class(row['network'])}", cx=x(row["macs_per_byte"]),
                cy=y(row["gmac_per_s"]), r=3 + 30 * math.sqrt(row["share"]),
            )
        )  # fmt: skip
    names = dict.fromkeys(row["network"] for row in shown)
    return _svg(
        "roofline", "Layers under the roofline of this machine", height, *parts,
        _legend({stage_class(name): name for name in names}, height - BOTTOM - 12),
    )  # fmt: skip


def _log_range(values: Sequence[float]) -> tuple[float, float]:
    return min(values) / 1.6, max(values) * 1.6


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """At most `most` round numbers, evenly spaced, from `low` to `high`."""
    step = 10.0 ** math.floor(math.log10(max(high - low, 1e-9) / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (factor * step) < most)
    first = math.ceil(low / step - 1e-9)
    return [round(step * n, 9) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade from `low` to `high`; only the decades where these are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) <= 4 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return [float(f"{tick:.6g}") for tick in ticks if low <= tick <= high]


def _vertical(x: float, top: float, bottom: float, label: str) -> str:
    line = tag("path", class_="grid", d=f"M{x:.1f} {top:.1f}V{bottom:.1f}")
    return line + _text(x, bottom + 16, label, "middle", "tick")


def _horizontal(y: float, label: str) -> str:
    line = tag("path", class_="grid", d=f"M{LEFT} {y:.1f}H{WIDTH - RIGHT}")
    return line + _text(LEFT - 8, y + 4, label, "end", "tick")


def _legend(names: Mapping[str, str], bottom: float) -> str:
    """Names by CSS class, in the lower right corner."""
    parts = []
    for number, (class_, name) in enumerate(reversed(names.items())):
        y = bottom - 18 * number
        parts += [
            tag("circle", class_=f"key {class_}", cx=WIDTH - RIGHT - 12, cy=y - 4, r=5),
            _text(WIDTH - RIGHT - 24, y, name, "end"),
        ]
    return "".join(parts)
