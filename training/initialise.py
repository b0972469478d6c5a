"""Where training starts beside the linear filters (`training.wavelets`): data-dependent scales.

With saturation as the only non-linearity a layer works when its outputs fill the int8 range and one side saturates
often; PyTorch's default start leaves deep layers near zero, where nothing trains.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ..calibration.qat import ExactConv2d
from ..export.models.latent_codec import LOG2_SCALE_BIAS, LatentCodec
from ..runtime.latents import FINE_EXP, SCALE_STEPS_PER_OCTAVE

HYPER_OCTAVES = 0.05
"""Octaves by which the hyper-latent's step grows from one gain anchor to the next coarser one, at the start."""
HIDDEN_MEAN, HIDDEN_STD = -0.5, 0.45
LINEAR_STD = {"mix": 0.1, "out": 0.05}
"""Output spread of layers that stay linear, by the last part of their name; it sets their learning rate."""
SILENT = {"out": 0.01}
"""Of these, the one that starts nearly silent: noise that it added to working filters would be unlearned by
killing the layers before them."""
HYPER_STD = 5 / 128


def mean_shifts(peak: np.ndarray) -> np.ndarray:
    """(C,) uint8: the finest unit in which int8 means reach nearly as far as latents with these peaks (C,)."""
    return np.select([peak < 28, peak < 56], [0, 1], FINE_EXP).astype(np.uint8)


def start_heads(codec: LatentCodec, deviations: list[np.ndarray]) -> None:
    """Let each coding step's head predict the standard deviations `deviations`, one for each of its outputs."""
    heads = [codec.hyper_synthesis.head, *(step.head for step in codec.context_steps)]
    for head, own in zip(heads, deviations, strict=True):
        log2 = torch.from_numpy(np.log2(own)).float().clamp_min(-1)
        head.out.bias[len(log2) :] = (log2 - LOG2_SCALE_BIAS) * (SCALE_STEPS_PER_OCTAVE / 128)


def is_linear(name: str) -> bool:
    """Whether the layer of this name is one of the two transforms' linear filters."""
    return name.rpartition(".")[2].startswith(("low", "detail", "coarse", "rectify"))


def start_gains(codec: LatentCodec, finest: float, coarsest: float) -> None:
    """Let the latents' quantisation steps grow in equal octaves from `finest` to `coarsest`.

    The hyper-latent starts fine at every quality: one that starts coarse is all zero and never learns to help.
    """
    steps = codec.log_gain_steps
    steps.fill_(inverse_softplus(math.log2(coarsest / finest) / len(steps)))
    steps[:, codec.gain_count :] = inverse_softplus(HYPER_OCTAVES)


def inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))


def initialise_by_data(codec: LatentCodec, images: Tensor) -> None:
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
