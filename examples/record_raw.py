"""Raw frames from a pipe into a recording: how firmware in any language hands its frames over.

    ./frames 640x480 100 | python record_raw.py 640x480 OUT.lnt           (frames.c is beside this file)
    camera-program | python record_raw.py 3840x2160 - --nv12 > OUT.lnt

Frames follow one another without headers: RGB rows of three bytes per pixel, or NV12, a plane of luma and one of (U, V)
pairs. OUT.lnt may be - for stdout: frames in, bytes out. A frame that comes while eight wait takes the place of the
oldest of them.
"""

import argparse
import sys
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

import linnet
from linnet.runtime.backends.pixels_reference import Colour, nv12_to_rgb


def frames(pipe: BinaryIO, width: int, height: int, nv12: bool) -> Iterator[np.ndarray]:
    """(height, width, 3) uint8 RGB until the pipe ends; an unfinished frame is left out."""
    size = width * height * 3 // (2 if nv12 else 1)
    while len(data := pipe.read(size)) == size:
        if nv12:
            luma, pairs = np.split(np.frombuffer(data, np.uint8), [width * height])
            yield nv12_to_rgb(luma.reshape(height, width), pairs.reshape(height // 2, width // 2, 2), Colour("bt709"))
        else:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
    if data:
        print(f"the pipe ended within a frame: {len(data)} of {size} bytes are left out", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description="Raw frames from stdin to a recording.")
    parser.add_argument("size", metavar="WxH")
    parser.add_argument("output", metavar="OUT.lnt")
    parser.add_argument("--nv12", action="store_true", help="BT.709, limited range; else RGB")
    parser.add_argument("--quality", type=int, default=60)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    pixels = frames(sys.stdin.buffer, width, height, options.nv12)
    figures = linnet.record(pixels, options.output, quality=options.quality, drop="oldest")
    print(f"{figures.frames} frames, {figures.dropped} dropped, {figures.bytes} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
