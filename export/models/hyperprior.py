"""A codec with at most one hyper-latent and no context, made of exact layers: what a converted float model becomes.

Each network is a row of `ExactStage`s. The latent's and hyper-latent's units, means and scales are per channel, so that
the integers of the runtime (`runtime.latents`) stand for the float model's values: whole latents times `unit`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...calibration.qat import ExactConv2d, set_exact
from ...runtime.latents import FINE_EXP
from .compressai import gaussian_likelihood
from .latent_codec import laplacian_bits

HIDDEN = 2
"""Hidden channels of a fitted activation per channel."""
OWN_QUALITY = 60
"""The quality that has the float model's own quantisation step, 1."""
QUALITIES_PER_OCTAVE = 20
"""The step doubles for so many qualities less."""
LOWEST, HIGHEST = -(128 << FINE_EXP), (127 << FINE_EXP) + 1
"""Range of a latent in quarters."""


RECTIFIED, FITTED = "rectified", "fitted"
"""Kinds of activation: ReLU, and what was regressed onto exact layers."""


@dataclass(frozen=True)
class StageShape:
    """What an `ExactStage` is made of; `activation` is RECTIFIED, FITTED or None."""

    outputs: int
    inputs: int
    kernel: int
    stride: int
    padding: int
    upscale: int
    activation: str | None
    raw: bool


class ExactStage(nn.Module):
    """A convolution, an optional move from depth to space and an optional activation, in exact layers.

    ReLU is saturation at the lowest integer and a 1x1 convolution that moves 0 back to 0, which the padding of the
    next layer needs. A fitted activation is two 1x1 convolutions, the second of which also sees their input.
    """

    def __init__(self, shape: StageShape) -> None:
        super().__init__()
        self.shape, self.upscale = shape, shape.upscale
        channels = shape.outputs // shape.upscale**2
        self.conv = ExactConv2d(
            shape.inputs, shape.outputs, shape.kernel, shape.stride, padding=shape.padding, raw=shape.raw
        )
        self.centre = ExactConv2d(channels, channels, 1) if shape.activation == RECTIFIED else None
        self.hidden = self.mix = None
        if shape.activation == FITTED:
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

    def shapes(self) -> dict[str, Any]:
        """What the row is made of."""
        return {"magnitude": self.lead is not None, "stages": [asdict(stage.shape) for stage in self.stages]}

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

    def quantise(self, values: Tensor, means: Tensor, step: Tensor | float = 1.0) -> Tensor:
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

    networks: ClassVar = {
        "analysis": Analysis,
        "hyper_analysis": HyperAnalysis,
        "hyper_synthesis": HyperSynthesis,
        "synthesis": Synthesis,
    }

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
        self.register_buffer("fixed_scale", torch.ones_like(self.medians))
        """Standard deviations of those."""

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

    def code(self, latent: Tensor, step: Tensor | float = 1.0) -> Tensor:
        """Latents to the decoded latents, in quarters."""
        means = self.medians[:, None, None]
        if self.hyper_latents is not None:
            means, _ = self.parameters_of(self.hyper_quarters(latent))
        return self.latents.quantise(latent, means, step)

    def reconstruct(self, quarters: Tensor) -> Tensor:
        """Decoded latents to images (N, 3, 16 h, 16 w) in full-scale units."""
        assert self.synthesis is not None
        return F.pixel_shuffle(self.synthesis(self.latents.both(quarters)), 2)

    def forward(self, images: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) in full-scale units, sides multiples of 64, and quality positions (N,) in [0, 1], from
        quality 1 to quality 100: (decoded images, ideal bits per pixel (N,))."""
        step = torch.exp2((OWN_QUALITY - 1 - 99 * quality) / QUALITIES_PER_OCTAVE)[:, None, None, None]
        latent = self.latent(images)
        fixed, medians = self.fixed_scale[:, None, None], self.medians[:, None, None]
        if self.hyper_latents is None:
            symbols = torch.round((latent - medians) / step)
            bits = laplacian_bits(symbols, fixed / step).flatten(1).sum(1)
        else:
            hyper = self.hyper_quarters(latent)
            bits = laplacian_bits(self.hyper_latents.values(hyper) - medians, fixed).flatten(1).sum(1)
            means, scales = self.parameters_of(hyper)
            symbols = torch.round((latent - means) / step)
            bits = bits - torch.log2(gaussian_likelihood(symbols, scales / step)).flatten(1).sum(1)
        decoded = self.reconstruct(self.code(latent, step))
        return decoded, bits / (images.shape[2] * images.shape[3])

    def as_dict(self, name: str) -> dict[str, Any]:
        """Everything that `from_dict` needs, of tensors, strings and numbers."""
        networks = {key: module.shapes() for key, (module, _) in self.named_networks().items()}
        return {"hyperprior": name, "networks": networks, "state": self.state_dict()}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Hyperprior:
        """The codec that `as_dict` was called on. Raises KeyError, TypeError or RuntimeError for anything else."""
        state, kinds = stored["state"], cls.networks
        codec = cls(state["latents.unit"], state.get("hyper_latents.unit"))
        for name, network in stored["networks"].items():
            lead = Magnitude(len(state["latents.unit"])) if network["magnitude"] else None
            stages = [ExactStage(StageShape(**shape)) for shape in network["stages"]]
            setattr(codec, name, kinds[name](stages, lead))
        codec.load_state_dict(state)
        return codec.eval()

    def set_exact(self, exact: bool) -> None:
        set_exact(self, exact)

    def named_networks(self) -> dict[str, tuple[_Sequence, dict[str, int]]]:
        """Each network a bundle holds, by the name the runtime knows it under, with its inputs' channels."""
        given: dict[str, tuple[_Sequence | None, str, int]] = {
            "analysis": (self.analysis, "planes", 12),
            "hyper_analysis": (self.hyper_analysis, "latent", len(self.latents.unit)),
            "hyper_synthesis": (self.hyper_synthesis, "hyper", len(self.medians)),
            "synthesis": (self.synthesis, "latent", 2 * len(self.latents.unit)),
        }
        return {name: (module, {i: n}) for name, (module, i, n) in given.items() if module is not None}
