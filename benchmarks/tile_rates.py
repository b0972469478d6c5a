"""What tiles cost in rate: linnet's files in one tile and in tiles of several sizes, for `linnet bench region`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from .. import defaults
from ..runtime.tiles import MAX_TILE
from .measure import LOSSLESS_DB
from .metrics import Picture

if TYPE_CHECKING:
    from .image_sets import Photograph

RATE_TILES = (256, 512, 1024)
RATE_STEP = 5
"""Qualities below and above the one asked for, between which rates are compared."""
RATE_MEGAPIXELS = 4.0
"""Size of each frame of the rate table when no pictures are given."""


def rate_frames(
    photographs: Sequence[Photograph], pictures: Sequence[Picture], source: str, megapixels: float
) -> Iterator[tuple[str, str, Picture]]:
    """Set, name and pixels, at most one tile of the largest size on a side. Stand-ins are small: each is repeated."""
    from . import mosaic

    for photograph, picture in zip(photographs, pictures, strict=False):
        y, x = (max(0, length - MAX_TILE) // 2 for length in picture.shape[:2])
        yield photograph.set_name, photograph.name, picture[y : y + MAX_TILE, x : x + MAX_TILE]
    if not photographs:
        for number, picture in enumerate(pictures):
            yield source, str(number), mosaic.build([picture], megapixels)


def tile_rates(
    frames: Iterable[tuple[str, str, Picture]], quality: int, bundle: str | None, backend: str
) -> list[dict[str, Any]]:
    """Rate and PSNR of each frame a little below and above a quality, in one tile and in tiles of each size."""
    from tqdm import tqdm

    import linnet

    from .metrics import psnr_rgb

    options: dict[str, Any] = {"bundle": bundle, "backend": backend, "threads": 1}
    results = []
    for set_name, name, picture in tqdm(frames, unit="picture", desc="tile sizes", disable=None):
        height, width = picture.shape[:2]

        def point(tile: int, quality: int, picture: Picture = picture) -> tuple[float, float]:
            data = linnet.encode(picture, quality=quality, tile=tile, **options)
            psnr = psnr_rgb(picture, linnet.decode(data, **options))
            return 8 * len(data) / (picture.shape[0] * picture.shape[1]), min(psnr, LOSSLESS_DB)

        sizes = [tile for tile in RATE_TILES if tile < max(width, height)]
        tiles = {str(tile): [point(tile, q) for q in around(quality)] for tile in sizes}
        one_tile = [point(MAX_TILE, q) for q in around(quality)]
        about = {"set": set_name, "image": name, "width": width, "height": height}
        results.append(about | {"one_tile": one_tile, "tiles": tiles})
    return results


def around(quality: int) -> tuple[int, int]:
    return max(defaults.LOWEST_QUALITY, quality - RATE_STEP), min(defaults.HIGHEST_QUALITY, quality + RATE_STEP)


def summarise_rates(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per set: bits per pixel of one tile per frame, and what tiles cost in percent, over the frames that they cut.

    The cost is the BD-rate of the tiled files: tiles change the encoder's rounding, and with it the PSNR, a little.
    """
    from .metrics import bd_rate

    rows = []
    for set_name in dict.fromkeys(r["set"] for r in results):
        group = [r for r in results if r["set"] == set_name]
        overheads = {}
        for tile in map(str, RATE_TILES):
            cut = [(r["one_tile"], r["tiles"][tile]) for r in group if tile in r["tiles"]]
            costs = [cost for one, tiled in cut if (cost := bd_rate(one, tiled)) is not None]
            if costs:
                sizes = [100 * (b[0] / a[0] - 1) for one, tiled in cut for a, b in zip(one, tiled, strict=True)]
                overheads[tile] = {
                    "pictures": len(costs),
                    "mean": fmean(costs),
                    "max": max(costs),
                    "size_at_same_quality": fmean(sizes),
                    "psnr_change_db": fmean(b[1] - a[1] for one, tiled in cut for a, b in zip(one, tiled, strict=True)),
                }
        rates = [rate for r in group for rate, _ in r["one_tile"]]
        rows.append(
            {"set": set_name, "pictures": len(group), "bits_per_pixel": fmean(rates), "overhead_percent": overheads}
        )
    return rows
