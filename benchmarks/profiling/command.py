"""`linnet profile`: options in, reports out, exit status back."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ... import defaults, files
from ...runtime.errors import UsageError
from . import table
from .session import WARMUP, Request, measure

INTERRUPTED = 130


def run(options: argparse.Namespace) -> int:
    """Measure and report. Exit status 130 where an interrupt left a partial report or none."""
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
        )
    )
    if not document["summary"]:
        print(f"linnet: {document['partial']}: nothing was measured and no report is written", file=sys.stderr)
        return INTERRUPTED
    _write(options, document)
    return INTERRUPTED if document["partial"] else 0


def _write(options: argparse.Namespace, document: dict[str, Any]) -> None:
    if options.json:
        with files.writing(options.json) as output:
            output.write(json.dumps(document, separators=(",", ":"), allow_nan=False).encode() + b"\n")
    if options.json != files.PIPE:
        print("\n".join(table.lines(document)))
