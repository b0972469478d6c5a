"""Named sets of pictures from the command line: `kodak=FOLDER`, a bare folder (its name names the set), or files.

It hands on what identifies each picture, so that results can be matched to pixels rather than to paths; the pixels are
read again where they are needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import images
from ..runtime.errors import InputError, UsageError
from .metrics import Picture

LOOSE_FILES = "images"  # the set of files given without a name


@dataclass(frozen=True)
class Photograph:
    """One picture of a set. `name` is its path below the set's folder, `digest` the start of its pixels' SHA-256."""

    set_name: str
    name: str
    path: Path
    digest: str
    width: int
    height: int

    def read(self) -> Picture:
        return images.read(str(self.path)).pixels

    def describe(self) -> dict[str, str | int]:
        """What a JSON file may say about it: everything but where it lay."""
        return {"image": self.name, "digest": self.digest, "width": self.width, "height": self.height}


def find(arguments: Sequence[str], limit: int | None = None) -> list[Photograph]:
    """The pictures of all sets, at most `limit` of each, in order of set and name."""
    sets: dict[str, list[tuple[Path, str]]] = {}
    for argument in arguments:
        set_name, path = _split(argument)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in images.FORMATS)
            if not found:
                raise InputError(f"{path}: no pictures in this folder; give one with {', '.join(images.FORMATS)} files")
            members = [(p, p.relative_to(path).as_posix()) for p in found]
            sets.setdefault(set_name or path.resolve().name, []).extend(members)
        elif path.is_file():
            sets.setdefault(set_name or LOOSE_FILES, []).append((path, path.name))
        else:
            raise InputError(f"{path}: no such file or folder; give pictures, folders or NAME=FOLDER")
    return [_identify(name, *member) for name, members in sets.items() for member in members[:limit]]


def _split(argument: str) -> tuple[str | None, Path]:
    name, separator, rest = argument.partition("=")
    if not separator or Path(argument).exists():
        return None, Path(argument)
    if not name or not rest:
        raise UsageError(f"{argument}: write a named set as NAME=FOLDER")
    return name, Path(rest)


def _identify(set_name: str, path: Path, name: str) -> Photograph:
    pixels = images.read(str(path)).pixels
    digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()[:16]
    return Photograph(set_name, name, path, digest, pixels.shape[1], pixels.shape[0])
