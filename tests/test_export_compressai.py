"""Float hyperprior-class codecs to bundles: the rewriting is exact, the bundles code, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path

import book_decoder
import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402

from linnet.calibration.qat import set_exact  # noqa: E402
from linnet.cli import main  # noqa: E402
from linnet.export import conversion, hyperprior_bundle  # noqa: E402
from linnet.export.models.compressai import GDN, MODELS, EntropyBottleneck, load_model  # noqa: E402
from linnet.export.models.hyperprior import Hyperprior, Magnitude  # noqa: E402
from linnet.export.stages import on_planes, read_stages, run, to_planes  # noqa: E402
from linnet.runtime.backends.reference import ReferenceBackend  # noqa: E402
from linnet.runtime.bundle import Bundle  # noqa: E402
from linnet.runtime.codec import Codec  # noqa: E402
from linnet.runtime.errors import InputError, UsageError  # noqa: E402
from linnet.training.train_hyperprior import train  # noqa: E402

WIDTHS = (8, 12)


def sane_model(name: str) -> nn.Module:
    """Random weights whose latents spread over several quantisation steps and whose scales and images have sense."""
    torch.manual_seed(5)
    model = MODELS[name](*WIDTHS).eval()
    with torch.no_grad():
        model.g_a[-1].weight.mul_(60)
        model.g_s[0].weight.mul_(0.6)
        model.g_s[-1].bias.fill_(0.5)
        if hasattr(model, "h_a"):
            model.h_a[-1].weight.mul_(8)
            last = [layer for layer in model.h_s if isinstance(layer, nn.Conv2d)][-1]
            last.bias[: WIDTHS[1]] = torch.linspace(0.2, 4, WIDTHS[1])
    return model


@pytest.fixture(scope="module")
def images(request: pytest.FixtureRequest) -> list[np.ndarray]:
    data = pytest.importorskip("skimage.data")
    pictures = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), data.hubble_deep_field()]
    return [np.ascontiguousarray(picture[:384, :448]) for picture in pictures]


@pytest.fixture(scope="module")
def quick(request: pytest.FixtureRequest) -> None:
    """Less of everything that only buys quality."""
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setattr(conversion, "FIT_STEPS", 30)
    patch.setattr(conversion, "SAMPLES", 2048)
    for name, value in {"FITTED_CROPS": 2, "COUNTED_CROPS": 2, "BATCH": 1, "MEASURED_QUALITIES": (40, 60)}.items():
        patch.setattr(hyperprior_bundle, name, value)


@pytest.fixture(scope="module", params=sorted(MODELS))
def exported(
    request: pytest.FixtureRequest, quick: None, images: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, Path, hyperprior_bundle.ExportReport]:
    out = tmp_path_factory.mktemp("bundle") / "codec.lntb"
    model = sane_model(request.param)
    return model, out, hyperprior_bundle.export_model(request.param, model, images, out, steps=4)


@pytest.mark.parametrize(("kernel", "padding", "extra"), [(5, 2, 1), (4, 1, 0), (3, 1, 1), (2, 0, 0), (6, 2, 0)])
def test_a_transposed_convolution_is_a_convolution_and_a_shuffle(kernel: int, padding: int, extra: int) -> None:
    torch.manual_seed(kernel)
    layer = nn.ConvTranspose2d(3, 5, kernel, 2, padding, extra).double()
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    (stage,) = read_stages("d", layer)
    torch.testing.assert_close(stage(x), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride"), [(5, 2), (3, 2), (4, 2), (9, 4)])
def test_the_first_convolution_moves_to_planes(kernel: int, stride: int) -> None:
    torch.manual_seed(kernel)
    layer = nn.Conv2d(3, 4, kernel, stride, (kernel - 1) // 2).double()
    x = torch.randn(1, 3, 32, 24, dtype=torch.float64)
    stage = on_planes(read_stages("g_a", layer)[0])
    torch.testing.assert_close(stage(F.pixel_unshuffle(x, 2)), layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_whole_networks_are_rewritten_exactly(name: str) -> None:
    model, image = sane_model(name).double(), torch.rand(1, 3, 64, 128, dtype=torch.float64)
    with torch.no_grad():
        latent = model.g_a(image)
        networks = conversion.rewritten(model)
        torch.testing.assert_close(run(networks["analysis"], F.pixel_unshuffle(image, 2)), latent, rtol=0, atol=1e-9)
        planes = F.pixel_unshuffle(model.g_s(latent), 2)
        torch.testing.assert_close(run(networks["synthesis"], latent), planes, rtol=0, atol=1e-9)


def test_grouped_convolutions_become_dense() -> None:
    layer, x = nn.Conv2d(6, 4, 3, 1, 1, groups=2), torch.randn(1, 6, 5, 5)
    torch.testing.assert_close(read_stages("g", layer)[0](x), layer(x))


def test_the_magnitude_is_exact() -> None:
    """Every int8 value of the input, through the exact layers."""
    module = Magnitude(2)
    for layer in (module.parts, module.sum):
        layer.exact = True
    x = torch.arange(-128, 128).repeat(2, 1)[None, :, :, None] / 128
    torch.testing.assert_close(module(x), x.abs().clamp(max=127 / 128), rtol=0, atol=0)


def test_files_round_trip_on_every_backend(exported: tuple[nn.Module, Path, object], photograph: np.ndarray) -> None:
    """Encode, decode on ONNX Runtime, on the reference and by the document; windows are crops; tiles do not matter."""
    codec = Codec.open(exported[1], "onnxruntime", 1)
    reference = Codec(codec.bundle, ReferenceBackend(codec.bundle.networks), 1)
    image = photograph[60:190, 140:300]
    for quality in (20, 60, 100):
        data = codec.encode(image, quality=quality, tile=64, digest=True)
        pixels = codec.decode(data)
        assert pixels.shape == image.shape
        np.testing.assert_array_equal(reference.decode(data), pixels)
        np.testing.assert_array_equal(codec.decode(data, region=(37, 21, 100, 90)), pixels[21:111, 37:137])
        assert reference.encode(image, quality=quality, tile=64, digest=True) == data
    small = codec.encode(image[:64, :64], quality=60)
    np.testing.assert_array_equal(book_decoder.decode(small, codec.bundle), codec.decode(small))


def test_finer_qualities_cost_more(exported: tuple[nn.Module, Path, object], photograph: np.ndarray) -> None:
    codec = Codec.open(exported[1], "onnxruntime", 1)
    sizes = [len(codec.encode(photograph[:256, :256], quality=quality)) for quality in (20, 60, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < 0.8 * sizes[2]


def test_the_exact_codec_follows_the_float_model(
    exported: tuple[nn.Module, Path, hyperprior_bundle.ExportReport],
) -> None:
    report = exported[2]
    assert max(report.conversion.rewriting_error.values()) < 1e-5
    assert report.conversion.network_sqnr_db["analysis"] > 12
    assert report.conversion.network_sqnr_db["synthesis"] > 12
    for point in report.points:
        assert abs(point["psnr"] - point["float_psnr"]) < 1.5
        assert point["bpp"] < 1.5 * point["float_bpp"] + 0.02
    assert Bundle.open(exported[1]).identity == report.identity


def test_the_float_twin_decodes_what_the_bundle_decodes(quick: None, images: list[np.ndarray], tmp_path: Path) -> None:
    """`Hyperprior` in PyTorch from the bundle's decoded latents: the pixels of the runtime, bit for bit."""
    photographs = hyperprior_bundle.CalibrationImages(images)
    crops = photographs.crops(2)
    full = hyperprior_bundle.to_full_scale(crops)
    codec, _ = conversion.convert(sane_model("mbt2018-mean"), full, lambda: full[:1], 2)
    assert isinstance(codec, Hyperprior)
    hyperprior_bundle.write_hyperprior("twin", codec, crops, tmp_path / "twin.lntb")
    opened = Codec.open(tmp_path / "twin.lntb", "onnxruntime", 1)
    planes = np.round(F.pixel_unshuffle(full[:1], 2).numpy() * 128).astype(np.int8).transpose(0, 2, 3, 1)
    latents = opened.backend.run("analysis", {"planes": np.ascontiguousarray(planes)})[0]
    with torch.no_grad():
        torch_latents = codec.latent(full[:1]) / (128 * codec.latents.unit[:, None, None])
        np.testing.assert_allclose(torch_latents.numpy().transpose(0, 2, 3, 1), latents, rtol=0, atol=1e-6)
        quarters = codec.code(codec.latent(full[:1]))
        both = np.round(codec.latents.both(quarters).numpy() * 128).astype(np.int8).transpose(0, 2, 3, 1)
        (decoded,) = opened.backend.run("synthesis", {"latent": np.ascontiguousarray(both)})
        pixels = codec.reconstruct(quarters)
    np.testing.assert_array_equal(
        np.round(F.pixel_unshuffle(pixels, 2).numpy() * 128).transpose(0, 2, 3, 1), decoded.astype(np.float32)
    )


def test_the_codec_is_kept_for_pytorch(quick: None, images: list[np.ndarray], tmp_path: Path) -> None:
    """What is kept is what `linnet.calibration` asks of a codec, and codes as the one in memory does."""
    full = hyperprior_bundle.to_full_scale(hyperprior_bundle.CalibrationImages(images).crops(2))
    codec, _ = conversion.convert(sane_model("bmshj2018-hyperprior"), full, lambda: full[:1], 0)
    torch.save(codec.as_dict("kept"), tmp_path / "kept.pt")
    name, loaded = hyperprior_bundle.load_hyperprior(tmp_path / "kept.pt")
    assert name == "kept"
    loaded.set_exact(True)
    with torch.no_grad():
        quality = torch.tensor([0.2, 0.8])
        for got, want in zip(loaded(full, quality), codec(full, quality), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)
        coarse, fine = codec(full[:1], quality[:1]), codec(full[:1], quality[1:])
    assert fine[1] > coarse[1] > 0
    assert (fine[0] - full[:1]).square().mean() <= (coarse[0] - full[:1]).square().mean() * 1.05
    torch.save({"other": 1}, tmp_path / "kept.pt")
    with pytest.raises(InputError, match="is not a codec that `linnet export --keep` wrote"):
        hyperprior_bundle.load_hyperprior(tmp_path / "kept.pt")


@pytest.mark.slow
def test_calibrate_quantises_what_was_kept(
    quick: None, images: list[np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = hyperprior_bundle.to_full_scale(hyperprior_bundle.CalibrationImages(images).crops(2))
    codec, _ = conversion.convert(sane_model("bmshj2018-hyperprior"), full, lambda: full[:1], 0)
    torch.save(codec.as_dict("mine"), tmp_path / "kept.pt")
    (tmp_path / "photographs").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "photographs" / f"{number}.png")
    bundle = tmp_path / "mine.lntb"
    command = ["calibrate", str(tmp_path / "kept.pt"), "--images", str(tmp_path / "photographs"), "--count", "4"]
    assert main([*command, "--no-sensitivity", "--out", str(bundle)]) == 0
    assert "mine, int8-exact" in capsys.readouterr().out
    opened, reference = (Codec.open(bundle, backend, 1) for backend in ("onnxruntime", "reference"))
    data = opened.encode(images[0][:128, :192])
    np.testing.assert_array_equal(opened.decode(data), reference.decode(data))


# Loading


@pytest.mark.parametrize("spelling", ["_matrix{}", "_matrices.{}", "matrices.{}"])
def test_weights_of_every_version_load(tmp_path: Path, spelling: str) -> None:
    model = sane_model("mbt2018-mean")
    kinds = {"_matrix": "matrix", "_bias": "bias", "_factor": "factor"}
    plural = {"matrix": "matrices", "bias": "biases", "factor": "factors"}
    state = {}
    for key, value in model.state_dict().items():
        head, _, tail = key.partition("entropy_bottleneck.")
        kind = kinds.get(tail[:-1]) if not head else None
        if kind and spelling != "_matrix{}":
            key = f"entropy_bottleneck.{spelling.replace('matrices', plural[kind]).format(tail[-1])}"
        state[f"module.{key}"] = value
    state["module.g_a.1.gamma_reparam.pedestal"] = torch.tensor([GDN.PEDESTAL])
    state["module.gaussian_conditional.scale_table"] = torch.ones(64)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "w.pth.tar")
    loaded = load_model("mbt2018-mean", tmp_path / "w.pth.tar")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0)


def test_wrong_weights_are_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with pytest.raises(InputError, match="is not a PyTorch state dict"):
        load_model("mbt2018-mean", path)
    path.write_bytes(b"no zip")
    with pytest.raises(InputError, match="is not a PyTorch state dict"):
        load_model("mbt2018-mean", path)
    torch.save({"epoch": 1}, path)
    with pytest.raises(InputError, match="does not map names to tensors"):
        load_model("mbt2018-mean", path)
    torch.save(sane_model("bmshj2018-factorized").state_dict(), path)
    with pytest.raises(InputError, match=r"entropy_bottleneck\._matrix0 has shape \(12, 3, 1\), not \(8, 3, 1\)"):
        load_model("mbt2018-mean", path)
    with pytest.raises(InputError, match=r"N, M = \(8, 12\), .* at quality 3 has \(128, 192\)"):
        load_model("bmshj2018-factorized", path, 3)
    state = sane_model("bmshj2018-factorized").state_dict()
    state["g_s.0.bias"][0] = float("nan")
    torch.save(state, path)
    with pytest.raises(InputError, match=r"g_s\.0\.bias holds values that are not finite"):
        load_model("bmshj2018-factorized", path)


def test_the_learned_density_sums_to_one() -> None:
    torch.manual_seed(1)
    bottleneck = EntropyBottleneck(3).eval()
    values = torch.arange(-400.0, 401).expand(3, -1)[None, :, :, None]
    torch.testing.assert_close(bottleneck.likelihood(values).sum(2).flatten(), torch.ones(3), rtol=0, atol=1e-3)
    coarse = bottleneck.likelihood(values[:, :, ::4], step=4.0).sum(2).flatten()
    torch.testing.assert_close(coarse, torch.ones(3), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_a_coarser_step_makes_the_float_model_cheaper(name: str) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        rates = [sane_model(name).evaluate(torch.rand(1, 3, 64, 64), step)[1].item() for step in (0.5, 1.0, 2.0)]
    assert rates == sorted(rates, reverse=True)
    assert rates[2] < 0.9 * rates[0]


def test_the_training_script_writes_what_export_reads(images: list[np.ndarray], tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "photographs" / f"{number}.png")
    weights = tmp_path / "w.pt"
    train("bmshj2018-hyperprior", tmp_path / "photographs", weights, WIDTHS, 0.013, minutes=0.01, crop=64, batch=2)
    first = load_model("bmshj2018-hyperprior", weights)
    train("mbt2018-mean", tmp_path / "photographs", weights, WIDTHS, 0.013, 0.0, start=weights)
    torch.testing.assert_close(load_model("mbt2018-mean", weights).g_a[0].weight, first.g_a[0].weight)


# Refusals


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softmax(1)), r"g_a\.1 \(Softmax\).* use Conv2d"),
        (nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)), r"g_a\.0 \(ReLU\).*does not follow a convolution"),
        (nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3, dilation=2))), r"g_a\.0\.0 .*dilation"),
        (nn.Sequential(nn.Conv2d(3, 4, (3, 5))), r"kernel is \(3, 5\)"),
        (nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 3)), r"does not double the side"),
        (nn.Sequential(), "g_a has no layers"),
    ],
)
def test_layers_that_cannot_become_exact_are_named(network: nn.Module, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        read_stages("g_a", network)


@pytest.mark.parametrize(
    ("activation", "kind"),
    [(nn.ReLU(), "rectified"), (nn.LeakyReLU(), "rectified"), (nn.LeakyReLU(0.2), "fitted"), (nn.SiLU(), "fitted")],
)
def test_activations_are_rectified_or_fitted(quick: None, activation: nn.Module, kind: str) -> None:
    """A convolution and its activation against float, in exact arithmetic."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(4, 6, 3, 1, 1), activation, nn.Conv2d(6, 2, 1))
    x, report = torch.rand(1, 4, 48, 48) * 2 - 1, conversion.Report()
    with torch.no_grad():
        first, last = conversion._fit(read_stages("n", network), [x], torch.ones(4), torch.full((2,), 4.0), report)
        assert first.shape.activation == kind
        set_exact(nn.ModuleList([first, last]), True)
        error = 4 * last(first(torch.round(x * 128).clamp(-128, 127) / 128)) - network(x)
        assert error.abs().mean() < 0.06  # two steps of the output's int8
        assert error.square().mean() < 0.02 * network(x).square().mean()


def test_wrong_shapes_are_named() -> None:
    model = sane_model("mbt2018-mean")
    with pytest.raises(UsageError, match="without networks g_a and g_s"):
        conversion.rewritten(nn.Conv2d(3, 3, 3))
    with pytest.raises(UsageError, match="must take the 3 of an image with an even stride"):
        on_planes(read_stages("g_a", nn.Conv2d(3, 4, 3, 1, 1))[0])
    with pytest.raises(UsageError, match="must double the side and give the 3 of an image"):
        to_planes(read_stages("g_s", nn.Conv2d(4, 3, 3, 1, 1))[0])
    alone = sane_model("bmshj2018-hyperprior")
    del alone.h_s
    with pytest.raises(UsageError, match="only one of h_a and h_s"):
        conversion.rewritten(alone)
    foreign = sane_model("bmshj2018-hyperprior")
    foreign.h_a[0] = nn.Conv2d(WIDTHS[1] + 1, WIDTHS[0], 3, 1, 1)
    with pytest.raises(UsageError, match=r"do not run on an image .*13"):
        conversion.convert(foreign, torch.zeros(1, 3, 64, 64), lambda: torch.zeros(1, 3, 64, 64), 0)
    torch.nn.init.constant_(foreign.g_a[0].bias, float("inf"))
    foreign.h_a[0] = nn.Conv2d(WIDTHS[1], WIDTHS[0], 3, 1, 1)
    with pytest.raises(InputError, match="analysis gives values that are not finite"):
        conversion.convert(foreign, torch.zeros(1, 3, 64, 64), lambda: torch.zeros(1, 3, 64, 64), 0)
    del model.g_a[0:2]
    with pytest.raises(UsageError, match="g_a shrinks the side 8 times"):
        conversion.rewritten(model)


def test_the_command_refuses_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = str(tmp_path / "w.pt")
    torch.save(sane_model("bmshj2018-factorized").state_dict(), weights)
    name, out = "compressai:bmshj2018-factorized", ["--out", str(tmp_path / "b.lntb")]
    (tmp_path / "empty").mkdir()
    (tmp_path / "one").mkdir()
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(tmp_path / "one" / "a.png")
    (tmp_path / "one" / "b.png").write_bytes(b"broken")
    cases = [
        ([name, "--out", str(tmp_path / "no" / "b.lntb")], 2, "the folder does not exist"),
        (["compressai:cheng2020", *out], 2, "compressai:cheng2020 is not known"),
        (["nonsense", *out], 2, "FILE.py:FUNCTION for a model of your own"),
        ([name, *out], 2, "needs --weights"),
        ([name, *out, "--weights", weights], 2, "needs --images"),
        ([name, *out, "--weights", weights, "--images", str(tmp_path / "none")], 1, "is not a folder"),
        ([name, *out, "--weights", weights, "--images", str(tmp_path / "empty")], 1, "holds no picture"),
        ([name, *out, "--weights", weights, "--images", str(tmp_path / "one")], 1, "give at least 5"),
    ]
    for arguments, status, words in cases:
        assert main(["export", *arguments]) == status, arguments
        assert words in capsys.readouterr().err
    assert not (tmp_path / "b.lntb").exists()


def test_a_model_of_ones_own(
    quick: None, images: list[np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example of docs/export.md, through the command."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    example = Path(__file__).parents[1] / "examples" / "own_model.py"
    out = tmp_path / "own.lntb"
    arguments = ["export", f"{example}:make", "--images", str(folder), "--out", str(out), "--steps", "2", "--json"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["identity"] == Bundle.open(out).identity
    assert set(report["conversion"]["activation_sqnr_db"]) == {"g_a.0", "g_s.0"}
    codec = Codec.open(out, "onnxruntime", 1)
    data = codec.encode(images[0][:100, :150])
    assert codec.decode(data).shape == (100, 150, 3)
