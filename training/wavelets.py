"""Where training of the wavelet codec starts: the 6/10 wavelet in the linear filters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..calibration.qat import SpaceToDepth
from ..export.models import wavelet as model
from .initialise import initialise_by_data, inverse_softplus, mean_shifts, start_gains, start_heads

UNIT = 10.0
"""The latents' smallest unit: so many pixel levels of an orthonormal coefficient."""
FINEST_STEP, COARSEST_STEP = 14.0, 150.0
"""Quantisation steps of an orthonormal coefficient, in pixel levels, at quality 100 and 1."""
LOW_GAIN = 0.9
"""Of the half-size pictures, which overshoot the pixels' range next to edges."""

SHORT_LOWPASS = np.array([-0.129078, 0.047699, 0.788486])
LONG_LOWPASS = np.array([0.018914, 0.006989, -0.067237, 0.133389, 0.615051])
"""Left halves of the analysis and the synthesis filter of a 6/10 wavelet (Villasenor et al., 1995). Filters of even
lengths treat both borders of a picture alike."""
COLOURS = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
"""An orthonormal transform of R, G, B to a brightness and two differences."""


def wavelet(highpass: bool, synthesis: bool) -> np.ndarray:
    """(10,) taps of a nearly orthonormal 1-D filter at the places from -4 to 5; coefficient 0 stands at 1/2."""
    half = LONG_LOWPASS if highpass != synthesis else np.pad(SHORT_LOWPASS, (2, 0))
    taps = np.concatenate([half, half[::-1]])
    # Highpass filters are the other transform's lowpass filters with every second sign changed.
    return taps * (-1.0) ** np.arange(10) if highpass else taps


BANDS = ((False, False), (False, True), (True, False), (True, True))
"""Whether a band is highpass along (y, x)."""


def analysis_kernels() -> np.ndarray:
    """(4 bands, 10, 10)."""
    return np.stack([np.outer(*(wavelet(which, False) for which in band)) for band in BANDS])


def synthesis_kernels() -> np.ndarray:
    """(4 bands, 2, 2 positions, 5, 5): a convolution's kernels over the bands' own grid."""
    # The pixel at place p takes the coefficient at offset k by the tap at p - 2 k.
    rows = [
        np.array([[wavelet(which, True)[p - 2 * k + 4] for k in range(-2, 3)] for p in range(2)])
        for which in (False, True)
    ]
    return np.stack([np.einsum("pk,ql->pqkl", rows[y], rows[x]) for y, x in BANDS])


def _packed(kernels: np.ndarray, level: int) -> Tensor:
    """Analysis kernels (outputs, 3, sides) to a weight over 2x2 packed samples: level 1 sees the planes."""
    kernels_ = torch.from_numpy(kernels).float()
    return nn.functional.pixel_unshuffle(kernels_, 2) if level == 1 else SpaceToDepth(2)(kernels_)


def _initialise_linear(codec: model.Wavelet, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The wavelets in both transforms; returns each band's unit, in pixel levels, and standard deviation, in units."""
    analysis, synthesis = codec.analysis, codec.synthesis
    for level in range(1, 5):
        kernels = analysis_kernels()
        # What this level sees of an orthonormal lowpass coefficient.
        loudness = 2.0 ** (level - 1) / (LOW_GAIN if level > 1 else 1.0)
        if level < 4:
            gain = LOW_GAIN / 2 if level == 1 else 1 / 2
            low = kernels[0, 2:-2, 2:-2]  # the other taps are 0
            getattr(analysis, f"low{level}").set_weight(_packed(gain * np.eye(3)[:, :, None, None] * low, level))
        bands = kernels if level == 4 else kernels[1:]
        layer = analysis.coarse if level == 4 else getattr(analysis, f"detail{level}")
        weight = loudness * np.einsum("ck,bij->bckij", COLOURS, bands)
        layer.set_weight(_packed(weight.reshape(-1, *weight.shape[2:]), level))
    coded = codec.latent(images)
    bands = torch.tensor(model.BAND_OF_CHANNEL)
    units, deviations, peaks = (np.zeros(model.BAND_COUNT) for _ in range(3))
    for band in range(model.BAND_COUNT):
        values = coded[:, bands == band].flatten().numpy()
        peaks[band] = np.quantile(np.abs(values), 0.9999)
        units[band] = max(UNIT, peaks[band] / 120)
        deviations[band] = values.std() / units[band]
    codec.mean_shift.copy_(torch.from_numpy(mean_shifts(peaks / units)[model.BAND_OF_CHANNEL]))
    levels = np.split(units, model.COARSE + model.BANDS * np.arange(3))
    for level, own in zip((4, 3, 2, 1), levels, strict=True):
        layer = analysis.coarse if level == 4 else getattr(analysis, f"detail{level}")
        layer.set_weight(layer.effective()[0] / torch.from_numpy(own).float()[:, None, None, None])
        _initialise_synthesis(synthesis, level, own)
    return units, deviations


def _initialise_synthesis(synthesis: model.Synthesis, level: int, units: np.ndarray) -> None:
    lowpass, *details = synthesis_kernels()
    gain = 1.0 if level == 1 else LOW_GAIN
    loudness = gain * 2.0 ** (1 - level)
    if level == 4:
        low = _in_units(loudness * _colours_of(lowpass[None]), units[: model.COLOURS])
        units = units[model.COLOURS :]
    else:
        low = 2 * gain / LOW_GAIN * np.eye(3)[:, :, None, None, None, None] * lowpass
    inner = np.stack(details)[..., 1:-1, 1:-1]  # the other taps are 0
    for name, weight in (("low", low), ("detail", _in_units(loudness * _colours_of(inner), units))):
        # (input, colour, dy, dx, ...) to outputs (dy, dx, colour), or the planes' (colour, dy, dx).
        weight = weight.transpose(1, 2, 3, 0, 4, 5) if level == 1 else weight.transpose(2, 3, 1, 0, 4, 5)
        weight = weight.reshape(4 * model.COLOURS, -1, *weight.shape[4:])
        getattr(synthesis, f"{name}{level}").set_weight(torch.from_numpy(weight).float())


def _colours_of(kernels: np.ndarray) -> np.ndarray:
    """Kernels (bands, 2, 2, side, side) to those of each band's three colours, (3 bands, 3, 2, 2, side, side)."""
    # COLOURS is orthonormal: its inverse is its transpose.
    return np.einsum("ck,bpqij->bckpqij", COLOURS, kernels).reshape(-1, 3, *kernels.shape[1:])


def _in_units(weight: np.ndarray, units: np.ndarray) -> np.ndarray:
    return weight * units[:, None, None, None, None, None]


def initialise(codec: model.Wavelet, images: Tensor) -> None:
    """Set every weight of `codec` from `images` (N, 3, H, W) in full-scale units, H and W multiples of 64."""
    with torch.no_grad():
        units, deviations = _initialise_linear(codec, images)
        start_gains(codec, FINEST_STEP, COARSEST_STEP)
        finest = np.log2(FINEST_STEP / units) - model.FINEST_LOG2_GAIN
        codec.finest_log_gain[: model.BAND_COUNT] = torch.tensor([inverse_softplus(max(gain, 0.05)) for gain in finest])
        initialise_by_data(codec, images[:16])
        start_heads(codec, log_scale_bands(deviations))


def log_scale_bands(deviations: np.ndarray) -> list[np.ndarray]:
    """Per coding step the standard deviations that its head's output channels start with."""
    coarse, *levels = np.split(deviations, model.COARSE + model.BANDS * np.arange(3))
    return [coarse, coarse] + [own.repeat(2) for own in levels for _ in range(2)]
