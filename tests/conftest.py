"""Photographs, codecs and a fake GPU that several test files share."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import fake_gpu
import numpy as np
import pytest

from linnet.runtime.backends import engines, tensorrt
from linnet.runtime.backends.reference import ReferenceBackend
from linnet.runtime.bundle import Bundle
from linnet.runtime.codec import Codec


@pytest.fixture(scope="session")
def codec() -> Codec:
    """The shipped bundle on ONNX Runtime."""
    return Codec.open(backend="onnxruntime")


@pytest.fixture(scope="session")
def reference_codec(codec: Codec) -> Codec:
    """The shipped bundle on the numpy reference."""
    return Codec(codec.bundle, ReferenceBackend(codec.bundle.networks))


@pytest.fixture(scope="session")
def photograph() -> np.ndarray:
    """(512, 512, 3) uint8: the astronaut of scikit-image."""
    data = pytest.importorskip("skimage.data")
    return np.ascontiguousarray(data.astronaut())


@pytest.fixture(scope="session")
def photographs(photograph: np.ndarray) -> list[np.ndarray]:
    """Three different photographs, cropped so that the slow reference keeps up."""
    data = pytest.importorskip("skimage.data")
    return [photograph[:200, 100:333], data.chelsea()[50:210, 60:300], data.coffee()[100:293, 200:357]]


@pytest.fixture(scope="session")
def bundle() -> Bundle:
    """The shipped bundle."""
    return Bundle.open()


@pytest.fixture
def machine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fake_gpu.Machine]:
    """A machine with a fake GPU, TensorRT 10.13 and no engines. At the end nothing may be left on its GPU."""
    machine = fake_gpu.Machine(networks={graph: bundle.networks[name] for name, graph in bundle.graphs("qdq").items()})
    monkeypatch.setenv(engines.FOLDER, str(tmp_path / "engines"))
    fake_gpu.install(machine, monkeypatch)
    yield machine
    tensorrt.this_gpu.cache_clear()
    gc.collect()
    assert machine.allocations == {}
    assert machine.depth() == 0
    assert not any(machine.graphs.values())
