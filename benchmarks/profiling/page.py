"""A profile as one HTML file that needs nothing else: style and plots are in it, and no script."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from . import charts
from .charts import tag
from .table import heading

STYLE = """
:root { --paper: #fcfcfa; --ink: #1d2329; --faint: #69727c; --rule: #dfe2e4; --lane: #f0f1f0;
  --encode: #1f6fb2; --decode: #b4541f; --accent: #1d2329; }
@media (prefers-color-scheme: dark) { :root { --paper: #16191d; --ink: #e4e7ea; --faint: #97a0a9; --rule: #343a40;
  --lane: #20252a; --encode: #6bb1ea; --decode: #eb9a63; --accent: #e4e7ea; } }
body { margin: 0 auto; padding: 28px 24px 60px; max-width: 1000px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 26px; margin: 0 0 6px; } h2 { font-size: 18px; margin: 40px 0 4px; }
p { margin: 4px 0; } .note { color: var(--faint); font-size: 13.5px; }
.partial { border-left: 4px solid #c8372d; padding: 6px 12px; margin: 14px 0; font-weight: 600; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 12px; margin: 22px 0 0; }
.tile { border: 1px solid var(--rule); border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 24px; font-weight: 600; }
.tile span { color: var(--faint); font-size: 13px; }
svg { display: block; width: 100%; height: auto; margin: 10px 0 0; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } svg .heading { font-weight: 600; font-size: 13px; }
svg .tick, svg .value { fill: var(--faint); } svg .inside { fill: #fff; font-size: 11px; pointer-events: none; }
.grid { stroke: var(--rule); fill: none; } .lane { fill: var(--lane); }
.whisker { stroke: var(--ink); fill: none; } .roof { stroke: var(--ink); stroke-width: 2; fill: none; }
.line { fill: none; stroke-width: 2; } .line.encode { stroke: var(--encode); } .line.decode { stroke: var(--decode); }
.bar, .span, .layer, .key { fill: #6c7780; }
.encode { fill: var(--encode); } .decode { fill: var(--decode); } .line.encode, .line.decode { fill: none; }
.layer { fill-opacity: .72; stroke: var(--paper); }
.span { stroke: var(--paper); stroke-width: .5; }
.stage-read { fill: #8a6bb8; } .stage-colour-and-layout { fill: #c58a1c; } .stage-entropy-coding { fill: #c04f3e; }
.stage-container { fill: #7d858d; } .stage-write { fill: #5c7f8f; }
.stage-analysis { fill: #1f6fb2; } .stage-synthesis { fill: #5560c4; } .stage-hyper-analysis { fill: #3f8f5b; }
.stage-hyper-synthesis { fill: #257d7d; } .stage-context-1 { fill: #5a9f3d; } .stage-context-2 { fill: #739a2c; }
.stage-context-3 { fill: #8b9420; } .stage-context-4 { fill: #a08a1c; } .stage-context-5 { fill: #b37f22; }
.stage-context-6 { fill: #c2732e; } .stage-context-7 { fill: #cd663d; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; margin: 10px 0 0; font-size: 13px; width: 100%; }
th { text-align: right; color: var(--faint); font-weight: 500; }
td { text-align: right; border-top: 1px solid var(--rule); }
th, td { padding: 3px 8px; white-space: nowrap; }
th:first-child, td:first-child, .words td, .words th { text-align: left; }
.words td { white-space: normal; }
"""
STAGE_COLUMNS = ("share", "p50", "p90", "p95", "p99", "max", "jitter")


def html(document: Mapping[str, Any]) -> str:
    """The page. Every text from the document is escaped."""
    body = [
        tag("h1", "linnet profile"),
        *(tag("p", escape(line), class_="partial" if line.startswith("PARTIAL") else "note")
          for line in heading(document)),
        _tiles(document),
        *_section("Stages", "Bars end at the median, lines at the 95th percentile.",
                  charts.stage_bars(document["summary"])),
        *(_stage_table(direction, one) for direction, one in document["summary"].items()),
        *_section("Frame times", "Part of the frames that took at most so long.",
                  charts.distribution(document["samples"])),
        *_section("One frame", "The frame nearest to the median. A lane is a thread; what is called from a stage hangs "
                  "below it.", charts.timeline(document["samples"])),
    ]  # fmt: skip
    if document["layers"]:
        body += _layers(document)
    body += [tag("h2", "This machine"), _host(document["host"])]
    return (
        '<!DOCTYPE html>\n<html lang="en">'
        + tag(
            "head",
            '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
            tag("title", "linnet profile"),
            tag("style", STYLE),
        )
        + tag("body", *body)
        + "</html>\n"
    )


def _tiles(document: Mapping[str, Any]) -> str:
    """The figures that are asked for first."""
    tiles = []
    for direction, one in document["summary"].items():
        total = one["total"]
        tiles += [
            (f"{one['megapixels_per_s']:.1f} MP/s", f"{direction}, {one['frames_per_s']:.2f} frames a second"),
            (f"{total['p50_ms']:.0f} ms", f"{direction} p50; p99 {total['p99_ms']:.0f} ms"),
            (f"{100 * one['outside_networks_share']:.0f} %", f"of {direction} outside the networks"),
            (f"{one['peak_mib']:.0f} MiB", f"peak memory of {direction}"),
        ]
        if document["energy"]:
            energy = document["energy"]["per_direction"][direction]
            tiles.append(
                (
                    f"{energy['joules_per_megapixel']:.2f} J/MP",
                    f"{direction}; {energy['joules_per_megapixel_above_idle']:.2f} above idle",
                )
            )
    return tag("div", *(tag("div", tag("b", escape(a)), tag("span", escape(b)), class_="tile") for a, b in tiles),
               class_="tiles")  # fmt: skip


def _section(title: str, note: str, chart: str) -> list[str]:
    return [tag("h2", escape(title)), tag("p", escape(note), class_="note"), chart]


def _stage_table(direction: str, one: Mapping[str, Any]) -> str:
    def row(name: str, share: float, figures: Mapping[str, float] | None) -> list[str]:
        times = [f"{figures[f'{column}_ms']:.2f}" if figures else "" for column in STAGE_COLUMNS[1:]]
        return [name, f"{100 * share:.1f} %", *times]

    rows = [row(name, stage["share"], stage) for name, stage in one["stages"].items()]
    rows += [row("(in no stage)", 1 - one["accounted_share"], None), row("frame", 1, one["total"])]
    return _table([direction, "share", *(f"{column} ms" for column in STAGE_COLUMNS[1:])], rows)


def _layers(document: Mapping[str, Any]) -> list[str]:
    ceiling = document["ceiling"]
    note = "Bigger circles take more of the time. "
    if ceiling:
        note += f"The ceilings are measured: {ceiling['how']}. Layers that stay in the caches may pass the memory line."
    else:
        note += document["no_ceiling"] or "The ceilings of this machine were not measured."
    rows = [
        [
            f"{row['network']} {row['layer']}",
            f"{row['p50_ms']:.2f}",
            f"{100 * row['share']:.1f} %",
            f"{row['gmac']:.2f}" if row["gmac"] else "",
            f"{row['gmac_per_s']:.1f}" if row["gmac"] else "",
            "" if row["macs_per_byte"] is None else f"{row['macs_per_byte']:.1f}",
            f"{row['gb_per_s']:.1f}" if row["mib"] else "",
            "" if row["of_ceiling"] is None else f"{100 * row['of_ceiling']:.0f} %",
        ]
        for row in document["layers"]
    ]
    columns = ["layer", "ms", "share", "GMAC", "GMAC/s", "MAC/byte", "GB/s", "of ceiling"]
    return [*_section("Layers", note, charts.roofline(document["layers"], ceiling)), _table(columns, rows)]


def _host(host: Mapping[str, Any]) -> str:
    rows = []
    for key, value in host.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        shown = " ".join(map(str, value)) if isinstance(value, list) else shown
        rows.append([key.replace("_", " "), "unknown" if shown is None else str(shown)])
    return _table([], rows, "words")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], class_: str = "figures") -> str:
    head = tag("tr", *(tag("th", escape(column)) for column in columns)) if columns else ""
    body = "".join(tag("tr", *(tag("td", escape(cell)) for cell in row)) for row in rows)
    return tag("div", tag("table", head, body, class_=class_), class_="scroll")
