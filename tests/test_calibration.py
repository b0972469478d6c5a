"""Post-training quantisation on small codecs, each step against its definition, and `linnet calibrate` as a user."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="calibration needs the export extra")
pytest.importorskip("onnx", reason="calibration needs the export extra")

from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from linnet import calibrating  # noqa: E402
from linnet.benchmarks.metrics import bd_rate  # noqa: E402
from linnet.calibration.assessment import GLUE, collect, mean_bd_rate, measure, sensitivity, signal_to_noise  # noqa: E402
from linnet.calibration.equalisation import ChannelGroups, equalise, observed_outputs  # noqa: E402
from linnet.calibration.ptq import Method, layers, quantise, round_layer  # noqa: E402
from linnet.calibration.qat import FULL_SCALE, ExactConv2d, SaturatingAdd, set_exact  # noqa: E402
from linnet.calibration.report import Report  # noqa: E402
from linnet.calibration.rounding import Moments, observed_patches, reconstruction_error, round_adaptively  # noqa: E402
from linnet.cli import main  # noqa: E402
from linnet.export.models.wavelet import Wavelet  # noqa: E402
from linnet.runtime.errors import InputError, UsageError  # noqa: E402

GENERATOR = torch.Generator().manual_seed(4)


class Decoder(nn.Module):
    """(N, 12, h, w) to (N, 3, 2h, 2w), with a residual block whose channels differ a lot in size."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = ExactConv2d(12, 16, 3)
        self.mix = ExactConv2d(16, 16, 1)
        self.add = SaturatingAdd()
        self.up = ExactConv2d(16, 12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x)
        return functional.pixel_shuffle(self.up(self.add(y, self.mix(y))), 2)


class TinyCodec(nn.Module):
    """Space to depth, quantisation with the quality's step, and a `Decoder`: enough of a codec for the tools."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.decoder = Decoder()
        # A little noise around the inverse of the space to depth, by way of channels of different sizes.
        for layer in (self.decoder.enter, self.decoder.mix, self.decoder.up):
            layer.weight.data.normal_(0, 0.003)
            layer.bias.data.uniform_(-0.01, 0.01)
        channel = torch.arange(12)
        size = 0.4 * 2.0 ** -(channel % 4)
        self.decoder.enter.weight.data[channel, channel, 1, 1] = size
        self.decoder.up.weight.data[channel, channel, 1, 1] = 1 / size
        self.exact = False

    def forward(self, images: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        step = 2.0 ** -(2 + 5 * quality)[:, None, None, None]
        latent = (functional.pixel_unshuffle(images, 2) / step).round()
        bits = (1 + latent.abs()).log2().flatten(1).mean(1)
        latent = (latent * step).clamp(-1, FULL_SCALE)
        return self.decoder((latent * 128).round() / 128 if self.exact else latent), bits

    def set_exact(self, exact: bool) -> None:
        set_exact(self, exact)

    def named_networks(self) -> dict[str, tuple[nn.Module, dict[str, int]]]:
        return {"synthesis": (self.decoder, {"x": 12})}


@pytest.fixture
def pictures() -> Tensor:
    """(8, 3, 64, 64): smooth random fields, on the grid of 8-bit pixels."""
    coarse = torch.randn(8, 3, 9, 9, generator=GENERATOR)
    fields = functional.interpolate(coarse, size=64, mode="bicubic")
    return (fields * 40).round().clamp(-128, 127) / 128


def correlated(count: int, size: int) -> Tensor:
    """(size, size) covariance of `count` samples in which neighbours resemble each other."""
    x = torch.randn(count, size, generator=GENERATOR, dtype=torch.float64).cumsum(1)
    return x.T @ x / count


def test_adaptive_rounding_finds_nearly_the_best_of_all_roundings() -> None:
    covariance = correlated(200, 6)
    weight = torch.randn(5, 6, generator=GENERATOR, dtype=torch.float64) * 4
    rounded = round_adaptively(weight, covariance, 63)
    found = reconstruction_error(weight, rounded, covariance)
    for row in range(5):
        choices = itertools.product(*((w.floor() + d for d in (-1.0, 0.0, 1.0, 2.0)) for w in weight[row]))
        candidates = torch.tensor([[float(v) for v in choice] for choice in choices], dtype=torch.float64)
        best = reconstruction_error(weight[row].expand_as(candidates), candidates, covariance).min()
        assert found[row] <= 1.5 * best
    nearest = reconstruction_error(weight, weight.round(), covariance)
    assert (found <= nearest + 1e-9).all() and found.sum() < 0.5 * nearest.sum()


def test_adaptive_rounding_keeps_to_the_limit_and_survives_dead_inputs() -> None:
    covariance = correlated(50, 8)
    covariance[3] = covariance[:, 3] = 0
    rounded = round_adaptively(torch.full((4, 8), 70.0, dtype=torch.float64), covariance, 63)
    assert rounded.abs().max() <= 63 and torch.equal(rounded, rounded.round())
    assert torch.equal(round_adaptively(torch.ones(2, 8), torch.zeros(8, 8, dtype=torch.float64), 63), torch.ones(2, 8))


def test_moments_are_those_of_the_patches() -> None:
    codec = TinyCodec()
    images = torch.rand(2, 3, 64, 64, generator=GENERATOR) - 0.5
    with observed_patches(codec) as moments, torch.no_grad():
        codec(images, torch.zeros(2))
    kept = moments["decoder.enter"]
    assert kept.count == 1500  # of 2 * 32 * 32 patches
    latent = (functional.pixel_unshuffle(images, 2) / 0.25).round() * 0.25
    patches = functional.unfold(latent.clamp(-1, FULL_SCALE), 3, padding=1).transpose(1, 2).flatten(0, 1).double()
    assert torch.allclose(kept.mean, patches.mean(0), atol=0.03)
    assert torch.allclose(kept.covariance, patches.T.cov(), atol=0.02)


@pytest.mark.parametrize("rounding", ["nearest", "adaptive"])
def test_bias_correction_removes_the_mean_error(rounding: str) -> None:
    torch.manual_seed(3)
    layer = ExactConv2d(4, 8, 3, raw=True)
    layer.bias.data.uniform_(-0.1, 0.1)
    x = torch.rand(4000, 36, dtype=torch.float64, generator=GENERATOR)  # far from zero mean
    moments = Moments(36)
    moments.add(x)
    weight, bias = (value.detach().double() for value in layer.effective())
    before = x @ weight.flatten(1).T + bias

    def mean_error(corrected: bool) -> float:
        layer.set_weight(weight.float())
        with torch.no_grad():
            layer.bias.copy_(bias)
        layer.fixed_exponents = None
        round_layer(layer, moments, Method(rounding=rounding, correct_bias=corrected))
        integers, odd, exponent = layer.integers()
        scale = 2.0 ** -exponent.double()
        after = (x @ integers.double().flatten(1).T + odd / 128) * scale
        return float((after - before).detach().mean(0).abs().max())

    assert mean_error(True) < 1e-3
    if rounding == "nearest":
        assert mean_error(False) > 3e-3


def test_equalisation_changes_scales_and_not_the_function(pictures: Tensor) -> None:
    codec = TinyCodec()
    quality = torch.full((8,), 0.7)
    with observed_outputs(codec.decoder) as outputs, torch.no_grad():
        before, _ = codec(pictures, quality)
    peaks = outputs["enter"].peak
    factors = equalise(codec.decoder, {"x": 12}, outputs, "minmax")
    with observed_outputs(codec.decoder) as outputs, torch.no_grad():
        after, _ = codec(pictures, quality)
    assert torch.allclose(before, after, atol=1e-5)
    assert factors["enter"].min() > 1.5, "the channels were small"
    # A residual stream shares its factors; one of its three tensors now reaches full scale, in every channel.
    np.testing.assert_array_equal(factors["enter"], factors["mix"])
    together = np.max([outputs[name].peak for name in ("enter", "mix", "add")], axis=0)
    np.testing.assert_allclose(together, FULL_SCALE, atol=1e-5)
    assert (outputs["enter"].peak > peaks).all()
    assert (factors["up"] == 1).all(), "outputs keep their scale"


def test_every_operator_of_the_wavelet_codec_equalises() -> None:
    torch.manual_seed(2)
    codec = Wavelet().eval()
    for layer in layers(codec).values():
        layer.weight.data.mul_(0.1)  # quiet, so that nothing saturates and everything has room
    networks = codec.named_networks()
    sides = {"analysis": 32, "hyper_synthesis": 2}
    inputs = {
        name: [torch.rand(1, n, *[sides.get(name, 8)] * 2) / 4 for n in channels.values()]
        for name, (_, channels) in networks.items()
    }
    for name, (network, channels) in networks.items():
        with observed_outputs(network) as outputs, torch.no_grad():
            before = network(*inputs[name])
        factors = equalise(network, channels, outputs, "minmax")
        with torch.no_grad():
            after = network(*inputs[name])
        assert max(factor.max() for factor in factors.values()) > 1.5 or name == "hyper_analysis"
        pairs = zip(before, after, strict=True) if isinstance(before, tuple) else [(before, after)]
        assert all(torch.allclose(b, a, atol=1e-5) for b, a in pairs)


def test_channels_that_saturate_are_left_alone() -> None:
    codec = TinyCodec()
    codec.decoder.enter.bias.data[3] = 5.0
    with observed_outputs(codec.decoder) as outputs, torch.no_grad():
        codec(torch.zeros(1, 3, 64, 64), torch.zeros(1))
    factors = equalise(codec.decoder, {"x": 12}, outputs, "minmax")
    assert factors["enter"][3] == 1 and factors["enter"][4] > 1


def test_a_shuffled_channel_is_one_group() -> None:
    class Shuffling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.out = ExactConv2d(2, 8, 1), ExactConv2d(4, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = functional.pixel_shuffle(self.wide(x), 2)
            return self.out(torch.cat([y, y], 1))

    groups = ChannelGroups(Shuffling(), {"x": 2})
    made, read = dict(groups.made), dict(groups.read)
    assert len(set(made["wide"][:4])) == 1 and len(set(made["wide"])) == 2
    np.testing.assert_array_equal(read["out"], [*made["wide"][[0, 4]]] * 2)


def loss(pictures: Tensor, **settings: object) -> float:
    codec = TinyCodec()
    before = collect(measure(codec, [pictures]))
    quantise(codec, pictures, Method(**settings))
    with torch.no_grad():
        error = 0.0
        for quality in (0.3, 0.9):
            exact = codec(pictures, torch.full((8,), quality))[0]
            error += float((exact - TinyCodec()(pictures, torch.full((8,), quality))[0]).square().mean())
    assert len(before.curves()) == 8
    return error * 128**2


def test_each_step_helps(pictures: Tensor) -> None:
    """Squared error of the integer decoder's output against the float one's, in levels."""
    plain = {"equalise": False, "rounding": "nearest", "correct_bias": False}
    naive = loss(pictures, **plain, per_tensor=True)
    minmax = loss(pictures, **plain)
    adaptive = loss(pictures, equalise=False)
    equalised = loss(pictures)
    assert equalised < adaptive < minmax < naive
    floor = 2 / 12  # of rounding the output to 8-bit pixels, at two qualities
    assert loss(pictures, format="w8a16b32") - floor < 0.5 * (equalised - floor)
    assert loss(pictures, format="int8") < minmax


def test_sensitivity_ranks_the_coarse_layer_first(pictures: Tensor) -> None:
    codec = TinyCodec()
    twin = quantise(codec, pictures, Method(rounding="nearest"))
    with torch.no_grad():
        codec.decoder.up.weight.mul_(1.1)  # a layer that quantisation spoiled
        codec.decoder.up.fixed_exponents = None
    told = []
    costs = sensitivity(twin, codec, pictures, bd_rate, lambda *step: told.append(step))
    assert costs[0].layer == "decoder.up"
    assert {cost.layer for cost in costs} == {*layers(codec), GLUE}
    assert told[-1][1] == told[-1][2] == 4
    noise = signal_to_noise(twin, codec, pictures)
    assert noise["decoder.up"][0] == pytest.approx(-20 * np.log10(0.1), abs=2)
    assert noise["decoder.up"][1] < 0.5 * noise["decoder.enter"][1] < 0.5
    kept = [name for name, layer in layers(twin).items() if layer.exact]
    assert not kept, "the float twin is as it was"


def test_bd_rate_of_a_curve_with_itself_is_zero(pictures: Tensor) -> None:
    points = collect(measure(TinyCodec(), pictures.split(3)))
    assert points.bits_per_pixel.shape == (8, 5)
    assert mean_bd_rate(points, points, bd_rate) == 0
    one = collect(measure(TinyCodec(), [pictures], [0.5]))
    assert mean_bd_rate(one, one, bd_rate) is None


def test_unknown_choices_are_refused(pictures: Tensor) -> None:
    for settings in ({"observer": "guess"}, {"weight_observer": "guess"}, {"rounding": "up"}, {"format": "int4"}):
        with pytest.raises(UsageError, match="does not exist: choose from"):
            Method(**settings)
    with pytest.raises(UsageError, match=r"no layer decoder\.nose"):
        quantise(TinyCodec(), pictures, Method(wide={"decoder.nose": 2}))


def report_of(pictures: Tensor) -> Report:
    codec = TinyCodec()
    before = collect(measure(codec, [pictures]))
    twin = quantise(codec, pictures, Method(rounding="nearest", equalise=False))
    after = collect(measure(codec, [pictures]))
    costs = sensitivity(twin, codec, pictures, bd_rate, lambda *_: None)
    return Report(
        codec="tiny <&>", identity="0" * 64, format="int8-exact", method={"observer": "minmax"}, calibration_images=8,
        measured_images=8, same_images=True, skipped=[("a.png", "the picture is damaged")], notes=[], seconds=1.0,
        qualities=[0, 0.25, 0.5, 0.75, 1], float_curve=before.mean_curve(), integer_curve=after.mean_curve(),
        bd_rate_percent=mean_bd_rate(before, after, bd_rate), layers=costs, wide={},
    )  # fmt: skip


def test_the_report_says_it_three_ways(pictures: Tensor) -> None:
    import xml.etree.ElementTree as ElementTree

    report = report_of(pictures)
    text, page, document = report.text(), report.html(), json.loads(json.dumps(report.as_json()))
    for name in ("decoder.enter", "decoder.up", GLUE):
        assert name in text and name in page
        assert name in {layer["layer"] for layer in document["layers"]}
    assert "a.png: the picture is damaged" in text and f"{report.bd_rate_percent:+.2f} %" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", ""), "the page needs nothing else"
    drawings = page.split("<svg")[1:]
    assert len(drawings) == 2
    for drawing in drawings:
        ElementTree.fromstring("<svg" + drawing[: drawing.index("</svg>") + 6])
    assert "tiny <&>" not in page


@pytest.fixture
def folder(tmp_path: Path, photograph: np.ndarray) -> Path:
    """Everything that is found in people's folders."""
    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    Image.fromarray(photograph).save(folder / "colour.png")
    Image.fromarray(photograph[..., 0]).save(folder / "more" / "grey.jpg")
    Image.fromarray(photograph[..., 0].astype(np.uint16) << 8).save(folder / "sixteen.png")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(photograph[:, :300]).save(folder / "rotated.jpg", exif=exif, quality=95)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    Image.fromarray(photograph[:100]).save(folder / "small.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_reading_pictures_says_what_it_did(folder: Path, photograph: np.ndarray) -> None:
    pictures, skipped, notes = calibrating.read_pictures(folder, 10)
    assert pictures.shape == (4, 3, 256, 256)
    assert sorted(name for name, _ in skipped) == ["broken.jpg", "small.png"]
    assert "512x100 is smaller than 256x256 pixels" in dict(skipped)["small.png"]
    assert "16-bit" in dict(notes)["sixteen.png"]
    upright = np.rot90(photograph[:, :300], -1)[22:278, 128:384]
    expected = torch.from_numpy(upright.transpose(2, 0, 1).copy()).float() / 128 - 1
    assert min(float((picture - expected).abs().mean()) for picture in pictures) < 0.05, "EXIF turned it upright"
    assert len(calibrating.read_pictures(folder, 2)[0]) == 2


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no picture of at least 256x256 pixels can be read"):
        calibrating.read_pictures(tmp_path, 4)
    with pytest.raises(InputError, match="is not a folder"):
        calibrating.read_pictures(tmp_path / "absent", 4)


@pytest.mark.slow
def test_linnet_calibrate(
    folder: Path, tmp_path: Path, photograph: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    from linnet.export.bundling import load_bundle_into_codec
    from linnet.runtime.bundle import Bundle
    from linnet.runtime.codec import Codec

    checkpoint, out = tmp_path / "float.pt", tmp_path / "codec.lntb"
    codec = load_bundle_into_codec(Bundle.open())
    torch.save({"average": codec.state_dict(), "architecture": codec.architecture}, checkpoint)
    command = ["calibrate", str(checkpoint), "--images", str(folder), "--out", str(out), "--count", "2"]
    options = ["--rounding", "nearest", "--no-equalise", "--no-sensitivity", "--wide", "synthesis.out=2"]
    report, page = tmp_path / "report.json", tmp_path / "report.html"
    assert main([*command, *options, "--json", str(report), "--report", str(page)]) == 0
    assert "BD-rate" in capsys.readouterr().out
    document = json.loads(report.read_text())
    assert document["calibration_images"] == 2 and document["same_images"]
    assert abs(document["bd_rate_percent"]) < 8, "the weights were integers before"
    assert "<svg" in page.read_text()

    fast, slow = Codec.open(out, "onnxruntime"), Codec.open(out, "reference")
    assert fast.bundle.identity == document["identity"]
    data = fast.encode(photograph[:128, :192], quality=60)
    np.testing.assert_array_equal(fast.decode(data), slow.decode(data))
    again = load_bundle_into_codec(fast.bundle)
    assert again.synthesis.out.copies == 2


def test_calibrate_refuses_what_it_cannot_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    command = ["calibrate", str(tmp_path / "bad.pt"), "--images", str(folder)]
    assert main([*command, "--out", str(tmp_path / "o.lntb")]) == 1
    assert "is neither a training checkpoint of linnet" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "absent" / "o.lntb")]) == 2
    assert "the folder does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("observer", ["percentile", "entropy", "mse"])
def test_every_observer_of_weights_gives_integers_on_the_grid(pictures: Tensor, observer: str) -> None:
    codec = TinyCodec()
    quantise(codec, pictures, Method(weight_observer=observer, observer=observer, rounding="nearest"))
    for layer in layers(codec).values():
        weight, bias, exponent = layer.integers()
        assert (weight % 2 == 0).all() and weight.abs().max() <= 126 and (bias % 2 == 1).all()
        stored = weight * 2.0 ** -exponent.reshape(-1, 1, 1, 1)
        assert torch.equal(stored, layer.effective()[0]), "what is stored is what is computed"
