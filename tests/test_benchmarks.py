"""The benchmark package: metrics against closed forms and other implementations, peers, the rd and speed commands."""

from __future__ import annotations

import argparse
import json
import math
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from linnet.benchmarks import host, metrics, mosaic, peers, rd, report, sheet, speed, timing
from linnet.benchmarks.codec import Codec, linnet_codec
from linnet.benchmarks.measure import Measurement
from linnet.runtime.errors import InputError, LinnetError, MachineError, UsageError

ANCHORS = Path(__file__).resolve().parents[2] / "shared" / "anchors"


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    data = pytest.importorskip("skimage.data")
    return np.ascontiguousarray(data.astronaut()[:256, :320])


def noisy(picture: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, sigma, picture.shape)
    return np.clip(picture + noise, 0, 255).round().astype(np.uint8)


# Metrics


def test_psnr_of_known_errors() -> None:
    black = np.zeros((10, 12, 3), np.uint8)
    assert metrics.psnr_rgb(black, black) == math.inf
    assert metrics.psnr_rgb(black, black + 255) == pytest.approx(0)
    assert metrics.psnr_rgb(black, black + 1) == pytest.approx(20 * math.log10(255))
    one_channel = black.copy()
    one_channel[..., 1] = 3
    assert metrics.psnr_rgb(black, one_channel) == pytest.approx(10 * math.log10(255**2 / 3))


def test_psnr_y_weighs_channels_as_bt601() -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    for channel, weight in enumerate((0.299, 0.587, 0.114)):
        test = black.copy()
        test[..., channel] = 200
        for pair in ((black, test), (test, black)):
            assert metrics.psnr_y(*pair) == pytest.approx(20 * math.log10(255 / (200 * weight)), abs=1e-4)
    assert metrics.psnr_y(black, black) == math.inf


def test_pictures_that_do_not_compare_are_refused() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="one size"):
        metrics.psnr_rgb(picture, picture[:4])
    with pytest.raises(ValueError, match="uint8"):
        metrics.psnr_rgb(picture, picture.astype(np.float32))


def test_ms_ssim_falls_with_noise(photograph: np.ndarray) -> None:
    assert metrics.ms_ssim(photograph, photograph) == pytest.approx(1, abs=1e-12)
    values = [metrics.ms_ssim(photograph, noisy(photograph, sigma)) for sigma in (2, 5, 10, 20, 40)]
    assert values == sorted(values, reverse=True)
    assert 0 < values[-1] < values[0] < 1


def test_ms_ssim_of_small_pictures_is_none() -> None:
    smallest = np.full((161, 161, 3), 90, np.uint8)
    assert metrics.ms_ssim(smallest, smallest) == pytest.approx(1)
    assert metrics.ms_ssim(smallest[:160], smallest[:160]) is None


def test_ssim_of_one_scale_agrees_with_scikit_image(photograph: np.ndarray) -> None:
    similarity = pytest.importorskip("skimage.metrics").structural_similarity
    x, y = photograph[..., 0].astype(float), noisy(photograph, 12)[..., 0].astype(float)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    _, every = similarity(x, y, full=True, **options)
    assert metrics.ssim_plane(x, y)[0] == pytest.approx(every[5:-5, 5:-5].mean(), abs=1e-9)


def test_ms_ssim_agrees_with_a_plain_computation(photograph: np.ndarray) -> None:
    """Five scales spelled out with scipy: full windows, 2x2 means, the last scale with luminance."""
    ndimage = pytest.importorskip("scipy.ndimage")
    test = noisy(photograph, 15)
    taps = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2

    def mean(plane: np.ndarray) -> np.ndarray:
        return ndimage.correlate(plane, window)[5:-5, 5:-5]

    of_channels = []
    for channel in range(3):
        x, y, product = photograph[..., channel].astype(float), test[..., channel].astype(float), 1.0
        for scale, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
            if scale:
                x, y = (p.reshape(p.shape[0] // 2, 2, p.shape[1] // 2, 2).mean((1, 3)) for p in (x, y))
            mx, my = mean(x), mean(y)
            vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
            term = (2 * vxy + (0.03 * 255) ** 2) / (vx + vy + (0.03 * 255) ** 2)
            if scale == 4:
                term = term * (2 * mx * my + 2.55**2) / (mx**2 + my**2 + 2.55**2)
            product *= term.mean() ** weight
        of_channels.append(product)
    assert metrics.ms_ssim(photograph, test) == pytest.approx(np.mean(of_channels), abs=1e-9)


# BD-rate


QUALITY = np.linspace(28, 42, 8)
CURVE = [(0.02 * 2 ** ((q - 20) / 3.3), q) for q in QUALITY]


@pytest.mark.parametrize("factor", [0.9, 0.5, 1.0, 1.37])
def test_bd_rate_of_a_uniformly_cheaper_curve(factor: float) -> None:
    test = [(rate * factor, quality) for rate, quality in CURVE]
    assert metrics.bd_rate(CURVE, test) == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert metrics.bd_rate(CURVE, test[::-1]) == pytest.approx(100 * (factor - 1), abs=1e-9)


def test_bd_rate_covers_only_what_both_curves_cover() -> None:
    test = [(rate * 0.8, quality) for rate, quality in CURVE[3:6]]
    assert metrics.bd_rate(CURVE, test) == pytest.approx(-20, abs=0.2)
    assert metrics.bd_rate(CURVE[:3], CURVE[3:]) is None
    assert metrics.bd_rate(CURVE, CURVE[:1]) is None
    assert metrics.bd_rate(CURVE, [*CURVE, (9.0, math.inf)]) == pytest.approx(0, abs=1e-9)


def test_pchip_agrees_with_scipy() -> None:
    scipy_pchip = pytest.importorskip("scipy.interpolate").PchipInterpolator
    rng = np.random.default_rng(3)
    for count in (2, 3, 4, 9):
        for _ in range(20):
            x, y = np.cumsum(rng.uniform(0.1, 2, count)), rng.normal(size=count)
            low, high = x[0] + 0.03, x[-1] - 0.02
            theirs = scipy_pchip(x, y).integrate(low, high) / (high - low)
            assert metrics._pchip_mean(x, y, low, high) == pytest.approx(theirs, abs=1e-12)


PUBLISHED_KODAK = {
    "kodak_measured.json": {
        "jpegli-420": -12, "mozjpeg-420-psnr": -28, "jxl-e7": -28, "jxl-e3": -27, "webp-m6": -36,
        "avif-s9-420-psnr": -43, "j2k": -48, "j2k-tile512": -45.5, "svt-p8": -49, "avif-s6-420-psnr": -52,
        "x265-medium-444-psnr": -54.5, "x265-ultrafast-444-psnr": -46, "svt-p4": -57, "x265-veryslow-444-psnr-10b": -57,
        "vvenc-medium-420": -61,
    },
    "kodak_published.json": {
        "bmshj2018-factorized (mse)": -40, "bmshj2018-hyperprior (mse)": -52, "mbt2018-mean (mse)": -55,
        "BPG 4:4:4 x265": -56, "AV1 (libaom)": -60, "cheng2020-anchor (mse)": -63, "ELIC 2022 (mse)": -65,
        "VTM (VVC intra)": -66,
    },
}  # fmt: skip
PUBLISHED_DRONE = {
    "drone_measured.json": {
        "jpegli-420": -11, "mozjpeg-420-psnr": -28, "jxl-e7": -29, "webp-m6": -31, "avif-s9-420-psnr": -40, "j2k": -44,
        "svt-p8": -46, "x265-medium-444-psnr": -47.5, "vvenc-faster-420": -49, "svt-p4": -52, "vvenc-medium-420": -54,
    },
}  # fmt: skip


@pytest.mark.skipif(not ANCHORS.is_dir(), reason="the anchor files are not part of the repository")
@pytest.mark.parametrize("published", [PUBLISHED_KODAK, PUBLISHED_DRONE])
def test_anchors_are_reproduced(published: dict[str, dict[str, float]]) -> None:
    """BD-rates from the points of the anchor files are those listed for them, which are rounded to half or whole."""
    from linnet.benchmarks import anchors

    curves = {name: anchors.read(ANCHORS / name) for name in published}
    reference = [(p.bits_per_pixel, p.psnr_rgb) for p in next(iter(curves.values()))["jpeg-420"]]
    for name, expected in published.items():
        for codec, percent in expected.items():
            points = [(p.bits_per_pixel, p.psnr_rgb) for p in curves[name][codec]]
            assert metrics.bd_rate(reference, points) == pytest.approx(percent, abs=0.55), codec


# Peers and host


@pytest.mark.parametrize("name", peers.PEERS)
def test_peers_round_trip(name: str, photograph: np.ndarray) -> None:
    found, absent = peers.available([name])
    if name in absent:
        pytest.skip(absent[name])
    codec = found[name]
    assert any(c.isdigit() for c in codec.version) and codec.about
    low, high = codec.settings[1], codec.settings[-2]
    sizes, qualities = [], []
    for setting in (low, high):
        data = codec.encode(photograph, setting)
        decoded = codec.decode(data)
        assert decoded.shape == photograph.shape and decoded.dtype == np.uint8
        sizes.append(len(data))
        qualities.append(metrics.psnr_rgb(photograph, decoded))
    assert sizes[0] < sizes[1]
    assert 20 < qualities[0] < qualities[1]


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    found, absent = peers.available(["jpeg-420", "jxl-e3"])
    assert list(found) == ["jpeg-420"]
    assert "pip install imagecodecs" in absent["jxl-e3"]


def test_host_fingerprint_is_json_and_impersonal() -> None:
    fingerprint = host.fingerprint()
    text = json.dumps(fingerprint)
    assert fingerprint["cores"] >= 1 and fingerprint["versions"]["numpy"] == np.__version__
    assert str(Path.home()) not in text and "/" not in json.dumps(fingerprint["versions"])


# linnet bench rd


def rd_arguments(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    rd.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    from PIL import Image

    (tmp_path / "set").mkdir()
    for number in range(2):
        Image.fromarray(mosaic.texture(170, 180 + 10 * number)).save(tmp_path / "set" / f"{number}.png")
    return tmp_path / "set"


def test_rd_measures_resumes_and_draws(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    results, plot = folder.parent / "rd.json", folder.parent / "rd.png"
    words = (f"noise={folder}", "--no-linnet", "--peers", "webp-m4", "--json", results)
    assert rd.run(rd_arguments(*words, "--limit", 1)) == 0
    document = json.loads(results.read_text())
    assert len(document["results"]) == 20 and document["host"]["python"]
    assert str(folder.parent) not in results.read_text()

    assert rd.run(rd_arguments(*words, "--plot", plot)) == 0
    assert "20 of 40 results are reused" in capsys.readouterr().out
    assert plot.stat().st_size > 10_000
    document = json.loads(results.read_text())
    rows = {row["codec"]: row for row in document["tables"]["noise"]}
    assert rows["jpeg-420"]["bd_psnr_rgb"] == pytest.approx(0)
    assert rows["webp-m4"]["bd_psnr_rgb"] < 0
    one = document["results"][0]
    assert one["bits_per_pixel"] == pytest.approx(8 * one["bytes"] / (170 * 180))

    monkeypatch.setattr("linnet.benchmarks.measure.measure", None)  # everything is there: nothing may be measured
    assert rd.run(rd_arguments(*words)) == 0
    assert "40 of 40 results are reused" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--plot", "--html"])
def test_rd_says_before_measuring_that_it_cannot_draw(
    option: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("linnet.benchmarks.measure.measure", None)
    with pytest.raises(MachineError, match=r"rd\.out: cannot be drawn, matplotlib is missing; pip install"):
        rd.run(rd_arguments(folder, "--no-linnet", option, folder.parent / "rd.out"))


def test_rd_draws_a_page_that_stands_alone(folder: Path) -> None:
    pytest.importorskip("matplotlib")
    page = folder.parent / "rd.html"
    words = (f"noise={folder}", "--qualities", "20,60", "--peers", "webp-m4", "--html", page)
    assert rd.run(rd_arguments(*words)) == 0
    text = page.read_text()
    assert (
        text.count("<svg") == 1 and text.count("data:image/png;base64,") == 2 * len(sheet.RATES) * 4
    )  # with the original
    assert "http:" not in re.sub(r'xmlns\S*="[^"]*"|http://www.w3.org\S*|http://purl.org\S*', "", text)
    assert "<script" not in text and "<link" not in text
    for name in ("linnet", "webp-m4", "jpeg-420"):
        assert f"<td>{name}<td>" in text


def test_beside_linnet_a_peer_has_no_fewer_bytes(photograph: np.ndarray) -> None:
    jpeg = peers.available(["jpeg-420"])[0]["jpeg-420"]
    sizes = [len(jpeg.encode(photograph, quality)) for quality in range(1, 91)]
    for size in (sizes[0] - 1, sizes[20], sizes[20] + 1, sizes[-1] + 1):
        found = len(sheet.no_smaller(jpeg, photograph, size))
        assert found == min((s for s in sizes if s >= size), default=sizes[-1])


def test_crops_show_where_there_is_something_to_see() -> None:
    picture = np.full((700, 900, 3), 90, np.uint8)
    picture[340:560, 670:890] = mosaic.texture(220, 220)
    y, x = sheet.most_detailed(picture, sheet.CROP)
    assert abs(y - 340) <= sheet.CROP // 2 and abs(x - 670) <= sheet.CROP // 2
    assert sheet.most_detailed(picture[:50, :60], sheet.CROP) == (0, 0)


def test_rd_keeps_results_it_does_not_ask_for_and_replaces_old_versions(folder: Path) -> None:
    results = folder.parent / "rd.json"
    rd.run(rd_arguments(folder, "--no-linnet", "--peers", "webp-m4", "--limit", 1, "--json", results))
    document = json.loads(results.read_text())
    for result in document["results"]:
        if result["codec"] == "jpeg-420":
            result["fingerprint"] = "an older version"
    results.write_text(json.dumps(document))
    rd.run(rd_arguments(folder, "--no-linnet", "--peers", "jpeg-420", "--limit", 1, "--json", results))
    kept = json.loads(results.read_text())["results"]
    assert len(kept) == 20 and all(r["fingerprint"] != "an older version" for r in kept)


def posterise(picture: np.ndarray, setting: float) -> bytes:
    """A codec under test as simple as can be: fewer bits a sample, deflated."""
    import io

    from PIL import Image

    step = int(2 ** (8 - setting))
    buffer = io.BytesIO()
    Image.fromarray(np.minimum(picture // step * step + step // 2, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def subject(settings: tuple[float, ...] = (2, 4, 6), encode: object = posterise) -> Codec:
    return Codec("subject", "bits a sample=q", "1", settings, encode, peers._decode_pillow)  # type: ignore[arg-type]


def test_rd_takes_any_codec_under_test_in_several_processes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = rd_arguments(folder, "--peers", "jpeg-420", "--processes", 2)
    assert rd.run(arguments, codec=subject()) == 0
    out = capsys.readouterr().out
    assert "subject: rate, PSNR and MS-SSIM rise with the setting on all 2 pictures" in out
    assert "set: 2 pictures; BD-rate in % against jpeg-420" in out
    arguments = rd_arguments(folder, "--peers", "jpeg-420", "--against", "subject")
    assert rd.run(arguments, codec=subject()) == 0
    out = capsys.readouterr().out
    assert "against subject of this run" in out
    (own,) = (line.split() for line in out.splitlines() if line.startswith("subject  "))
    assert own[1] == own[2] == "+0.0"
    with pytest.raises(UsageError, match="--against avif: not measured here; choose from subject, jpeg-420"):
        rd.run(rd_arguments(folder, "--peers", "jpeg-420", "--against", "avif"), codec=subject())


def test_linnet_is_a_codec_like_the_others_and_travels_to_another_process() -> None:
    codec = linnet_codec(None, "auto", qualities=(80, 20))
    picture = np.full((40, 70, 3), 99, np.uint8)
    data = codec.encode(picture, 20.0)
    assert codec.decode(data).shape == picture.shape
    assert codec.settings == (20, 80) and "bundle" in codec.version and "onnxruntime" in codec.about
    copy = pickle.loads(pickle.dumps(codec))
    assert copy.fingerprint == codec.fingerprint
    assert copy.encode(picture, 20) == data


def test_rd_names_picture_codec_and_setting_of_a_failure(folder: Path) -> None:
    def broken(picture: np.ndarray, setting: float) -> bytes:
        raise RuntimeError("out of ideas")

    with pytest.raises(LinnetError, match=r"0\.png: subject at setting 2 failed: out of ideas"):
        rd.run(rd_arguments(folder, "--peers", "none"), codec=subject(encode=broken))


def test_rd_wrong_usage(folder: Path, tmp_path: Path) -> None:
    anchor = tmp_path / "kodak_published.json"
    anchor.write_text('{"codecs": {"x": [{"bpp": 1, "psnr_rgb": 30}]}}')
    for words, error in (
        ((), UsageError),
        ((folder, "--peers", "nonsense"), UsageError),
        ((folder, "--peers", "none", "--no-linnet"), UsageError),
        ((tmp_path / "missing", "--no-linnet"), InputError),
        ((folder, "--no-linnet", "--anchors", anchor), UsageError),  # which set?
        ((folder, "--no-linnet", "--anchors", f"set={anchor}", "--limit", 1), UsageError),
        ((folder, "--no-linnet", "--json", anchor), InputError),
        ((folder, "--no-linnet", "--json", tmp_path / "no" / "x.json"), UsageError),
    ):
        with pytest.raises(error):
            rd.run(rd_arguments(*words))
    assert json.loads(anchor.read_text())["codecs"]  # a file that is not ours is never overwritten


def test_anchors_of_other_pictures_are_set_aside(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    anchor = folder.parent / "other.json"
    points = [{"q": q, "bpp": 0.1 * q, "psnr_rgb": 20 + q / 5} for q in (5, 40, 82)]
    anchor.write_text(json.dumps({"codecs": {"jpeg-420": {"points": points}, "better": points}}))
    words = (folder, "--no-linnet", "--peers", "jpeg-420", "--anchors", f"set={anchor}")
    assert rd.run(rd_arguments(*words)) == 0
    out = capsys.readouterr().out
    assert "other: left out, its jpeg-420 differs" in out and "better" not in out

    anchor.write_text(json.dumps({"codecs": {"better": points, "other (MSE)": points}}))
    assert rd.run(rd_arguments(*words, "--anchor-codecs", "mse,nothing")) == 0
    out = capsys.readouterr().out
    assert "other (MSE)" in out and "better" not in out


def test_averages_and_reversals() -> None:
    def one(image: str, setting: float, rate: float, psnr: float, ms_ssim: float | None) -> Measurement:
        return Measurement("s", image, image, "c", "f", setting, 1, rate, psnr, psnr + 1, ms_ssim)

    measurements = [one("a", 1, 0.2, 30, 0.9), one("b", 1, 0.4, 34, None), one("a", 2, 0.1, 31, 0.95)]
    first, second = report.averages(measurements)["s"]["c"]
    assert (first.setting, first.ms_ssim) == (2, 0.95)
    assert (second.bits_per_pixel, second.psnr_rgb, second.psnr_y) == pytest.approx((0.3, 32, 33))
    assert second.ms_ssim == 0.9
    (reversal,) = report.reversals(measurements, "c")  # MS-SSIM rises, or is not known
    assert (reversal.image, reversal.quantity, reversal.values) == ("a", "bits_per_pixel", (0.2, 0.1))
    assert "a: bits_per_pixel 0.2000 -> 0.1000 from 1 to 2" in report.format_reversals("c", 2, [reversal])


# linnet bench speed


@pytest.mark.parametrize("megapixels", [0.05, 0.7])
def test_mosaic_has_the_size_asked_for(megapixels: float) -> None:
    pictures = [mosaic.texture(90, 200), mosaic.texture(120, 50), mosaic.texture(70, 300)]
    picture = mosaic.build(pictures, megapixels)
    assert picture.shape[0] * picture.shape[1] == pytest.approx(megapixels * 1e6, rel=0.01)
    assert np.array_equal(picture[:90, :200], pictures[0])
    assert mosaic.sample(mosaic.build(pictures, 3)).shape == (1024, 1024, 3)


def test_settings_are_matched_to_a_rate(photograph: np.ndarray) -> None:
    for codec in peers.available(peers.SPEED_PEERS)[0].values():
        setting = timing.match_rate(codec, photograph, 0.8)
        rate = 8 * len(codec.encode(photograph, setting)) / photograph[..., 0].size
        assert rate == pytest.approx(0.8, rel=0.15), codec.name


def test_rounds_are_interleaved(photograph: np.ndarray) -> None:
    order = []

    def noted(name: str) -> Codec:
        def encode(picture: np.ndarray, setting: float) -> bytes:
            order.append(name)
            return posterise(picture, setting)

        return Codec(name, "", "1", (2,), encode, peers._decode_pillow)

    timings = timing.time_codecs(photograph, [noted("a"), noted("b")], {"a": 2, "b": 2}, repeat=2)
    assert order == ["a", "b", "a", "b"]
    assert all(len(t.encode_s) == len(t.decode_cpu_s) == 2 and t.bytes > 0 for t in timings.values())


def test_speed_end_to_end(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    speed.add_arguments(parser)
    results = tmp_path / "speed.json"
    words = [str(folder), "--megapixels", "0.3", "--repeat", "2", "--no-linnet", "--json", str(results)]
    assert speed.run(parser.parse_args(words)) == 0
    document = json.loads(results.read_text())
    assert str(tmp_path) not in results.read_text()
    for name, row in document["summary"]["codecs"].items():
        assert row["encode"]["megapixels_per_s"] > 0
        assert row["encode"]["ratio"]["min"] <= row["encode"]["ratio"]["median"] <= row["encode"]["ratio"]["max"]
        peak = document["peak_mib"][name]["encode"]
        assert 0 < peak["imports"] <= peak["open"] <= peak["input"] <= peak["done"]
    assert "peak memory in MiB" in capsys.readouterr().out
