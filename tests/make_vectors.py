"""Makes the conformance vectors again: `python tests/make_vectors.py` writes tests/vectors and tests/vectors-bad.

Every file comes from pictures of a formula and from `tiny_codec`, so that the same bytes come out each time; only
`camera.lnt` and `camera-recording.lnt` are made with the codec that the package ships and change when it does.
`digests.json` pins the decoded pixels of every frame and stored level, `errors.json` what is wrong with each bad file
(a part of the sentence that linnet says) and the exit status.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import tiny_codec

from linnet.runtime import boxes
from linnet.runtime.bitstream import LOST, Metadata, TilePlace
from linnet.runtime.boxes import BOX_HEADER, SIGNATURE
from linnet.runtime.codec import Codec
from linnet.runtime.core import crc32c
from linnet.runtime.reader import Reader
from linnet.runtime.sealing import Protection
from linnet.runtime.tiles import Rect
from linnet.runtime.writer import RecordingWriter

HERE = Path(__file__).parent
VECTORS, BAD_VECTORS = "vectors", "vectors-bad"
BUNDLE, DIGESTS, ERRORS = "tiny.lntb", "digests.json", "errors.json"
KEY = bytes(range(32))
"""Published: it protects nothing."""
OTHER_KEY = bytes(32)
SALT = bytes(range(100, 116))
CAPTURED = 1_700_000_000_000_000_000
FRAME_NS = 40_000_000
Places = list[tuple[int, int]]
"""(offset, length) of tiles, as an index lists them."""
METADATA = Metadata(
    exif=b"II*\0\x08\0\0\0" + struct.pack("<HHHI4sI", 1, 0x0112, 3, 1, b"\x06\0\0\0", 0),  # orientation 6
    xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/>'
    b"</x:xmpmeta>",
    icc=struct.pack(">I12s4s4s", 132, b"", b"mntr", b"RGB ") + bytes(12) + b"acsp" + bytes(92),
)


def picture(width: int, height: int, number: int = 0) -> np.ndarray:
    """(height, width, 3) uint8: slopes, a disc that moves with `number`, stripes and a little noise, all integers."""
    y, x = np.mgrid[:height, :width]
    red, green = x * 5 // 2 % 511, (x + y) * 3 // 2 % 511
    pixels = np.stack([np.minimum(red, 510 - red), np.minimum(green, 510 - green), 40 + y % 128], axis=2)
    pixels[(x - 40 - 9 * number) ** 2 + (y - 30) ** 2 < 20**2] = 230, 190, 40
    pixels[(x + 2 * y) // 7 % 5 == 0] -= 30
    pixels += (x * 7919 + y * 104729 + x * y * 31 + number * 17)[..., None] % 13 - 6
    return np.clip(pixels, 0, 255).astype(np.uint8)


def recording(codec: Codec, sizes: list[tuple[int, int]], *, close: bool = True) -> bytes:
    """Frames of `sizes` with a checkpoint behind every second one."""
    output = io.BytesIO()
    writer = RecordingWriter(output)
    for number, size in enumerate(sizes):
        codec.encode_frame(
            writer, picture(*size, number), quality=40 + 20 * number, tile=64, number=number,
            timestamp=CAPTURED + number * FRAME_NS, metadata=None if number else METADATA,
        )  # fmt: skip
        if number % 2:
            writer.checkpoint()
    if close:
        writer.close()
    return output.getvalue()


def sealed(codec: Codec, size: tuple[int, int], rectangles: list[Rect] | None) -> bytes:
    """A writer draws its salt at random; here it is SALT, so that the bytes are the same each time."""
    with mock.patch("secrets.token_bytes", lambda count: SALT[:count]):
        return codec.encode(picture(*size), tile=64, levels=2, protection=Protection(KEY, rectangles))


def with_later_additions(data: bytes) -> bytes:
    """A picture as a later linnet might write it: a longer frame record, a reserved byte used, boxes unknown today."""
    reader = Reader(data)
    record = bytearray(reader.record().pack() + b"more")
    record[27] = 7
    news = boxes.pack(b"NEWS", b"not known today")
    front = SIGNATURE + boxes.pack(b"FRAM", bytes(record))
    count = reader.record().tile_count
    at = len(front) + BOX_HEADER + len(index_of([LOST] * count, record=bytes(record))) + len(news)
    places, content = [], news
    for number in range(count):
        box = boxes.pack(b"TILE", TilePlace(0, number, reader.record().quality).pack() + reader.tile(number))
        places.append((at, len(box)))
        content += box + news
        at += len(box) + len(news)
    return front + boxes.pack(b"INDX", index_of(places, record=bytes(record))) + content


def index_of(entries: Places, *, record: bytes, flags: int = 0, digest: bytes = b"", count: int | None = None) -> bytes:
    """An INDX payload, right or wrong."""
    head = struct.pack("<H", len(record)) + record + bytes([flags]) + digest
    count = len(entries) if count is None else count
    return head + struct.pack("<I", count) + b"".join(struct.pack("<QI", *entry) for entry in entries)


def flipped(data: bytes, offset: int) -> bytes:
    """`data` with one bit of a byte the other way round."""
    return data[:offset] + bytes([data[offset] ^ 64]) + data[offset + 1 :]


def good_files(tiny: Codec, shipped: Codec) -> Iterator[tuple[str, bytes]]:
    yield "one-pixel.lnt", tiny.encode(picture(1, 1), quality=1)
    yield "odd-size.lnt", tiny.encode(picture(67, 45), quality=50)
    yield "tiles.lnt", tiny.encode(picture(200, 137), tile=64)
    yield "many-tiles.lnt", tiny.encode(picture(300, 260), tile=64, quality=20)
    favoured = [((70, 70, 10, 10), 40), ((0, 0, 5, 5), -20)]
    yield "tile-qualities.lnt", tiny.encode(picture(130, 130), tile=64, quality=30, favoured=favoured)
    yield "largest-tile.lnt", tiny.encode(picture(65, 129), tile=4096)
    yield "quality-1.lnt", tiny.encode(picture(90, 70), quality=1)
    yield "quality-100.lnt", tiny.encode(picture(90, 70), quality=100)
    yield "levels.lnt", tiny.encode(picture(131, 143), tile=64, levels=3)
    yield "metadata.lnt", tiny.encode(picture(64, 64), metadata=METADATA)
    yield "digest.lnt", tiny.encode(picture(100, 40), tile=64, digest=True)
    yield "sealed.lnt", sealed(tiny, (200, 140), [Rect(100, 50, 20, 10)])
    yield "sealed-whole.lnt", sealed(tiny, (70, 70), None)
    yield "later-additions.lnt", with_later_additions(tiny.encode(picture(100, 50), tile=64))
    yield "recording.lnt", recording(tiny, [(96, 70), (96, 70), (33, 100)])
    interrupted = recording(tiny, [(96, 70), (96, 70), (96, 70)], close=False)
    yield "interrupted.lnt", interrupted[:-30]  # within the last frame's index; all of its tiles are there
    damaged = recording(tiny, [(64, 64), (64, 64)])
    yield "damaged-index.lnt", flipped(damaged, Reader(damaged)._places[0].index + 30)  # its frame is found by its FRAM
    yield "camera.lnt", shipped.encode(picture(150, 100), tile=64, levels=2, digest=True)
    yield "camera-recording.lnt", recording(shipped, [(64, 64), (80, 48)])


def digests(codec: Codec, data: bytes) -> Iterator[dict[str, object]]:
    """What a decoder must give; encrypted files also without their key."""
    reader = Reader(data)
    for frame in range(reader.frame_count):
        record = reader.record(frame)
        for level in record.levels:
            for key in (KEY, None) if record.salt else (None,):
                pixels = codec.decode(data, frame=frame, level=level, key=key)
                height, width = pixels.shape[:2]
                named = {"key": key.hex()} if key else {}
                yield {
                    "frame": frame, "level": level, "width": width, "height": height, **named,
                    "sha256": hashlib.sha256(pixels).hexdigest(),
                }  # fmt: skip


class TakenApart:
    """A picture of two tiles, to be put together wrongly."""

    def __init__(self, codec: Codec) -> None:
        self.data = codec.encode(picture(100, 50), tile=64)
        reader = Reader(self.data)
        self.record, self.first_tile = reader.record().pack(), reader.index().entries[0][0]
        quality = reader.record().quality
        self.tiles = [TilePlace(0, number, quality).pack() + reader.tile(number) for number in range(2)]

    def joined(
        self, *, record: bytes | None = None, front: bytes = b"", flags: int = 0, digest: bytes = b"",
        count: int | None = None, entries: Callable[[Places], Places] = list, tiles: list[bytes] | None = None,
    ) -> bytes:  # fmt: skip
        """The file with these parts instead of its own, all checksums right."""
        bodies = [boxes.pack(b"TILE", tile) for tile in tiles or self.tiles]
        parts = {"record": record or self.record, "flags": flags, "digest": digest, "count": count}
        index_size = BOX_HEADER + len(index_of(entries([LOST] * 2), **parts))
        first = len(SIGNATURE) + len(front) + index_size
        places = [(first, len(bodies[0])), (first + len(bodies[0]), len(bodies[1]))]
        index = boxes.pack(b"INDX", index_of(entries(places), **parts))
        return SIGNATURE + front + index + b"".join(bodies)

    def with_field(self, offset: int, form: str, value: int) -> bytes:
        """The file with another value in a field of its frame record."""
        record = bytearray(self.record)
        struct.pack_into(form, record, offset, value)
        return self.joined(record=bytes(record))

    def with_payload(self, change: Callable[[bytes], bytes]) -> bytes:
        """The file with another payload in tile 1."""
        return self.joined(tiles=[self.tiles[0], self.tiles[1][:8] + change(self.tiles[1][8:])])


@dataclass(frozen=True)
class BadFile:
    name: str
    data: bytes
    says: str
    """A part of the sentence with which linnet refuses the file."""
    key: bytes | None = None
    command: str = "decode"
    """What refuses it; `verify` finds more than `decode`, which goes on where it can."""


def bad_files(codec: Codec) -> Iterator[BadFile]:
    good = TakenApart(codec)
    yield from bad_containers(good)
    yield from bad_records(good)
    yield from bad_indices(good)
    yield from bad_payloads(good)
    yield from bad_seals(codec)
    yield from bad_recordings(codec)


def bad_containers(good: TakenApart) -> Iterator[BadFile]:
    data, size, first_tile = good.data, len(good.data), good.first_tile
    head = struct.pack("<4sQI", b"INDX", 1 << 62, 0)
    head += struct.pack("<I", crc32c(head))
    yield BadFile("empty", b"", "ends within the signature: truncated")
    yield BadFile("signature", b"\x89LNT\n\x1a\n" + data[8:], "is not a linnet file")
    yield BadFile("no-index", SIGNATURE + data[first_tile:], "starts with FRAM and INDX or with INDX")
    yield BadFile("index-header-checksum", flipped(data, 12), "box header at byte 8 fails its checksum")
    yield BadFile("index-checksum", flipped(data, 60), "box 'INDX' at byte 8 fails its checksum")
    yield BadFile("tile-header-checksum", flipped(data, first_tile + 9), f"box header at byte {first_tile} fails")
    yield BadFile("tile-checksum", flipped(data, first_tile + 40), f"tile 0: box 'TILE' at byte {first_tile} fails")
    yield BadFile("truncated-header", data[:20], "box header ends at byte 28 but the file has 20: truncated")
    yield BadFile("truncated-index", data[:60], "but the file has 60: truncated")
    yield BadFile("truncated-tile", data[:-1], f"tile 1 ends at byte {size} but the file has {size - 1}: truncated")
    yield BadFile("length-beyond-the-file", SIGNATURE + head + data[28:], f"but the file has {size}: truncated")


def bad_records(good: TakenApart) -> Iterator[BadFile]:
    levels = good.record[:26] + bytes([17]) + good.record[27:] + bytes(17)
    yield BadFile("version", good.with_field(0, "<H", 2), "format version 2 is not known here")
    yield BadFile("record-flag", good.with_field(2, "<H", 2), "has flags 0x2")
    yield BadFile("record-short", good.joined(record=good.record[:59]), "a frame record needs 60")
    yield BadFile("salt-missing", good.with_field(2, "<H", 1), "has flags 0x1")
    yield BadFile("width-0", good.with_field(16, "<I", 0), "frame is 0x50 pixels: sides must be 1 to 1048576")
    yield BadFile("width-above-limit", good.with_field(16, "<I", (1 << 20) + 1), "frame is 1048577x50 pixels")
    yield BadFile("tile-side-100", good.with_field(24, "<H", 100), "tile size 100: use a multiple of 64")
    yield BadFile("tile-side-8192", good.with_field(24, "<H", 8192), "tile size 8192: use a multiple of 64")
    yield BadFile("levels-17", good.joined(record=levels), "17 overview levels: at most 16")
    yield BadFile("quality-0", good.with_field(60, "B", 0), "quality of level 0 is 0")
    yield BadFile("quality-101", good.with_field(60, "B", 101), "quality of level 0 is 101")
    yield BadFile("too-many-tiles", good.with_field(16, "<Q", 1 << 52 | 1 << 20), "has 268435456 tiles of 64")


def bad_indices(good: TakenApart) -> Iterator[BadFile]:
    wider = bytearray(good.record)
    wider[16] += 1
    yield BadFile("index-flag", good.joined(flags=2), "index flags 0x2")
    yield BadFile("index-short", good.joined(entries=lambda found: found[:1]), "2 tiles need")
    yield BadFile("index-count", good.joined(count=3), "lists 3 tiles, not 2")
    two_records = good.joined(front=boxes.pack(b"FRAM", bytes(wider)))
    yield BadFile("two-records", two_records, "describe different frames", command="verify")
    yield BadFile("tile-lost", good.joined(entries=lambda found: [found[0], LOST]), "tile 1 is not in the file")
    swapped = good.joined(entries=lambda found: [found[1], found[0]])
    yield BadFile("tile-elsewhere", swapped, "holds tile 1 of another place")
    for quality in (0, 101):
        other = [TilePlace(0, 0, quality).pack() + good.tiles[0][8:], good.tiles[1]]
        yield BadFile(f"tile-quality-{quality}", good.joined(tiles=other), f"has quality {quality}: 1 to 100")
    beyond = good.joined(entries=lambda found: [found[0], (1 << 40, 99)])
    yield BadFile("tile-beyond-the-file", beyond, "tile 1 ends at byte")
    inside = good.joined(entries=lambda found: [found[0], (8, BOX_HEADER + found[0][1])])
    yield BadFile("tile-in-the-index", inside, "tile 1: box 'INDX' at byte 8 is not the tile")
    short = good.joined(entries=lambda found: [found[0], (found[1][0], 27)])
    yield BadFile("tile-too-short", short, "tile 1 has 27 bytes in the index, which is damaged")


def bad_payloads(good: TakenApart) -> Iterator[BadFile]:
    """Tiles whose checksums are right and whose entropy-coded bytes are not."""
    changes: dict[str, Callable[[bytes], bytes]] = {
        "state": lambda payload: flipped(payload, 0),
        "state-small": lambda payload: bytes(4) + payload[4:],
        "word": lambda payload: flipped(payload, len(payload) - 1),
        "words-left": lambda payload: payload + b"\0\0",
        "odd-length": lambda payload: payload + b"\0",
        "words-missing": lambda payload: payload[:-4],
        "empty": lambda payload: b"",
    }
    for name, change in changes.items():
        yield BadFile(f"entropy-{name}", good.with_payload(change), "tile 1: payload of")
    yield BadFile("other-bundle", good.with_field(28, "B", good.record[28] ^ 1), "the file was encoded with bundle")
    digest = good.joined(flags=1, digest=bytes(32))
    yield BadFile("digest", digest, "differ from the stored proof", command="verify --pixels")


def bad_seals(codec: Codec) -> Iterator[BadFile]:
    data = sealed(codec, (70, 70), None)
    offset, length = Reader(data).index().entries[0]
    box, end = data[offset + BOX_HEADER : offset + length], offset + length
    modified = data[:offset] + boxes.pack(b"SEAL", flipped(box, len(box) - 1)) + data[end:]
    yield BadFile("wrong-key", data, "frame 0, tile 0: wrong key or modified tile", OTHER_KEY)
    yield BadFile("sealed-modified", modified, "frame 0, tile 0: wrong key or modified tile", KEY)


def bad_recordings(codec: Codec) -> Iterator[BadFile]:
    data = recording(codec, [(96, 70), (96, 70)])
    offset, length = Reader(data).index(0).entries[1]
    yield BadFile("recording-tile-checksum", flipped(data, offset + length - 1), f"tile 1: box 'TILE' at byte {offset}")
    yield BadFile("recording-without-frames", recording(codec, []), "the recording has no frames")


def make(folder: Path) -> None:
    """Write both folders into `folder`, without anything else in them."""
    good, bad = folder / VECTORS, folder / BAD_VECTORS
    for place in (good, bad):
        place.mkdir(exist_ok=True)
        for old in place.iterdir():
            old.unlink()
    tiny_codec.write(good / BUNDLE)
    write_files(folder, Codec.open(good / BUNDLE, "reference", 1), Codec.open(backend="onnxruntime", threads=1))


def write_files(folder: Path, tiny: Codec, shipped: Codec) -> None:
    pinned: dict[str, list[dict[str, object]]] = {}
    for name, data in good_files(tiny, shipped):
        codec = tiny if Reader(data).record().bundle.hex() == tiny.bundle.identity else shipped
        (folder / VECTORS / name).write_bytes(data)
        pinned[name] = list(digests(codec, data))
    write_json(folder / VECTORS / DIGESTS, pinned)
    errors: dict[str, dict[str, object]] = {}
    for bad in bad_files(tiny):
        name = f"{bad.name}.lnt"
        (folder / BAD_VECTORS / name).write_bytes(bad.data)
        errors[name] = {"command": bad.command, "status": 1, "says": bad.says}
        if bad.key:
            errors[name]["key"] = bad.key.hex()
    write_json(folder / BAD_VECTORS / ERRORS, errors)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:  # an error leaves the vectors as they were
        make(Path(folder))
        for name in (VECTORS, BAD_VECTORS):
            (HERE / name).mkdir(exist_ok=True)
            for old in (HERE / name).iterdir():
                old.unlink()
            for new in sorted((Path(folder) / name).iterdir()):
                (HERE / name / new.name).write_bytes(new.read_bytes())
            print(f"{HERE / name}: {len(list((HERE / name).iterdir()))} files")


if __name__ == "__main__":
    main()
