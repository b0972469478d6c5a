"""What each command of `linnet` does: options in, exit status out.

What a command works with is imported when it runs, so that help is instant.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from . import defaults

SIZE_TOLERANCE = 0.03
"""By which `--size` and `--bpp` may be missed before that is worth a note."""


def encode(options: argparse.Namespace) -> int:
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


def decode(options: argparse.Namespace) -> int:
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


def info(options: argparse.Namespace) -> int:
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


def certificate(options: argparse.Namespace) -> int:
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


def verify(options: argparse.Namespace) -> int:
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


def record(options: argparse.Namespace) -> int:
    from . import recording

    _refuse_picture_name(options.output)
    options.protect = None
    return recording.main(
        options.source, options.output, size=options.size, as_json=options.json, quality=options.quality,
        bitrate=options.bitrate, fps=options.fps, tile=options.tile, levels=options.levels, drop=options.drop,
        queue=options.queue, reconnect=options.reconnect, sync_seconds=options.sync_seconds, overwrite=options.force,
        bundle=options.bundle, backend=options.backend, threads=options.threads, protection=_protection(options),
    )  # fmt: skip


def recover(options: argparse.Namespace) -> int:
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


def doctor(options: argparse.Namespace) -> int:
    from . import doctor

    return doctor.main(as_json=options.json)


def build(options: argparse.Namespace) -> int:
    from . import building

    options.size = options.size or [defaults.FRAME]
    return building.main(options)


def profile(options: argparse.Namespace) -> int:
    from .benchmarks.profiling import command

    return command.run(options)


def calibrate(options: argparse.Namespace) -> int:
    with extra("export"):
        from . import calibrating

        return calibrating.main(options)


def export(options: argparse.Namespace) -> int:
    with extra("export"):
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


class extra:
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
