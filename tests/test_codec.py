"""The codec from pixels to bytes and back: exactness across backends, windows, odd sizes, quality, damaged bundles."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import linnet
from linnet.runtime import core
from linnet.runtime.bundle import Bundle
from linnet.runtime.codec import Codec
from linnet.runtime.coding import TileCoder
from linnet.runtime.errors import InputError, UsageError
from linnet.runtime.reader import Reader


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2)))


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A generated frame with edges, gradients and noise at every place, cheap at any size."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = np.stack([np.sin(x / (7 + 5 * c)) * np.cos(y / (11 + 3 * c)) for c in range(3)], 2)
    blocks = ((x // 37 + y // 29) % 2)[..., None]
    noise = np.random.default_rng(seed).integers(-12, 13, (height, width, 3))
    return np.clip(110 + 60 * waves + 50 * blocks + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("quality", [1, 47, 100])
def test_backends_and_pytorch_give_the_same_pixels(
    codec: Codec, reference_codec: Codec, photographs: list[np.ndarray], quality: int
) -> None:
    for image in photographs:
        data = codec.encode(image, quality=quality, tile=128)
        assert data == reference_codec.encode(image, quality=quality, tile=128)
        np.testing.assert_array_equal(codec.decode(data), reference_codec.decode(data))


@pytest.fixture(scope="module")
def model(codec: Codec):  # type: ignore[no-untyped-def]
    """The training model with the bundle's integers as its weights, computing in fp32."""
    pytest.importorskip("torch")
    from linnet.export.bundling import load_bundle_into_codec

    return load_bundle_into_codec(codec.bundle)


def test_pytorch_gives_the_known_answers(codec: Codec, model) -> None:  # type: ignore[no-untyped-def]
    import torch

    for name, (module, _) in model.named_networks().items():
        inputs, expected = codec.bundle.known_answer(name)
        with torch.no_grad():
            outputs = module(
                *(torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32) / 128) for x in inputs.values())
            )
        for got, want in zip(outputs if isinstance(outputs, tuple) else (outputs,), expected, strict=True):
            unit = 128 if want.dtype == np.int8 else 1
            np.testing.assert_array_equal(got.numpy().transpose(0, 2, 3, 1) * unit, want, err_msg=name)


@pytest.mark.parametrize("quality", [1, 50, 100])
def test_pytorch_decodes_the_same_pixels(codec: Codec, model, photographs: list[np.ndarray], quality: int) -> None:  # type: ignore[no-untyped-def]
    """A stream's latents through the fp32 training model are the pixels that the integer runtime decodes."""
    import torch

    for image in photographs:
        height, width = (side // 64 * 64 for side in image.shape[:2])
        data = codec.encode(image[:height, :width], quality=quality)
        coder = TileCoder(codec.bundle, codec.backend, quality)
        latents = coder.decode([Reader(data).tile(0)], ["tile 0"], height // 16, width // 16)
        decoded = torch.from_numpy(latents.transpose(0, 3, 1, 2).astype(np.float32) / 128)
        with torch.no_grad():
            pixels = model.reconstruct(decoded, torch.tensor([(quality - 1) / 99]))[0] * 128 + 128
        np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), codec.decode(data))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (4099, 17), (63, 65), (64, 64), (130, 1), (511, 513)])
def test_odd_sizes(codec: Codec, height: int, width: int) -> None:
    image = texture(height, width)
    decoded = codec.decode(codec.encode(image, quality=80, tile=128))
    assert decoded.shape == image.shape
    assert psnr(decoded, image) > 20


def windows(width: int, height: int, count: int, seed: int) -> list[tuple[int, int, int, int]]:
    """Random windows of every scale, plus the four corners."""
    rng = np.random.default_rng(seed)
    found = [(0, 0, 1, 1), (width - 1, height - 1, 1, 1), (width - 1, 0, 1, 1), (0, height - 1, 1, 1)]
    while len(found) < count:
        w, h = (int(min(side, 2 ** rng.uniform(0, 9.5))) for side in (width, height))
        found.append((int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h))
    return found


@pytest.mark.parametrize(
    ("width", "height", "tile", "count"), [(1100, 900, 256, 110), (17, 4099, 128, 40), (701, 333, 64, 50)]
)
def test_windows_equal_the_crop_of_the_full_decode(
    codec: Codec, width: int, height: int, tile: int, count: int
) -> None:
    data = codec.encode(texture(height, width), quality=60, tile=tile)
    full = codec.decode(data)
    for window in windows(width, height, count, seed=width):
        x, y, w, h = window
        np.testing.assert_array_equal(
            codec.decode(data, region=window), full[y : y + h, x : x + w], err_msg=str(window)
        )


def test_windows_of_a_20_megapixel_frame(codec: Codec) -> None:
    width, height = 5472, 3648
    data = codec.encode(texture(height, width), quality=30)
    full = codec.decode(data)
    assert full.shape == (height, width, 3)
    for x, y, w, h in [(0, 0, 64, 64), (2047, 1023, 300, 200), (5408, 3600, 64, 48), (3000, 1500, 513, 31)]:
        np.testing.assert_array_equal(codec.decode(data, region=(x, y, w, h)), full[y : y + h, x : x + w])


class CountingFile(io.BytesIO):
    """Counts the bytes that are read."""

    read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.read_bytes += len(data)
        return data


def test_a_window_reads_only_what_it_needs(codec: Codec) -> None:
    data = codec.encode(texture(2048, 2048), quality=60, tile=256)
    picture = Reader(data)
    needed = {row * 8 + column for row in (3, 4) for column in (3, 4)}
    payload = sum(picture.index().entries[number][1] for number in needed)
    source = CountingFile(data)
    codec.decode(source, region=(1000, 1000, 40, 40))
    front = 8 + 2 * 20 + 80 + 4 + 12 * 64
    assert source.read_bytes <= payload + front + 40 * len(needed)
    assert source.read_bytes < len(data) / 8


def test_the_window_does_not_care_about_damage_elsewhere(codec: Codec) -> None:
    image = texture(1024, 1024)
    data = bytearray(codec.encode(image, quality=60, tile=128))
    full = codec.decode(bytes(data))
    offset, length = Reader(bytes(data)).index().entries[63]
    data[offset + length // 2] ^= 0x10
    np.testing.assert_array_equal(codec.decode(bytes(data), region=(0, 0, 200, 200)), full[:200, :200])
    with pytest.raises(InputError, match="checksum"):
        codec.decode(bytes(data))


def test_rate_and_psnr_rise_with_quality(codec: Codec, photograph: np.ndarray) -> None:
    sizes, quality_db = [], []
    for quality in range(1, 101, 9):
        data = codec.encode(photograph, quality=quality)
        sizes.append(len(data))
        quality_db.append(psnr(codec.decode(data), photograph))
    assert (np.diff(sizes) > 0).all(), sizes
    assert (np.diff(quality_db) > 0).all(), quality_db


def test_tile_size_and_threads_change_nothing_in_the_pixels_of_one_tile(codec: Codec, photograph: np.ndarray) -> None:
    single = Codec.open(threads=1)
    data = codec.encode(photograph, quality=60)
    assert single.encode(photograph, quality=60) == data
    np.testing.assert_array_equal(single.decode(data), codec.decode(data))


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_tiles_are_coded_in_parallel(
    codec: Codec, photograph: np.ndarray, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entropy coding of one tile waits until a thread has begun that of another, or fails; one thread cannot."""
    data = codec.encode(photograph, quality=60, tile=128)
    pixels = codec.decode(data)
    met = threading.Event()

    def meeting(code):  # type: ignore[no-untyped-def]
        barrier = threading.Barrier(2)

        def wait_and_code(*arguments):  # type: ignore[no-untyped-def]
            if not met.is_set():
                barrier.wait(timeout=20)
                met.set()
            return code(*arguments)

        return wait_and_code

    monkeypatch.setattr(core, "search", meeting(core.search))
    monkeypatch.setattr(core, "dequantize", meeting(core.dequantize))
    with_two = Codec(codec.bundle, codec.backend, threads=2)
    if direction == "encode":
        assert with_two.encode(photograph, quality=60, tile=128) == data
    else:
        np.testing.assert_array_equal(with_two.decode(data), pixels)
    assert met.is_set()
    met.clear()
    alone = Codec(codec.bundle, codec.backend, threads=1)
    monkeypatch.setattr(threading.Barrier, "wait", lambda *_, **__: pytest.fail("one thread has nobody to meet"))
    with pytest.raises(pytest.fail.Exception):
        alone.encode(photograph, tile=128) if direction == "encode" else alone.decode(data)


def test_digest_proves_the_decode(codec: Codec, photograph: np.ndarray) -> None:
    data = codec.encode(photograph, quality=60, tile=128, digest=True)
    assert Reader(data).index().digest == hashlib.sha256(codec.decode(data)).digest()
    assert codec.verify_pixels(data)
    with pytest.raises(InputError, match="no digest"):
        codec.verify_pixels(codec.encode(photograph[:64, :64]))


def test_views_and_progress(codec: Codec, photograph: np.ndarray) -> None:
    seen: list[tuple[int, int]] = []
    view = photograph[::2, 100:300]
    data = codec.encode(view, quality=70, tile=64, progress=lambda done, total: seen.append((done, total)))
    assert data == codec.encode(view.copy(), quality=70, tile=64)
    assert seen[-1] == (16, 16)


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.encode(np.zeros((4, 4), np.uint8)),
        lambda c: c.encode(np.zeros((4, 4, 3), np.float32)),
        lambda c: c.encode(np.zeros((4, 4, 3), np.uint8), quality=0),
        lambda c: c.encode(np.zeros((4, 4, 3), np.uint8), quality=101),
        lambda c: c.encode(np.zeros((4, 4, 3), np.uint8), tile=100),
        lambda c: c.encode(np.zeros((0, 4, 3), np.uint8)),
        lambda c: Codec.open(threads=0),
        lambda c: Codec.open(backend="quantum"),
    ],
)
def test_wrong_usage(codec: Codec, call: Callable[[Codec], object]) -> None:
    with pytest.raises(UsageError):
        call(codec)


@pytest.mark.parametrize("region", [(-1, 0, 5, 5), (0, 0, 0, 5), (60, 0, 5, 5), (0, 64, 1, 1)])
def test_regions_outside_are_refused(codec: Codec, region: tuple[int, int, int, int]) -> None:
    data = codec.encode(texture(64, 64))
    with pytest.raises(UsageError, match="not inside the frame of 64x64"):
        codec.decode(data, region=region)


def test_output_size_is_bounded(codec: Codec) -> None:
    data = codec.encode(texture(64, 64))
    with pytest.raises(UsageError, match="limit"):
        codec.decode(data, max_pixels=64 * 63)


def test_another_bundle_is_named(codec: Codec) -> None:
    data = bytearray(codec.encode(texture(64, 64)))
    from dataclasses import replace

    from linnet.runtime.writer import write_picture

    picture = Reader(bytes(data))
    forged = write_picture(replace(picture.record(), bundle=b"\xab" * 32), [picture.tile(0)])
    with pytest.raises(InputError, match="encoded with bundle abababababababab"):
        codec.decode(forged)


def test_bundle_refuses_a_changed_member(codec: Codec, tmp_path) -> None:  # type: ignore[no-untyped-def]
    import zipfile

    from linnet.runtime.bundle import locate

    broken = tmp_path / "broken.lntb"
    with zipfile.ZipFile(locate()) as source, zipfile.ZipFile(broken, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            target.writestr(name, content[:-1] + b"\1" if name == "tables.npz" else content)
    with pytest.raises(InputError, match=r"tables\.npz"):
        Bundle.open(broken)
    with pytest.raises(InputError):
        broken.write_bytes(b"not a zip")
        Bundle.open(broken)


def test_wrong_arithmetic_is_refused(codec: Codec) -> None:
    from linnet.runtime.backends import check_known_answer
    from linnet.runtime.backends.reference import ReferenceBackend
    from linnet.runtime.errors import MachineError

    class Off(ReferenceBackend):
        name = "off-by-one"

        def run(self, network, inputs):  # type: ignore[no-untyped-def]
            outputs = super().run(network, inputs)
            outputs[0].flat[7] += 1
            return outputs

    with pytest.raises(MachineError, match=r"off-by-one computes network context_2 .* wrongly"):
        check_known_answer(Off(codec.bundle.networks), codec.bundle, "context_2")


def test_every_bundle_in_the_package_is_found_by_name_and_by_its_files(photograph: np.ndarray, tmp_path: Path) -> None:
    """A file says by identity which bundle made it: nobody has to name it to decode."""
    from linnet.runtime.bundle import SHIPPED, locate, shipped, shipped_identities

    assert SHIPPED in shipped() and len(shipped()) > 1
    image, made = photograph[:64, :96], {}
    for name, path in shipped().items():
        assert locate(name) == path and Bundle.open(name).name == name
        made[name] = linnet.encode(image, bundle=name)
        assert shipped_identities()[Reader(made[name]).record().bundle.hex()] == name
        np.testing.assert_array_equal(linnet.decode(made[name]), linnet.decode(made[name], bundle=name))
        (tmp_path / f"{name}.lnt").write_bytes(made[name])
        with linnet.open(tmp_path / f"{name}.lnt") as file:
            np.testing.assert_array_equal(file.read(), linnet.decode(made[name]))
    with pytest.raises(InputError, match="was encoded with bundle"):
        linnet.decode(made[SHIPPED], bundle=next(name for name in shipped() if name != SHIPPED))


def test_encoders_stay_within_their_profiles() -> None:
    """kMAC/px of analysis and entropy networks: at most 15 everywhere, 4 for the codec of small cameras."""
    from linnet.runtime.bundle import shipped

    cost = {name: Bundle.open(name).manifest["kmac_per_pixel"] for name in shipped()}
    assert max(own["encoder"] for own in cost.values()) <= 15
    assert cost["micro"]["encoder"] <= 4
