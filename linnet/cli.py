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
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from . import __version__, commands, defaults
from . import argument_types as types
from .runtime.errors import LinnetError

BENCHMARKS = {
    "rd": "quality against file size, beside other codecs",
    "speed": "megapixels per second, beside other codecs",
    "region": "a window of a large frame, and what tiles cost, beside other formats",
    "memory": "peak memory of encoding a huge frame and of decoding windows of it",
    "record": "recording a video: its pace, and the CPU time outside the networks",
}
INTERRUPTED = 130
TERMINATED = 143
DEBUG = "LINNET_DEBUG"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        options = parser(arguments).parse_args(arguments)
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


def parser(arguments: list[str]) -> argparse.ArgumentParser:
    """What `arguments` are parsed by; they tell which benchmark's options are needed."""
    parser = argparse.ArgumentParser(
        prog="linnet",
        description="A learned image codec: photographs to .lnt and back, the same pixels on every machine.",
        epilog="Exit status: 0 done, 1 the input is bad, 2 wrong usage, 3 this machine lacks something. "
        f"{DEBUG}=1 shows where an error came from.",
    )
    parser.add_argument("--version", action="version", version=f"linnet {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    _add_encode(subparsers)
    _add_decode(subparsers)

    info = _command(subparsers, "info", "what a .lnt file says about itself; decodes nothing")
    info.add_argument("input", metavar="IN.lnt", help="the file or its URL; - reads stdin")
    info.add_argument("--json", action="store_true", help="print JSON")

    verify = _command(subparsers, "verify", "check every checksum of a .lnt file")
    verify.add_argument("input", metavar="IN.lnt", help="the file; - reads stdin")
    verify.add_argument("--pixels", action="store_true", help="decode too, and compare with the stored proof")
    _add_codec_options(verify)

    _add_record(subparsers)

    recover = _command(subparsers, "recover", "a well-formed file with every whole tile of a damaged one")
    recover.add_argument("input", metavar="IN.lnt", help="the damaged file; - reads stdin")
    recover.add_argument("output", metavar="OUT.lnt", help="the file to write")
    recover.add_argument("--json", action="store_true", help="print the report as JSON")

    doctor = _command(subparsers, "doctor", "what this machine has, which backend runs, what to install")
    doctor.add_argument("--json", action="store_true", help="print JSON")

    proof = _command(subparsers, "certificate", "prove from a codec's weights that it is exact everywhere")
    proof.add_argument("bundle", metavar="BUNDLE", nargs="?", help="the codec, else the one in the package")
    proof.add_argument("--json", action="store_true", help="print JSON")

    _add_build(subparsers)
    _add_profile(subparsers)
    _add_bench(subparsers, arguments)

    _add_calibrate(subparsers)

    _add_export(_command(subparsers, "export", "trained weights to a codec bundle"))
    return parser


def _command(subparsers: Any, name: str, what: str) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.set_defaults(run=getattr(commands, name))
    return parser


def _add_encode(subparsers: Any) -> None:
    encode = _command(subparsers, "encode", "a PNG, JPEG, TIFF or WebP picture to .lnt")
    encode.add_argument("input", metavar="IN", help="the picture; - reads stdin")
    encode.add_argument("output", metavar="OUT.lnt", help="the file to write; - writes stdout")
    rate = encode.add_mutually_exclusive_group()
    _add_quality_option(rate)
    rate.add_argument(
        "--size", type=types.byte_count, metavar="N", help="a file of about N bytes; 200k and 1.5M are understood"
    )
    rate.add_argument("--bpp", type=types.above_zero, metavar="B", help="a file of about B bits per pixel")
    encode.add_argument(
        "--roi", type=types.favoured, action="append", default=[], metavar="X,Y,W,H[:STEPS]",
        help=f"code what shows this rectangle better by STEPS of quality, else {types.FAVOURED_STEPS}; may be repeated",
    )  # fmt: skip
    _add_tile_option(encode)
    encode.add_argument(
        "--digest", action=argparse.BooleanOptionalAction, default=False,
        help="store a proof of the decoded pixels for `verify --pixels` (takes one decode)",
    )  # fmt: skip
    _add_levels_option(encode)
    _add_key_option(encode, "encrypt with this key")
    encode.add_argument(
        "--protect", type=types.region, action="append", metavar="X,Y,W,H",
        help="with --key: encrypt only what shows this rectangle; may be repeated; else everything",
    )  # fmt: skip
    encode.add_argument(
        "--drop-thumbnail", action="store_true", help="blank the thumbnail in EXIF, which is never encrypted"
    )
    _add_codec_options(encode)


def _add_decode(subparsers: Any) -> None:
    decode = _command(subparsers, "decode", ".lnt to a PNG, JPEG, TIFF or WebP picture")
    decode.add_argument("input", metavar="IN.lnt", help="the file or its URL; - reads stdin")
    decode.add_argument("output", metavar="OUT", help="the picture to write, format by suffix; - writes PNG to stdout")
    decode.add_argument(
        "--region", type=types.region, metavar="X,Y,W,H",
        help="decode this window only: left, top, width, height in pixels of the level",
    )  # fmt: skip
    decode.add_argument(
        "--frame", type=types.count, default=0, metavar="N", help="of a recording, counted from 0; else 0"
    )
    decode.add_argument(
        "--level", type=types.count, default=0, metavar="L", help="at 1/2^L of the width and height; else 0, full size"
    )
    _add_key_option(decode, "open encrypted tiles with this key; without it they are grey")
    decode.add_argument("--conceal", action="store_true", help="fill damaged tiles from the overview, and say which")
    _add_codec_options(decode)


def _add_record(subparsers: Any) -> None:
    record = _command(subparsers, "record", "a camera, stream, video or folder of pictures to a recording")
    record.add_argument(
        "source", metavar="SOURCE", help="camera number or device, URL, video, folder of pictures, or gst:PIPELINE"
    )
    record.add_argument("output", metavar="OUT.lnt", help="the file to append to as frames come; - writes stdout")
    rate = record.add_mutually_exclusive_group()
    _add_quality_option(rate)
    rate.add_argument("--bitrate", type=float, metavar="R", help="megabits per second: chooses the quality")
    _add_tile_option(record)
    _add_levels_option(record)
    record.add_argument("--size", type=types.size, metavar="WxH", help="asked of a camera")
    record.add_argument(
        "--fps", type=float, metavar="F", help="asked of a camera; the rate of pictures that carry no time, else 30"
    )
    record.add_argument("--queue", type=types.positive, default=8, metavar="N", help="frames that may wait, else 8")
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


def _add_quality_option(container: Any) -> None:
    container.add_argument(
        "--quality", type=types.quality, default=defaults.QUALITY, metavar="Q",
        help=f"{defaults.LOWEST_QUALITY} (smallest) to {defaults.HIGHEST_QUALITY} (best), else {defaults.QUALITY}",
    )  # fmt: skip


def _add_tile_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tile", type=types.positive, metavar="N",
        help="side of the square that can be decoded alone, in pixels, else 512, or all of a frame up to a megapixel",
    )  # fmt: skip


def _add_levels_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--levels", type=types.count, default=0, metavar="N",
        help="store overviews down to 1/2^N of the size, about a tenth of the file in all; else none",
    )  # fmt: skip


def _add_codec_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", metavar="B", help="the codec: a file, or the name of one in the package")
    _add_backend_options(parser)


def _add_backend_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend", choices=defaults.BACKENDS, default=defaults.BACKEND, help="what runs the networks, else the best"
    )
    parser.add_argument("--threads", type=types.positive, metavar="N", help="processor cores to use, else all")


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
        "--steps", type=types.count, default=defaults.TUNING_STEPS, metavar="N",
        help=f"of tuning in exact arithmetic, else {defaults.TUNING_STEPS}; 0 stops after the fit",
    )  # fmt: skip
    parser.add_argument(
        "--keep",
        metavar="FILE.pt",
        help="also write the codec of exact layers that the bundle was made of, for PyTorch",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_build(subparsers: Any) -> None:
    build = _command(subparsers, "build", "TensorRT engines of a bundle on this device, each proved bit by bit")
    build.add_argument("bundle", metavar="BUNDLE", nargs="?", help="the codec, else the one in the package")
    build.add_argument(
        "--device", required=True, choices=defaults.DEVICES, help="sets memory limit and batch; this: any NVIDIA GPU"
    )
    width, height = defaults.FRAME
    build.add_argument(
        "--size", type=types.size, action="append", metavar="WxH",
        help=f"frames to prepare for, in pixels; may be repeated; else {width}x{height}",
    )  # fmt: skip
    _add_tile_option(build)
    _add_levels_option(build)
    build.add_argument("--encoder-only", action="store_true", help="leave out what only decoding needs")
    build.add_argument(
        "--more-work", type=types.count, default=defaults.MORE_WORK_PERCENT, metavar="PERCENT",
        help="that overlapping pieces may cost so that fewer engines do, "
        f"else {defaults.MORE_WORK_PERCENT}; 0: an engine for every shape",
    )  # fmt: skip
    build.add_argument(
        "--workspace", type=types.positive, metavar="MIB", help="memory for one layer, else the device's"
    )
    build.add_argument("--max-tactics", type=types.positive, metavar="N", help="time at most N kernels per layer")
    build.add_argument("--weakly-typed", action="store_true", help="the older way to int8, TensorRT 10.3 to 10.16")
    build.add_argument("--force", action="store_true", help="build what is up to date, too")
    build.add_argument("--dry-run", action="store_true", help="print the plan and the trtexec commands; build nothing")


def _add_profile(subparsers: Any) -> None:
    profile = _command(subparsers, "profile", "where the milliseconds of encoding and decoding go")
    add = profile.add_argument
    width, height = defaults.FRAME
    add("bundle", metavar="BUNDLE", nargs="?", help="the codec, else the one in the package")
    add("--size", type=types.size, metavar="WxH", help=f"of the frame, else that of --image, else {width}x{height}")
    add("--image", metavar="FILE", help="picture to fill the frame with, else photographs of scikit-image")
    _add_quality_option(profile)
    add("--frames", type=types.positive, metavar="N", help="frames to measure, else 20")
    add("--seconds", type=float, metavar="S", help="stop after this time instead, or before --frames")
    add("--warmup", type=types.count, metavar="N", help="frames before those that count, else 2")
    _add_tile_option(profile)
    add(
        "--batch", type=types.positive, metavar="B",
        help="tiles that a network computes at once, else what the codec gives",
    )  # fmt: skip
    _add_backend_options(profile)
    add("--per-layer", action="store_true", help="time each layer too, beside what this machine could reach")
    add("--json", metavar="F", help="write the report with all samples, or the comparison; - writes stdout")
    add("--html", metavar="F", help="write one HTML page with plots")
    add("--trace", metavar="F", help="write a Chrome trace, for Perfetto or chrome://tracing")
    add(
        "--compare", nargs=2, metavar=("A.json", "B.json"),
        help="measure nothing: say what became slower from A to B; exit status 1 if anything did",
    )  # fmt: skip
    add("--threshold", type=float, metavar="P", help="with --compare: per cent that do not matter, else 5")


def _add_calibrate(subparsers: Any) -> None:
    calibrate = _command(subparsers, "calibrate", "a float codec to an integer bundle, and what that cost")
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
        "--wide", type=types.layer_copies, action="append", metavar="LAYER=N",
        help="sum N int8 weights per weight of this layer: one more bit per doubling; may be repeated",
    )  # fmt: skip
    calibrate.add_argument("--count", type=types.positive, default=32, metavar="N", help="pictures to use, else 32")
    calibrate.add_argument(
        "--sensitivity", action=argparse.BooleanOptionalAction, default=True, help="measure what each layer costs alone"
    )
    calibrate.add_argument("--report", metavar="F.html", help="write the report as a page with plots")
    calibrate.add_argument("--json", metavar="F", help="write the report as JSON")


def _add_bench(subparsers: Any, arguments: list[str]) -> None:
    """Each benchmark brings its own options; only the one that is asked for is imported."""
    bench = subparsers.add_parser("bench", help="measure linnet beside other codecs", description="Measure linnet.")
    which = bench.add_subparsers(dest="benchmark", required=True, metavar="|".join(BENCHMARKS))
    words = [word for word in arguments if not word.startswith("-")]
    for name, what in BENCHMARKS.items():
        parser = which.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
        if words[:2] == ["bench", name]:
            from importlib import import_module

            with commands.extra("bench"):
                benchmark = import_module(f".benchmarks.{name}", __package__)
            benchmark.add_arguments(parser)
            parser.set_defaults(run=benchmark.run)


if __name__ == "__main__":
    sys.exit(main())
