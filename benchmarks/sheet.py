"""`linnet bench rd --html`: one page to look at, without network access: tables, curves, and crops at equal bytes.

For each picture and rate linnet gets a size to meet, and every peer beside it the lowest setting whose file is no
smaller: the peers get the benefit of the doubt. Crops are the most detailed window of the original, the same for all.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from . import peers
from .codec import Codec
from .image_sets import Photograph
from .metrics import Picture, ms_ssim, psnr_rgb

CROP = 224
RATES = (0.2, 0.4)
"""Bits per pixel at which pictures are compared: where differences show."""
PREFERRED_PEERS = (peers.REFERENCE, "avif-s6-420-psnr", "avif-s9-420-psnr")
PEERS_SHOWN = 2
PICTURES_PER_SET = 6
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1240px; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .2rem .7rem; text-align: right }
th { border-bottom: 1px solid #999 } td:first-child, th:first-child { text-align: left }
tr.ours { font-weight: 600; background: #eef5ee }
.row { display: flex; flex-wrap: wrap; gap: 12px; margin: .5rem 0 1.5rem }
figure { margin: 0; width: 290px } figure img { width: 100%; image-rendering: pixelated; display: block }
figcaption { font-size: 13px; color: #444 } svg { max-width: 100%; height: auto } h3 { margin-bottom: .2rem }
"""


@dataclass(frozen=True)
class Panel:
    """One codec's version of one picture."""

    codec: str
    pixels: Picture
    size: int


def write(
    path: Path,
    document: dict[str, Any],
    photographs: Sequence[Photograph],
    codecs: dict[str, Codec],
    encode_to_size: Callable[[Picture, int], bytes] | None,
    progress: Callable[[Sequence[Photograph]], Any],
) -> None:
    """Write the page of the report `document`, in its JSON form; without `encode_to_size` it has no crops."""
    parts = ["<h1>linnet beside other codecs</h1>", _host(document)]
    parts += [_table(document, set_name) for set_name in document["tables"]]
    parts.append(_curves(document))
    if encode_to_size is not None:
        shown = _first_of_each_set(photographs)
        for photograph in progress(shown):
            parts.append(_comparison(photograph, codecs, encode_to_size))
    page = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>linnet bench rd</title><style>{STYLE}</style>'
    path.write_text(page + "\n".join(parts) + "</html>\n", encoding="utf-8")


def _host(document: dict[str, Any]) -> str:
    host = ", ".join(f"{key} {value}" for key, value in document["host"].items() if isinstance(value, str | int))
    return f"<p>{html.escape(host)}</p>"


def _table(document: dict[str, Any], set_name: str) -> str:
    def percent(value: float | None) -> str:
        return "–" if value is None else f"{value:+.1f} %"

    lines = [
        f"<h2>{html.escape(set_name)}: {len(document['sets'].get(set_name, []))} pictures</h2>"
        f"<p>BD-rate against {html.escape(document['reference'])}: "
        "negative is fewer bits at equal quality. Whole files.</p><table><tr><th>codec<th>PSNR RGB<th>PSNR Y<th>MS-SSIM"
        "<th>bits per pixel<th>PSNR RGB, dB<th>source</tr>"
    ]
    for row in document["tables"][set_name]:
        ours = ' class="ours"' if row["codec"] == document["under_test"] else ""
        rate, psnr = ("{:.2f} to {:.2f}".format(*row[key]) for key in ("bits_per_pixel", "psnr_rgb"))
        figures = (percent(row[key]) for key in ("bd_psnr_rgb", "bd_psnr_y", "bd_ms_ssim"))
        cells = [html.escape(row["codec"]), *figures, rate, psnr, html.escape(row["source"])]
        lines.append(f"<tr{ours}><td>{'<td>'.join(cells)}</tr>")
    return "\n".join([*lines, "</table>"])


def _curves(document: dict[str, Any]) -> str:
    from . import plot

    drawing = io.BytesIO()
    plot.draw(document, drawing, kind="svg")
    text = drawing.getvalue().decode()
    return text[text.index("<svg") :]


def _first_of_each_set(photographs: Sequence[Photograph]) -> list[Photograph]:
    by_set: dict[str, list[Photograph]] = {}
    for photograph in photographs:
        by_set.setdefault(photograph.set_name, []).append(photograph)
    return [photograph for members in by_set.values() for photograph in members[:PICTURES_PER_SET]]


def _comparison(
    photograph: Photograph, codecs: dict[str, Codec], encode_to_size: Callable[[Picture, int], bytes]
) -> str:
    original = photograph.read()
    y, x = most_detailed(original, CROP)
    ours, *others = codecs.values()
    lines = [f"<h2>{html.escape(photograph.set_name)}/{html.escape(photograph.name)}</h2>"]
    for rate in RATES:
        data = encode_to_size(original, round(rate * original.shape[0] * original.shape[1] / 8))
        panels = [Panel("original", original, 0), Panel(ours.name, ours.decode(data), len(data))]
        for codec in sorted(others, key=_preference)[:PEERS_SHOWN]:
            peer = no_smaller(codec, original, len(data))
            panels.append(Panel(codec.name, codec.decode(peer), len(peer)))
        bits = 8 * len(data) / (original.shape[0] * original.shape[1])
        figures = "".join(_figure(panel, original, y, x) for panel in panels)
        lines.append(f'<h3>{bits:.2f} bits per pixel</h3><div class="row">{figures}</div>')
    return "\n".join(lines)


def _preference(codec: Codec) -> int:
    names = PREFERRED_PEERS
    return names.index(codec.name) if codec.name in names else len(names)


def no_smaller(codec: Codec, picture: Picture, size: int) -> bytes:
    """The file of the lowest whole setting of `codec` that takes at least `size` bytes, or of its highest."""
    low, high = int(min(codec.settings)), int(max(codec.settings))
    while low < high:
        middle = (low + high) // 2
        if len(codec.encode(picture, middle)) >= size:
            high = middle
        else:
            low = middle + 1
    return codec.encode(picture, low)


def most_detailed(picture: Picture, side: int) -> tuple[int, int]:
    """(top, left) of the `side` x `side` window with the most edges, on a grid of half windows."""
    luma = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    # The square root keeps one hard edge from outweighing a whole window of texture.
    edges = np.sqrt(np.abs(cv2.Laplacian(luma, cv2.CV_32F)))
    height, width = luma.shape
    places = [
        (y, x)
        for y in range(0, max(height - side, 0) + 1, side // 2)
        for x in range(0, max(width - side, 0) + 1, side // 2)
    ]
    return max(places, key=lambda place: edges[place[0] : place[0] + side, place[1] : place[1] + side].sum())


def _figure(panel: Panel, original: Picture, y: int, x: int) -> str:
    stream = io.BytesIO()
    Image.fromarray(panel.pixels[y : y + CROP, x : x + CROP]).save(stream, "PNG")
    caption = f"<b>{html.escape(panel.codec)}</b>"
    if panel.size:
        similarity = ms_ssim(original, panel.pixels)
        caption += f" {panel.size} bytes, {psnr_rgb(original, panel.pixels):.2f} dB"
        caption += "" if similarity is None else f", MS-SSIM {similarity:.4f}"
    image = base64.b64encode(stream.getvalue()).decode()
    return f'<figure><img src="data:image/png;base64,{image}" alt=""><figcaption>{caption}</figcaption></figure>'
