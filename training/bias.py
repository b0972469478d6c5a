"""Takes the mean error of what the synthesis draws out of its last layer's biases (as Nagel et al., 2019, do for layers
that are rounded). Training leaves patterns of four pixels behind, too faint for its gradients' noise to find."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..export.bundling import COUNTED_QUALITIES
from ..export.models.wavelet import Wavelet

BORDER = 8
"""Positions of the last layer next to a picture's border, which do not count."""
BATCH = 8


def correct_bias(codec: Wavelet, images: Tensor) -> None:
    """Move the biases of `codec`, which is exact, so that pixels are right on the average over `images` (N, 3, H, W),
    sides multiples of 64, and COUNTED_QUALITIES, each weighed by the inverse of its squared error."""
    training = codec.training
    codec.eval()
    with torch.no_grad():
        mean, weights = torch.zeros_like(codec.synthesis.out.bias), 0.0
        for quality in COUNTED_QUALITIES:
            errors = torch.cat([_errors(codec, part, quality) for part in images.split(BATCH)])
            weight = 1 / errors.square().mean().clamp_min(1e-9).item()
            mean, weights = mean + weight * errors.mean((0, 2, 3)), weights + weight
        codec.synthesis.out.bias -= mean / weights
    codec.train(training)


def _errors(codec: Wavelet, images: Tensor, quality: float) -> Tensor:
    """(N, 48, H/4 - 16, W/4 - 16): by how much each output of the last layer is too large."""
    pixels, _ = codec(images, torch.full((len(images),), quality, device=codec.device))
    outputs = codec.synthesis.pack(F.pixel_unshuffle(pixels - images, 2))
    return outputs[:, :, BORDER:-BORDER, BORDER:-BORDER]
