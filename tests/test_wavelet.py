"""The wavelet codec's channels stand where its networks look for them, and its start is the 9/7 wavelet."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models need the export extra")
pytest.importorskip("onnx", reason="export needs the export extra")

from linnet.calibration.qat import set_exact, to_full_scale  # noqa: E402
from linnet.export.models import wavelet as model  # noqa: E402
from linnet.export.models.wavelet import Analysis, FineHead, FoldedAnalysis, Wavelet, checkerboard  # noqa: E402
from linnet.training import wavelets  # noqa: E402

pixel_shuffle, pixel_unshuffle = torch.nn.functional.pixel_shuffle, torch.nn.functional.pixel_unshuffle


def packed(level3: torch.Tensor, level2: torch.Tensor, level1: torch.Tensor) -> torch.Tensor:
    """Bands on their grids to the coded latent, without level 4."""
    levels = [pixel_unshuffle(x, block) for x, block in ((level3, 2), (level2, 4), (level1, 8))]
    rest = torch.zeros(1, model.COARSE, *levels[0].shape[2:])
    return Analysis().order(torch.cat([rest, *levels], 1))


@pytest.fixture
def levels() -> list[torch.Tensor]:
    torch.manual_seed(3)
    bands = (model.BANDS, 8), (model.BANDS, 16), (model.FINEST_BANDS, 32)
    return [torch.rand(1, count, side, side) + 0.1 for count, side in bands]


def test_networks_find_the_bands(levels: list[torch.Tensor]) -> None:
    coded, synthesis = packed(*levels), model.Synthesis()
    level3, level2, level1 = levels
    taken = pixel_shuffle(coded[:, model.LEVEL3_GRID], 2)
    assert torch.equal(taken, level3)
    assert torch.equal(pixel_shuffle(synthesis.level2(coded), 4), level2)
    assert torch.equal(pixel_shuffle(synthesis.level2_phases(coded), 2), pixel_unshuffle(level2, 2))
    assert torch.equal(pixel_shuffle(synthesis.level1_phases(coded), 4), pixel_unshuffle(level1, 2))


def test_every_level_is_coded_as_a_checkerboard(levels: list[torch.Tensor]) -> None:
    """What the first of a level's two steps codes are the even positions of its own grid."""
    coded = packed(*levels)
    for first, step in ((2, model.CODING_STEPS[2]), (4, model.CODING_STEPS[4]), (6, model.CODING_STEPS[6])):
        half = torch.zeros_like(coded)
        half[:, step.first : step.last] = coded[:, step.first : step.last]
        natural = half[:, model.CODED_PLACE]
        number = first // 2 - 1
        start, block = (model.LEVEL3, model.LEVEL2, model.LEVEL1)[number], (2, 4, 8)[number]
        count = levels[number].shape[1] * block**2
        grid = pixel_shuffle(natural[:, start : start + count], block)
        rows, columns = (torch.arange(side) for side in grid.shape[2:])
        even = (rows[:, None] + columns) % 2 == 0
        assert ((grid != 0) == even).all()


@pytest.mark.parametrize("colour", [0, 1])
def test_parameters_belong_to_the_channels_of_their_step(levels: list[torch.Tensor], colour: int) -> None:
    """Heads on the bands' grids give means in the order in which the step's symbols are coded."""
    coded, step = packed(*levels), model.CODING_STEPS[4 + colour]
    head = FineHead(8, model.BANDS, checkerboard(model.BANDS, 4)[colour])
    parameters = head.colour(head.pack(torch.cat([levels[1], -levels[1]], 1)))
    means, scales = parameters.chunk(2, 1)
    assert torch.equal(means, coded[:, step.first : step.last])
    assert torch.equal(scales, -means)


def test_the_folded_analysis_computes_the_same() -> None:
    torch.manual_seed(4)
    analysis = Wavelet().analysis
    planes = torch.randint(-128, 128, (1, 12, 64, 96)) / 128
    for exact in (False, True):
        set_exact(analysis, exact)
        with torch.no_grad():
            plain, folded = analysis(planes), FoldedAnalysis(analysis)(planes)
        assert torch.allclose(plain, folded, atol=1e-5, rtol=1e-5)
    again = Wavelet().analysis
    FoldedAnalysis(analysis).unfold_into(again)
    set_exact(again, True)
    with torch.no_grad():
        assert torch.equal(again(planes), plain)


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_the_filters_are_biorthogonal(level: int) -> None:
    """Each coefficient alone, synthesised and analysed, comes back as itself and as nothing else of its level."""
    period = 2**level
    for highpass in (False, True):
        taps, start = wavelets.wavelet(level, highpass, True)
        for other in (False, True):
            against, first = wavelets.wavelet(level, other, False)
            for shift in range(-3, 4):
                offset = first + shift * period - start
                overlap = sum(taps[i] * against[i - offset] for i in range(len(taps)) if 0 <= i - offset < len(against))
                assert overlap == pytest.approx(float(highpass == other and shift == 0), abs=1e-9)


def test_training_starts_from_the_wavelet(photograph: np.ndarray) -> None:
    images = to_full_scale(np.stack([photograph[:192, :192], photograph[-192:, -192:]]))
    codec = Wavelet().eval()
    wavelets.initialise(codec, images)
    codec.networks = False
    with torch.no_grad():
        latent = codec.latent(images)
        decoded = codec.reconstruct(torch.cat([latent / 128, torch.zeros_like(latent)], 1), torch.ones(2))
    error = (128 * (decoded - images))[:, :, 32:-32, 32:-32].square().mean().item()
    assert 10 * np.log10(255**2 / error) > 32, "kernels cut to their sizes lose some"
