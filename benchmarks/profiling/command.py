"""`linnet profile`: options in, reports out, exit status back."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ... import defaults, files
from ...runtime.errors import UsageError
from . import compare, table
from .session import WARMUP, Request, measure

INTERRUPTED = 130


def run(options: argparse.Namespace) -> int:
    """Measure and report, or compare two reports (`compare`).

    Exit status 130 where an interrupt left a partial report or none.
    """
    if options.compare:
        return _compare(options)
    for path in (options.json,):
        if path and not Path(path).resolve().parent.is_dir():
            raise UsageError(f"{path}: the folder does not exist; create it first")
    size = options.size or (None if options.image else defaults.FRAME)
    document = measure(
        Request(
            bundle=options.bundle,
            backend=options.backend,
            threads=options.threads,
            batch=options.batch,
            quality=options.quality,
            tile=options.tile,
            size=size,
            image=options.image,
            frames=options.frames,
            seconds=options.seconds,
            warmup=WARMUP if options.warmup is None else options.warmup,
            per_layer=options.per_layer,
        )
    )
    if not document["summary"]:
        print(f"linnet: {document['partial']}: nothing was measured and no report is written", file=sys.stderr)
        return INTERRUPTED
    _write(options.json, document, table.lines(document))
    return INTERRUPTED if document["partial"] else 0


def _compare(options: argparse.Namespace) -> int:
    """Exit status 1 where something became slower."""
    percent = 100 * compare.THRESHOLD if options.threshold is None else options.threshold
    if not 0 <= percent < 1e6:
        raise UsageError(f"--threshold {percent:g}: use per cent of 0 or more, like 5")
    first, second = (compare.read(path) for path in options.compare)
    found = compare.compare(first, second, percent / 100)
    _write(options.json, found, compare.lines(found))
    return 1 if found["regressions"] else 0


def _write(path: str | None, document: dict[str, Any], lines: list[str]) -> None:
    """The document to `path`, and the lines to stdout where the document does not go there."""
    if path:
        with files.writing(path) as output:
            output.write(json.dumps(document, separators=(",", ":"), allow_nan=False).encode() + b"\n")
    if path != files.PIPE:
        print("\n".join(lines))
