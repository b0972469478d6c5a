"""The runtime itself on machines that are not here, under emulation: `make test-portability`.

The same files, decoded by the reference and by ONNX Runtime on each machine, give the same digests; a picture encoded
there gives the same bytes. Takes minutes; downloads some 40 MB the first time. Outcomes: docs/portability.md.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import COMPILER, FLAGS, MACHINES, ROOT, Lacking, Machine, program

from linnet.runtime.codec import Codec

VECTORS = Path(__file__).resolve().parent.parent / "vectors"
pytestmark = pytest.mark.portability


@pytest.fixture(autouse=True, scope="module")
def _only_when_asked(request: pytest.FixtureRequest) -> None:
    if "portability" not in request.config.option.markexpr:
        pytest.skip("emulates other machines: make test-portability")


@pytest.fixture(scope="module")
def folder(codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The conformance vectors, and files of the shipped codec made here: noise at the bounds, a gradient, one pixel."""
    folder = tmp_path_factory.mktemp("files")
    digests: dict[str, list[dict[str, Any]]] = {}
    if (VECTORS / "digests.json").exists():
        shutil.copytree(VECTORS, folder, dirs_exist_ok=True)
        digests = json.loads((VECTORS / "digests.json").read_text())
    rng = np.random.default_rng(11)
    y, x = np.mgrid[0:83, 0:101]
    pictures = {
        "black-and-white.lnt": rng.choice(np.array([0, 255], np.uint8), (70, 75, 3)),
        "gradient.lnt": np.stack([2 * x, 3 * y, x + y], axis=2).astype(np.uint8),
        "pixel.lnt": np.array([[[255, 0, 7]]], np.uint8),
    }
    for quality, (name, picture) in zip((100, 50, 1), pictures.items(), strict=True):
        data = codec.encode(picture, quality=quality, tile=64)
        (folder / name).write_bytes(data)
        digest = hashlib.sha256(codec.decode(data)).hexdigest()
        digests[name] = [{"frame": 0, "level": 0, "sha256": digest}]
    np.save(folder / "picture.npy", pictures["gradient.lnt"])
    (folder / "digests.json").write_text(json.dumps(digests))
    return folder


@pytest.mark.parametrize("backend", ["reference", "onnxruntime"])
@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_the_same_pixels_and_the_same_bytes(machine: Machine, backend: str, folder: Path, codec: Codec) -> None:
    try:
        command, environment = machine.prepare()
    except Lacking as error:
        pytest.skip(str(error))
    script = Path(__file__).with_name("decode_folder.py")
    done = subprocess.run(
        [*command, str(script), str(folder), backend],
        capture_output=True, text=True, timeout=1800, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{machine.name} ({machine.about}), {backend}: {found['kernels']}")
    wanted = json.loads((folder / "digests.json").read_text())
    assert found["digests"] == {name: [entry["sha256"] for entry in entries] for name, entries in wanted.items()}
    encoded = codec.encode(np.load(folder / "picture.npy"), quality=70, tile=64, levels=1)
    assert found["encoded"] == hashlib.sha256(encoded).hexdigest()
    if machine.name == "x86-64-haswell" and backend == "onnxruntime":
        # The plain kernels saturate there: if none were refused, the known answers would have missed it.
        assert "integer" not in found["kernels"].values()


def test_the_native_core_passes_its_fuzz_driver_on_arm(tmp_path: Path) -> None:
    try:
        compiler, qemu = program(COMPILER, "g++-aarch64-linux-gnu"), program("qemu-aarch64", "qemu-user")
    except Lacking as error:
        pytest.skip(str(error))
    native, driver = ROOT / "runtime" / "native", tmp_path / "fuzz_core"
    sources = [ROOT / "tests" / "native" / "fuzz_core.cc", *sorted(native.glob("*.cc"))]
    subprocess.run([compiler, "-static", *FLAGS, f"-I{native}", *sources, "-o", driver], check=True)
    done = subprocess.run([qemu, driver, "300"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
