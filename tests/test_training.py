"""A smoke training: it learns, it resumes, and what it wrote exports to a bundle that codes a photograph exactly."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the export extra")
pytest.importorskip("onnx", reason="export needs the export extra")

from linnet.calibration.qat import ExactConv2d, saturate, to_full_scale  # noqa: E402
from linnet.export.bundling import export_codec, load_bundle_into_codec, trainable_codec  # noqa: E402
from linnet.export.models.latent_codec import laplacian_bits  # noqa: E402
from linnet.export.models.wavelet import FINEST_LOG2_GAIN, Micro, Wavelet  # noqa: E402
from linnet.export.tracing import trace  # noqa: E402
from linnet.runtime.bundle import Bundle, shipped  # noqa: E402
from linnet.runtime.codec import Codec  # noqa: E402
from linnet.runtime.network import Conv  # noqa: E402
from linnet.runtime.reader import Reader  # noqa: E402
from linnet.training import train as training  # noqa: E402
from linnet.training import tune_gains  # noqa: E402
from linnet.training.bias import correct_bias  # noqa: E402

TINY = Path(__file__).parent / "vectors" / "tiny.lntb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, photograph: np.ndarray) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("photographs")
    for number in range(4):
        Image.fromarray(np.rot90(photograph, number)).save(folder / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"not an image")
    return folder


@pytest.mark.slow
def test_smoke_training_resumes_and_exports(
    folder: Path, tmp_path: Path, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "COUNTED_CROPS", 4)
    training.train(folder, tmp_path, steps=9)
    first = torch.load(tmp_path / "last.pt", weights_only=True)
    with pytest.raises(SystemExit, match="architecture wavelet2, not wavelet2-micro: leave --model out"):
        training.train(folder, tmp_path, steps=15, model="wavelet2-micro")
    training.train(folder, tmp_path, steps=15)
    second = torch.load(tmp_path / "last.pt", weights_only=True)
    assert second["steps"] == 15 and first["steps"] == 9
    assert second["elapsed"] > first["elapsed"] > 0
    with (tmp_path / "curve.csv").open() as file:
        rows = [[float(value) for value in row] for row in csv.reader(file)]
    assert np.isfinite(rows).all()

    counts = second["symbol_counts"]
    assert counts.sum() > 1e6 and counts[:, :, 0].sum() > counts.sum() / 2
    assert len(counts) == 2 and counts[1].sum() > 1000, "of the trellis' second quantiser, too"

    bundle = tmp_path / "smoke.lntb"
    identity = export_codec(tmp_path / "last.pt", bundle)
    codec, reference = (Codec.open(bundle, backend) for backend in ("onnxruntime", "reference"))
    image = photograph[:128, :192]
    data = codec.encode(image, quality=50)
    assert Reader(data).record().bundle.hex() == identity
    np.testing.assert_array_equal(codec.decode(data), reference.decode(data))
    error = np.mean((codec.decode(data).astype(float) - image) ** 2)
    assert 10 * np.log10(255**2 / error) > 24, "what training starts with gives more than that"

    again = load_bundle_into_codec(codec.bundle)
    for name, (module, channels) in again.named_networks().items():
        for stored, node in zip(codec.bundle.networks[name].nodes, trace(name, module, channels).nodes, strict=True):
            if isinstance(stored, Conv):
                scales = [2.0 ** -conv.shift.astype(float)[:, None, None, None] for conv in (stored, node)]
                np.testing.assert_array_equal(stored.weight * scales[0], node.weight * scales[1])


@pytest.fixture(scope="module")
def start(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose last steps were in exact integers."""
    out = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "COUNTED_CROPS", 2)
        training.train(folder, out, steps=4, batch=1)
    return out / "last.pt"


def transforms(checkpoint: Path) -> dict[str, torch.Tensor]:
    weights = torch.load(checkpoint, weights_only=True)["average"]
    return {name: weights[name] for name in weights if name.startswith(("analysis.", "synthesis."))}


@pytest.mark.slow
def test_another_model_keeps_the_transforms_it_starts_with(
    folder: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "COUNTED_CROPS", 2)
    training.train(folder, tmp_path, steps=6, model="wavelet2-micro", start=start, batch=1)
    given, taken = transforms(start), transforms(tmp_path / "last.pt")
    assert len(given) > 60
    assert [name for name in taken if not torch.equal(taken[name], given[name])] == []
    gains = [
        torch.load(path, weights_only=True)["average"]["finest_log_gain"] for path in (start, tmp_path / "last.pt")
    ]
    assert torch.equal(*(own[: Micro.gain_count] for own in gains))


@pytest.mark.slow
def test_training_for_ms_ssim_keeps_the_filters(
    folder: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "COUNTED_CROPS", 2)
    training.train(folder, tmp_path, steps=4, structure=True, start=start, batch=1)
    given, trained = transforms(start), transforms(tmp_path / "last.pt")
    filters = {name for name in given if ".low" in name or ".detail" in name or ".coarse" in name}
    assert len(filters) > 40 and all(torch.equal(trained[name], given[name]) for name in filters)
    for name in ("synthesis.merge8.weight", "synthesis.out.weight"):
        assert not torch.equal(trained[name], given[name])


@pytest.mark.slow
@pytest.mark.parametrize("structure", [False, True])
def test_the_synthesis_alone_learns_to_draw_latents_that_stay(
    folder: Path, start: Path, tmp_path: Path, structure: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "COUNTED_CROPS", 2)
    given = torch.load(start, weights_only=True)
    given["symbol_counts"] += 1000 * torch.eye(*given["symbol_counts"].shape[-2:]).long()  # not what counting gives
    torch.save(given, tmp_path / "start.pt")
    options = {"keep": "latents", "only_exact": True, "structure": structure, "batch": 1}
    training.train(folder, tmp_path / "run", steps=2, start=tmp_path / "start.pt", **options)
    with pytest.raises(SystemExit, match="--keep latents needs --only-exact"):
        training.train(folder, tmp_path / "run", steps=3)
    training.train(folder, tmp_path / "run", steps=3, **options)
    trained = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert trained["steps"] == 3 and torch.equal(given["symbol_counts"], trained["symbol_counts"])
    changed = {name for name, values in given["average"].items() if not torch.equal(values, trained["average"][name])}
    assert [name for name in changed if not name.startswith("synthesis.")] == []
    assert "synthesis.merge8.weight" in changed and ("synthesis.low1.weight" in changed) != structure


@pytest.mark.slow
def test_a_batch_that_is_drawn_again_is_of_pictures_with_their_latents(
    folder: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "ENCODED_BATCHES", 2)
    trainer = training.Trainer(folder, tmp_path, 1.0, 0, keep="latents", only_exact=True, start=start)
    trainer.codec.set_exact(True)
    for trainer.steps in range(training.REDRAWN + 1):
        images, quality, decoded = trainer._encoded_batch(2, 64)
        assert images.shape == (2, 3, 64, 64) and 0 <= quality[0] < 0.5 <= quality[1] < 1
        if trainer.steps in (0, training.REDRAWN):
            with torch.no_grad():
                assert torch.equal(decoded, trainer.codec.rate(images, quality)[0])
    newest, oldest = trainer.encoded[-1][0], trainer.encoded[0][0]
    assert len(trainer.encoded) == 2 and not torch.equal(newest, oldest)


def test_what_is_kept_must_be_there(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="2"):
        patch.setattr("sys.argv", ["train", str(folder), str(tmp_path / "run"), "--keep", "transforms"])
        training.main()
    assert "--keep transforms needs --start, a checkpoint that has them" in capsys.readouterr().err
    options = {"keep": "latents", "only_exact": True, "steps": 1}
    with pytest.raises(SystemExit, match=r"micro.* has no symbol counts, which tell the latents"):
        training.train(folder, tmp_path / "run", start=shipped()["micro"], **options)
    with pytest.raises(SystemExit, match=r"--keep latents does not go with .*micro.*, whose training keeps transforms"):
        training.train(folder, tmp_path / "run", start=shipped()["micro"], model="wavelet2", **options)


def trainable_micro() -> Micro:
    """The shipped codec to train on, exact, with its entropy tables."""
    bundle = Bundle.open("micro")
    codec = trainable_codec(bundle)
    codec.set_exact(True)
    codec.entropy_tables = bundle.entropy_tables
    return codec


@pytest.mark.slow
def test_a_bundle_can_be_trained_on(
    folder: Path, photograph: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open("micro")
    stored, learned = load_bundle_into_codec(bundle), trainable_micro().eval()
    images = to_full_scale(photograph[None, :256, :256]).expand(3, -1, -1, -1)
    quality = torch.tensor([0.0, 37 / 99, 1.0])
    with torch.no_grad():
        (pixels, bits), (own_pixels, own_bits) = stored(images, quality), learned(images, quality)
    torch.testing.assert_close(own_bits, bits, rtol=0.01, atol=0)
    errors = [(decoded - images).square().flatten(1).mean(1) for decoded in (pixels, own_pixels)]
    torch.testing.assert_close(errors[1], errors[0], rtol=0.02, atol=0)

    monkeypatch.setattr(training, "COUNTED_CROPS", 2)
    training.train(folder, tmp_path, steps=2, start=shipped()["micro"], only_exact=True, batch=1)
    checkpoint = torch.load(tmp_path / "last.pt", weights_only=True)
    assert (checkpoint["architecture"], checkpoint["steps"]) == ("wavelet2-micro", 2)
    with pytest.raises(SystemExit, match=r"--start: bundle tiny holds a codec of another kind"):
        training.train(folder, tmp_path / "tiny", steps=2, start=TINY)


@pytest.mark.slow
def test_patterns_of_the_last_layer_are_taken_out(photograph: np.ndarray) -> None:
    codec = trainable_micro()
    images = to_full_scale(np.stack([photograph[:256, :256], photograph[-256:, -256:]]))
    correct_bias(codec, images)
    layer = codec.synthesis.out.bias
    right = layer.detach().clone()
    with torch.no_grad():
        layer[7] += 3 / 128
        layer[40] -= 2 / 128
    correct_bias(codec, images)
    torch.testing.assert_close(layer.detach(), right, rtol=0, atol=0.6 / 128)  # a layer that rounds is not linear


@pytest.mark.slow
def test_gains_that_are_too_coarse_are_found_out(photograph: np.ndarray) -> None:
    codec = trainable_micro()
    codec.gain_groups = ((0,),)
    spoilt = codec.learned_gains().detach()
    spoilt[:3, 0] += 2  # octaves: the lowpass of the three coarser anchors
    codec.set_learned_gains(spoilt)
    images = to_full_scale(np.stack([photograph[:128, :128], photograph[200:328, 200:328]]))
    saved = tune_gains.tune(codec, images, rounds=1)
    assert min(saved) >= 0 and min(saved[:3]) > 0.05
    tuned = codec.learned_gains().detach()
    assert (tuned[:3, 0] <= spoilt[:3, 0] - 0.2).all()
    torch.testing.assert_close(tuned[:, 1 : codec.gain_count], spoilt[:, 1 : codec.gain_count], rtol=0, atol=0.01)


@pytest.mark.slow
def test_tuned_gains_go_into_a_checkpoint(
    folder: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"COUNTED_CROPS": 2, "COUNTED_CROP": 128, "PIECES": 1, "PIECE": 64}.items():
        monkeypatch.setattr(tune_gains, name, value)
    out = tmp_path / "tuned.pt"
    monkeypatch.setattr("sys.argv", ["tune_gains", str(folder), str(start), str(out), "--rounds", "1"])
    with (
        monkeypatch.context() as many,
        pytest.raises(SystemExit, match="3 pictures have 64 x 64 pixels or more: give at"),
    ):
        many.setattr(tune_gains, "PIECES", 4)
        tune_gains.main()
    tune_gains.main()
    given, tuned = (torch.load(path, weights_only=True) for path in (start, out))
    assert tuned["architecture"] == given["architecture"] and tuned["symbol_counts"].sum() > 1000
    changed = {name for name, value in tuned["average"].items() if not torch.equal(value, given["average"][name])}
    assert changed and changed <= {"finest_log_gain", "log_gain_steps", "synthesis.out.bias"}


def test_starts_that_do_not_fit_are_refused(folder: Path, tmp_path: Path) -> None:
    older = tmp_path / "older.pt"
    torch.save({"architecture": "camera", "average": {"analysis.bypass.weight": torch.zeros(1)}}, older)
    with pytest.raises(SystemExit, match="architecture camera, which is none of wavelet2, wavelet2-micro"):
        training.train(folder, tmp_path / "run", steps=1, start=older)
    with pytest.raises(SystemExit, match="other transforms than wavelet"):
        training.train(folder, tmp_path / "run", steps=1, model="wavelet2", start=older)


def test_exact_layer_is_on_the_integer_grid() -> None:
    torch.manual_seed(0)
    layer = ExactConv2d(8, 6, 3)
    layer.bias.data.uniform_(-0.5, 0.5)
    layer.exact = True
    x = torch.randint(-128, 128, (2, 8, 9, 9)) / 128
    y = layer.eval()(x) * 128
    assert torch.equal(y, y.round()) and y.min() >= -128 and y.max() <= 127
    weight, bias, exponent = layer.integers()
    assert torch.equal(weight % 2, torch.zeros_like(weight)) and (bias % 2 == 1).all()
    assert weight.abs().max() <= 126 and (weight.abs().flatten(1).amax(1) >= 62).all()
    assert (
        (weight * 2.0 ** -exponent.reshape(-1, 1, 1, 1) - layer.weight).abs() <= 2.0 ** -exponent.reshape(-1, 1, 1, 1)
    ).all()


def test_saturation_lets_a_little_gradient_through() -> None:
    x = torch.tensor([-2.0, 0.3, 5.0], requires_grad=True)
    saturate(x, exact=True).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, torch.tensor([0.1, 1.0, 0.1]))


def test_bits_are_a_distribution() -> None:
    symbols = torch.arange(-400, 401).float()
    for scale in (0.06, 0.3, 1.0, 5.0, 30.0):
        total = (2 ** -laplacian_bits(symbols, torch.tensor(scale))).sum().item()
        assert total == pytest.approx(1, abs=1e-3)


def test_gains_never_rise_with_quality() -> None:
    torch.manual_seed(1)
    codec = Wavelet()
    codec.log_gain_steps.data.normal_()
    gains = codec.log_gains(torch.linspace(0, 1, 100))
    assert (gains.diff(dim=0) <= 1e-6).all()
    assert (gains[:, : codec.latent_channels] >= FINEST_LOG2_GAIN).all() and (
        gains[:, codec.latent_channels :] >= 0
    ).all()


@pytest.mark.parametrize("model", [Wavelet, Micro])
def test_the_codec_computes_where_its_weights_are(model: type[Wavelet]) -> None:
    """Every tensor that the model makes on the way follows its weights: on the meta device nothing else would mix."""
    codec = model().to("meta")
    codec.train()
    decoded, bits = codec(torch.zeros(2, 3, 64, 64, device="meta"), torch.zeros(2, device="meta"))
    assert decoded.device.type == bits.device.type == "meta" and decoded.shape == (2, 3, 64, 64)


def test_structure_is_a_distortion_of_its_own(photograph: np.ndarray) -> None:
    images = training.to_full_scale(photograph[None, :192, :192])
    codec = Wavelet().eval()
    codec.networks = False
    codec.forward = lambda x, quality: (x, torch.ones(len(x)))  # type: ignore[method-assign]
    quality = torch.tensor([0.5])
    assert training.losses(codec, images, quality, structure=True)[2].item() == pytest.approx(0, abs=1e-5)
    codec.forward = lambda x, quality: (x.roll(3, 3), torch.ones(len(x)))  # type: ignore[method-assign]
    shifted = training.losses(codec, images, quality, structure=True)[2].item()
    codec.forward = lambda x, quality: ((x + 0.05).clamp(-1, 1), torch.ones(len(x)))  # type: ignore[method-assign]
    brighter = training.losses(codec, images, quality, structure=True)[2].item()
    assert shifted > 10 * brighter  # the squared error of the two is about the same
