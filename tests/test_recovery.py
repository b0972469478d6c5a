"""Power cuts, flipped bits, forged files: every whole tile is found, nothing else is, and what is lost is named."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from recordings import METADATA, TILES, tile_payload, tile_spans, write_recording

from linnet import images
from linnet.cli import main
from linnet.runtime import boxes
from linnet.runtime.bitstream import TILE_PLACE, FrameRecord, Metadata
from linnet.runtime.boxes import SIGNATURE
from linnet.runtime.codec import Codec
from linnet.runtime.errors import InputError
from linnet.runtime.inspection import verify
from linnet.runtime.reader import Reader
from linnet.runtime.recovery import find_frames, recover
from linnet.runtime.sources import as_source
from linnet.runtime.tiles import Rect, TileGrid
from linnet.runtime.writer import RecordingWriter


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


# Pixels: what a damaged recording still shows


TINY = Path(__file__).parent / "vectors" / "tiny.lntb"
WIDTH, HEIGHT, SIDE = 200, 140, 64


@pytest.fixture(scope="module")
def tiny() -> Codec:
    return Codec.open(TINY, "onnxruntime", 1)


@pytest.fixture(scope="module")
def flight(tiny: Codec) -> bytes:
    """Three frames of 12 tiles and an overview of one tile."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    output = io.BytesIO()
    writer = RecordingWriter(output)
    for number in range(3):
        picture = np.stack([x + 20 * number, 255 - y, (x * y) // 99 % 200], axis=2).astype(np.uint8)
        tiny.encode_frame(writer, picture, tile=SIDE, levels=2, number=number, timestamp=1 + number)
        writer.checkpoint()
    writer.close()
    return output.getvalue()


@pytest.fixture(scope="module")
def whole(tiny: Codec, flight: bytes) -> list[np.ndarray]:
    return [tiny.decode(flight, frame=number) for number in range(3)]


def needed_tiles(codec: Codec, grid: TileGrid, window: Rect) -> set[int]:
    return set(grid.touching(window.aligned(16).grown(16 * codec.synthesis_halo, grid.padded)))


def untouched(codec: Codec, grid: TileGrid, lost: set[int]) -> np.ndarray:
    """(HEIGHT, WIDTH) bool: pixels that no lost tile can have changed."""
    far = np.ones((HEIGHT, WIDTH), bool)
    for tile in lost:
        x, y, width, height = grid.rect(tile).grown(16 * codec.synthesis_halo, grid.padded)
        far[y : y + height, x : x + width] = False
    return far


def test_a_frame_that_was_cut_shows_every_window_whose_tiles_are_there(
    tiny: Codec, flight: bytes, whole: list[np.ndarray]
) -> None:
    """Cut behind each tile of the last frame, and within the next: windows are exact or an error that names a tile."""
    record = Reader(flight).record(2)
    grid, entries = record.levels[0], Reader(flight).index(2).entries
    for rank, (offset, length) in enumerate(sorted(entries)):
        reader = Reader(flight[: offset + length + 30 * (rank % 2)])
        present = {tile for tile, entry in enumerate(entries) if entry[0] <= offset}
        for frame in (0, 1):
            np.testing.assert_array_equal(tiny.decode(reader, frame=frame), whole[frame])
        for tile in range(grid.count):
            window = grid.rect(tile).common(Rect(0, 0, WIDTH, HEIGHT))
            missing = needed_tiles(tiny, grid, window) - present
            if missing:
                with pytest.raises(InputError, match=f"^tile {min(missing)} of frame 2 is not in the file"):
                    tiny.decode(reader, frame=2, region=window)
                continue
            expected = whole[2][window.y : window.bottom, window.x : window.right]
            np.testing.assert_array_equal(tiny.decode(reader, frame=2, region=window), expected)
        lost, blanks = set(range(grid.count)) - present, []
        pixels = tiny.decode(reader, frame=2, conceal=True, blanks=blanks)
        named = dict.fromkeys(sentence.partition(" is not")[0] for sentence in blanks)
        named.pop("tile 0 of level 2 of frame 2", None)  # the overview, which comes last
        assert list(named) == [f"tile {tile} of frame 2" for tile in sorted(lost)]
        far = untouched(tiny, grid, lost)
        np.testing.assert_array_equal(pixels[far], whole[2][far])


def test_a_flipped_bit_costs_the_pixels_of_its_tile_and_names_it(
    tiny: Codec, flight: bytes, whole: list[np.ndarray]
) -> None:
    rng, spans = np.random.default_rng(8), tile_spans(flight)
    first = min(start for (frame, _), (start, _) in spans.items() if frame == 1)
    grid, named = Reader(flight).record(1).levels[0], 0
    for byte in rng.integers(first, len(flight), 30):
        damaged = bytearray(flight)
        damaged[byte] ^= 1 << int(rng.integers(8))
        reader = Reader(bytes(damaged))
        hit = [place for place, (start, end) in spans.items() if start <= byte < end]
        for frame in range(3):
            lost = {tile for at, tile in hit if at == frame and tile < grid.count}
            if lost:
                named += 1
                with pytest.raises(InputError, match=rf"^tile {min(lost)} of frame {frame}(:| is not in the file)"):
                    tiny.decode(reader, frame=frame)
            blanks: list[str] = []
            pixels = tiny.decode(reader, frame=frame, conceal=True, blanks=blanks)
            assert len(blanks) == len(lost)
            far = untouched(tiny, grid, lost)
            np.testing.assert_array_equal(pixels[far], whole[frame][far])
            # Filled from the overview: nearer to the picture than grey is.
            assert np.abs(pixels.astype(int) - whole[frame]).mean() < 12
    assert named > 15


@pytest.mark.parametrize("seed", range(3))
def test_blocks_that_never_reached_the_disk_cost_what_lay_in_them(
    seed: int, tiny: Codec, flight: bytes, whole: list[np.ndarray]
) -> None:
    """After a power cut a file system may give zeros for blocks in the middle of what was written last."""
    rng, spans, block = np.random.default_rng(seed), tile_spans(flight), 512
    first = max(end for (frame, _), (_, end) in spans.items() if frame == 0) // block + 1
    damaged, gone = bytearray(flight), rng.choice(np.arange(first, len(flight) // block), 3, replace=False)
    for number in gone:
        damaged[number * block : (number + 1) * block] = bytes(block)
    kept = {
        place for place, (start, end) in spans.items()
        if not any(start < (number + 1) * block and number * block < end for number in gone)
    }  # fmt: skip
    output = io.BytesIO()
    report = recover(bytes(damaged), output)
    recovered = Reader(output.getvalue())
    found = set()
    for position in range(recovered.frame_count):
        index = recovered.index(position)
        found |= {(index.record.number, tile) for tile, entry in enumerate(index.entries) if entry != (0, 0)}
    assert found == kept and report.tiles == len(kept)
    np.testing.assert_array_equal(tiny.decode(recovered, frame=0), whole[0])


def test_the_commands_name_what_is_lost(
    tiny: Codec, flight: bytes, whole: list[np.ndarray], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An error by default, status 1 and no file; with --conceal a picture, status 0 and a note."""
    damaged, path, out = bytearray(flight), str(tmp_path / "flight.lnt"), tmp_path / "out.png"
    damaged[tile_spans(flight)[1, 5][1] - 1] ^= 1
    Path(path).write_bytes(damaged)
    decode = ["decode", path, str(out), "--frame", "1", "--bundle", str(TINY), "--threads", "1"]
    assert main(decode) == 1
    assert "tile 5 of frame 1: " in capfd.readouterr().err and not out.exists()
    assert main([*decode, "--conceal"]) == 0
    assert "tile 5 of frame 1: " in (said := capfd.readouterr().err) and "concealed" in said
    far = untouched(tiny, Reader(flight).record(1).levels[0], {5})
    np.testing.assert_array_equal(images.read(str(out)).pixels[far], whole[1][far])
    assert main(["verify", path]) == 1
    assert "fails its checksum" in capfd.readouterr().err
    assert main(["recover", path, str(tmp_path / "whole.lnt"), "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["frames"], report["tiles"], report["lost_tiles"]) == (3, 3 * 13 - 1, 1)
    assert main(["verify", str(tmp_path / "whole.lnt")]) == 1
    assert "tile 5 of frame 1 is not in the file" in capfd.readouterr().err


def test_missing_tiles_are_named_in_runs_and_a_forged_size_costs_nothing() -> None:
    """One tile of a frame that claims 16 million: two sentences, not 16 million."""
    record = FrameRecord(TileGrid(1 << 18, 1 << 18, 64), (50,), bytes(32))
    tile = boxes.pack(b"TILE", TILE_PLACE.pack(0, 1000) + b"payload")
    found = find_frames(as_source(SIGNATURE + boxes.pack(b"FRAM", record.pack()) + tile)).frames[0]
    assert found.built is not None and found.built.entries[1000][1] == len(tile)
    data = write_recording(1, close=False)
    spans = tile_spans(write_recording(1))
    lost = {1, 3, 4, 5}
    for tile_number in sorted(lost, reverse=True):
        start, end = spans[0, tile_number]
        data = data[:start] + data[end:]
    report = recover(data[: data.index(b"INDX")], io.BytesIO())
    assert report.lost == ["tile 1 is not in the file", "tile 3 to tile 5: 3 tiles are not in the file"]
    assert (report.tiles, report.lost_tiles) == (2, 4)


def test_encrypted_tiles_are_recovered_as_they_are(tiny: Codec) -> None:
    pytest.importorskip("cryptography", reason="encrypted tiles need the privacy extra")
    data, key = (TINY.parent / "sealed.lnt").read_bytes(), bytes(range(32))
    output = io.BytesIO()
    report = recover(data, output)
    assert report.lost_tiles == 0
    np.testing.assert_array_equal(tiny.decode(output.getvalue(), key=key), tiny.decode(data, key=key))


def test_the_pixels_of_every_frame_are_compared_with_their_digests(
    tiny: Codec, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = io.BytesIO()
    writer = RecordingWriter(output)
    for number in range(2):
        tiny.encode_frame(writer, np.full((64, 64, 3), 99 * number, np.uint8), number=number, digest=True)
    writer.close()
    data = output.getvalue()
    digest = Reader(data).index(1).digest
    assert digest is not None
    last = Reader(data)._places[1].index
    assert last is not None
    box = boxes.box_at(as_source(data), last)
    forged = boxes.pack(b"INDX", data[box.payload_offset : box.end].replace(digest, bytes(32)))
    for name, content in (("good", data), ("bad", data[: box.offset] + forged + data[box.end :])):
        (tmp_path / name).write_bytes(content)
        status = main(["verify", "--pixels", str(tmp_path / name), "--bundle", str(TINY), "--threads", "1"])
        said = capfd.readouterr()
        assert status == (0 if name == "good" else 1)
        assert ("the pixels match" in said.out) == (name == "good")
        assert ("frame 1: the decoded pixels differ" in said.err) == (name == "bad")
