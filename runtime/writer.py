"""Writes .lnt files: pictures with the index in front, recordings only ever appended to. See docs/bitstream.md."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import BinaryIO

from . import boxes
from .bitstream import (
    CHECKPOINT,
    DIGEST_SIZE,
    FRAME_PLACE,
    LOST,
    MAX_CHECKPOINT_FRAMES,
    MAX_METADATA,
    METADATA_BOXES,
    TAIL,
    FrameIndex,
    FrameRecord,
    Metadata,
    TilePlace,
)
from .boxes import BOX_HEADER, SIGNATURE
from .errors import UsageError

SMALL_PICTURE = 16
"""Tiles up to which a picture does without FRAM, which repeats its index's record: a percent of a thumbnail's bytes."""


class _Writer:
    """Shared by pictures and recordings: appends boxes and remembers where the current frame's tiles are."""

    def __init__(self, output: BinaryIO) -> None:
        self._output, self._offset = output, 0
        self._record: FrameRecord | None = None
        self._entries: list[tuple[int, int]] = []
        self._append(SIGNATURE)

    @property
    def bytes_written(self) -> int:
        return self._offset

    def _append(self, data: bytes) -> None:
        self._output.write(data)
        self._offset += len(data)

    def _start(self, record: FrameRecord) -> None:
        self._record, self._entries = record, [LOST] * record.tile_count

    def _metadata(self, metadata: Metadata | None) -> None:
        for kind, name in METADATA_BOXES.items():
            content = getattr(metadata, name) if metadata else None
            if content is not None:
                if len(content) > MAX_METADATA:
                    raise UsageError(f"{name.upper()} metadata has {len(content)} bytes: at most {MAX_METADATA} fit")
                self._append(boxes.pack(kind, content))

    def tile(self, number: int, payload: bytes, *, quality: int | None = None, sealed: bool = False) -> None:
        """Append tile `number` (through all stored levels) of the current frame; without `quality` at its level's."""
        assert self._record is not None
        if quality is None:
            quality = self._record.qualities[self._record.level_of(number)]
        place = TilePlace(self._record.number, number, quality)
        box = boxes.pack(b"SEAL" if sealed else b"TILE", place.pack() + payload)
        self._entries[number] = (self._offset, len(box))
        self._append(box)


class PictureWriter(_Writer):
    """Writes one frame with its index in front into a seekable `output` at its position 0."""

    def begin(self, record: FrameRecord, metadata: Metadata | None = None, *, digest: bool = False) -> None:
        """`digest` keeps room for one, which must then be given to `end`."""
        self._start(record)
        if record.tile_count > SMALL_PICTURE:
            self._append(boxes.pack(b"FRAM", record.pack()))
        self._index_at = self._offset
        unfinished = FrameIndex(record, self._entries, bytes(DIGEST_SIZE) if digest else None)
        self._append(bytes(BOX_HEADER + len(unfinished.pack())))
        self._metadata(metadata)

    def end(self, digest: bytes | None = None) -> None:
        """The frame is complete: put the index in its place."""
        assert self._record is not None
        self._output.seek(self._index_at)
        self._output.write(boxes.pack(b"INDX", FrameIndex(self._record, self._entries, digest).pack()))
        self._output.seek(self._offset)


class RecordingWriter(_Writer):
    """Appends frames to `output`, which is never read nor rewound. What was written stays readable at any stop."""

    def __init__(self, output: BinaryIO) -> None:
        super().__init__(output)
        self._places = bytearray()
        self._frames = self._listed = self._checkpoint_at = self._frame_at = 0

    def begin(self, record: FrameRecord, metadata: Metadata | None = None, *, digest: bool = False) -> None:
        self._frame_at = self._offset
        self._start(record)
        self._append(boxes.pack(b"FRAM", record.pack()))
        self._metadata(metadata)

    def end(self, digest: bytes | None = None) -> None:
        """The frame is complete: write its index."""
        assert self._record is not None
        self._places += FRAME_PLACE.pack(self._frame_at, self._offset, self._record.timestamp)
        self._frames += 1
        self._append(boxes.pack(b"INDX", FrameIndex(self._record, self._entries, digest).pack()))
        self._record = None

    def checkpoint(self) -> None:
        """List the frames since the last checkpoint; the caller makes it durable."""
        while self._listed < self._frames:
            self._list(self._checkpoint_at, self._listed)

    def _list(self, previous: int, first: int) -> None:
        places = self._places[first * FRAME_PLACE.size :][: MAX_CHECKPOINT_FRAMES * FRAME_PLACE.size]
        count = len(places) // FRAME_PLACE.size
        self._checkpoint_at, self._listed = self._offset, first + count
        self._append(boxes.pack(b"CKPT", CHECKPOINT.pack(previous, first, count) + places))

    def close(self) -> None:
        """Write what lets a reader open the file with two reads: one list of all frames, and where it is.

        Does not close `output`.
        """
        if self._frames:
            self._list(0, 0)
            self.checkpoint()
        self._append(boxes.pack(b"TAIL", TAIL.pack(self._checkpoint_at, self._frames)))


def write_picture(
    record: FrameRecord, tiles: Sequence[bytes], metadata: Metadata | None = None, digest: bytes | None = None
) -> bytes:
    """One whole picture file. `tiles` are the entropy-coded payloads in tile order."""
    output = io.BytesIO()
    writer = PictureWriter(output)
    writer.begin(record, metadata, digest=digest is not None)
    for number, payload in enumerate(tiles):
        writer.tile(number, payload)
    writer.end(digest)
    return output.getvalue()
