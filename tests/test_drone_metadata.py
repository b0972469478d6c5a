"""What photogrammetry reads: DJI's XMP and the GPS block of EXIF, tag by tag from JPEG to .lnt to JPEG and TIFF.

Pix4D, OpenDroneMap, Metashape and exiftool take the camera's pose from the `drone-dji` tags of the XMP packet, and many
scripts find the packet by looking for `<x:xmpmeta` in the bytes. DJI writes the tags as attributes; other programs that
rewrite a packet turn them into elements.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import linnet
import linnet.pillow  # registers
from linnet.cli import main

TINY = str(Path(__file__).parent / "vectors" / "tiny.lntb")
DJI = "http://www.dji.com/drone-dji/1.0/"
CRS = "http://ns.adobe.com/camera-raw-settings/1.0/"
TIFF = "http://ns.adobe.com/tiff/1.0/"
XMP = "http://ns.adobe.com/xap/1.0/"
TAGS = {
    (DJI, "AbsoluteAltitude"): "+127.42", (DJI, "RelativeAltitude"): "+45.10",
    (DJI, "GimbalRollDegree"): "+0.00", (DJI, "GimbalYawDegree"): "-87.60", (DJI, "GimbalPitchDegree"): "-89.90",
    (DJI, "FlightRollDegree"): "+2.10", (DJI, "FlightYawDegree"): "-88.30", (DJI, "FlightPitchDegree"): "-1.20",
    (DJI, "FlightXSpeed"): "+0.3", (DJI, "FlightYSpeed"): "-4.9", (DJI, "FlightZSpeed"): "+0.0",
    (DJI, "GpsStatus"): "RTK", (DJI, "AltitudeType"): "RtkAlt",
    (DJI, "GpsLatitude"): "+48.137154213", (DJI, "GpsLongitude"): "+11.576124987",
    (DJI, "CamReverse"): "0", (DJI, "GimbalReverse"): "0", (DJI, "SelfData"): "mission 7 – Straße & <row>",
    (DJI, "RtkFlag"): "50", (DJI, "RtkStdLon"): "0.01253", (DJI, "RtkStdLat"): "0.01190", (DJI, "RtkStdHgt"): "0.02735",
    (DJI, "RtkDiffAge"): "1.40000", (DJI, "NTRIPMountPoint"): "VRS_3_4G_DE",
    (DJI, "CalibratedFocalLength"): "3666.666504", (DJI, "CalibratedOpticalCenterX"): "2640.000000",
    (DJI, "CalibratedOpticalCenterY"): "1978.000000", (DJI, "ShutterCount"): "20481", (DJI, "Version"): "1.4",
    (DJI, "DewarpData"): "2023-05-06;3713.29,3710.16,7.02,-8.72,-0.112575740,0.014874730,-0.0,0.0000138,-0.027064110",
    (TIFF, "Make"): "DJI", (TIFF, "Model"): "FC6310R", (XMP, "CreateDate"): "2024-05-06",
    (CRS, "HasSettings"): "False",
}  # fmt: skip
PREFIXES = {DJI: "drone-dji", CRS: "crs", TIFF: "tiff", XMP: "xmp"}
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
GPS = {
    0: b"\2\3\0\0", 1: "N", 2: (48.0, 8.0, 13.755), 3: "E", 4: (11.0, 34.0, 34.05), 5: b"\0", 6: 127.42,
    7: (9.0, 41.0, 7.0), 18: "WGS-84", 29: "2024:05:06",
}  # fmt: skip
PHOTO = {33434: 0.0005, 33437: 5.6, 34855: 100, 36867: "2024:05:06 11:41:07", 37386: 8.8, 41989: 24}
MAIN = {271: "DJI", 272: "FC6310R", 305: "v01.08.1719", 306: "2024:05:06 11:41:07"}


def escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def packet(form: str) -> bytes:
    """As the drone writes it (attributes, padded for later edits), or with an element for each tag."""
    namespaces = " ".join(f'xmlns:{prefix}="{uri}"' for uri, prefix in PREFIXES.items())
    named = {f"{PREFIXES[uri]}:{name}": escaped(value) for (uri, name), value in TAGS.items()}
    if form == "attributes":
        listed = "\n".join(f'   {name}="{value}"' for name, value in named.items())
        body = f'  <rdf:Description rdf:about="DJI Meta Data" {namespaces}\n{listed}>\n  </rdf:Description>'
    else:
        listed = "\n".join(f"   <{name}>{value}</{name}>" for name, value in named.items())
        body = f'  <rdf:Description rdf:about="DJI Meta Data" {namespaces}>\n{listed}\n  </rdf:Description>'
    return (
        f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        f' <rdf:RDF xmlns:rdf="{RDF}">\n{body}\n </rdf:RDF>\n</x:xmpmeta>\n{" " * 500}\n<?xpacket end="w"?>'
    ).encode()


def found_by_a_scan(data: bytes) -> bytes:
    """The packet as scripts look for it: from one mark in the file's bytes to the other."""
    start = data.index(b"<x:xmpmeta")
    assert data.count(b"<x:xmpmeta") == 1
    return data[start : data.index(b"</x:xmpmeta>") + len(b"</x:xmpmeta>")]


def tags_of(xmp: bytes) -> dict[tuple[str, str], str]:
    """(namespace, name) to value, from attributes and elements alike."""
    (description,) = ElementTree.fromstring(xmp).iter(f"{{{RDF}}}Description")
    named = {**description.attrib, **{child.tag: child.text or "" for child in description}}
    split = {tuple(name[1:].split("}")): value for name, value in named.items()}
    return {name: value for name, value in split.items() if name[0] != RDF}


@pytest.fixture(params=["attributes", "elements"])
def photo(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bytes, bytes]:
    """A JPEG as it comes from the card, its packet and its EXIF block."""
    xmp, exif = packet(request.param), Image.Exif()
    for tag, value in MAIN.items():
        exif[tag] = value
    exif.get_ifd(0x8769).update(PHOTO)
    exif.get_ifd(0x8825).update(GPS)
    path = tmp_path / "DJI_0042.JPG"
    y, x = np.mgrid[:90, :120]
    pixels = np.stack([x * 2, y * 2, x + y], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(path, "JPEG", exif=exif, xmp=xmp)
    with Image.open(path) as image:
        assert image.info["xmp"] == xmp
        return path, xmp, image.info["exif"]


def coded(photo: Path) -> Path:
    path = photo.with_suffix(".lnt")
    assert main(["encode", str(photo), str(path), "--bundle", TINY, "--threads", "1"]) == 0
    return path


def decoded(coded: Path, suffix: str) -> Path:
    path = coded.with_suffix(suffix)
    assert main(["decode", str(coded), str(path), "--bundle", TINY, "--threads", "1"]) == 0
    return path


def test_a_scan_finds_the_packet_in_the_coded_file(photo: tuple[Path, bytes, bytes]) -> None:
    data = coded(photo[0]).read_bytes()
    assert photo[1] in data  # raw, in one piece, with the padding around it
    assert photo[2].removeprefix(b"Exif\0\0") in data
    assert tags_of(found_by_a_scan(data)) == TAGS


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_every_tag_of_the_packet_comes_out(photo: tuple[Path, bytes, bytes], suffix: str) -> None:
    data = decoded(coded(photo[0]), suffix).read_bytes()
    assert photo[1] in data
    found = tags_of(found_by_a_scan(data))
    for name, value in TAGS.items():
        assert found.pop(name) == value, name
    assert found == {}


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_every_tag_of_exif_comes_out(photo: tuple[Path, bytes, bytes], suffix: str) -> None:
    with Image.open(decoded(coded(photo[0]), suffix)) as image:
        exif = image.getexif()
        for place, expected in ((exif, MAIN), (exif.get_ifd(0x8769), PHOTO), (exif.get_ifd(0x8825), GPS)):
            for tag, value in expected.items():
                found = place[tag]
                assert found == (pytest.approx(value) if isinstance(value, float | tuple) else value), tag
        if suffix == ".jpg":
            assert image.info["exif"] == photo[2]


def test_the_library_and_pillow_see_the_same(photo: tuple[Path, bytes, bytes]) -> None:
    path = coded(photo[0])
    metadata = linnet.info(path.read_bytes()).metadata
    assert (metadata.xmp, b"Exif\0\0" + metadata.exif) == photo[1:]
    with Image.open(path) as image:
        assert tags_of(found_by_a_scan(image.info["xmp"])) == TAGS
        assert image.getexif().get_ifd(0x8825)[2] == pytest.approx(GPS[2])


def test_the_frames_of_a_recorded_folder_keep_their_own_packets(
    photo: tuple[Path, bytes, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "flight"
    folder.mkdir()
    for number in range(3):
        xmp = photo[1].replace(b"+45.10", b"+%d.10" % (60 + number))
        Image.new("RGB", (70, 64)).save(folder / f"DJI_{number}.jpg", xmp=xmp, exif=photo[2])
    out = tmp_path / "flight.lnt"
    linnet.record(folder, out, bundle=TINY, threads=1)
    with linnet.open(out, bundle=TINY) as file:
        for number, frame in enumerate(file):
            tags = tags_of(found_by_a_scan(frame.metadata.xmp))
            assert tags == {**TAGS, (DJI, "RelativeAltitude"): f"+{60 + number}.10"}
            assert b"Exif\0\0" + frame.metadata.exif == photo[2]
