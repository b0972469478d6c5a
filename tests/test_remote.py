"""Files behind URLs, from a server on this machine that counts what it is asked for and can misbehave."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import numpy as np
import pytest

import linnet
from linnet import remote
from linnet.cli import main
from linnet.remote import FRONT, MERGE_GAP, READ_AHEAD, open_remote
from linnet.runtime.codec import Codec
from linnet.runtime.errors import InputError, MachineError
from linnet.runtime.reader import Reader
from linnet.runtime.tiles import Rect

CONTENT = random.Random(1).randbytes(2_000_000)
WHOLE = b"x" * (1 << 26)
"""What a server that ignores ranges sends: more than fits into the buffers of a connection."""


class Server(ThreadingHTTPServer):
    """Serves CONTENT as every path; a test changes its attributes."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.etag = CONTENT, '"1"'
        self.ranges = self.says_length = True
        self.status = 0  # instead of an answer
        self.break_at: int | None = None  # bytes of a body after which the connection breaks
        self.shift = 0  # bytes between what is asked for and what is sent
        self.wait_s = 0.0
        self.asked: list[tuple[int, int]] = []
        self.sent = self.connections = self.busy = self.most_busy = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/a.lnt"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_GET(self) -> None:
        server, content = self.server, self.server.content
        assert self.headers["Accept-Encoding"] == "identity"
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        with server.lock:
            server.asked.append((first, last + 1 - first))
            server.busy += 1
            server.most_busy = max(server.busy, server.most_busy)
        time.sleep(server.wait_s)
        with server.lock:
            server.busy -= 1
        body, place = content, None
        if server.status:
            self.send_response(server.status)
            body = b"<html>sorry</html>"
        elif not server.ranges:
            self.send_response(200)
        elif first >= len(content):
            self.send_response(416)
            body, place = b"", f"bytes */{len(content)}"
        else:
            self.send_response(206)
            first, last = first + server.shift, min(last, len(content) - 1)
            body, place = content[first : last + 1], f"bytes {first}-{last}/{len(content)}"
        if place:
            self.send_header("Content-Range", place)
        self.send_header("ETag", server.etag)
        if server.says_length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        for start in range(0, len(body[: server.break_at]), 1 << 14):
            self.wfile.write(body[: server.break_at][start : start + (1 << 14)])
            server.sent += 1 << 14
        self.close_connection = not server.says_length or server.break_at is not None


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@contextmanager
def refused(kind: type[Exception], *parts: str) -> Iterator[None]:
    """One sentence with all of `parts`."""
    with pytest.raises(kind) as caught:
        yield
    assert type(caught.value) is kind
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert ". " not in message and not message.endswith("."), message


def test_opening_is_one_request_that_tells_the_size(server: Server) -> None:
    source = open_remote(server.url)
    assert source.size == len(CONTENT) and source.remote
    assert source.read(0, 8) == CONTENT[:8]
    assert source.read(FRONT - 5, 5) == CONTENT[FRONT - 5 : FRONT]
    assert source.read_many([(100, 9), (7, 0), (3, 50_000)]) == [CONTENT[100:109], b"", CONTENT[3:50_003]]
    assert server.asked == [(0, FRONT)]


@pytest.mark.parametrize("size", [0, 1, FRONT - 1, FRONT, FRONT + 1])
def test_sizes_about_the_front(server: Server, size: int) -> None:
    server.content = CONTENT[:size]
    source = open_remote(server.url)
    assert source.size == size and source.read(0, size) == CONTENT[:size]
    with refused(InputError, f"the file has {size}, truncated"):
        source.read(size, 1)
    assert len(server.asked) == (1 if size <= FRONT else 2)


def test_scattered_ranges_come_at_once_and_neighbours_together(server: Server) -> None:
    source, server.wait_s = open_remote(server.url), 0.05
    tiles = [(100_000 + n * 1000, 1000) for n in range(10)]  # in a row: one request
    tiles += [(110_000 + MERGE_GAP, 500)]  # near enough
    tiles += [(n * 100_000, 700) for n in range(3, 17)]  # each alone
    random.Random(3).shuffle(tiles)
    assert source.read_many(tiles) == [CONTENT[at : at + length] for at, length in tiles]
    assert sorted(server.asked[1:]) == [(100_000, 10_500 + MERGE_GAP), *[(n * 100_000, 700) for n in range(3, 17)]]
    assert 1 < server.most_busy <= remote.CONNECTIONS and server.connections <= remote.CONNECTIONS


def test_the_front_is_not_fetched_again(server: Server) -> None:
    source = open_remote(server.url)
    assert source.read_many([(0, 100), (500_000, 10)]) == [CONTENT[:100], CONTENT[500_000:500_010]]
    assert server.asked[1:] == [(500_000, 10)]


def test_small_reads_fetch_what_comes_next(server: Server) -> None:
    """A box header and its payload are one request; so are a recording's footer and the checkpoint before it."""
    source = open_remote(server.url)
    for offset in (1_000_000, 1_000_020, 1_000_000 + READ_AHEAD - 9, len(CONTENT) - 32, len(CONTENT) - READ_AHEAD):
        assert source.read(offset, 9) == CONTENT[offset : offset + 9]
    assert server.asked[1:] == [(1_000_000, READ_AHEAD), (len(CONTENT) - READ_AHEAD, READ_AHEAD)]
    source.read(1_200_000, 1 << 17)
    assert server.asked[3:] == [(1_200_000, 1 << 17)]


def test_old_windows_are_forgotten(server: Server) -> None:
    source = open_remote(server.url)
    for n in [*range(remote.WINDOWS + 1), 0]:
        source.read(100_000 + n * READ_AHEAD, 1)
    assert len(server.asked) == remote.WINDOWS + 3


def test_proxies_are_taken_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    assert open_remote("http://elsewhere.invalid/a.lnt").size == len(CONTENT)


def test_requests_share_a_connection(server: Server) -> None:
    source = open_remote(server.url)
    for n in range(5):
        source.read(200_000 * (n + 1), 50_000)
    assert server.connections == 1 and len(server.asked) == 6


def test_threads_read_side_by_side(server: Server) -> None:
    source, wrong = open_remote(server.url), []

    def read(seed: int) -> None:
        for n in range(5):
            offset = random.Random(100 * seed + n).randrange(1_900_000)
            if source.read(offset, 99) != CONTENT[offset : offset + 99]:
                wrong.append(offset)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("says_length", [True, False])
def test_a_server_without_ranges_is_found_out_early(server: Server, says_length: bool) -> None:
    server.ranges, server.says_length, server.content = False, says_length, WHOLE
    server.break_at = 0 if says_length else None  # its length is reason enough, the body is not looked at
    with refused(InputError, server.url, "ignores byte ranges", "download it first"):
        open_remote(server.url)
    assert server.sent < len(WHOLE) // 4  # the rest, if anything, lies in the buffers of the system


@pytest.mark.parametrize("says_length", [True, False])
def test_a_server_without_ranges_serves_small_files(server: Server, says_length: bool) -> None:
    server.ranges, server.says_length, server.content = False, says_length, CONTENT[:FRONT]
    source = open_remote(server.url)
    assert source.size == FRONT and source.read(5, FRONT - 5) == CONTENT[5:FRONT]
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "remedy"), [(404, "check the address"), (403, "check that you may"), (503, "try again later")]
)
def test_refusals(server: Server, status: int, remedy: str) -> None:
    source = open_remote(server.url)
    server.status = status
    with refused(InputError, server.url, f"answers {status}", remedy):
        open_remote(server.url)
    with refused(MachineError, server.url, f"answers {status}", remedy):
        source.read(500_000, 10)
    with refused(MachineError, f"answers {status}"):
        source.read_many([(500_000, 10), (1_500_000, 10)])
    server.status = 0
    assert source.read(500_000, 10) == CONTENT[500_000:500_010]


def test_messages_keep_secrets(server: Server) -> None:
    server.status = 404
    secret = server.url.replace("//", "//me:secret@") + "?signature=secret"
    with pytest.raises(InputError) as caught:
        open_remote(secret)
    assert "secret" not in str(caught.value) and server.url in str(caught.value)


def test_nobody_answers() -> None:
    with socket.socket() as taken:  # bound but not listening
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.lnt"
        with refused(MachineError, url, "check the address and the connection"):
            open_remote(url)


def test_a_silent_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    source, server.wait_s = open_remote(server.url), 0.6
    monkeypatch.setattr(remote, "TIMEOUT_S", 0.1)
    with refused(MachineError, server.url, "no answer for 0.1 seconds", "try again later"):
        source.read(500_000, 10)
    with refused(MachineError, server.url, "no answer for 0.1 seconds"):
        open_remote(server.url)


@pytest.mark.parametrize("says_length", [True, False])
def test_broken_connections(server: Server, says_length: bool) -> None:
    source = open_remote(server.url)
    server.says_length, server.break_at = says_length, 20_000
    with refused(MachineError, server.url, "broke off before byte 150000", "try again"):
        source.read(100_000, 50_000)
    with refused(MachineError, "broke off before byte 65536"):
        open_remote(server.url)
    server.break_at = None
    assert source.read(100_000, 50_000) == CONTENT[100_000:150_000]


@pytest.mark.parametrize("change", ["size", "tag", "shorter than the range"])
def test_a_file_that_changes(server: Server, change: str) -> None:
    source = open_remote(server.url)
    if change == "tag":
        server.etag = '"2"'
    else:
        server.content = CONTENT[:-1] if change == "size" else CONTENT[:1000]
    with refused(MachineError, server.url, "the file changed", "open it again"):
        source.read(500_000, 10)
    with refused(MachineError, "the file changed"):
        source.read_many([(500_000, 10), (900_000, 10)])


def test_other_bytes_than_asked_for(server: Server) -> None:
    source, server.shift = open_remote(server.url), 1
    with refused(MachineError, server.url, f"other bytes than 500000 to {500_000 + READ_AHEAD}"):
        source.read(500_000, 10)
    with refused(InputError, "does not say which bytes"):
        open_remote(server.url)


def test_hostile_ranges_are_refused_without_a_request(server: Server) -> None:
    source = open_remote(server.url)
    with refused(InputError, "truncated"):
        source.read(0, 1 << 62)
    with refused(InputError, "overlap"):
        source.read_many([(n, 1_900_000) for n in range(100)])
    assert len(server.asked) == 1


def test_other_stores() -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/a.lnt", CONTENT[:300_000])
    source = open_remote("memory://a.lnt")
    assert source.size == 300_000 and source.remote and source.read(0, 8) == CONTENT[:8]
    ranges = [(200_000, 9), (1, 2), (299_999, 1)]
    assert source.read_many(ranges) == [CONTENT[offset : offset + length] for offset, length in ranges]
    store.pipe_file("/a.lnt", CONTENT[:100_000])
    with refused(MachineError, "memory://a.lnt", "the file changed; open it again"):
        source.read(99_000, 50_000)
    store.rm("/a.lnt")
    with refused(MachineError, "memory://a.lnt", "a.lnt"):
        source.read(99_000, 50)
    with refused(InputError, "memory://a.lnt", "no such file"):
        open_remote("memory://a.lnt")
    store.pipe_file("/empty.lnt", b"")
    assert open_remote("memory://empty.lnt").size == 0


def test_addresses_of_no_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(InputError, "nonsense://a.lnt", "nonsense"):
        open_remote("nonsense://a.lnt")
    with refused(InputError, "http://", "is not a URL"):
        open_remote("http:///a.lnt")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with refused(MachineError, "s3://bucket/a.lnt", "s3fs", "install it with pip"):
        open_remote("s3://bucket/a.lnt")


@pytest.mark.parametrize("library", ["fsspec", "aiohttp"])
def test_a_missing_library_is_named(library: str) -> None:
    code = f"""if True:
        import sys
        sys.modules[{library!r}] = None
        from linnet.remote import open_remote
        from linnet.runtime.errors import MachineError
        try:
            open_remote("https://user:secret@host/a.lnt?secret")
        except MachineError as error:
            assert str(error).startswith("https://host/a.lnt: URLs need fsspec and aiohttp"), error
            assert "pip install 'linnet[remote]'" in str(error)
        else:
            raise AssertionError
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_window_over_http_fetches_little_more_than_its_tiles(
    server: Server, codec: Codec, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(4)
    image = np.kron(rng.integers(0, 256, (100, 120, 3)), np.ones((16, 16, 1))).astype(np.uint8)
    data = server.content = codec.encode(image, quality=90, tile=256)
    window = (800, 700, 96, 64)
    with linnet.open(server.url) as file:
        assert file.size == (1920, 1600)
        pixels = file.read_region(*window)
        grid = file.reader.record().grid
    x, y, width, height = window
    np.testing.assert_array_equal(pixels, codec.decode(data)[y : y + height, x : x + width])
    halo = 16 * codec.synthesis_halo
    needed = grid.touching(Rect(x, y, width, height).aligned(16).grown(halo, grid.padded))
    tiles = sum(length for _, length in Reader(data).index().entries[needed[0] : needed[-1] + 1])
    assert sum(length for _, length in server.asked) <= FRONT + 2 * tiles < len(data)

    assert main(["info", server.url]) == 0
    assert "1920x1600" in capsys.readouterr().out


def test_a_window_of_24_megapixels_over_http(server: Server, codec: Codec) -> None:
    """One request opens the file; a window of 512x512 then transfers less than twice the bytes of its tiles."""
    rng = np.random.default_rng(4)
    small = rng.integers(0, 256, (125, 188, 3), np.uint8)
    image = small.repeat(32, axis=0).repeat(32, axis=1)[:, :6000]
    data = server.content = codec.encode(image, quality=50)
    window = Rect(2750, 1750, 512, 512)
    with linnet.open(server.url) as file:
        assert file.size == (6000, 4000) and file.tiles == 96
        assert server.asked == [(0, FRONT)]
        pixels = file.read_region(*window)
        grid, entries = file.reader.record().grid, file.reader.index().entries
    needed = grid.touching(window.aligned(16).grown(16 * codec.synthesis_halo, grid.padded))
    tiles = sum(entries[number][1] for number in needed)
    transferred = sum(length for _, length in server.asked[1:])
    assert len(needed) < 10 and tiles <= transferred <= 2 * tiles
    assert transferred + FRONT < len(data) / 4
    np.testing.assert_array_equal(pixels, codec.decode(data, region=window))
