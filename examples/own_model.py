"""A codec of your own, as `linnet export` takes it: see docs/export.md.

    linnet export examples/own_model.py:make --images PHOTOGRAPHS --out own.lntb

Here the weights are random; yours come from `--weights W`, whose path is then the argument of `make`.
"""

from __future__ import annotations

import torch
from torch import nn


class OwnCodec(nn.Module):
    """A hyperprior with strided and sub-pixel convolutions, GELU and ReLU: scales only, no means."""

    absolute_hyper_input = True

    def __init__(self, inside: int = 8, channels: int = 12, hyper: int = 6) -> None:
        super().__init__()
        self.g_a = nn.Sequential(nn.Conv2d(3, inside, 7, 4, 3), nn.GELU(), nn.Conv2d(inside, channels, 5, 4, 2))
        self.g_s = nn.Sequential(
            nn.Conv2d(channels, 64 * inside, 3, 1, 1), nn.PixelShuffle(8), nn.GELU(),
            nn.ConvTranspose2d(inside, 3, 4, 2, 1),
        )  # fmt: skip
        self.h_a = nn.Sequential(nn.Conv2d(channels, hyper, 5, 2, 2), nn.ReLU(), nn.Conv2d(hyper, hyper, 5, 2, 2))
        self.h_s = nn.Sequential(
            nn.ConvTranspose2d(hyper, hyper, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(hyper, hyper, 4, 2, 1), nn.ReLU(),
            nn.Conv2d(hyper, channels, 3, 1, 1), nn.ReLU(),
        )  # fmt: skip


def make(weights: str | None = None) -> nn.Module:
    torch.manual_seed(0)
    model = OwnCodec()
    with torch.no_grad():  # as training would leave it: latents of several steps, scales to match
        model.g_a[-1].weight *= 20
        model.h_s[-2].bias.fill_(2.0)
    if weights is not None:
        model.load_state_dict(torch.load(weights, weights_only=True))
    return model
