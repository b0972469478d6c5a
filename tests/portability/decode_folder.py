"""Run on the machine under test: decodes every file of a folder and prints what came out, as JSON.

    python decode_folder.py FOLDER BACKEND

FOLDER holds .lnt files, the bundles (.lntb) that they need beside the shipped one, `digests.json`, which says which
frames and levels to decode, and `picture.npy`, to be encoded. Needs numpy, onnxruntime and the runtime only.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from linnet.runtime.codec import Codec
from linnet.runtime.reader import Reader


def main(folder: Path, backend: str) -> dict[str, Any]:
    codecs = [Codec.open(path, backend, 1) for path in (None, *sorted(folder.glob("*.lntb")))]
    by_identity = {codec.bundle.identity: codec for codec in codecs}
    digests: dict[str, list[str]] = {}
    for name, entries in json.loads((folder / "digests.json").read_text()).items():
        reader = Reader((folder / name).read_bytes())
        digests[name] = []
        for entry in entries:
            codec = by_identity[reader.record(entry["frame"]).bundle.hex()]
            key = bytes.fromhex(entry["key"]) if "key" in entry else None
            pixels = codec.decode(reader, frame=entry["frame"], level=entry["level"], key=key)
            digests[name].append(hashlib.sha256(pixels).hexdigest())
    encoded = codecs[0].encode(np.load(folder / "picture.npy"), quality=70, tile=64, levels=1)
    return {
        "machine": platform.machine(),
        "numpy": np.__version__,
        "kernels": _kernels(codecs[0]),
        "digests": digests,
        "encoded": hashlib.sha256(encoded).hexdigest(),
    }


def _kernels(codec: Codec) -> dict[str, str]:
    """Which kernels ONNX Runtime took for each network; the reference has none."""
    choose = getattr(codec.backend, "choose", None)
    return {name: choose(name).kernels for name in codec.bundle.networks} if choose else {}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2])))
