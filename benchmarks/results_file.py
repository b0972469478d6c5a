"""The JSON file of a rate-distortion run: read back to reuse what was measured, written whole or not at all.

A result counts again only for the same pixels, the same codec version and fixed settings, and the same setting.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError, MachineError
from .codec import Codec
from .measure import Job, Measurement

FORMAT = "linnet-bench-rd/1"


class Earlier:
    """The results of an earlier run; empty without a file."""

    def __init__(self, path: Path | None) -> None:
        self._results: list[Measurement] = []
        if path is None or not path.exists():
            return
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']!r}")
            self._results = [Measurement(**r) for r in document["results"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = "name a new file or remove it"
            raise InputError(f"{path}: not results of `linnet bench rd` ({error}); {reason}") from error
        self._by_key = {r.key: r for r in self._results}

    def split(self, wanted: list[Job], codecs: dict[str, Codec]) -> tuple[list[Measurement], list[Job]]:
        """The results this run can reuse, under its own set and picture names, and the jobs that remain."""
        reused, pending = [], []
        for job in wanted:
            photograph = job.photograph
            key = (photograph.digest, codecs[job.codec].fingerprint, job.setting)
            found = self._by_key.get(key) if self._results else None
            if found is None:
                pending.append(job)
            else:
                names = {"set_name": photograph.set_name, "image": photograph.name}
                reused.append(Measurement(**vars(found) | names))
        return reused, pending

    def unrelated(self, wanted: Collection[Job]) -> list[Measurement]:
        """Results this run does not ask for. They stay in the file; those of other versions of a codec asked for go."""
        asked = {(job.photograph.digest, job.codec, job.setting) for job in wanted}
        return [r for r in self._results if (r.digest, r.codec, r.setting) not in asked]


def save(path: Path, document: dict[str, Any], results: Collection[Measurement], others: list[Measurement]) -> None:
    """Write the document with its raw results, sorted, beside its place and then move it there."""
    ordered = sorted(results, key=lambda r: (r.set_name, r.image, r.codec, r.bits_per_pixel)) + others
    whole = document | {"results": [vars(r) for r in ordered]}
    unfinished = path.with_name(f".{path.name}.part")
    try:
        unfinished.write_text(json.dumps(whole, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        raise MachineError(f"{path}: {error.strerror}; the results were not written") from error
