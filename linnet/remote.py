"""Files behind a URL as a ByteSource: http and https, and every store that fsspec knows (s3://, gs://, memory:// ...).

fsspec brings the stores, the event loop, and the pooled HTTP session. Of HTTP the ranges are asked for here, because
fsspec's `cat_file` hides status and headers: it would load a whole file from a server that ignores ranges, miss a file
that changes, and need another request for the size. Opening raises InputError where the URL leads to no usable file;
after that every failure is a MachineError: the bytes were there, so no reader may take it for damage and conceal it.
"""

from __future__ import annotations

import asyncio
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext

from .runtime.errors import InputError, LinnetError, MachineError
from .runtime.sources import ByteSource, Range, check_ranges, read_merged

try:
    import aiohttp
    import fsspec
    from fsspec.asyn import sync
except ImportError:
    fsspec = None

FRONT = 64 << 10
"""Bytes asked for when a file is opened: header, index and metadata of most pictures."""
MERGE_GAP = 16 << 10
"""Bytes that pass in about one round trip (100 ms at 1.3 Mbit/s). Ranges so close are one request."""
READ_AHEAD = 16 << 10
"""Bytes that a smaller read fetches, for the same reason: a box header, then its payload, are one request."""
WINDOWS = 8
"""Fetched windows of READ_AHEAD bytes that are remembered."""
CONNECTIONS = 8
"""Requests to one server at a time; browsers use 6."""
TIMEOUT_S = 30.0
"""Silence, in seconds, after which a server is given up."""


def open_remote(url: str) -> ByteSource:
    """The file behind `url`: one request of FRONT bytes (stores other than HTTP: one more for the size).

    InputError where there is no such file, it may not be read, or the server ignores byte ranges and the file is longer
    than FRONT; MachineError where a library is missing or the server cannot be reached. Proxies are taken from the
    environment, credentials from it and from fsspec's configuration files.
    """
    if fsspec is None:
        raise MachineError(f"{_shown(url)}: URLs need fsspec and aiohttp; pip install 'linnet[remote]'")
    return _HttpSource(url) if re.match(r"https?://", url, re.IGNORECASE) else _StoreSource(url)


class _RemoteSource(ABC):
    """What all stores share: the front and the last small windows in memory, neighbouring ranges in one request."""

    remote = True
    size = 0

    def __init__(self, url: str) -> None:
        self.name = _shown(url)
        self._front: tuple[int, bytes] = (0, b"")
        self._windows: tuple[tuple[int, bytes], ...] = ()

    def read(self, offset: int, length: int) -> bytes:
        check_ranges(self.size, [(offset, length)])
        known = self._known(offset, length)
        if known is not None:
            return known
        if length >= READ_AHEAD:
            return self._fetch([(offset, length)])[0]
        start = max(0, min(offset, self.size - READ_AHEAD))  # the last window reaches back: footers stand at the end
        data = self._fetch([(start, min(READ_AHEAD, self.size - start))])[0]
        self._windows = ((start, data), *self._windows[: WINDOWS - 1])
        return data[offset - start : offset - start + length]

    def read_many(self, ranges: Sequence[Range]) -> list[bytes]:
        check_ranges(self.size, ranges)
        pieces = {one: self._known(*one) for one in set(ranges)}
        missing = [one for one, piece in pieces.items() if piece is None]
        pieces.update(zip(missing, read_merged(missing, MERGE_GAP, self._fetch), strict=True))
        return [pieces[one] for one in ranges]

    def close(self) -> None:
        """Forget what was fetched. Connections belong to fsspec, which shares them among files."""
        self._front, self._windows = (0, b""), ()

    def _known(self, offset: int, length: int) -> bytes | None:
        for start, data in (self._front, *self._windows):
            if start <= offset and offset + length <= start + len(data):
                return data[offset - start : offset - start + length]
        return None

    @abstractmethod
    def _fetch(self, ranges: Sequence[Range]) -> list[bytes]: ...


class _HttpSource(_RemoteSource):
    """A file on an HTTP server. Every answer must come from the file that was opened: same size, same ETag or date."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        scheme = url.partition(":")[0].lower()
        settings = {"trust_env": True, **fsspec.config.conf.get(scheme, {}).get("client_kwargs", {})}
        self._url, self._store = url, fsspec.filesystem(scheme, client_kwargs=settings)
        self._version: tuple[object, ...] = ()
        self._front = (0, sync(self._store.loop, self._open))

    async def _open(self) -> bytes:
        async with self._request(0, FRONT) as answer:
            if answer.status == 200:
                return await self._whole(answer)
            if answer.status == 416 and answer.headers.get("Content-Range") == "bytes */0":
                return b""
            if answer.status != 206:
                raise InputError(self._refusal(answer))
            place = _content_range(answer)
            self.size, self._version = place[2], _version(answer)
            if not self.size or place[:2] != (0, min(FRONT, self.size)):
                raise InputError(f"{self.name}: the server does not say which bytes of how many it sends; use another")
            return await answer.content.readexactly(place[1])

    async def _whole(self, answer: aiohttp.ClientResponse) -> bytes:
        """The body of an answer without a range, where it is short enough to stay in memory."""
        if (answer.content_length or 0) <= FRONT:
            try:
                await answer.content.readexactly(FRONT + 1)
            except asyncio.IncompleteReadError as end:
                self.size = len(end.partial)
                return end.partial
        raise InputError(f"{self.name}: the server ignores byte ranges and sends whole files only; download it first")

    def _fetch(self, ranges: Sequence[Range]) -> list[bytes]:
        return sync(self._store.loop, self._get_all, ranges)

    async def _get_all(self, ranges: Sequence[Range]) -> list[bytes]:
        gate = asyncio.Semaphore(CONNECTIONS)
        tasks = [asyncio.ensure_future(self._get(gate, *one)) for one in ranges]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _get(self, gate: asyncio.Semaphore, offset: int, length: int) -> bytes:
        async with gate, self._request(offset, length) as answer:
            if answer.status == 416 or (answer.status == 206 and _version(answer) != self._version):
                raise MachineError(f"{self.name}: the file changed while it was read; open it again")
            if answer.status != 206:
                raise MachineError(self._refusal(answer))
            if _content_range(answer) != (offset, offset + length, self.size):
                raise MachineError(f"{self.name}: the server sent other bytes than {offset} to {offset + length}")
            return await answer.content.readexactly(length)

    @asynccontextmanager
    async def _request(self, offset: int, length: int) -> AsyncIterator[aiohttp.ClientResponse]:
        session = await self._store.set_session()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S, sock_read=TIMEOUT_S)
        headers = {"Range": f"bytes={offset}-{offset + length - 1}", "Accept-Encoding": "identity"}
        try:
            async with session.get(self._url, headers=headers, timeout=timeout) as answer:
                yield answer
        except aiohttp.InvalidURL:
            raise InputError(f"{self.name}: is not a URL; give one like https://host/file.lnt") from None
        except (aiohttp.ServerTimeoutError, asyncio.TimeoutError) as error:
            raise MachineError(f"{self.name}: no answer for {TIMEOUT_S:g} seconds; try again later") from error
        except (aiohttp.ClientPayloadError, asyncio.IncompleteReadError) as error:
            message = f"the server broke off before byte {offset + length}; try again"
            raise MachineError(f"{self.name}: {message}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise MachineError(f"{self.name}: {error}; check the address and the connection") from error

    def _refusal(self, answer: aiohttp.ClientResponse) -> str:
        remedy = "try again later" if answer.status in (408, 429) or answer.status >= 500 else "check the address"
        remedy = "check that you may read it" if answer.status in (401, 403, 407) else remedy
        return f"{self.name}: the server answers {answer.status} {answer.reason}; {remedy}"


def _content_range(answer: aiohttp.ClientResponse) -> tuple[int, int, int]:
    """(start, end, size of the file) in bytes, of an answer that says so; zeros of another."""
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", answer.headers.get("Content-Range", ""))
    return (int(match[1]), int(match[2]) + 1, int(match[3])) if match else (0, 0, 0)


def _version(answer: aiohttp.ClientResponse) -> tuple[object, ...]:
    return _content_range(answer)[2], answer.headers.get("ETag"), answer.headers.get("Last-Modified")


class _StoreSource(_RemoteSource):
    """A file in one of fsspec's stores. A file that changes meanwhile is found by the checksums of its boxes only."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        with self._failing():
            try:
                self._store, self._path = fsspec.core.url_to_fs(url)
                self.size = self._store.info(self._path)["size"]
            except FileNotFoundError as error:
                raise InputError(f"{self.name}: there is no such file; check the address") from error
            except (PermissionError, ValueError) as error:
                raise InputError(f"{self.name}: {error}; check the address and that you may read it") from error
        if self.size is None:
            raise InputError(f"{self.name}: the store does not know how long the file is; download it first")
        self._lock = nullcontext() if self._store.async_impl else threading.Lock()
        self._front = (0, self._fetch([(0, min(FRONT, self.size))])[0] if self.size else b"")

    def _fetch(self, ranges: Sequence[Range]) -> list[bytes]:
        starts, ends = [offset for offset, _ in ranges], [offset + length for offset, length in ranges]
        with self._failing(), self._lock:
            found = self._store.cat_ranges([self._path] * len(ranges), starts, ends, on_error="raise")
        for (offset, length), data in zip(ranges, found, strict=True):
            if len(data) != length:
                message = f"{len(data)} bytes came from byte {offset} on, not {length}: the file changed"
                raise MachineError(f"{self.name}: {message}; open it again")
        return found

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except LinnetError:
            raise
        except Exception as error:  # each store has exceptions of its own
            remedy = "install it with pip" if isinstance(error, ImportError) else "check address and connection"
            raise MachineError(f"{self.name}: {str(error) or type(error).__name__}; {remedy}") from error


def _shown(url: str) -> str:
    """The URL for messages: without password and query, which may be a signature."""
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])
