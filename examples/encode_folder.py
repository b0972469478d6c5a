"""Every picture of a folder to .lnt, with its metadata: python examples/encode_folder.py PHOTOS OUT [QUALITY]"""

import sys
from pathlib import Path

import linnet
from linnet import images


def main(source: Path, target: Path, quality: int = 60) -> None:
    target.mkdir(parents=True, exist_ok=True)
    codec = linnet.Codec.open()  # once: opening loads the networks and checks them
    for path in sorted(source.iterdir()):
        if path.suffix.lower() in images.FORMATS:
            picture = images.read(str(path))
            data = codec.encode(picture.pixels, quality=quality, metadata=picture.metadata)
            (target / f"{path.stem}.lnt").write_bytes(data)
            print(f"{path.name}: {path.stat().st_size} -> {len(data)} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
