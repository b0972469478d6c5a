"""Sources of bytes: every kind gives the same bytes, refuses what is not there, and reads no more than it must."""

from __future__ import annotations

import gzip
import io
import itertools
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from linnet.runtime import sources
from linnet.runtime.errors import InputError, UsageError
from linnet.runtime.sources import FileSource, as_source, check_ranges, merged, read_merged

CONTENT = random.Random(1).randbytes(50_000)


@pytest.fixture(params=["bytes", "bytearray", "memoryview", "BytesIO", "path", "str", "open", "unbuffered", "updated"])
def source(request: pytest.FixtureRequest, tmp_path: Path):
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    made = {  # a lambda each, so that only one is opened
        "bytes": lambda: CONTENT,
        "bytearray": lambda: bytearray(CONTENT),
        "memoryview": lambda: memoryview(CONTENT).cast("H"),
        "BytesIO": lambda: io.BytesIO(CONTENT),
        "path": lambda: path,
        "str": lambda: str(path),
        "open": lambda: open(path, "rb"),  # noqa: SIM115
        "unbuffered": lambda: open(path, "rb", buffering=0),  # noqa: SIM115
        "updated": lambda: open(path, "r+b"),  # noqa: SIM115
    }[request.param]()
    opened = as_source(made)
    yield opened
    opened.close()
    if hasattr(made, "close"):
        assert not made.closed, "closed a file that is somebody else's"
        made.close()


def test_every_kind_gives_the_same_bytes(source: FileSource) -> None:
    assert source.size == len(CONTENT) and not source.remote
    for offset, length in [(0, 0), (0, 1), (49_999, 1), (50_000, 0), (0, 50_000), (123, 4567)]:
        data = source.read(offset, length)
        assert type(data) is bytes and data == CONTENT[offset : offset + length]
    ranges = [(40_000, 10), (7, 100), (100, 50), (7, 100), (30, 0), (60, 9_000), (9_100, 0)]
    assert source.read_many(ranges) == [CONTENT[offset : offset + length] for offset, length in ranges]
    assert source.read_many([]) == []


@pytest.mark.parametrize("ask", [(50_000, 1), (0, 50_001), (1 << 62, 1), (0, 1 << 62), (-1, 1), (5, -2)])
def test_ranges_behind_the_end_are_refused(source: FileSource, ask: tuple[int, int]) -> None:
    message = f"bytes {ask[0]} to {sum(ask)} cannot be read: the file has 50000, truncated"
    with pytest.raises(InputError, match=message):
        source.read(*ask)
    with pytest.raises(InputError, match=message):
        source.read_many([(0, 1), ask])


def test_overlaps_cannot_ask_for_more_than_the_file(source: FileSource) -> None:
    """A thousand entries of an index, all nearly the whole file: 50 MB from 50 kB, or terabytes from a gigabyte."""
    with pytest.raises(InputError, match="1000 ranges of 48500500 bytes overlap in a file of 50000"):
        source.read_many([(n, 48_001 + n) for n in range(1000)])
    check_ranges(100, [(0, 60)] * 1000 + [(60, 40)])


def test_threads_do_not_disturb_each_other(source: FileSource) -> None:
    def read(seed: int) -> bool:
        rng = random.Random(seed)
        places = [(rng.randrange(49_000), rng.randrange(1, 1000)) for _ in range(100)]
        return all(source.read(at, length) == CONTENT[at : at + length] for at, length in places)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(16)))


def test_seeking_and_reading_are_one_step() -> None:
    """A file of which another thread's seek would be seen, were there no lock."""

    class Slow(io.BytesIO):
        busy = threading.Lock()

        def seek(self, *where: int) -> int:
            assert self.busy.acquire(blocking=False)
            return super().seek(*where)

        def read(self, size: int | None = -1) -> bytes:
            threading.Event().wait(0.001)
            self.busy.release()
            return super().read(size)

    file = Slow(CONTENT)
    opened = FileSource(file)
    file.busy.release()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: opened.read(n, 9), range(20))) == [CONTENT[n : n + 9] for n in range(20)]


def test_plain_files_keep_their_position(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    with open(tmp_path / "f", "rb") as file:
        file.seek(77)
        assert FileSource(file).read(1000, 10) == CONTENT[1000:1010]
        assert file.tell() == 77


def test_a_compressing_file_is_read_through_itself(tmp_path: Path) -> None:
    """It has a file number, but behind it are the compressed bytes."""
    with gzip.open(tmp_path / "f.gz", "wb") as file:
        file.write(CONTENT)
    with gzip.open(tmp_path / "f.gz", "rb") as file:
        assert FileSource(file).read(1000, 10) == CONTENT[1000:1010]


def test_bytes_in_a_write_buffer_are_read(tmp_path: Path) -> None:
    with open(tmp_path / "f", "w+b") as file:
        file.write(b"unwritten")
        assert FileSource(file).read(2, 4) == b"writ"


def test_pieces_are_put_together_and_a_shrunken_file_is_noticed(tmp_path: Path) -> None:
    class Pieces(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 1000))

    opened = FileSource(Pieces(CONTENT))
    assert opened.read(10, 4500) == CONTENT[10:4510]
    (tmp_path / "f").write_bytes(CONTENT)
    opened = FileSource(tmp_path / "f")
    os.truncate(tmp_path / "f", 2000)
    assert opened.read(0, 2000) == CONTENT[:2000]
    with pytest.raises(InputError, match=r"bytes 1500 to 2500 .* the file ends at byte 2000 and had 50000, truncated"):
        opened.read(1500, 1000)
    opened.close()


def test_a_failing_disk_is_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int) -> bytes:
        raise OSError(5, "Input/output error")

    (tmp_path / "f").write_bytes(CONTENT)
    opened = FileSource(tmp_path / "f")
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(InputError, match="bytes 5 to 10 cannot be read: input/output error"):
        opened.read(5, 5)
    opened.close()


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing: no such file or directory; give the path of a readable file"):
        as_source(tmp_path / "nothing")
    reading, writing = os.pipe()
    with open(reading, "rb") as pipe, open(writing, "wb"), pytest.raises(UsageError, match="cannot seek"):
        as_source(pipe)
    with pytest.raises(UsageError, match="list cannot seek"):
        as_source([1, 2, 3])


def test_closed_means_closed(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    for opened in (FileSource(tmp_path / "f"), FileSource(bytearray(CONTENT))):
        opened.close()
        with pytest.raises(ValueError):
            opened.read(0, 1)


def test_as_source_leaves_sources_alone() -> None:
    opened = FileSource(CONTENT)
    assert as_source(opened) is opened


@pytest.mark.parametrize(
    ("ranges", "gap", "expected"),
    [
        ([], 9, []),
        ([(5, 0)], 9, []),
        ([(0, 10), (10, 10)], 0, [(0, 20)]),
        ([(0, 10), (11, 10)], 0, [(0, 10), (11, 10)]),
        ([(14, 1), (0, 10)], 4, [(0, 15)]),
        ([(15, 1), (0, 10)], 4, [(0, 10), (15, 1)]),
        ([(0, 100), (10, 5), (101, 1)], 1, [(0, 102)]),
        ([(3, 4), (3, 9), (3, 4)], 0, [(3, 9)]),
    ],
)
def test_merged(ranges: list[tuple[int, int]], gap: int, expected: list[tuple[int, int]]) -> None:
    assert merged(ranges, gap) == expected


def test_read_merged_cuts_what_merged_joined() -> None:
    rng = random.Random(2)
    for _ in range(200):
        gap, asked = rng.randrange(50), []
        ranges = [(rng.randrange(900), rng.randrange(100)) for _ in range(rng.randrange(12))]

        def fetch(spans: list[tuple[int, int]], asked: list = asked) -> list[bytes]:
            asked.extend(spans)
            return [CONTENT[offset : offset + length] for offset, length in spans]

        assert read_merged(ranges, gap, fetch) == [CONTENT[at : at + length] for at, length in ranges]
        assert all(b[0] - sum(a) > gap for a, b in itertools.pairwise(asked))
        needed = {byte for at, length in ranges for byte in range(at, at + length)}
        read = {byte for at, length in asked for byte in range(at, at + length)}
        assert needed <= read and len(read) <= len(needed) + gap * max(0, len(ranges) - 1)


def test_neighbours_in_a_file_are_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    opened, asked, pread = FileSource(tmp_path / "f"), [], os.pread
    monkeypatch.setattr(os, "pread", lambda number, *ask: (asked.append(ask), pread(number, *ask))[1])
    far = 600 + sources.MERGE_GAP + 1
    opened.read_many([(far, 10), (0, 100), (100, 100), (500, 100)])
    assert asked == [(600, 0), (10, far)]
    opened.close()
