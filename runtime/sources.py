"""Where a file's bytes come from: memory, a local file, or whatever else has the methods of a ByteSource.

A source reads ranges, several at once, and never allocates more than the file holds: a range behind its end, or ranges
that together are longer than it, are refused before anything is read. What the bytes mean is for `boxes`.
"""

from __future__ import annotations

import io
import os
import stat
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import BinaryIO, Protocol

from .errors import InputError, UsageError

Range = tuple[int, int]
"""(offset, length) in bytes."""
MERGE_GAP = 4 << 10
"""Bytes between two ranges of a local file that are read along rather than skipped. One page: devices and the page
cache work in pages, so the bytes in between are fetched anyhow and only a system call is saved."""


class ByteSource(Protocol):
    """Random access to the bytes of one file. All methods may be called from several threads at once.

    InputError says that the bytes are not there or not readable, which a reader may take for damage; MachineError that
    they could not be fetched now, which it must not.
    """

    size: int
    """Bytes in the file."""
    remote: bool
    """Whether a read costs a round trip, so that nobody should scan the whole file."""

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`; InputError where the file has fewer."""

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        """The bytes of each range, in the order of `ranges`; neighbours are read together. InputError as in `read`,
        and where different ranges overlap so far that they are longer than the file."""

    def close(self) -> None:
        """Give back what the source opened itself. It must not be read afterwards."""


class FileSource:
    """Bytes in memory, a file opened here by its path, or somebody's open file (which `close` leaves open).

    Plain files opened for reading only are read without moving their position, by several threads side by side; of
    other files (that can seek) one thread reads at a time, and their position moves. InputError where a path cannot be
    opened, UsageError where `source` cannot seek.
    """

    remote = False

    def __init__(self, source: bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO) -> None:
        self._release: Callable[[], None] = lambda: None
        if isinstance(source, (bytes, bytearray, memoryview)):
            view = memoryview(source).cast("B")
            self.size, self._release = view.nbytes, view.release
            self._read_at: Callable[[int, int], bytes] = lambda offset, length: bytes(view[offset : offset + length])
            return
        if isinstance(source, (str, os.PathLike)):
            try:
                source = open(source, "rb", buffering=0)  # noqa: SIM115 - `close` closes it
            except OSError as error:
                name, cause = os.fspath(source), (error.strerror or str(error)).lower()
                raise InputError(f"{name}: {cause}; give the path of a readable file") from error
            self._release = source.close
        if not hasattr(source, "seekable") or not source.seekable():
            self._release()
            raise UsageError(f"{type(source).__name__} cannot seek: read it into memory first")
        plain = _plain_file(source)
        if plain is not None:
            self.size = os.fstat(plain.fileno()).st_size
            # The number is asked for each time: after somebody's close it may belong to another file.
            self._read_at = lambda offset, length: os.pread(plain.fileno(), length, offset)
        else:
            self.size = source.seek(0, io.SEEK_END)
            lock = threading.Lock()

            def seek_and_read(offset: int, length: int) -> bytes:
                with lock:
                    source.seek(offset)
                    return source.read(length)

            self._read_at = seek_and_read

    def read(self, offset: int, length: int) -> bytes:
        """See ByteSource. ValueError after a `close`."""
        check_ranges(self.size, [(offset, length)])
        data = b""
        while len(data) < length:  # the system may give a long range in pieces
            try:
                more = self._read_at(offset + len(data), length - len(data))
            except OSError as error:
                cause = (error.strerror or str(error)).lower()
                raise InputError(f"bytes {offset} to {offset + length} cannot be read: {cause}") from error
            if not more:
                raise _truncated(offset, length, f"the file ends at byte {offset + len(data)} and had {self.size}")
            data = data + more if data else more
        return data

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        """See ByteSource."""
        check_ranges(self.size, ranges)
        return read_merged(ranges, MERGE_GAP, lambda spans: [self.read(*span) for span in spans])

    def close(self) -> None:
        """See ByteSource."""
        self._release()


def as_source(source: ByteSource | bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO) -> ByteSource:
    """`source` itself where it is a ByteSource, else a FileSource; a str is a path."""
    return source if hasattr(source, "read_many") else FileSource(source)


def check_ranges(size: int, ranges: Sequence[Range]) -> None:
    """InputError where a file of `size` bytes lacks one of `ranges`, or where they are longer than the file together.

    Equal ranges count once. The second rule keeps a small file with a hostile index from asking for terabytes.
    """
    for offset, length in ranges:
        if offset < 0 or length < 0 or offset + length > size:
            raise _truncated(offset, length, f"the file has {size}")
    total = sum(length for _, length in set(ranges))
    if total > size:
        raise InputError(f"{len(ranges)} ranges of {total} bytes overlap in a file of {size}: its index is damaged")


def merged(ranges: Sequence[Range], gap: int) -> list[Range]:
    """Ascending disjoint ranges that cover `ranges`, those with at most `gap` bytes in between made one."""
    spans: list[list[int]] = []  # [start, end]
    for offset, length in sorted(ranges):
        if not length:
            continue
        if spans and offset <= spans[-1][1] + gap:
            spans[-1][1] = max(spans[-1][1], offset + length)
        else:
            spans.append([offset, offset + length])
    return [(start, end - start) for start, end in spans]


def read_merged(ranges: Sequence[Range], gap: int, fetch: Callable[[list[Range]], list[bytes]]) -> list[bytes]:
    """What `fetch` returns for `merged(ranges, gap)`, cut up again: the bytes of each range, in the order given."""
    spans = merged(ranges, gap)
    data = fetch(spans) if spans else []
    starts = [start for start, _ in spans]

    def cut(offset: int, length: int) -> bytes:
        if not length:
            return b""
        span = bisect_right(starts, offset) - 1
        start = offset - starts[span]
        return data[span][start : start + length]

    pieces = {one: cut(*one) for one in set(ranges)}
    return [pieces[one] for one in ranges]


def _plain_file(source: BinaryIO) -> io.FileIO | None:
    """The file of the system behind `source`, where its bytes are those of `source` and stay in one place.

    Not so for compressing files, which have a file number too, and for files with unwritten bytes in a buffer.
    """
    raw = getattr(source, "raw", source)
    if not hasattr(os, "pread") or not isinstance(raw, io.FileIO) or raw.writable():
        return None
    return raw if stat.S_ISREG(os.fstat(raw.fileno()).st_mode) else None


def _truncated(offset: int, length: int, have: str) -> InputError:
    return InputError(f"bytes {offset} to {offset + length} cannot be read: {have}, truncated")
