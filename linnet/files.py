"""Files and pipes for the commands: `-` is stdin or stdout, and an output appears whole or not at all.

An output is written beside its final name and moved there when it is complete, so that a full disk, a signal or a bug
leaves either the old file or the new one. Pipes and devices (`/dev/stdout`) are written as they come.
"""

from __future__ import annotations

import io
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from .runtime.errors import InputError, MachineError, UsageError
from .runtime.sources import ByteSource, as_source

PIPE = "-"


def shown(path: str, *, output: bool = False) -> str:
    """The name of a file in a message."""
    if path == PIPE:
        return "standard output" if output else "standard input"
    return path


def require_folders(*paths: str | os.PathLike[str] | None) -> None:
    """Refuse, before hours of work, outputs that could not be written after them. None and PIPE need no folder."""
    for path in paths:
        if path is not None and path != PIPE and not os.path.isdir(os.path.dirname(os.path.realpath(path))):
            raise UsageError(f"{path}: the folder does not exist; create it first")


@contextmanager
def source(path: str) -> Iterator[ByteSource]:
    """The bytes of a `.lnt` file or URL, read as they are asked for; stdin and other pipes are drained into memory."""
    if "://" in path:
        from .remote import open_remote

        remote = open_remote(path)
        try:
            yield remote
        finally:
            remote.close()
        return
    with reading(path) as file:
        yield as_source(file)


@contextmanager
def reading(path: str) -> Iterator[BinaryIO]:
    """A file, open for reading and seeking; stdin and other pipes are drained into memory first."""
    if path == PIPE:
        yield io.BytesIO(sys.stdin.buffer.read())
        return
    try:
        source = open(path, "rb")  # noqa: SIM115 - only the opening may become an InputError
    except OSError as error:
        raise InputError(f"{path}: {reason(error)}; give the path of a readable file") from error
    with source:
        yield source if source.seekable() else io.BytesIO(source.read())


@contextmanager
def writing(path: str) -> Iterator[BinaryIO]:
    """A file to write and to seek in; it takes its name when the block ends well and vanishes when it does not."""
    if path == PIPE:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    final = os.path.realpath(path)
    if os.path.isdir(final):
        raise UsageError(f"{path}: is a folder; name the file to write")
    require_folders(path)
    try:
        if os.path.exists(final) and not stat.S_ISREG(os.stat(final).st_mode):
            with open(final, "wb") as device:
                yield device
            return
        unfinished = os.path.join(os.path.dirname(final), f".{os.path.basename(final)}.{secrets.token_hex(4)}.part")
        with open(unfinished, "xb") as output:
            try:
                yield output
                output.flush()
                os.fsync(output.fileno())
                output.close()
                os.replace(unfinished, final)
            except BaseException:
                output.close()
                with suppress(FileNotFoundError):
                    os.unlink(unfinished)
                raise
    except BrokenPipeError:
        raise
    except OSError as error:
        raise MachineError(f"{path}: {reason(error)}; the output was not written") from error


@contextmanager
def rewritable(path: str) -> Iterator[BinaryIO]:
    """As `writing`, and the output can be rewound: for a pipe or a device it is collected in memory first."""
    with writing(path) as output:
        if path != PIPE and stat.S_ISREG(os.fstat(output.fileno()).st_mode):
            yield output
            return
        collected = io.BytesIO()
        yield collected
        output.write(collected.getbuffer())


def reason(error: OSError) -> str:
    """What the system says, in the middle of a sentence."""
    return (error.strerror or str(error)).lower()
