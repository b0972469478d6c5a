"""Power cuts, flipped bits, forged files: every whole tile is found, nothing else is, and what is lost is named."""

from __future__ import annotations

import io

import numpy as np
import pytest
from recordings import METADATA, TILES, tile_payload, tile_spans, write_recording

from linnet.runtime.bitstream import Metadata
from linnet.runtime.errors import InputError
from linnet.runtime.inspection import verify
from linnet.runtime.reader import Reader
from linnet.runtime.recovery import recover


def found_tiles(reader: Reader) -> set[tuple[int, int]]:
    """Every tile that can be read, after checking that it is the right one."""
    found = set()
    for position in range(reader.frame_count):
        try:
            number = reader.record(position).number
        except InputError:
            continue
        for tile in range(TILES):
            try:
                payload = reader.tile(tile, position)
            except InputError:
                continue
            assert payload == tile_payload(number, tile)
            found.add((number, tile))
    return found


def test_cut_at_every_byte_no_whole_tile_is_missing() -> None:
    """A recording of 4 frames cut anywhere: exactly the tiles whose last byte is there are read."""
    data = write_recording(4)
    spans = tile_spans(data)
    first = min(start for start, _ in spans.values())
    for size in range(first, len(data)):
        whole = {place for place, (_, end) in spans.items() if end <= size}
        try:
            reader = Reader(data[:size])
        except InputError:
            assert not whole
            continue
        assert found_tiles(reader) == whole
        assert not reader.complete


def test_recovered_files_are_well_formed_at_every_cut() -> None:
    data = write_recording(3)
    spans = tile_spans(data)
    for size in range(min(end for _, end in spans.values()), len(data), 7):
        whole = {place for place, (_, end) in spans.items() if end <= size}
        output = io.BytesIO()
        report = recover(data[:size], output)
        reader = Reader(output.getvalue())
        assert reader.complete and found_tiles(reader) == whole
        assert report.tiles == len(whole)
        assert reader.metadata(0) == METADATA
        if len(whole) == TILES * report.frames:
            verify(output.getvalue())


def test_every_flipped_bit_costs_the_tile_it_hits_and_no_other() -> None:
    """Wherever a bit flips, in records, indices, checkpoints or the footer: only a tile that holds it can be lost."""
    data = write_recording(3)
    spans = tile_spans(data)
    rng = np.random.default_rng(5)
    for byte in range(8, len(data)):
        damaged = bytearray(data)
        damaged[byte] ^= 1 << int(rng.integers(8))
        hit = {place for place, (start, end) in spans.items() if start <= byte < end}
        assert found_tiles(Reader(bytes(damaged))) == set(spans) - hit, byte


def test_a_lost_tile_is_named() -> None:
    data = bytearray(write_recording(3))
    start, end = tile_spans(bytes(data))[1, 4]
    data[end - 1] ^= 1
    with pytest.raises(InputError, match=r"tile 4 of frame 1: .* fails its checksum"):
        Reader(bytes(data)).tile(4, 1)
    report = recover(bytes(data), io.BytesIO())
    assert report.tiles == 3 * TILES - 1
    assert len(report.lost) == 1 and report.lost[0].startswith("tile 4 of frame 1")
    with pytest.raises(InputError, match=f"at byte {start} fails"):
        verify(bytes(data))


def test_frames_survive_the_loss_of_their_record_or_of_their_index_but_not_of_both() -> None:
    data = write_recording(2)
    reader = Reader(data)
    place = reader._places[1]
    assert place.frame is not None and place.index is not None
    damaged = bytearray(data)
    damaged[place.frame + 30] ^= 1
    assert len(found_tiles(Reader(bytes(damaged)))) == 2 * TILES
    damaged[place.index + 30] ^= 1
    survivor = Reader(bytes(damaged))
    assert found_tiles(survivor) == {(0, tile) for tile in range(TILES)}
    with pytest.raises(InputError):
        survivor.tile(0, 1)
    report = recover(bytes(damaged), io.BytesIO())
    assert any("6 tiles of frame 1 have no frame record" in sentence for sentence in report.damage)


def test_a_tile_that_is_there_twice_is_the_one_with_the_right_checksum() -> None:
    data = write_recording(1, close=False)
    spans = tile_spans(write_recording(1))
    start, end = spans[0, 2]
    liar = bytearray(data[start:end])
    liar[-1] ^= 1
    for order in (bytes(liar) + data[start:end], data[start:end] + bytes(liar)):
        index_at = max(end for _, end in spans.values())
        reader = Reader(data[:start] + order + data[end:index_at])
        assert reader.tile(2) == tile_payload(0, 2)


def test_nothing_to_recover() -> None:
    for data in (b"", b"\x89LNT\r\n\x1a\n", bytes(5000), write_recording(0)):
        with pytest.raises(InputError, match="no whole tile"):
            recover(data, io.BytesIO())


def test_an_empty_recording_says_so() -> None:
    reader = Reader(write_recording(0))
    assert reader.frame_count == 0 and reader.complete
    with pytest.raises(InputError, match="no frames"):
        reader.record()


def test_a_damaged_signature_is_an_error_but_can_be_recovered() -> None:
    data = b"?" + write_recording(2)[1:]
    with pytest.raises(InputError, match="not a linnet file"):
        Reader(data)
    output = io.BytesIO()
    assert recover(data, output).tiles == 2 * TILES
    assert Reader(output.getvalue()).metadata(1) == Metadata()
