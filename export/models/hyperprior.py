"""A codec with at most one hyper-latent and no context, made of exact layers: what a converted float model becomes.

Each network is a row of `ExactStage`s. The latent's and hyper-latent's units, means and scales are per channel, so that
the integers of the runtime (`runtime.latents`) stand for the float model's values: whole latents times `unit`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...calibration.qat import ExactConv2d, set_exact
from ...runtime.latents import FINE_EXP
from ..stages import Stage

HIDDEN = 2
"""Hidden channels of a fitted activation per channel."""
LOWEST, HIGHEST = -(128 << FINE_EXP), (127 << FINE_EXP) + 1
"""Range of a latent in quarters."""


class ExactStage(nn.Module):
    """A stage in exact layers.

    ReLU is saturation at the lowest integer and a 1x1 convolution that moves 0 back to 0, which the padding of the
    next layer needs. A fitted activation is two 1x1 convolutions, the second of which also sees their input.
    """

    def __init__(self, stage: Stage, *, raw: bool = False) -> None:
        super().__init__()
        outputs, inputs, kernel, _ = stage.weight.shape
        channels, self.upscale = stage.channels, stage.upscale
        self.conv = ExactConv2d(inputs, outputs, kernel, stage.stride, padding=stage.padding, raw=raw)
        self.centre = self.hidden = self.mix = None
        if isinstance(stage.activation, nn.ReLU | nn.LeakyReLU):
            self.centre = ExactConv2d(channels, channels, 1)
        elif stage.activation is not None:
            self.hidden = ExactConv2d(channels, HIDDEN * channels, 1)
            self.mix = ExactConv2d((1 + HIDDEN) * channels, channels, 1)

    def linear(self, x: Tensor) -> Tensor:
        """The first part, which every stage has."""
        x = self.conv(x)
        return F.pixel_shuffle(x, self.upscale) if self.upscale > 1 else x

    def activate(self, x: Tensor) -> Tensor:
        if self.centre is not None:
            x = self.centre(x)
        if self.hidden is not None and self.mix is not None:
            x = self.mix(torch.cat([x, self.hidden(x)], 1))
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.linear(x))


class Magnitude(nn.Module):
    """|x| of C channels: the positive and the negative part, each by saturation, and their sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.parts = ExactConv2d(channels, 2 * channels, 1)
        self.sum = ExactConv2d(2 * channels, channels, 1)
        one = torch.eye(channels)[:, :, None, None]
        self.parts.set_weight(torch.cat([one, -one]))
        self.sum.set_weight(torch.cat([one, one], 1))
        with torch.no_grad():
            self.parts.bias.fill_(-1.0)
            self.sum.bias.fill_(2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.sum(self.parts(x))


class _Sequence(nn.Module):
    """`lead`, where there is one, and then stages. The argument's name in `forward` is the network's input."""

    def __init__(self, stages: list[ExactStage], lead: nn.Module | None = None) -> None:
        super().__init__()
        self.lead = lead
        self.stages = nn.ModuleList(stages)

    def run(self, x: Tensor) -> Tensor:
        if self.lead is not None:
            x = self.lead(x)
        for stage in self.stages:
            x = stage(x)
        return x


class Analysis(_Sequence):
    """Planes (N, 12, H/2, W/2) to the latent's accumulator (N, M, H/16, W/16)."""

    def forward(self, planes: Tensor) -> Tensor:
        return self.run(planes)


class HyperAnalysis(_Sequence):
    """Whole latents (N, M, h, w) to the hyper-latent's accumulator (N, C, h/4, w/4)."""

    def forward(self, latent: Tensor) -> Tensor:
        return self.run(latent)


class HyperSynthesis(_Sequence):
    """Whole hyper-latents (N, C, h/4, w/4) to means and scales (N, 2 M, h, w)."""

    def forward(self, hyper: Tensor) -> Tensor:
        return self.run(hyper)


class Synthesis(_Sequence):
    """Whole latents and their quarters (N, 2 M, h, w) to planes (N, 12, 8 h, 8 w)."""

    def forward(self, latent: Tensor) -> Tensor:
        return self.run(latent)


class Lattice(nn.Module):
    """Latents in quarters of a `unit` (C,) per channel, which is in the float model's units."""

    def __init__(self, unit: Tensor) -> None:
        super().__init__()
        self.register_buffer("unit", unit)

    def quantise(self, values: Tensor, means: Tensor, step: float = 1.0) -> Tensor:
        """The quarters that the runtime decodes for `values` coded around `means`, all (N, C, H, W).

        `values`, `means` and `step` are in the float model's units, and the means on the grid of quarters.
        """
        decoded = means + torch.round((values - means) / step) * step
        quarter = self.unit[:, None, None] / (1 << FINE_EXP)
        return torch.floor(decoded / quarter + 0.5).clamp(LOWEST, HIGHEST)

    def values(self, quarters: Tensor) -> Tensor:
        """What they stand for, in the float model's units."""
        return quarters * (self.unit[:, None, None] / (1 << FINE_EXP))

    def whole(self, quarters: Tensor) -> Tensor:
        """What the hyper-synthesis sees: whole latents in full-scale units."""
        return torch.floor(quarters / (1 << FINE_EXP) + 0.5) / 128

    def both(self, quarters: Tensor) -> Tensor:
        """What the synthesis sees: whole latents and the quarters that are left, (N, 2 C, H, W)."""
        whole = self.whole(quarters)
        return torch.cat([whole, quarters / 128 - (1 << FINE_EXP) * whole], 1)


class Hyperprior(nn.Module):
    """The whole codec. Without `hyper_analysis` and `hyper_synthesis` each latent channel has one fixed density."""

    def __init__(self, unit: Tensor, hyper_unit: Tensor | None) -> None:
        super().__init__()
        self.latents = Lattice(unit)
        self.hyper_latents = None if hyper_unit is None else Lattice(hyper_unit)
        channels = len(unit)
        self.analysis: Analysis | None = None
        self.synthesis: Synthesis | None = None
        self.hyper_analysis: HyperAnalysis | None = None
        self.hyper_synthesis: HyperSynthesis | None = None
        self.register_buffer("mean_shift", torch.full((channels,), FINE_EXP, dtype=torch.uint8))
        self.register_buffer("scale_step", torch.ones(channels))
        """Standard deviation per integer step of the scale that the hyper-synthesis gives."""
        self.register_buffer("medians", torch.zeros(channels if hyper_unit is None else len(hyper_unit)))
        """Means of the latents that have a fixed density, in the float model's units and on the lattice."""

    def latent(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in full-scale units to latents in the float model's units."""
        assert self.analysis is not None
        return self.analysis(F.pixel_unshuffle(images, 2)) * (128 * self.latents.unit)[:, None, None]

    def seen(self, latent: Tensor) -> Tensor:
        """The latent as the hyper-analysis sees it: whole, in full-scale units."""
        return torch.floor(latent / self.latents.unit[:, None, None] + 0.5).clamp(-128, 127) / 128

    def hyper_latent(self, latent: Tensor) -> Tensor:
        """Latents to hyper-latents, in the float model's units."""
        assert self.hyper_analysis is not None and self.hyper_latents is not None
        return self.hyper_analysis(self.seen(latent)) * (128 * self.hyper_latents.unit)[:, None, None]

    @property
    def mean_unit(self) -> Tensor:
        """(M,): what full scale of the hyper-synthesis' means stands for."""
        return 128 * self.latents.unit * 2.0 ** (self.mean_shift.float() - FINE_EXP)

    def hyper_quarters(self, latent: Tensor) -> Tensor:
        """Latents to the decoded hyper-latents, in quarters."""
        assert self.hyper_latents is not None
        return self.hyper_latents.quantise(self.hyper_latent(latent), self.medians[:, None, None])

    def parameters_of(self, hyper: Tensor) -> tuple[Tensor, Tensor]:
        """Decoded hyper-latents (quarters) to (means, scales) of the latents in the float model's units."""
        assert self.hyper_synthesis is not None and self.hyper_latents is not None
        means, scales = self.hyper_synthesis(self.hyper_latents.whole(hyper)).chunk(2, 1)
        return means * self.mean_unit[:, None, None], (scales + 1) * (128 * self.scale_step)[:, None, None]

    def code(self, latent: Tensor, step: float = 1.0) -> Tensor:
        """Latents to the decoded latents, in quarters."""
        means = self.medians[:, None, None]
        if self.hyper_latents is not None:
            means, _ = self.parameters_of(self.hyper_quarters(latent))
        return self.latents.quantise(latent, means, step)

    def reconstruct(self, quarters: Tensor) -> Tensor:
        """Decoded latents to images (N, 3, 16 h, 16 w) in full-scale units."""
        assert self.synthesis is not None
        return F.pixel_shuffle(self.synthesis(self.latents.both(quarters)), 2)

    def forward(self, images: Tensor, step: float = 1.0) -> Tensor:
        """Images (N, 3, H, W) in full-scale units, sides multiples of 64, to decoded images."""
        return self.reconstruct(self.code(self.latent(images), step))

    def set_exact(self, exact: bool) -> None:
        set_exact(self, exact)

    def named_networks(self) -> dict[str, tuple[nn.Module, dict[str, int]]]:
        """Each network a bundle holds, by the name the runtime knows it under, with its inputs' channels."""
        given: dict[str, tuple[nn.Module | None, str, int]] = {
            "analysis": (self.analysis, "planes", 12),
            "hyper_analysis": (self.hyper_analysis, "latent", len(self.latents.unit)),
            "hyper_synthesis": (self.hyper_synthesis, "hyper", len(self.medians)),
            "synthesis": (self.synthesis, "latent", 2 * len(self.latents.unit)),
        }
        return {name: (module, {i: n}) for name, (module, i, n) in given.items() if module is not None}
