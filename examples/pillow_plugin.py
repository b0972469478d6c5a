"""Pillow reads and writes .lnt: python examples/pillow_plugin.py IN.jpg OUT.lnt"""

import sys

from PIL import Image

import linnet.pillow  # noqa: F401 - importing it makes Pillow know .lnt


def main(source: str, target: str) -> None:
    with Image.open(source) as picture:
        picture.save(target, quality=60)
    with Image.open(target) as again:  # reads the header; pixels are decoded when they are asked for
        print(f"{target}: {again.format} {again.size[0]}x{again.size[1]}, quality {again.info['quality']}")
        again.load()


if __name__ == "__main__":
    main(*sys.argv[1:3])
