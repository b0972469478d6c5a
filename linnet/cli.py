"""The `linnet` command: arguments in, exit status out.

0 done, 1 the input is bad, 2 wrong usage, 3 this machine lacks something. What a command works with is imported when
it runs, so that help is instant and a benchmark's libraries are never asked of somebody who only decodes.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from . import __version__, defaults
from .runtime.errors import LinnetError

BENCHMARKS = {
    "rd": "quality against file size, beside other codecs",
    "speed": "megapixels per second, beside other codecs",
    "region": "a window of a large frame, and what tiles cost, beside other formats",
    "memory": "peak memory of encoding a huge frame and of decoding windows of it",
    "record": "recording a video: its pace, and the CPU time outside the networks",
}
FAVOURED_STEPS = 20
SIZE_TOLERANCE = 0.03
INTERRUPTED = 130
TERMINATED = 143
DEBUG = "LINNET_DEBUG"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = _parser(arguments).parse_args(arguments)
        _end_cleanly_when_terminated()
        warnings.filterwarnings("ignore", module="PIL")  # what matters of these arrives as a note or an error
        warnings.showwarning = _one_line_warning
        status = options.run(options)
        sys.stdout.flush()
        return status
    except LinnetError as error:
        if os.environ.get(DEBUG):
            raise
        print(f"linnet: {error}", file=sys.stderr)
        return error.exit_status
    except MemoryError:
        if os.environ.get(DEBUG):
            raise
        print("linnet: the memory of this machine is used up; decode by --region or free some", file=sys.stderr)
        return 3
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains while it exits
        return 1
    except OSError as error:
        if os.environ.get(DEBUG):
            raise
        print(f"linnet: {error}; reading or writing failed on this machine", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        if os.environ.get(DEBUG):
            raise
        return INTERRUPTED


def _one_line_warning(message: Warning | str, *_: object, **__: object) -> None:
    print(f"linnet: warning: {message}", file=sys.stderr)


def _end_cleanly_when_terminated() -> None:
    """SIGTERM unwinds like an error does, which removes unfinished outputs."""

    def end(*_: object) -> None:
        sys.exit(TERMINATED)

    with suppress(ValueError):  # not in the main thread: the program around us decides
        signal.signal(signal.SIGTERM, end)


def _parser(arguments: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="linnet",
        description="A learned image codec: photographs to .lnt and back, the same pixels on every machine.",
        epilog="Exit status: 0 done, 1 the input is bad, 2 wrong usage, 3 this machine lacks something. "
        f"{DEBUG}=1 shows where an error came from.",
    )
    parser.add_argument("--version", action="version", version=f"linnet {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    encode = _command(commands, "encode", _encode, "a PNG, JPEG, TIFF or WebP picture to .lnt")
    encode.add_argument("input", metavar="IN", help="the picture; - reads stdin")
    encode.add_argument("output", metavar="OUT.lnt", help="the file to write; - writes stdout")
    rate = encode.add_mutually_exclusive_group()
    rate.add_argument(
        "--quality", type=_quality, default=defaults.QUALITY, metavar="Q",
        help=f"{defaults.LOWEST_QUALITY} (smallest) to {defaults.HIGHEST_QUALITY} (best), else {defaults.QUALITY}",
    )  # fmt: skip
    rate.add_argument("--size", type=_bytes, metavar="N", help="a file of about N bytes; 200k and 1.5M are understood")
    rate.add_argument("--bpp", type=_above_zero, metavar="B", help="a file of about B bits per pixel")
    encode.add_argument(
        "--roi", type=_favoured, action="append", default=[], metavar="X,Y,W,H[:STEPS]",
        help=f"code what shows this rectangle better by STEPS of quality, else {FAVOURED_STEPS}; may be repeated",
    )  # fmt: skip
    encode.add_argument(
        "--tile", type=_positive, default=defaults.TILE, metavar="N",
        help=f"side of the square that can be decoded alone, in pixels, else {defaults.TILE}",
    )  # fmt: skip
    encode.add_argument(
        "--digest", action=argparse.BooleanOptionalAction, default=False,
        help="store a proof of the decoded pixels for `verify --pixels` (takes one decode)",
    )  # fmt: skip
    encode.add_argument(
        "--levels", type=_count, default=0, metavar="N",
        help="store overviews down to 1/2^N of the size, below a tenth of the file in all; else none",
    )  # fmt: skip
    _add_key_option(encode, "encrypt with this key")
    encode.add_argument(
        "--protect", type=_region, action="append", metavar="X,Y,W,H",
        help="with --key: encrypt only what shows this rectangle; may be repeated; else everything",
    )  # fmt: skip
    encode.add_argument(
        "--drop-thumbnail", action="store_true", help="blank the thumbnail in EXIF, which is never encrypted"
    )
    _add_codec_options(encode)

    decode = _command(commands, "decode", _decode, ".lnt to a PNG, JPEG, TIFF or WebP picture")
    decode.add_argument("input", metavar="IN.lnt", help="the file or its URL; - reads stdin")
    decode.add_argument("output", metavar="OUT", help="the picture to write, format by suffix; - writes PNG to stdout")
    decode.add_argument(
        "--region", type=_region, metavar="X,Y,W,H",
        help="decode this window only: left, top, width, height in pixels of the level",
    )  # fmt: skip
    decode.add_argument("--frame", type=_count, default=0, metavar="N", help="of a recording, counted from 0; else 0")
    decode.add_argument(
        "--level", type=_count, default=0, metavar="L", help="at 1/2^L of the width and height; else 0, full size"
    )
    _add_key_option(decode, "open encrypted tiles with this key; without it they are grey")
    decode.add_argument("--conceal", action="store_true", help="fill damaged tiles from the overview, and say which")
    _add_codec_options(decode)

    info = _command(commands, "info", _info, "what a .lnt file says about itself; decodes nothing")
    info.add_argument("input", metavar="IN.lnt", help="the file or its URL; - reads stdin")
    info.add_argument("--json", action="store_true", help="print JSON")

    verify = _command(commands, "verify", _verify, "check every checksum of a .lnt file")
    verify.add_argument("input", metavar="IN.lnt", help="the file; - reads stdin")
    verify.add_argument("--pixels", action="store_true", help="decode too, and compare with the stored proof")
    _add_codec_options(verify)

    _add_record(commands)

    recover = _command(commands, "recover", _recover, "a well-formed file with every whole tile of a damaged one")
    recover.add_argument("input", metavar="IN.lnt", help="the damaged file; - reads stdin")
    recover.add_argument("output", metavar="OUT.lnt", help="the file to write")
    recover.add_argument("--json", action="store_true", help="print the report as JSON")

    doctor = _command(commands, "doctor", _doctor, "what this machine has, which backend runs, what to install")
    doctor.add_argument("--json", action="store_true", help="print JSON")

    proof = _command(commands, "certificate", _certificate, "prove from a codec's weights that it is exact everywhere")
    proof.add_argument("bundle", metavar="BUNDLE", nargs="?", help="the codec, else the one in the package")
    proof.add_argument("--json", action="store_true", help="print JSON")

    _add_build(commands)
    _add_profile(commands)
    _add_bench(commands, arguments)

    _add_calibrate(commands)

    export = _command(commands, "export", _export, "trained weights to a codec bundle")
    _add_export(export)
    return parser


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.set_defaults(run=run)
    return parser


def _add_record(commands: Any) -> None:
    record = _command(commands, "record", _record, "a camera, stream, video or folder of pictures to a recording")
    record.add_argument(
        "source", metavar="SOURCE", help="camera number or device, URL, video, folder of pictures, or gst:PIPELINE"
    )
    record.add_argument("output", metavar="OUT.lnt", help="the file to append to as frames come; - writes stdout")
    rate = record.add_mutually_exclusive_group()
    rate.add_argument(
        "--quality", type=_quality, default=defaults.QUALITY, metavar="Q", help=f"1 to 100, else {defaults.QUALITY}"
    )
    rate.add_argument("--bitrate", type=float, metavar="R", help="megabits per second: chooses the quality")
    record.add_argument("--tile", type=_positive, default=defaults.TILE, metavar="N", help="as for encode")
    record.add_argument("--levels", type=_count, default=0, metavar="N", help="as for encode")
    record.add_argument("--size", type=_size, metavar="WxH", help="asked of a camera")
    record.add_argument(
        "--fps", type=float, metavar="F", help="asked of a camera; the rate of pictures that carry no time, else 30"
    )
    record.add_argument("--queue", type=_positive, default=8, metavar="N", help="frames that may wait, else 8")
    record.add_argument(
        "--drop", choices=("oldest", "newest", "never"),
        help="what a full queue loses; else the oldest of a live source, never anything of a file",
    )  # fmt: skip
    record.add_argument(
        "--reconnect", type=float, default=30.0, metavar="SECONDS",
        help="how long a live stream that breaks is tried again, into the same file; else 30, and 0 never",
    )  # fmt: skip
    record.add_argument(
        "--sync-seconds", type=float, default=1.0, metavar="S", help="how often written frames are made durable, else 1"
    )
    _add_key_option(record, "encrypt with this key")
    record.add_argument("--force", action="store_true", help="overwrite OUT.lnt")
    record.add_argument("--json", action="store_true", help="print the figures as JSON at the end")
    _add_codec_options(record)


def _add_key_option(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--key", metavar="file:PATH|env:NAME", help=what)


def _add_codec_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", metavar="B", help="the codec: a file, or the name of one in the package")
    parser.add_argument(
        "--backend", choices=defaults.BACKENDS, default=defaults.BACKEND, help="what runs the networks, else the best"
    )
    parser.add_argument("--threads", type=_positive, metavar="N", help="processor cores to use, else all")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL",
        help="camera; compressai:mbt2018-mean, compressai:bmshj2018-hyperprior or compressai:bmshj2018-factorized; "
        "or FILE.py:FUNCTION, which makes a float model that follows docs/export.md",
    )  # fmt: skip
    parser.add_argument("--weights", metavar="W", help="the training checkpoint or state dict")
    parser.add_argument("--out", required=True, metavar="BUNDLE", help="the bundle to write")
    parser.add_argument(
        "--images", metavar="DIR", help="photographs to fit exact layers on, a folder; all models but camera need it"
    )
    parser.add_argument(
        "--quality", type=int, choices=range(1, 9), metavar="1..8",
        help="the published quality that compressai weights are of; only checked",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=_count, default=defaults.TUNING_STEPS, metavar="N",
        help=f"of tuning in exact arithmetic, else {defaults.TUNING_STEPS}; 0 stops after the fit",
    )  # fmt: skip
    parser.add_argument(
        "--keep",
        metavar="FILE.pt",
        help="also write the codec of exact layers that the bundle was made of, for PyTorch",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_build(commands: Any) -> None:
    build = _command(commands, "build", _build, "TensorRT engines of a bundle on this device, each proved bit by bit")
    build.add_argument("bundle", metavar="BUNDLE", nargs="?", help="the codec, else the one in the package")
    build.add_argument(
        "--device", required=True, choices=defaults.DEVICES, help="sets memory limit and batch; this: any NVIDIA GPU"
    )
    width, height = defaults.FRAME
    build.add_argument(
        "--size", type=_size, action="append", metavar="WxH",
        help=f"frames to prepare for, in pixels; may be repeated; else {width}x{height}",
    )  # fmt: skip
    build.add_argument(
        "--tile", type=_positive, default=defaults.TILE, metavar="N", help=f"as with `encode`, else {defaults.TILE}"
    )
    build.add_argument("--levels", type=_count, default=0, metavar="N", help="as with `encode`; else none")
    build.add_argument("--encoder-only", action="store_true", help="leave out what only decoding needs")
    build.add_argument(
        "--more-work", type=_count, default=defaults.MORE_WORK_PERCENT, metavar="PERCENT",
        help="that overlapping pieces may cost so that fewer engines do, "
        f"else {defaults.MORE_WORK_PERCENT}; 0: an engine for every shape",
    )  # fmt: skip
    build.add_argument("--workspace", type=_positive, metavar="MIB", help="memory for one layer, else the device's")
    build.add_argument("--max-tactics", type=_positive, metavar="N", help="time at most N kernels per layer")
    build.add_argument("--weakly-typed", action="store_true", help="the older way to int8, TensorRT 10.3 to 10.16")
    build.add_argument("--force", action="store_true", help="build what is up to date, too")
    build.add_argument("--dry-run", action="store_true", help="print the plan and the trtexec commands; build nothing")


def _add_profile(commands: Any) -> None:
    profile = _command(commands, "profile", _profile, "where the milliseconds of encoding and decoding go")
    add = profile.add_argument
    width, height = defaults.FRAME
    add("bundle", metavar="BUNDLE", nargs="?", help="the codec, else the one in the package")
    add("--size", type=_size, metavar="WxH", help=f"of the frame, else that of --image, else {width}x{height}")
    add("--image", metavar="FILE", help="picture to fill the frame with, else photographs of scikit-image")
    add("--quality", type=_quality, default=defaults.QUALITY, metavar="Q", help=f"1 to 100, else {defaults.QUALITY}")
    add("--frames", type=_positive, metavar="N", help="frames to measure, else 20")
    add("--seconds", type=float, metavar="S", help="stop after this time instead, or before --frames")
    add("--warmup", type=_count, metavar="N", help="frames before those that count, else 2")
    add("--batch", type=_positive, metavar="B", help="tiles that a network computes at once, else what the codec gives")
    add("--threads", type=_positive, metavar="N", help="processor cores to use, else all")
    add("--tile", type=_positive, default=defaults.TILE, metavar="N", help=f"as with `encode`, else {defaults.TILE}")
    add("--backend", choices=defaults.BACKENDS, default=defaults.BACKEND, help="what runs the networks, else the best")
    add("--per-layer", action="store_true", help="time each layer too, beside what this machine could reach")
    add("--json", metavar="F", help="write the report with all samples, or the comparison; - writes stdout")
    add("--html", metavar="F", help="write one HTML page with plots")
    add("--trace", metavar="F", help="write a Chrome trace, for Perfetto or chrome://tracing")
    add(
        "--compare", nargs=2, metavar=("A.json", "B.json"),
        help="measure nothing: say what became slower from A to B; exit status 1 if anything did",
    )  # fmt: skip
    add("--threshold", type=float, metavar="P", help="with --compare: per cent that do not matter, else 5")


def _add_calibrate(commands: Any) -> None:
    calibrate = _command(commands, "calibrate", _calibrate, "a float codec to an integer bundle, and what that cost")
    calibrate.add_argument("codec", metavar="CHECKPOINT", help="the float codec, as training writes it")
    calibrate.add_argument("--images", required=True, metavar="DIR", help="photographs like those it will see")
    calibrate.add_argument("--out", required=True, metavar="BUNDLE", help="the bundle to write")
    calibrate.add_argument(
        "--format", choices=defaults.FORMATS, default=defaults.FORMATS[0],
        help=f"of the networks, docs/calibration.md; else {defaults.FORMATS[0]}",
    )  # fmt: skip
    calibrate.add_argument(
        "--observer", choices=defaults.OBSERVERS, default=defaults.OBSERVERS[0],
        help=f"what sets the limits of activations, else {defaults.OBSERVERS[0]}",
    )  # fmt: skip
    calibrate.add_argument(
        "--weight-observer", choices=defaults.OBSERVERS, default=defaults.OBSERVERS[0],
        help=f"what sets the limits of weights, per channel, else {defaults.OBSERVERS[0]}",
    )  # fmt: skip
    calibrate.add_argument(
        "--rounding", choices=defaults.ROUNDINGS, default=defaults.ROUNDINGS[0],
        help=f"of weights, else {defaults.ROUNDINGS[0]}",
    )  # fmt: skip
    calibrate.add_argument(
        "--equalise", action=argparse.BooleanOptionalAction, default=True, help="stretch channels to full scale"
    )
    calibrate.add_argument(
        "--wide", type=_layer_copies, action="append", metavar="LAYER=N",
        help="sum N int8 weights per weight of this layer: one more bit per doubling; may be repeated",
    )  # fmt: skip
    calibrate.add_argument("--count", type=_positive, default=32, metavar="N", help="pictures to use, else 32")
    calibrate.add_argument(
        "--sensitivity", action=argparse.BooleanOptionalAction, default=True, help="measure what each layer costs alone"
    )
    calibrate.add_argument("--report", metavar="F.html", help="write the report as a page with plots")
    calibrate.add_argument("--json", metavar="F", help="write the report as JSON")


def _add_bench(commands: Any, arguments: list[str]) -> None:
    """Each benchmark brings its own options; only the one that is asked for is imported."""
    bench = commands.add_parser("bench", help="measure linnet beside other codecs", description="Measure linnet.")
    which = bench.add_subparsers(dest="benchmark", required=True, metavar="|".join(BENCHMARKS))
    words = [word for word in arguments if not word.startswith("-")]
    for name, what in BENCHMARKS.items():
        parser = which.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        if words[:2] == ["bench", name]:
            from importlib import import_module

            with _extra("bench"):
                benchmark = import_module(f".benchmarks.{name}", __package__)
            benchmark.add_arguments(parser)
            parser.set_defaults(run=benchmark.run)


class _extra:
    """Turns a missing optional library into the command that installs it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ImportError) and not (error.name or "").startswith("linnet"):
            from .runtime.errors import MachineError

            raise MachineError(
                f"{error.name or error} is not installed and this command needs it: pip install 'linnet[{self._name}]'"
            ) from error


class _about:
    """Puts the file's name before an error about its content."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        from . import files
        from .runtime.errors import InputError, UsageError

        if isinstance(error, InputError | UsageError):
            raise type(error)(f"{files.shown(self._path)}: {error}") from error


class _Bar:
    """Tiles done, on a terminal only; nothing is imported for a pipe."""

    def __init__(self, what: str) -> None:
        self._what, self._bar = what, None

    def __enter__(self) -> Callable[[int, int], None] | None:
        if not sys.stderr.isatty():
            return None
        from tqdm import tqdm

        self._bar = tqdm(desc=self._what, unit="tile", leave=False, file=sys.stderr, dynamic_ncols=True)
        return self._advance

    def _advance(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _encode(options: argparse.Namespace) -> int:
    from time import perf_counter

    from . import files, images, pictures
    from .runtime.writer import PictureWriter

    _refuse_picture_name(options.output)
    protection = _protection(options)
    with images.opened(options.input) as picture:
        width, height = picture.frame.width, picture.frame.height
        wanted = options.size if options.bpp is None else max(1, round(options.bpp * width * height / 8))
        metadata, notes = _thumbnail(picture.metadata, drop=options.drop_thumbnail, protected=protection is not None)
        codec = pictures.codec(options.bundle, options.backend, options.threads)
        started = perf_counter()
        with files.rewritable(options.output) as output, _about(options.input), _Bar("encoding") as progress:
            writer = PictureWriter(output)
            codec.encode_frame(
                writer, picture.frame, quality=options.quality, size=wanted, favoured=options.roi, tile=options.tile,
                levels=options.levels, metadata=metadata, digest=options.digest, protection=protection,
                progress=progress,
            )  # fmt: skip
        seconds = perf_counter() - started
        _say(options.input, [*picture.notes, *notes])
    pixels, size = width * height, writer.bytes_written
    if wanted is not None and abs(size / wanted - 1) > SIZE_TOLERANCE:
        _say(options.output, [f"{size} bytes, not {wanted}: that is as near as quality 1 to 100 comes"])
    if sys.stderr.isatty():
        print(
            f"{files.shown(options.output, output=True)}: {width}x{height}, {size} bytes, "
            f"{8 * size / pixels:.3f} bits per pixel, {pixels / 1e6 / seconds:.1f} MP/s",
            file=sys.stderr,
        )
    return 0


def _thumbnail(metadata: Any, *, drop: bool, protected: bool) -> tuple[Any, list[str]]:
    """The metadata, its thumbnail blanked on request, and a note where one shows what is to be encrypted."""
    from dataclasses import replace

    from .thumbnails import has_thumbnail, without_thumbnail

    if not has_thumbnail(metadata.exif):
        return metadata, []
    if drop:
        return replace(metadata, exif=without_thumbnail(metadata.exif)), []
    shows = "EXIF holds a thumbnail, which shows the encrypted pixels in clear; --drop-thumbnail blanks it"
    return metadata, [shows] if protected else []


def _protection(options: argparse.Namespace) -> Any:
    from .runtime.errors import UsageError

    if options.key is None:
        if options.protect:
            raise UsageError("--protect encrypts rectangles and needs --key file:PATH or env:NAME")
        return None
    from .runtime.sealing import Protection, read_key

    return Protection(read_key(options.key), options.protect)


def _decode(options: argparse.Namespace) -> int:
    from . import files, images, pictures
    from .runtime.reader import Reader

    images.output_format(options.output)
    blanks: list[str] = []
    key = None
    if options.key:
        from .runtime.sealing import read_key

        key = read_key(options.key)
    with files.source(options.input) as source:
        with _about(options.input):
            reader = Reader(source)
            metadata = reader.metadata(options.frame)
        with _about(options.input), _Bar("decoding") as progress:
            codec = pictures.codec_of(reader, options.frame, options.bundle, options.backend, options.threads)
            wanted = {
                "region": options.region, "frame": options.frame, "level": options.level, "key": key,
                "conceal": options.conceal, "blanks": blanks, "progress": progress,
            }  # fmt: skip
            if images.output_format(options.output) == "TIFF":
                window, strips = codec.window(reader, **wanted)
                notes = images.write_strips(options.output, window.width, window.height, strips, metadata)
            else:
                notes = images.write(options.output, codec.decode(reader, **wanted), metadata)
        _say(options.input, [*reader.damage, *blanks])
    _say(options.output, notes)
    return 0


def _info(options: argparse.Namespace) -> int:
    from . import files
    from .runtime import inspection

    with files.source(options.input) as source, _about(options.input):
        found = inspection.read_info(source)
        size = source.size
    bits_per_pixel = 8 * size / (found.width * found.height * found.frames)
    blocks = {
        name: len(block) for name in ("exif", "xmp", "icc") if (block := getattr(found.metadata, name)) is not None
    }
    if options.json:
        import json

        report = {
            "file": options.input, "bytes": size, "version": found.version, "width": found.width,
            "height": found.height, "quality": found.quality, "bits_per_pixel": bits_per_pixel, "tile": found.tile,
            "tiles": found.tiles, "tile_bytes": list(found.tile_sizes), "levels": list(found.levels),
            "encrypted_tiles": found.sealed, "frames": found.frames, "recording": found.recording,
            "first_timestamp": found.timestamps[0], "last_timestamp": found.timestamps[1],
            "damage": list(found.damage), "bundle": found.bundle,
            "digest": found.digest, "metadata_bytes": blocks,
            "boxes": [{"type": kind, "offset": offset, "bytes": length} for kind, offset, length in found.boxes],
        }  # fmt: skip
        print(json.dumps(report, indent=2))
        return 0
    rows = {
        "file": files.shown(options.input),
        "picture": f"{found.width}x{found.height}, {found.width * found.height / 1e6:.2f} megapixels",
        "size": f"{size} bytes, {bits_per_pixel:.3f} bits per pixel",
        "quality": found.quality,
        "tiles": f"{found.tiles} of up to {found.tile}x{found.tile} pixels",
        "levels": ", ".join(f"1/{1 << level}" for level in found.levels) or "full size only",
        "metadata": ", ".join(f"{name.upper()} {length} bytes" for name, length in blocks.items()) or "none",
        "digest": found.digest or "none",
        "bundle": found.bundle,
        "version": found.version,
    }
    if found.recording:
        seconds = (found.timestamps[1] - found.timestamps[0]) / 1e9
        rows["frames"] = f"{found.frames}" + (f" in {seconds:.1f} s" if seconds > 0 else "")
    if found.sealed:
        rows["encrypted"] = f"{found.sealed} tiles"
    if found.damage:
        rows["damage"] = "; ".join(found.damage)
    for name, value in rows.items():
        print(f"{name:<10}{value}")
    return 0


def _certificate(options: argparse.Namespace) -> int:
    from .calibration import certificate
    from .runtime.bundle import Bundle

    bundle = Bundle.open(options.bundle)
    sheet = certificate.prove_bundle(bundle)
    if options.json:
        import json

        print(json.dumps({"bundle": bundle.identity, **sheet}, indent=2))
        return 0
    print(certificate.as_text(sheet))
    count = sum(map(len, sheet["networks"].values()))
    print(f"bundle {bundle.name} {bundle.identity[:16]}: all rules hold for {count} convolutions")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from . import files
    from .runtime import inspection

    name = files.shown(options.input)
    with files.reading(options.input) as source:
        with _about(options.input):
            found = inspection.verify(source)
        if options.pixels:
            _prove_pixels(options, source)
    tiles = "1 tile" if found.tiles == 1 else f"{found.tiles} tiles"
    print(f"{name}: intact, {tiles}{', the pixels match their proof' if options.pixels else ''}")
    return 0


def _prove_pixels(options: argparse.Namespace, source: Any) -> None:
    """Decode every frame here; InputError where one has no proof or does not match it."""
    from . import pictures
    from .runtime.errors import InputError
    from .runtime.reader import Reader

    with _about(options.input):
        reader = Reader(source)
        for frame in range(reader.frame_count):
            codec = pictures.codec_of(reader, frame, options.bundle, options.backend, options.threads)
            where = f"frame {frame}: " if reader.frame_count > 1 else ""
            with _Bar(f"decoding {where.rstrip(': ')}".rstrip()) as progress:
                if not codec.verify_pixels(reader, frame=frame, progress=progress):
                    raise InputError(
                        f"{where}the decoded pixels differ from the stored proof though every checksum holds; "
                        "run `linnet doctor` and compare --backend reference"
                    )


def _record(options: argparse.Namespace) -> int:
    from . import recording

    _refuse_picture_name(options.output)
    options.protect = None
    return recording.main(
        options.source, options.output, size=options.size, as_json=options.json, quality=options.quality,
        bitrate=options.bitrate, fps=options.fps, tile=options.tile, levels=options.levels, drop=options.drop,
        queue=options.queue, reconnect=options.reconnect, sync_seconds=options.sync_seconds, overwrite=options.force,
        bundle=options.bundle, backend=options.backend, threads=options.threads, protection=_protection(options),
    )  # fmt: skip


def _recover(options: argparse.Namespace) -> int:
    from . import files
    from .runtime import recovery

    with files.reading(options.input) as source, files.writing(options.output) as output, _about(options.input):
        report = recovery.recover(source, output)
    if options.json:
        import json
        from dataclasses import asdict

        print(json.dumps(asdict(report), indent=2))
        return 0
    _say(options.input, [*report.damage, *report.lost])
    print(f"{options.output}: {report.frames} frames, {report.tiles} whole tiles, {report.lost_tiles} lost")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from . import doctor

    return doctor.main(as_json=options.json)


def _build(options: argparse.Namespace) -> int:
    from . import building

    options.size = options.size or [defaults.FRAME]
    return building.main(options)


def _profile(options: argparse.Namespace) -> int:
    from .benchmarks.profiling import command

    return command.run(options)


def _calibrate(options: argparse.Namespace) -> int:
    with _extra("export"):
        from . import calibrating

        return calibrating.main(options)


def _export(options: argparse.Namespace) -> int:
    with _extra("export"):
        from . import exporting

        return exporting.main(options)


def _say(path: str, notes: Sequence[str]) -> None:
    from . import files

    for note in dict.fromkeys(notes):
        print(f"linnet: {files.shown(path)}: note: {note}", file=sys.stderr)


def _refuse_picture_name(path: str) -> None:
    """`encode a.lnt a.png`, the two swapped, would destroy a photograph."""
    from . import images
    from .runtime.errors import UsageError

    if os.path.splitext(path)[1].lower() in images.FORMATS:
        raise UsageError(f"{path}: is named like a picture; `linnet encode IN OUT.lnt` writes .lnt")


def _quality(text: str) -> int:
    if not text.isdigit() or not defaults.LOWEST_QUALITY <= int(text) <= defaults.HIGHEST_QUALITY:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number from {defaults.LOWEST_QUALITY} to {defaults.HIGHEST_QUALITY}"
        )
    return int(text)


def _layer_copies(text: str) -> tuple[str, int]:
    layer, separator, copies = text.rpartition("=")
    if not separator or not layer or not copies.isdigit() or not 1 <= int(copies) <= 16:
        raise argparse.ArgumentTypeError(f"{text!r} is not LAYER=N with N from 1 to 16, like synthesis.bypass=2")
    return layer, int(copies)


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _bytes(text: str) -> int:
    """A number of bytes, with k for thousands and M for millions."""
    unit = {"k": 1_000, "M": 1_000_000}.get(text[-1:], 1)
    size = round(_above_zero(text if unit == 1 else text[:-1]) * unit)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is less than a byte")
    return size


def _favoured(text: str) -> tuple[tuple[int, int, int, int], int]:
    rectangle, colon, steps = text.partition(":")
    if colon and not steps.lstrip("+-").isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y,W,H:STEPS with whole steps of quality")
    return _region(rectangle), int(steps) if colon else FAVOURED_STEPS


def _size(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdigit() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not WxH in whole pixels, like 3840x2160")
    return int(sides[0]), int(sides[1])


def _region(text: str) -> tuple[int, int, int, int]:
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y,W,H in whole pixels, like 1024,512,640,480")
    x, y, width, height = map(int, parts)
    if width == 0 or height == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is an empty window; give a width and a height above 0")
    return x, y, width, height


if __name__ == "__main__":
    sys.exit(main())
