"""A profile as text: one row per stage, then what the whole frame took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COLUMNS = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms", "jitter_ms")
NAME = 30


def lines(document: Mapping[str, Any]) -> list[str]:
    text = heading(document)
    for direction, summary in document["summary"].items():
        text += ["", *_direction(direction, summary, document)]
    if document["energy"]:
        text += ["", *_energy(document["energy"])]
    if document["layers"]:
        text += ["", *_layers(document)]
    return text


def heading(document: Mapping[str, Any]) -> list[str]:
    """What was measured, and how."""
    settings, frame, start = document["settings"], document["frame"], document["start"]
    threads = {None: "all cores", 1: "one thread"}.get(settings["threads"], f"{settings['threads']} threads")
    batch = f", at most {settings['batch']} tiles a call" if settings["batch"] else ""
    frames = document["summary"]["encode"]["frames"]
    megapixels = frame["width"] * frame["height"] / 1e6
    opened = f"opening took {start['open_s']:.2f} s"
    if "first_encode_s" in start:
        opened += (
            f", the first encode {start['first_encode_s']:.2f} s, the first decode {start['first_decode_s']:.2f} s"
        )
    text = [
        f"{settings['bundle']} {settings['bundle_identity'][:16]} on {settings['backend']}, {threads}, tiles of "
        f"{settings['tile']}{batch}; {document['host']['cpu']}",
        f"{frame['width']}x{frame['height']} ({megapixels:.1f} megapixels) from {frame['source']}, quality "
        f"{settings['quality']}, {frame['bits_per_pixel']:.3f} bits per pixel",
        f"{frames} frames after {settings['warmup']} of warm-up, encoded and decoded in turns; {opened}",
    ]
    if document["partial"]:
        text.insert(0, f"PARTIAL: {document['partial']}")
    return text


def _direction(direction: str, summary: Mapping[str, Any], document: Mapping[str, Any]) -> list[str]:
    threads = summary["threads_in_stages"]
    overlap = threads > 1.005
    head = "".join(f"{column.removesuffix('_ms') + ' ms':>11}" for column in COLUMNS)
    text = [f"{direction:<{NAME}}{'share':>8}{head}{'    busy' if overlap else ''}"]
    for name, stage in summary["stages"].items():
        busy = f"{100 * stage['busy_share']:>6.1f} %" if overlap else ""
        text.append(f"  {name:<{NAME - 2}}{_row(stage['share'], stage)}{busy}")
    text.append(f"  {'(in no stage)':<{NAME - 2}}{100 * (1 - summary['accounted_share']):>6.1f} %")
    text.append(f"  {'frame':<{NAME - 2}}{_row(1, summary['total'])}")
    if overlap:
        text.append(f"  on average {threads:.2f} threads were in stages; each moment is shared among them")
    peak = f"{document['resident_mib']:.0f} before the first frame"
    if not document["peak_per_direction"]:
        peak += "; both directions together, which this system cannot tell apart"
    text.append(
        f"  {summary['megapixels_per_s']:.2f} MP/s, {summary['frames_per_s']:.2f} frames/s, "
        f"{summary['cpus_busy']:.2f} processors busy, peak memory {summary['peak_mib']:.0f} MiB ({peak})"
    )
    text.append(f"  outside the networks: {100 * summary['outside_networks_share']:.1f} % of the time")
    return text


def _row(share: float, figures: Mapping[str, float]) -> str:
    return f"{100 * share:>6.1f} %" + "".join(f"{figures[column]:>11.2f}" for column in COLUMNS)


def _energy(energy: Mapping[str, Any]) -> list[str]:
    mode = f", {energy['power_mode']}" if energy["power_mode"] else ""
    text = [f"energy ({' + '.join(energy['total_of'])}{mode}); idle {energy['idle_watts']:.2f} W"]
    for direction, figures in energy["per_direction"].items():
        text.append(
            f"  {direction:<10}{figures['watts']:.2f} W, {figures['joules_per_megapixel']:.3f} J/megapixel, "
            f"{figures['joules_per_megapixel_above_idle']:.3f} above idle"
        )
    return text


def _layers(document: Mapping[str, Any]) -> list[str]:
    """The layers, each per frame, and what they could reach."""
    ceiling, frames = document["ceiling"], len(document["layers"][0]["samples_ms"])
    text = [
        f"layers, medians of {frames} frames encoded and decoded in a pass of their own",
        f"{'network':<18}{'layer':<20}{'ms':>9}{'share':>9}{'GMAC':>9}{'GMAC/s':>9}{'MAC/byte':>10}{'of ceiling':>12}",
    ]
    for row in document["layers"]:
        work = f"{row['gmac']:>9.2f}{row['gmac_per_s']:>9.1f}" if row["gmac"] else f"{'-':>9}{'-':>9}"
        intensity = "-" if row["macs_per_byte"] is None else f"{row['macs_per_byte']:.1f}"
        part = "-" if row["of_ceiling"] is None else f"{100 * row['of_ceiling']:.0f} %"
        text.append(
            f"{row['network']:<18}{row['layer']:<20}{row['p50_ms']:>9.2f}{100 * row['share']:>7.1f} %{work}"
            f"{intensity:>10}{part:>12}"
        )
    if ceiling:
        text.append(
            f"ceilings: {ceiling['gmac_per_s']:.0f} GMAC/s and {ceiling['gb_per_s']:.1f} GB/s, {ceiling['how']}"
        )
    elif document["no_ceiling"]:
        text.append(f"no ceilings: {document['no_ceiling']}")
    return text
