"""Where training of the wavelet codec starts: the 9/7 wavelet in the linear filters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..calibration.qat import SpaceToDepth
from ..export.models import wavelet as model
from ..runtime.latents import FINE_EXP
from .initialise import initialise_by_data, inverse_softplus, mean_shifts, start_gains, start_heads

FINEST_STEP = 10.0
"""Quantisation step of an orthonormal coefficient, in pixel levels, at quality 100; also the latents' smallest unit."""
COARSEST_STEP = 110.0

LOWPASS = np.array([0.026748757411, -0.016864118443, -0.078223266529, 0.266864118443, 0.602949018236])
HIGHPASS = np.array([0.091271763114, -0.057543526229, -0.591271763114, 1.115087052457])
"""Left halves, centre included, of the 9/7 wavelet's analysis filters (Antonini et al., 1992)."""
COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
"""An orthonormal transform of R, G, B to a brightness and two differences."""
LOW_COLOURS = np.array([[1 / 3, 1 / 3, 1 / 3], [1 / 2, 0, -1 / 2], [1 / 4, -1 / 2, 1 / 4]])
"""The same directions with the largest gain that keeps 8 bits in their range."""


def wavelet(level: int, highpass: bool, synthesis: bool, first_scale: int = 1) -> tuple[np.ndarray, int]:
    """(taps, first tap's place) of a level's 1-D filter, for the coefficient at index 0, on the grid of pixels or of
    what the levels before `first_scale` make of them.

    Nearly orthonormal. Lowpass coefficients lie at multiples of 2**level, details half way between; but at level 4
    the other way round.
    """
    low, high = (np.concatenate([half, half[-2::-1]]) for half in (LOWPASS * 2**0.5, HIGHPASS * 0.5**0.5))
    if synthesis:  # the biorthogonal partners: every second sign changed, roles swapped
        low, high = high * (-1.0) ** (np.arange(7) - 3), low * (-1.0) ** (np.arange(9) - 4)
    taps, first = np.ones(1), 0
    for scale in range(first_scale, level + 1):
        last = scale == level and highpass
        own, centre = (high if last else low), int(last != (scale == 4))
        step = 2 ** (scale - first_scale)
        spread = np.zeros((len(own) - 1) * step + 1)
        spread[::step] = own
        taps, first = np.convolve(taps, spread), first + (centre - len(own) // 2) * step
    return taps, first


def _cut(taps: np.ndarray, start: int, first: int, length: int) -> np.ndarray:
    """Taps of which the first stands at `start`, over the places [first, first + length)."""
    kernel = np.zeros(length)
    for place, tap in enumerate(taps, start - first):
        if 0 <= place < length:
            kernel[place] = tap
    return kernel


def band_filters(
    level: int, synthesis: bool, first: int, length: int, *, first_scale: int = 1, colours: np.ndarray = COLOURS
) -> np.ndarray:
    """(bands, 3, length, length): the level's filters over the places [first, first + length) on both axes.

    Bands are ordered (lowpass where level 4, then details: horizontal, vertical, diagonal), each with its colours; at
    level 1 by colours first, of which there are two.
    """
    low, high = (_cut(*wavelet(level, which, synthesis, first_scale), first, length) for which in (False, True))
    planes = ([np.outer(low, low)] if level == 4 else []) + [
        np.outer(low, high), np.outer(high, low), np.outer(high, high)
    ]  # fmt: skip
    if level == 1:
        return np.stack([colour[:, None, None] * plane for colour in colours[:2] for plane in planes])
    return np.stack([colour[:, None, None] * plane for plane in planes for colour in colours])


def _initialise_linear(codec: model.Wavelet, images: Tensor) -> np.ndarray:
    """The 9/7 wavelet, cut to the kernels' sizes, in both transforms; returns the standard deviation of each band."""
    low, finest = codec.analysis.low, codec.analysis.linear1
    row = _cut(*wavelet(1, False, False), -4, 10)
    filters = LOW_COLOURS[:, :, None, None] * np.outer(row, row) / row.sum() ** 2
    low.set_weight(nn.functional.pixel_unshuffle(torch.from_numpy(filters).float(), 2))
    # Kernels cover the planes at half resolution: two pixels to a tap.
    filters = band_filters(1, False, -4, 10)
    finest.set_weight(nn.functional.pixel_unshuffle(torch.from_numpy(filters).float(), 2))
    # The other levels are one level coarser to the picture at half its size, whose colours and loudness differ.
    colours = COLOURS @ np.linalg.inv(LOW_COLOURS) * row.sum() ** 2
    for level in range(2, 5):
        layer = getattr(codec.analysis, f"linear{level}")
        filters = band_filters(level, False, -layer.padding, layer.weight.shape[2], first_scale=2, colours=colours)
        layer.set_weight(torch.from_numpy(filters).float())
    coded = codec.latent(images)
    bands = torch.tensor(model.BAND_OF_CHANNEL)
    steps, deviations, peaks = (np.zeros(model.BAND_COUNT) for _ in range(3))
    for band in range(model.BAND_COUNT):
        values = coded[:, bands == band].flatten().numpy()
        peaks[band] = np.quantile(np.abs(values), 0.9999)
        steps[band] = max(FINEST_STEP, peaks[band] / 120)
        deviations[band] = values.std() / steps[band]
    codec.mean_shift.copy_(torch.from_numpy(mean_shifts(peaks / steps)[model.BAND_OF_CHANNEL]))
    levels = np.split(steps, np.cumsum([model.COARSE, model.BANDS, model.BANDS]))
    for level, own in zip((4, 3, 2, 1), levels, strict=True):
        layer = getattr(codec.analysis, f"linear{level}")
        layer.set_weight(layer.effective()[0] / torch.from_numpy(own).float()[:, None, None, None])
    codec.synthesis.linear4.set_weight(_synthesis_weight(4, 16, levels[0]))
    codec.synthesis.linear3.set_weight(_synthesis_weight(3, 8, levels[1]))
    level1 = band_filters(1, True, -4, 12)  # at 1/4, and its four phases are four filters
    shifted = [np.roll(level1, (2 * y, 2 * x), (2, 3)) for y in range(2) for x in range(2)]
    phases = np.stack(shifted, 1).reshape(-1, *level1.shape[1:])
    fine = [
        _taps_to_weight(band_filters(2, True, -4, 12), 4, levels[2]),
        _taps_to_weight(phases, 4, levels[3].repeat(4)),
    ]
    codec.synthesis.linear21.set_weight(torch.cat([_with_quarters(weight) for weight in fine], 1))
    return deviations


def _synthesis_weight(level: int, block: int, steps: np.ndarray) -> Tensor:
    return _with_quarters(_taps_to_weight(band_filters(level, True, -block, 3 * block), block, steps))


def _taps_to_weight(filters: np.ndarray, block: int, steps: np.ndarray) -> Tensor:
    """Synthesis filters (bands, 3, 3 * block, 3 * block) to a convolution weight over the bands' own grid; its outputs,
    by depth-to-space down to planes, are the block's pixels."""
    bands = len(filters)
    taps = torch.from_numpy(filters * steps[:, None, None, None]).float()
    # A coefficient at offset +1 reaches this block with its first third.
    taps = taps.reshape(bands, 3, 3, block, 3, block).flip(2, 4).permute(1, 3, 5, 0, 2, 4)
    # Outputs: (plane, its 2x2 phase, position in the block at half resolution, finest groups of 2 first).
    taps = taps.reshape(3, block, block, bands * 9).permute(3, 0, 1, 2)
    outputs = SpaceToDepth(2)(nn.functional.pixel_unshuffle(taps, 2))
    if block > 4:
        outputs = nn.functional.pixel_unshuffle(outputs, block // 4)
    return outputs.flatten(1).T.reshape(-1, bands, 3, 3).contiguous()


def _with_quarters(weight: Tensor) -> Tensor:
    return torch.cat([weight, weight / 2**FINE_EXP], 1)


def initialise(codec: model.Wavelet, images: Tensor) -> None:
    """Set every weight of `codec` from `images` (N, 3, H, W) in full-scale units, H and W multiples of 64."""
    with torch.no_grad():
        deviations = _initialise_linear(codec, images)
        # The smallest step starts as one unit, that is FINEST_STEP or more.
        codec.finest_log_gain[: model.BAND_COUNT] = inverse_softplus(-model.FINEST_LOG2_GAIN)
        start_gains(codec, FINEST_STEP, COARSEST_STEP)
        initialise_by_data(codec, images[:16])
        start_heads(codec, log_scale_bands(deviations))


def log_scale_bands(deviations: np.ndarray) -> list[np.ndarray]:
    """Per coding step the standard deviations that its head's output channels start with."""
    coarse = deviations[: model.COARSE]
    level3, level2, level1 = np.split(deviations[model.COARSE :], [model.BANDS, 2 * model.BANDS])
    finest = level1.repeat(4)
    return [coarse, coarse, level3.repeat(2), level3.repeat(2), level2, level2, finest, finest]
