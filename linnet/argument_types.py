"""What values of options look like, for `argparse`; each takes the text and gives the value, or says what is wrong with
it."""

from __future__ import annotations

import argparse

from . import defaults

FAVOURED_STEPS = 16
"""By which `--roi` is coded better, if it does not say."""


def quality(text: str) -> int:
    if not text.isdigit() or not defaults.LOWEST_QUALITY <= int(text) <= defaults.HIGHEST_QUALITY:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number from {defaults.LOWEST_QUALITY} to {defaults.HIGHEST_QUALITY}"
        )
    return int(text)


def layer_copies(text: str) -> tuple[str, int]:
    layer, separator, copies = text.rpartition("=")
    if not separator or not layer or not copies.isdigit() or not 1 <= int(copies) <= 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not LAYER=N with N from 1 to 16, like synthesis.merge8=2")
    return layer, int(copies)


def count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def byte_count(text: str) -> int:
    """A number of bytes, with k for thousands and M for millions."""
    unit = {"k": 1_000, "M": 1_000_000}.get(text[-1:], 1)
    size = round(above_zero(text if unit == 1 else text[:-1]) * unit)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is less than a byte")
    return size


def favoured(text: str) -> tuple[tuple[int, int, int, int], int]:
    rectangle, colon, steps = text.partition(":")
    if colon and not steps.lstrip("+-").isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y,W,H:STEPS with whole steps of quality")
    return region(rectangle), int(steps) if colon else FAVOURED_STEPS


def size(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not WxH in whole pixels, like 3840x2160")
    return int(sides[0]), int(sides[1])


def region(text: str) -> tuple[int, int, int, int]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y,W,H in whole pixels, like 1024,512,640,480")
    x, y, width, height = map(int, parts)
    if width == 0 or height == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is an empty window; give a width and a height above 0")
    return x, y, width, height
