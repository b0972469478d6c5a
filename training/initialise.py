"""Where training starts: the Karhunen-Loeve transform in the bypass, and data-dependent scales everywhere else.

With saturation as the only non-linearity a layer works when its outputs fill the int8 range and one side saturates
often; PyTorch's default start leaves deep layers near zero, where nothing trains.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ..calibration.qat import ExactConv2d
from ..export.models import camera
from ..runtime.latents import FINE_EXP

BLOCK = 16
FINEST_STEP = 14.0
"""Quantisation step of an orthonormal 16x16x3 coefficient, in pixel levels, at quality 100."""
COARSEST_STEP = 150.0
HYPER_OCTAVES = 0.05
"""Octaves by which the hyper-latent's step grows from one gain anchor to the next coarser one, at the start."""
HIDDEN_MEAN, HIDDEN_STD = -0.5, 0.45
LINEAR_STD = {"mix": 0.1, "out": 0.05, "down16": 0.05}
"""Output spread of layers that stay linear, by the last part of their name; it sets their learning rate."""
SILENT = {"out": 0.01, "down16": 0.01}
"""Of these, the ones that start nearly silent: noise that they added to a working bypass would be unlearned by
killing the layers before them."""
HYPER_STD = 5 / 128


def principal_components(patches: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Leading components (count, 768) and variances (count,) of (N, 768) patches; the mean is not removed."""
    variance, vectors = np.linalg.eigh(patches.T.astype(np.float64) @ patches / len(patches))
    return vectors[:, ::-1][:, :count].T, variance[::-1][:count]


def mean_shifts(peak: np.ndarray) -> np.ndarray:
    """(C,) uint8: the finest unit in which int8 means reach nearly as far as latents with these peaks (C,)."""
    return np.select([peak < 28, peak < 56], [0, 1], FINE_EXP).astype(np.uint8)


def initialise(codec: camera.Camera, images: Tensor) -> None:
    """Set every weight of `codec` from `images` (N, 3, H, W) in full-scale units, H and W multiples of 64."""
    with torch.no_grad():
        deviations = _initialise_bypass(codec, images)
        start_gains(codec, FINEST_STEP, COARSEST_STEP)
        initialise_by_data(codec, images[:16])
        start_heads(codec, [deviations[step.first : step.last] for step in camera.CODING_STEPS])


def start_heads(codec: camera.Camera, deviations: list[np.ndarray]) -> None:
    """Let each coding step's head predict the standard deviations `deviations`, one for each of its outputs."""
    heads = [codec.hyper_synthesis.head, *(step.head for step in codec.context_steps)]
    for head, own in zip(heads, deviations, strict=True):
        log2 = torch.from_numpy(np.log2(own)).float().clamp_min(-1)
        head.out.bias[len(log2) :] = (log2 - camera.LOG2_SCALE_BIAS) * (camera.SCALE_STEPS_PER_OCTAVE / 128)


def is_linear(name: str) -> bool:
    """Whether the layer of this name is one of the two transforms' linear filters."""
    return name.rpartition(".")[2].startswith(("bypass", "linear", "low", "detail", "coarse", "rectify"))


def _initialise_bypass(codec: camera.Camera, images: Tensor) -> np.ndarray:
    """Karhunen-Loeve transform of 16x16 blocks in both bypasses; returns the latents' standard deviations."""
    blocks = nn.functional.pixel_unshuffle(images * 128, BLOCK).permute(0, 2, 3, 1).reshape(-1, 3 * BLOCK**2).numpy()
    basis, variance = principal_components(blocks, camera.LATENT_CHANNELS)
    peak = np.quantile(np.abs(blocks @ basis.T), 0.9999, axis=0)
    step = np.maximum(FINEST_STEP, peak / 120)
    codec.mean_shift.copy_(torch.from_numpy(mean_shifts(peak / step)))
    # Blocks are ordered (channel, row, column) of 16; the planes are (channel, 2x2 phase) at half resolution.
    vectors = torch.from_numpy(basis.copy()).float().reshape(-1, 3, BLOCK, BLOCK)
    planes = nn.functional.pixel_unshuffle(vectors, 2)
    steps = torch.from_numpy(step).float()
    codec.analysis.bypass.set_weight(planes / steps[:, None, None, None])
    back = (planes * steps[:, None, None, None]).flatten(1).T[:, :, None, None]
    codec.synthesis.bypass.set_weight(torch.cat([back, back / 2**FINE_EXP], 1))
    return np.sqrt(variance) / step


def start_gains(codec: camera.Camera, finest: float, coarsest: float) -> None:
    """Let the latents' quantisation steps grow in equal octaves from `finest` to `coarsest`.

    The hyper-latent starts fine at every quality: one that starts coarse is all zero and never learns to help.
    """
    steps = codec.log_gain_steps
    steps.fill_(inverse_softplus(math.log2(coarsest / finest) / len(steps)))
    steps[:, codec.gain_count :] = inverse_softplus(HYPER_OCTAVES)


def inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))


def initialise_by_data(codec: camera.Camera, images: Tensor) -> None:
    """Normalise each layer's outputs on real data, in the order the data reaches them (Mishkin and Matas, 2016)."""
    handles = []
    for name, layer in codec.named_modules():
        if isinstance(layer, ExactConv2d) and not is_linear(name):
            role = name.split(".")[-1]
            linear = HYPER_STD if name.startswith("hyper_analysis.") and layer.raw else LINEAR_STD.get(role)
            handles.append(layer.register_forward_pre_hook(_normaliser(linear, SILENT.get(role, 1.0))))
    codec.eval()
    codec(images, torch.linspace(0, 1, len(images)))
    for handle in handles:
        handle.remove()


def _normaliser(linear: float | None, loudness: float):  # type: ignore[no-untyped-def]
    """A hook that gives a layer's outputs the mean and spread it should start with, then `loudness` times that."""

    def normalise(layer: ExactConv2d, inputs: tuple[Tensor, ...]) -> None:
        weight, _ = layer.effective()
        y = nn.functional.conv2d(inputs[0], weight, None, layer.stride, layer.padding)
        mean, std = y.mean((0, 2, 3)), y.std((0, 2, 3)).clamp_min(1e-6)
        scale = (HIDDEN_STD if linear is None else linear) / std
        layer.set_weight(weight * scale[:, None, None, None])
        layer.weight.mul_(loudness)
        layer.bias.copy_(((HIDDEN_MEAN if linear is None else 0.0) - mean * scale) * loudness)

    return normalise
