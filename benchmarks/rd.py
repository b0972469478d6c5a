"""`linnet bench rd`: rate and distortion of linnet and its peers on given pictures, and BD-rates against JPEG 4:2:0.

Prints one table per picture set; with `--json` all raw results are kept, and a second run measures only what is
missing there. Progress goes to stderr, and only on a terminal.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..argument_types import positive
from ..runtime.errors import UsageError
from .codec import LINNET, LINNET_QUALITIES, Codec

if TYPE_CHECKING:
    from .anchors import Point
    from .image_sets import Photograph
    from .measure import Job, Measurement

SAVE_EVERY_SECONDS = 20.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGES", help="pictures, folders, or named sets as NAME=FOLDER")
    add("--qualities", type=_qualities, default=LINNET_QUALITIES, metavar="Q,Q,...", help="of linnet, 1 to 100")
    add("--peers", default="all", help="all, none, names with commas, or list to show them (default: all)")
    add("--against", metavar="CODEC", help="what BD-rates compare with (default: jpeg-420)")
    add("--no-linnet", action="store_true", help="measure the peers only")
    add("--anchors", nargs="+", default=[], metavar="FILE", help="published points, as FILE or SET=FILE")
    add("--anchor-codecs", metavar="PART,...", help="only the anchors whose names contain one of these")
    add("--json", type=Path, metavar="FILE", help="write all results here; results already there are reused")
    add("--plot", type=Path, metavar="FILE", help="write the rate-distortion curves as a picture")
    add("--html", type=Path, metavar="FILE", help="write a page with tables, curves and crops at equal bytes")
    add("--bundle", help="codec bundle of linnet (default: the shipped one)")
    add("--backend", default="auto", help="backend of linnet (default: auto)")
    add("--limit", type=positive, metavar="N", help="at most N pictures of each set")
    add("--processes", type=positive, default=1, metavar="N", help="measure N pictures at a time (default: 1)")


def run(arguments: argparse.Namespace, codec: Codec | None = None) -> int:
    """Run the benchmark and return the exit status. `codec` replaces linnet as the codec under test."""
    from . import anchors, host, image_sets, measure, peers, plot, report, results_file

    if arguments.peers == "list":
        print(_list_peers())
        return 0
    _check(arguments)
    codecs, absent = _codecs(arguments, codec)
    reference = arguments.against or peers.REFERENCE
    under_test = next(iter(codecs)) if codec is not None or not arguments.no_linnet else None
    photographs = image_sets.find(arguments.images, arguments.limit)
    pictures = Counter(p.set_name for p in photographs)
    anchor_curves: dict[str, dict[str, dict[str, list[Point]]]] = {}
    for set_name, path in anchors.assign(arguments.anchors, pictures):
        anchor_curves.setdefault(set_name, {})[path.stem] = anchors.read(path)

    earlier = results_file.Earlier(arguments.json)
    wanted = measure.jobs(photographs, codecs)
    results, pending = earlier.split(wanted, codecs)
    others = earlier.unrelated(wanted)
    document: dict[str, Any] = {
        "format": results_file.FORMAT,
        "host": host.fingerprint(),
        "under_test": under_test,
        "codecs": {name: _describe(c) for name, c in codecs.items()},
        "absent": absent,
        "sets": {name: [p.describe() for p in photographs if p.set_name == name] for name in pictures},
    }
    reused = len(results)
    _measure(arguments, document, results, pending, others, codecs)

    strangers = report.set_strangers_aside(results, anchor_curves, pictures)
    if arguments.anchor_codecs:
        parts = arguments.anchor_codecs.split(",")
        anchor_curves = {
            set_name: {file: anchors.choose(curves, parts) for file, curves in files.items()}
            for set_name, files in anchor_curves.items()
        }
    tables, curves = report.rows(results, anchor_curves, reference)
    reversals = [] if under_test is None else report.reversals(results, under_test)
    document |= report.as_json(tables, curves, reference) | {"reversals": [asdict(r) for r in reversals]}
    for set_name, table in tables.items():
        print(report.format_table(set_name, pictures[set_name], table, reference), end="\n\n")
        if under_test is not None:
            print(report.format_points(under_test, curves[set_name]["measured"][under_test]), end="\n\n")
    if under_test is not None:
        print(report.format_reversals(under_test, len(photographs), reversals))
    for line in [f"{name}: absent, {reason}" for name, reason in absent.items()] + strangers:
        print(line)
    if reused:
        print(f"{reused} of {len(wanted)} results are reused from {arguments.json}")
    if arguments.json:
        results_file.save(arguments.json, document, results, others)
    if arguments.plot:
        plot.draw(document, arguments.plot)
    if arguments.html:
        _write_page(arguments, document, photographs, codecs)
    return 0


def _write_page(
    arguments: argparse.Namespace, document: dict[str, Any], photographs: list[Photograph], codecs: dict[str, Codec]
) -> None:
    from tqdm import tqdm

    from . import sheet
    from .codec import LinnetSession

    encode_to_size = None
    if LINNET in codecs:
        encode_to_size = LinnetSession(arguments.bundle, arguments.backend).encode_to_size

    def progress(shown: Sequence[Photograph]) -> Iterable[Photograph]:
        return tqdm(shown, unit="picture", desc="comparing", disable=None)

    sheet.write(arguments.html, document, photographs, codecs, encode_to_size, progress)


def _check(arguments: argparse.Namespace) -> None:
    """What can be refused before anything is opened or measured."""
    from . import plot

    if not arguments.images:
        raise UsageError("no pictures given: name files, folders or NAME=FOLDER")
    if arguments.anchors and arguments.limit:
        raise UsageError("--anchors are averages over whole sets: leave out --limit")
    plot.check_outputs([arguments.plot, arguments.html], [arguments.json])


def _codecs(arguments: argparse.Namespace, codec: Codec | None) -> tuple[dict[str, Codec], dict[str, str]]:
    """What to measure, the codec under test first, and the peers that are missing here."""
    from . import peers
    from .codec import linnet_codec

    found, absent = peers.available(_peer_names(arguments.peers))
    if codec is None and not arguments.no_linnet:
        codec = linnet_codec(arguments.bundle, arguments.backend, qualities=arguments.qualities)
    if codec is not None:
        found = {codec.name: codec} | found
    if not found:
        raise UsageError("nothing to measure: --no-linnet leaves only peers, and there are none")
    if arguments.against and arguments.against not in found:
        raise UsageError(f"--against {arguments.against}: not measured here; choose from {', '.join(found)}")
    return found, absent


def _measure(
    arguments: argparse.Namespace,
    document: dict[str, Any],
    results: list[Measurement],
    pending: list[Job],
    others: list[Measurement],
    codecs: dict[str, Codec],
) -> None:
    """Append what is pending to `results`; whatever happens, the file keeps what was measured."""
    from tqdm import tqdm

    from .measure import measure_all
    from .results_file import save

    saved = time.monotonic()
    stream = measure_all(pending, codecs, arguments.processes)
    try:
        for result in tqdm(stream, total=len(pending), unit="result", desc="measuring", disable=None):
            results.append(result)
            if arguments.json and time.monotonic() - saved > SAVE_EVERY_SECONDS:
                save(arguments.json, document, results, others)
                saved = time.monotonic()
    finally:
        if arguments.json:
            save(arguments.json, document, results, others)


def _describe(codec: Codec) -> dict[str, str]:
    return {"about": codec.about, "version": codec.version, "fingerprint": codec.fingerprint}


def _qualities(text: str) -> tuple[float, ...]:
    values = tuple(sorted({int(part) for part in text.split(",")}))
    if not all(1 <= value <= 100 for value in values):
        raise argparse.ArgumentTypeError(f"{text}: qualities go from 1 to 100")
    return values


def _peer_names(text: str) -> tuple[str, ...]:
    """The reference comes along with any choice but `none`."""
    from . import peers

    if text == "none":
        return ()
    if text == "all":
        return peers.RD_PEERS
    names = tuple(dict.fromkeys([peers.REFERENCE, *text.split(",")]))
    for name in names:
        if name not in peers.PEERS:
            raise UsageError(f"--peers {name}: no such peer; choose from {', '.join(peers.PEERS)}")
    return names


def _list_peers() -> str:
    from . import peers

    codecs, absent = peers.available(peers.PEERS)
    lines = [f"{c.name:<20}{c.version:<50}{c.about}" for c in codecs.values()]
    return "\n".join(lines + [f"{name:<20}absent: {reason}" for name, reason in absent.items()])
