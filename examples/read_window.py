"""One window of a large picture, without decoding the rest: python examples/read_window.py IN.lnt X Y W H OUT.png"""

import sys

from PIL import Image

import linnet


def main(path: str, x: int, y: int, width: int, height: int, out: str) -> None:
    with linnet.open(path) as frame:
        print(f"{path}: {frame.size[0]}x{frame.size[1]} pixels in {frame.tiles} tiles")
        Image.fromarray(frame.read_region(x, y, width, height)).save(out)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:6]), sys.argv[6])
