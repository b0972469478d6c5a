"""`linnet profile`: options in, reports out, exit status back."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ... import defaults, files
from ...runtime.errors import UsageError
from . import compare, page, table, trace
from .session import WARMUP, Request, measure

INTERRUPTED = 130


def run(options: argparse.Namespace) -> int:
    """Measure and report, or compare two reports (`compare`).

    Exit status 130 where an interrupt left a partial report or none.
    """
    if options.compare:
        return _compare(options)
    files.require_folders(options.json, options.html, options.trace)
    if [options.json, options.html, options.trace].count(files.PIPE) > 1:
        raise UsageError("only one of --json, --html and --trace can go to standard output: name a file for the others")
    if options.seconds is not None and not options.seconds > 0:
        raise UsageError(f"--seconds {options.seconds:g}: use a positive number")
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
    if options.html:
        _save(options.html, page.html(document).encode())
    if options.trace:
        _save(options.trace, _encoded(trace.events(document)))
    _write(options.json, document, [] if files.PIPE in (options.html, options.trace) else table.lines(document))
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
        _save(path, _encoded(document))
    if path != files.PIPE and lines:
        print("\n".join(lines))


def _encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _save(path: str, content: bytes) -> None:
    with files.writing(path) as output:
        output.write(content)
