"""Photographs and codecs that several test files share."""

from __future__ import annotations

import numpy as np
import pytest

from linnet.runtime.backends.reference import ReferenceBackend
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
