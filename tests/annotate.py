"""Prints a .lnt file with the name of every field: `python tests/annotate.py tests/vectors/one-pixel.lnt`.

It knows whole picture files without encryption, and of the first tile it shows the first symbols as the entropy coder
decodes them. The worked example at the end of docs/bitstream.md is its output.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import book_decoder

from linnet.runtime.bundle import Bundle

BYTES_PER_LINE = 16
NOTE_COLUMN = 10 + 3 * BYTES_PER_LINE
SYMBOLS = 12
BUNDLE = Path(__file__).parent / "vectors" / "tiny.lntb"

RECORD = (
    ("version", "<H"), ("flags", "<H"), ("frame number", "<I"), ("time of capture", "<q"), ("width", "<I"),
    ("height", "<I"), ("tile side", "<H"), ("coarsest level", "<B"), ("reserved", "<B"), ("bundle", "32s"),
)  # fmt: skip


class Printer:
    """Goes through the bytes once, a line per field."""

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0
        self.lines: list[str] = []

    def title(self, text: str) -> None:
        self.lines += ["", text]

    def field(self, name: str, form: str) -> int:
        """One number (or bytes, where the form ends in s); returns the number."""
        size = struct.calcsize(form)
        raw = self._data[self.at : self.at + size]
        number = 0 if form.endswith("s") else struct.unpack(form, raw)[0]
        self.raw(size, name if form.endswith("s") else f"{name} {number}")
        return number

    def three_bytes(self, name: str) -> None:
        """A number of three bytes, for which `struct` has no code."""
        self.raw(3, f"{name} {int.from_bytes(self._data[self.at : self.at + 3], 'little')}")

    def raw(self, count: int, note: str) -> bytes:
        content = self._data[self.at : self.at + count]
        for start in range(0, count, BYTES_PER_LINE):
            line = f"{self.at + start:06X}  " + content[start : start + BYTES_PER_LINE].hex(" ").upper()
            self.lines.append(line if start else f"{line:{NOTE_COLUMN}}{note}".rstrip())
        self.at += count
        return content


def annotated(data: bytes) -> str:
    printer = Printer(data)
    printer.raw(8, "signature")
    while printer.at < len(data):
        box(printer, book_decoder.box_at(data, printer.at))
    return "\n".join(printer.lines)


def box(printer: Printer, found: book_decoder.Box) -> None:
    kind = found.kind.decode("latin-1")
    printer.title(f"box {kind}")
    printer.raw(4, f'type "{kind}"')
    printer.field("payload length", "<Q")
    printer.raw(4, "CRC-32C of the payload")
    printer.raw(4, "CRC-32C of the 16 bytes before")
    if kind == "FRAM":
        record(printer, len(found.payload))
    elif kind == "INDX":
        index(printer)
    elif kind == "TILE":
        tile(printer, len(found.payload))
    else:
        printer.raw(len(found.payload), "payload")


def record(printer: Printer, length: int) -> None:
    end, levels = printer.at + length, 0
    for name, form in RECORD:
        number = printer.field(name, form)
        levels = number if name == "coarsest level" else levels
    for level in range(levels + 1):
        printer.field(f"quality of level {level}:", "<B")
    printer.raw(end - printer.at, "salt, and what may follow")


def index(printer: Printer) -> None:
    record(printer, printer.field("length of the frame record", "<H"))
    if printer.field("flags", "<B"):
        printer.raw(32, "digest of the pixels")
    for number in range(printer.field("tiles", "<I")):
        printer.field(f"tile {number}: offset", "<Q")
        printer.field(f"tile {number}: length", "<I")


def tile(printer: Printer, length: int) -> None:
    printer.field("frame number", "<I")
    printer.three_bytes("tile number")
    printer.field("quality", "<B")
    for lane in range(4):
        printer.field(f"state {lane}:", "<I")
    printer.raw(length - 24, "16-bit words")


def symbols(data: bytes, bundle: Bundle) -> Iterator[str]:
    """The first symbols of the first tile."""
    lines: list[str] = []

    class Traced(book_decoder.Rans):
        def symbol(self, frequencies: list[int], radius: int) -> int:
            lane, state, words = self.coded % 4, self.states[self.coded % 4], len(self.words)
            symbol = super().symbol(frequencies, radius)
            kind, after = "escape" if abs(symbol) > radius else "symbol", self.states[lane]
            lines.append(
                f"state {lane}: {state:08X}, slot {state & 0x3FFF:5}, radius {radius}, {kind} {symbol:3}, "
                f"{words - len(self.words)} words read, then {after:08X}"
            )
            return symbol

    with mock.patch.object(book_decoder, "Rans", Traced):
        book_decoder.decode(data, bundle)
    yield from lines[:SYMBOLS]


def worked_example(data: bytes, bundle: Bundle) -> str:
    return "\n".join([annotated(data), "", f"the first {SYMBOLS} coded symbols of tile 0", *symbols(data, bundle)])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(worked_example(Path(sys.argv[1]).read_bytes(), Bundle.open(BUNDLE)))
