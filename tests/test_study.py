"""The study of the predicting networks: variants differ where they say, and results are kept and compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs the export extra")
pytest.importorskip("onnx", reason="export needs the export extra")

from linnet.export.bundling import MODELS  # noqa: E402
from linnet.export.models.wavelet import Micro  # noqa: E402
from linnet.runtime.bundle import shipped  # noqa: E402
from linnet.training import study  # noqa: E402


def built(name: str) -> Micro:
    torch.manual_seed(0)
    return study.VARIANTS[name].model(f"study-{name}")()


def coded(codec: Micro) -> tuple[torch.Tensor, list[torch.Tensor]]:
    torch.manual_seed(1)
    latent = 20 * torch.randn(1, codec.latent_channels, 4, 4)
    with torch.no_grad():
        decoded, bits = codec.eval().code(latent, torch.tensor([0.8]))
    return decoded, bits


def test_the_first_variant_is_micro() -> None:
    torch.manual_seed(0)
    for own, shipped_shape in zip(built("micro").parameters(), Micro().parameters(), strict=True):
        assert own.shape == shipped_shape.shape


@pytest.mark.parametrize("name", [name for name, variant in study.VARIANTS.items() if variant.blind])
def test_blind_variants_do_not_see(name: str) -> None:
    codec = built(name)
    seen: dict[str, torch.Tensor] = {}
    for module in study.VARIANTS[name].blind:
        codec.get_submodule(module).register_forward_hook(
            lambda _, inputs, output, module=module: seen.update({module: output})
        )
    coded(codec)
    assert set(seen) == set(study.VARIANTS[name].blind)
    assert not any(output.any() for output in seen.values())


def test_every_variant_codes_and_differs_from_micro() -> None:
    reference = [bits.sum().item() for bits in coded(built("micro"))[1]]
    for name in study.VARIANTS:
        bits = [step.sum().item() for step in coded(built(name))[1]]
        assert len(bits) == len(reference) and np.isfinite(bits).all()
        assert (bits == reference) == (name == "micro"), name


def test_signed_inputs_have_no_magnitudes() -> None:
    rectify = built("signed").get_submodule("context_steps.4.rectify")
    x = torch.linspace(-0.9, 0.9, 27)[None, :, None, None].expand(1, 27, 2, 2)
    positive, negative = rectify(x).chunk(2, 1)
    torch.testing.assert_close(positive, x)
    torch.testing.assert_close(negative, -x)


def test_bits_are_compared_at_equal_psnr() -> None:
    reference = [[0.1, 25.0], [0.2, 28.0], [0.4, 31.0]]
    assert study.more_bits([[1.1 * rate, db] for rate, db in reference], reference) == pytest.approx(0.1)
    on_the_curve = [[0.1 * 2 ** (i / 4), 25 + 0.75 * i] for i in range(9)]
    assert study.more_bits(on_the_curve, reference) == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_a_study_goes_on_where_it_stopped(
    tmp_path: Path, photograph: np.ndarray, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    folder, out = tmp_path / "photographs", tmp_path / "out"
    folder.mkdir()
    for number in range(2):
        Image.fromarray(np.rot90(photograph, number)).save(folder / f"{number}.png")
    monkeypatch.setattr(study, "ROUNDS", 1)

    def run(*names: str, steps: int = 1) -> str:
        arguments = ["study", str(folder), str(out), "--start", str(shipped()["micro"]), "--steps", str(steps)]
        monkeypatch.setattr("sys.argv", [*arguments, "--variants", *names])
        study.main()
        return capsys.readouterr().out

    first = run("micro")
    assert len(first.splitlines()) == 3
    trained: list[str] = []
    learn = study.learn
    monkeypatch.setattr(study, "learn", lambda name, *rest: trained.append(name) or learn(name, *rest))
    header, _, reference, blind = run("micro", "one-pass").splitlines()
    assert trained == ["one-pass"] and set(MODELS) == {"wavelet2", "wavelet2-micro"}
    assert header.count("|") == reference.count("|") == blind.count("|")
    assert "MP/s" in reference and "MP/s" not in blind and "%" in blind
    kept = json.loads((out / "study.json").read_text())
    assert kept["steps"] == 1 and set(kept["results"]) == {"micro", "one-pass"}
    assert (out / "micro.lntb").exists() and not (out / "one-pass.lntb").exists()
    with pytest.raises(SystemExit, match="holds a study of 1 steps: give --steps 1, or another OUT"):
        run("micro", steps=2)
