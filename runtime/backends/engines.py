"""Engines on disk: which one belongs to what, and whether it may still be used.

An engine is a cache of one machine: its bits are proved where it was built, and nowhere else is it of use. Each is
stored under its network and shapes with a record of everything that went into it; where one of those facts has
changed, the record says which. Nothing here imports TensorRT.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from ..bundle import Bundle

FOLDER = "LINNET_ENGINES"
"""The environment variable that names another folder for engines."""
Shape = tuple[int, ...]


def default_folder() -> Path:
    """Where engines are kept: $LINNET_ENGINES, else the user's cache folder."""
    if os.environ.get(FOLDER):
        return Path(os.environ[FOLDER])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "linnet" / "engines"


@dataclass(frozen=True)
class Target:
    """One engine to build: a network and the shapes (N, H, W, C) of its inputs, in the network's order."""

    network: str
    shapes: tuple[tuple[str, Shape], ...]

    @property
    def batch(self) -> int:
        return self.shapes[0][1][0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, which all inputs of a network share."""
        return self.shapes[0][1][1], self.shapes[0][1][2]

    def __str__(self) -> str:
        return f"{self.network} {' '.join('x'.join(map(str, shape)) for _, shape in self.shapes)}"


@dataclass(frozen=True)
class BuildOptions:
    """What the builder is told. `max_tactics` None leaves the number of kernels it times to TensorRT.

    `strongly_typed` takes the types from the graph; the other way, with the INT8 flag, exists before TensorRT 11 only.
    """

    workspace_mib: int = 1024
    optimization_level: int = 3
    strongly_typed: bool = True
    max_tactics: int | None = None


@dataclass(frozen=True)
class Record:
    """What is known of a stored engine. `facts` and `options` must hold for it to be used.

    `plan` is the SHA-256 of the engine, `answer` that of what it must compute from `inputs_at`; `rejected` says why
    there is no engine. `skipped` are the options that this TensorRT does not have.
    """

    target: Target
    facts: Mapping[str, str]
    options: BuildOptions
    plan: str = ""
    answer: str = ""
    rejected: str = ""
    skipped: list[str] = field(default_factory=list)
    build_s: float = 0.0


def differences(stored: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Everything that differs, as "name was X, is Y"."""
    names = [*now, *(name for name in stored if name not in now)]
    return [f"{n} was {stored.get(n)}, is {now.get(n)}" for n in names if stored.get(n) != now.get(n)]


class EngineCache:
    """The engines of one bundle in `folder`. Files appear whole or not at all, so that processes can share it."""

    def __init__(self, bundle: Bundle, folder: Path | None = None) -> None:
        self.root = folder or default_folder()
        self.folder = self.root / bundle.identity[:16]

    def _path(self, target: Target, suffix: str) -> Path:
        return self.folder / f"{str(target).replace(' ', '-')}{suffix}"

    def records(self) -> list[Record]:
        """Everything stored, without a word about what cannot be read: it is as good as absent."""
        found = (self._read(path) for path in sorted(self.folder.glob("*.json")))
        return [record for record in found if record is not None]

    def _read(self, path: Path) -> Record | None:
        try:
            fields = json.loads(path.read_text())
            shapes = tuple((name, tuple(shape)) for name, shape in fields["target"]["shapes"])
            target = Target(fields["target"]["network"], shapes)
            return Record(**{**fields, "target": target, "options": BuildOptions(**fields["options"])})
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def stale(self, target: Target, facts: Mapping[str, str], options: BuildOptions) -> list[str]:
        """Why the engine of `target` has to be built; empty where the stored one is good."""
        record = self._read(self._path(target, ".json"))
        if record is None:
            return ["there is none"]
        reasons = differences(record.facts, facts) + differences(asdict(record.options), asdict(options))
        if record.rejected:
            reasons.append(f"the last one was rejected: {record.rejected}")
        elif not reasons and self.plan(record) is None:
            reasons.append("its file is damaged or gone")
        return reasons

    def plan(self, record: Record) -> bytes | None:
        """The engine of `record`; None where the file is not the one that was stored."""
        try:
            plan = self._path(record.target, ".engine").read_bytes()
        except OSError:
            return None
        return plan if hashlib.sha256(plan).hexdigest() == record.plan else None

    def store(self, record: Record, plan: bytes | None) -> Record:
        """Store an engine that passed its known answer, or with `plan` None only the record of one that did not."""
        path = self._path(record.target, ".engine")
        if plan is None:
            path.unlink(missing_ok=True)
        else:
            _write(path, plan)
            record = replace(record, plan=hashlib.sha256(plan).hexdigest())
        _write(self._path(record.target, ".json"), json.dumps(asdict(record), indent=1).encode())
        return record

    def timing(self, facts: Mapping[str, str]) -> Path:
        """TensorRT's measurements of kernels, shared by all bundles on one GPU and version."""
        name = "-".join(facts[key] for key in ("gpu", "tensorrt", "cuda"))
        return self.root / f"timing-{''.join(c if c.isalnum() or c in '.-' else '_' for c in name)}.cache"

    def timings(self, facts: Mapping[str, str]) -> bytes:
        path = self.timing(facts)
        return path.read_bytes() if path.is_file() else b""

    def store_timings(self, facts: Mapping[str, str], timings: bytes) -> None:
        _write(self.timing(facts), timings)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # whoever can write an engine can run code through it
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def inputs_at(bundle: Bundle, target: Target) -> dict[str, np.ndarray]:
    """The known answer's inputs, repeated until they fill the shapes of `target`.

    One position is left out of each repetition, so that rows and tiles of the usual sizes do not become equal.
    """
    known, _ = bundle.known_answer(target.network)
    return {
        name: np.resize(known[name].reshape(-1, shape[-1])[:-1], (int(np.prod(shape[:-1])), shape[-1])).reshape(shape)
        for name, shape in target.shapes
    }


def digest(outputs: Iterable[np.ndarray]) -> str:
    """SHA-256 over types, shapes and values."""
    found = hashlib.sha256()
    for output in outputs:
        found.update(f"{output.dtype}{output.shape}".encode())
        found.update(np.ascontiguousarray(output))
    return found.hexdigest()
