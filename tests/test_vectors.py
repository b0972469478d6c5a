"""The conformance vectors: library and oracle give the pinned pixels and errors; making them again changes nothing.

Where a test fails after a new codec was shipped or after a change of the format: `python tests/make_vectors.py`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import book_decoder
import numpy as np
import pytest

from linnet.cli import main
from linnet.runtime import inspection
from linnet.runtime.bundle import Bundle, pack_arrays, write_bundle
from linnet.runtime.codec import Codec
from linnet.runtime.errors import InputError
from linnet.runtime.reader import Reader

HERE = Path(__file__).parent
GOOD, BAD = HERE / "vectors", HERE / "vectors-bad"
TINY = GOOD / "tiny.lntb"
DIGESTS: dict[str, list[dict[str, Any]]] = json.loads((GOOD / "digests.json").read_text())
ERRORS: dict[str, dict[str, Any]] = json.loads((BAD / "errors.json").read_text())
FILE_BYTES = 300_000
"""All vectors together, so that a checkout stays small."""
WITH_DAMAGE = {"interrupted.lnt", "damaged-index.lnt"}


@pytest.fixture(scope="module")
def tiny() -> Codec:
    return Codec.open(TINY, "onnxruntime", 1)


def codec_of(name: str, tiny: Codec, shipped: Codec) -> Codec:
    return shipped if name.startswith("camera") else tiny


def key_of(entry: dict[str, Any]) -> bytes | None:
    if "key" not in entry:
        return None
    pytest.importorskip("cryptography", reason="encrypted tiles need the privacy extra")
    return bytes.fromhex(entry["key"])


def test_every_file_is_pinned_and_all_are_small() -> None:
    assert {path.name for path in GOOD.iterdir()} == {*DIGESTS, "digests.json", "tiny.lntb"}
    assert {path.name for path in BAD.iterdir()} == {*ERRORS, "errors.json"}
    assert sum(path.stat().st_size for folder in (GOOD, BAD) for path in folder.iterdir()) < FILE_BYTES


@pytest.mark.parametrize("name", DIGESTS)
def test_decoding_gives_the_pinned_pixels(name: str, tiny: Codec, codec: Codec) -> None:
    data = (GOOD / name).read_bytes()
    reader = Reader(data)
    pinned = {(entry["frame"], entry["level"]) for entry in DIGESTS[name]}
    assert pinned == {(frame, level) for frame in range(reader.frame_count) for level in reader.record(frame).levels}
    for entry in DIGESTS[name]:
        place = {"frame": entry["frame"], "level": entry["level"]}
        pixels = codec_of(name, tiny, codec).decode(reader, **place, key=key_of(entry))
        assert pixels.shape == (entry["height"], entry["width"], 3), place
        assert hashlib.sha256(pixels).hexdigest() == entry["sha256"], place


@pytest.mark.parametrize("name", [name for name in DIGESTS if not name.startswith("camera")])
def test_the_oracle_gives_the_pinned_pixels(name: str, tiny: Codec) -> None:
    data = (GOOD / name).read_bytes()
    for entry in DIGESTS[name]:
        place = {"frame": entry["frame"], "level": entry["level"]}
        pixels = book_decoder.decode(data, tiny.bundle, **place, key=key_of(entry))
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == entry["sha256"], place


@pytest.mark.parametrize("name", DIGESTS)
def test_good_files_pass_their_check_and_damaged_ones_are_said_to_be(name: str) -> None:
    data = (GOOD / name).read_bytes()
    reader = Reader(data)
    for frame in range(reader.frame_count):
        reader.index(frame)
    assert reader.complete == (name not in WITH_DAMAGE)
    if name in WITH_DAMAGE:
        with pytest.raises(InputError):
            inspection.verify(data)
    else:
        inspection.verify(data)


@pytest.mark.parametrize("name", ERRORS)
def test_bad_files_are_refused_with_the_pinned_sentence_and_status(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ERRORS[name]
    arguments = [*expected["command"].split(), str(BAD / name), "--backend", "onnxruntime", "--threads", "1"]
    if expected["command"] != "verify":
        arguments += ["--bundle", str(TINY)]
    if expected["command"] == "decode":
        arguments.insert(2, str(tmp_path / "out.png"))
    if key_of(expected):
        monkeypatch.setenv("VECTOR_KEY", expected["key"])
        arguments += ["--key", "env:VECTOR_KEY"]
    assert main(arguments) == expected["status"] == 1
    said = capfd.readouterr().err
    assert expected["says"] in said
    assert said.count("\n") == 1 and name in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ERRORS)
def test_the_library_and_the_oracle_refuse_bad_files_too(name: str, tiny: Codec) -> None:
    data, expected = (BAD / name).read_bytes(), ERRORS[name]
    key = key_of(expected)
    with pytest.raises(book_decoder.BadFileError):
        if expected["command"] == "decode":
            book_decoder.decode(data, tiny.bundle, key=key)
        else:
            book_decoder.verify(data, tiny.bundle)
    if expected["command"] == "decode":
        with pytest.raises(InputError) as caught:
            tiny.decode(data, key=key)
        assert expected["says"] in str(caught.value)
    elif expected["command"] == "verify":
        with pytest.raises(InputError) as caught:
            inspection.verify(data)
        assert expected["says"] in str(caught.value)
    else:
        assert tiny.verify_pixels(data) is False


def test_making_the_vectors_again_gives_the_same_bytes(tmp_path: Path, tiny: Codec, codec: Codec) -> None:
    pytest.importorskip("onnx", reason="making the vectors needs the export extra")
    pytest.importorskip("cryptography", reason="making the vectors needs the privacy extra")
    import make_vectors
    import tiny_codec

    for folder in (GOOD, BAD):
        (tmp_path / folder.name).mkdir()
    make_vectors.write_files(tmp_path, tiny, codec)
    for folder in (GOOD, BAD):
        for path in folder.iterdir():
            if path != TINY:
                assert (tmp_path / folder.name / path.name).read_bytes() == path.read_bytes(), path.name
    # Its bytes depend on the versions of zlib and onnx; what it computes must not.
    tiny_codec.write(tmp_path / TINY.name)
    again, shipped = Bundle.open(tmp_path / TINY.name), Bundle.open(TINY)
    for member in ("networks.npz", "tables.npz", "known_answers.npz"):
        for name, value in shipped._arrays(member).items():
            np.testing.assert_array_equal(again._arrays(member)[name], value, name)
    assert again.certificate == shipped.certificate


@pytest.mark.parametrize("trellis", [64, 8, True, 0, False])
def test_another_decoder_reads_any_quantisation(tmp_path: Path, trellis: int) -> None:
    pytest.importorskip("onnx", reason="making the bundle needs the export extra")
    import make_vectors
    import tiny_codec

    tiny_codec.write(tmp_path / "tiny.lntb", trellis)
    codec = Codec.open(tmp_path / "tiny.lntb")
    assert codec.bundle.trellis == (8 if trellis is True else trellis)
    data = codec.encode(make_vectors.picture(130, 70), quality=70, tile=64)
    np.testing.assert_array_equal(book_decoder.decode(data, codec.bundle), codec.decode(data))


@pytest.mark.parametrize("trellis", [1, 16, -8, "64", None])
def test_a_trellis_that_is_not_known_is_refused(tmp_path: Path, trellis: object) -> None:
    members = dict(Bundle.open(TINY)._members)
    manifest = {**json.loads(members.pop("manifest.json")), "trellis": trellis}
    write_bundle(tmp_path / "other.lntb", manifest, members)
    with pytest.raises(InputError, match=f"a trellis of {trellis} states, which is not known here: update linnet"):
        Bundle.open(tmp_path / "other.lntb")


def test_the_tables_of_two_quantisers_must_match(tmp_path: Path) -> None:
    members = dict(Bundle.open(TINY)._members)
    manifest = json.loads(members.pop("manifest.json"))
    tables = Bundle.open(TINY)._arrays("tables.npz")
    tables["frequencies"] = tables["frequencies"][: -(2 * int(tables["radii"][-1]) + 2)]
    tables["radii"] = tables["radii"][:-1]
    write_bundle(tmp_path / "odd.lntb", manifest, {**members, "tables.npz": pack_arrays(tables)})
    with pytest.raises(InputError, match="two quantisers do not match"):
        Bundle.open(tmp_path / "odd.lntb")
