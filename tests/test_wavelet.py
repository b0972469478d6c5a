"""The wavelet codec's channels stand where its networks look for them, and its start is a wavelet."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the models need the export extra")
pytest.importorskip("onnx", reason="export needs the export extra")

from linnet.calibration.qat import SpaceToDepth, to_full_scale  # noqa: E402
from linnet.export.models import wavelet as model  # noqa: E402
from linnet.export.models.latent_codec import MARGIN, mirrored  # noqa: E402
from linnet.export.models.wavelet import Analysis, FineHead, Unpacked, Wavelet  # noqa: E402
from linnet.runtime import core  # noqa: E402
from linnet.training import wavelets  # noqa: E402

pixel_shuffle, pixel_unshuffle = torch.nn.functional.pixel_shuffle, torch.nn.functional.pixel_unshuffle


def packed(levels: dict[int, torch.Tensor]) -> torch.Tensor:
    """Bands on their grids to the latent, without level 4."""
    parts = [SpaceToDepth(model.BLOCKS[level])(levels[level]) for level in model.BLOCKS]
    rest = torch.zeros(1, model.COARSE, *parts[0].shape[2:])
    return Analysis().order(torch.cat([rest, *parts], 1))


@pytest.fixture
def levels() -> dict[int, torch.Tensor]:
    torch.manual_seed(3)
    return {level: torch.rand(1, model.BANDS, 4 * block, 4 * block) + 0.1 for level, block in model.BLOCKS.items()}


@pytest.mark.parametrize("level", model.BLOCKS)
def test_networks_find_the_bands(levels: dict[int, torch.Tensor], level: int) -> None:
    latent, block = packed(levels), model.BLOCKS[level]
    assert torch.equal(pixel_shuffle(latent[:, model.grid_channels(level)], block), levels[level])
    assert torch.equal(Unpacked(level, parents=True)(latent), levels[level])
    positions = pixel_unshuffle(levels[level], 2).unflatten(1, (model.BANDS, 4)).transpose(1, 2)
    first, second = positions[:, [0, 3]].flatten(1, 2), positions[:, [1, 2]].flatten(1, 2)
    assert torch.equal(Unpacked(level)(latent), torch.cat([first, second], 1))
    for colour, half in ((0, first), (1, second)):
        assert torch.equal(Unpacked(level, (colour,))(latent), half)


@pytest.mark.parametrize("level", model.BLOCKS)
def test_every_level_is_coded_as_a_checkerboard(levels: dict[int, torch.Tensor], level: int) -> None:
    """What the first of a level's two steps codes are the even positions of its own grid."""
    latent = packed(levels)
    step = model.CODING_STEPS[2 + 2 * list(model.BLOCKS).index(level)]
    half = torch.zeros_like(latent)
    half[:, step.first : step.last] = latent[:, step.first : step.last]
    grid = pixel_shuffle(half[:, model.grid_channels(level)], model.BLOCKS[level])
    rows, columns = (torch.arange(side) for side in grid.shape[2:])
    even = (rows[:, None] + columns) % 2 == 0
    assert ((grid != 0) == even).all()


@pytest.mark.parametrize("level", [2, 1])
@pytest.mark.parametrize("colour", [0, 1])
def test_parameters_belong_to_the_channels_of_their_step(
    levels: dict[int, torch.Tensor], level: int, colour: int
) -> None:
    """Heads on the grid of the next coarser level give means in the order in which the step's symbols are coded."""
    latent = packed(levels)
    coded = latent[:, model.colour_channels(level, colour)]
    on_grid = Unpacked(level, (colour,))(latent)
    head = FineHead(level, 8, 8)
    head.context = head.hidden = head.out = torch.nn.Identity()
    means, scales = head(torch.cat([on_grid, -on_grid], 1)).chunk(2, 1)
    assert torch.equal(means, coded) and torch.equal(scales, -means)


def test_coding_steps_cover_the_latent_once() -> None:
    covered = [channel for step in model.CODING_STEPS[1:] for channel in range(step.first, step.last)]
    assert covered == list(range(model.LATENT_CHANNELS))
    assert all(step.context <= max(step.first, model.COARSE) for step in model.CODING_STEPS)


def test_the_filters_are_biorthogonal() -> None:
    """Each coefficient alone, synthesised and analysed, comes back as itself and as nothing else."""
    for highpass in (False, True):
        taps = wavelets.wavelet(highpass, True)
        for other in (False, True):
            for shift in range(-4, 5):
                against = np.zeros(30)
                against[10 + 2 * shift : 20 + 2 * shift] = wavelets.wavelet(other, False)
                expected = float(highpass == other and shift == 0)
                assert against[10:20] @ taps == pytest.approx(expected, abs=2e-6), "the published taps have six digits"


def test_models_see_beyond_a_border_what_the_encoder_sees() -> None:
    image = np.random.default_rng(5).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    planes = core.pixels_to_planes(image, -MARGIN, -MARGIN, 64 + 2 * MARGIN, 48 + 2 * MARGIN)
    seen = pixel_unshuffle(mirrored(to_full_scale(image[None]), MARGIN), 2)
    assert np.array_equal(planes, (128 * seen[0]).permute(1, 2, 0).numpy())


@pytest.fixture(scope="module")
def images(photograph: np.ndarray) -> torch.Tensor:
    # Of less contrast: half-size pictures that overshoot their range would be cut.
    return 0.5 * to_full_scale(np.stack([photograph[:192, :192], photograph[-192:, -192:]]))


@pytest.fixture
def start(images: torch.Tensor) -> Wavelet:
    torch.manual_seed(6)
    codec = Wavelet().eval()
    wavelets.initialise(codec, images)
    return codec


def error_of(codec: Wavelet, images: torch.Tensor) -> torch.Tensor:
    """Squared error (N, 3, H, W), in levels, that the linear filters make of latents that are not quantised."""
    with torch.no_grad():
        latent = codec.latent(images)
        decoded = codec.synthesis.linear(torch.cat([latent / 128, torch.zeros_like(latent)], 1))
    return (128 * (pixel_shuffle(decoded, 2) - images)).square()


def test_training_starts_from_the_wavelet(start: Wavelet, images: torch.Tensor) -> None:
    error = error_of(start, images)
    assert error[:, :, 80:-80, 80:-80].mean() < 0.05
    assert error.mean() < 4, "next to the borders a little is lost"


def test_integers_add_less_noise_than_the_pixels_have(start: Wavelet, images: torch.Tensor) -> None:
    """Eight filters one after the other, all rounded to the nearest integers, weights and pictures: 8 bits each would
    add some 0.6 squared levels, a hundred times what is added in 12. Rounding pixels is 1/12."""
    float_error = error_of(start, images)[:, :, 80:-80, 80:-80].mean()
    start.set_exact(True)
    assert error_of(start, images)[:, :, 80:-80, 80:-80].mean() < float_error + 0.2
