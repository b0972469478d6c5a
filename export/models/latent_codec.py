"""What a codec does between its networks, as a torch module that trains: the float twin of `runtime.latents`.

Quantisation around predicted means, gains for every quality (Cui et al., 2021), companding, rates, and the one order of
coding: the hyper-latent, then each coding step under what is decoded before it. Exact, it computes what the runtime
computes in integers. Symbols are quantised along a trellis (`runtime.core.search`); while it trains in floating point,
a scalar quantiser of about the same error and rate stands for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...calibration.entropy_tables import laplacian_tables
from ...calibration.qat import round_straight_through, saturate, set_exact
from ...runtime import core
from ...runtime.latents import (
    BIT_WORTH,
    COMPANDING_KNEE,
    FINE_EXP,
    GAIN_EXP,
    SCALE_STEPS_PER_OCTAVE,
    SCALE_TABLES,
    SMALLEST_SCALE,
    TRELLIS_BIT_WORTH,
    TRELLIS_STATES,
    TRELLIS_STEP,
    CodingStep,
    code_lengths,
    companding_table,
)

HYPER_CHANNELS = 64
GAIN_ANCHORS = 6
MARGIN = 48
"""Pixels around a picture that the analysis sees at most; beyond its border they are those inside, mirrored."""
LOG2_SCALE_BIAS = 1.0
"""log2 of the scale, in latent units, that a zero output of the entropy parameters means."""


def compand(latent: Tensor, exact: bool) -> Tensor:
    """The latent as the networks see it: logarithmic, so that small values keep their precision in int8.

    Takes and gives full-scale units; `exact` looks the value up in the runtime's table.
    """
    y = torch.asinh(latent * (128 / COMPANDING_KNEE)) * (127 / 128 / math.asinh(128 / COMPANDING_KNEE))
    if exact:
        table = torch.from_numpy(companding_table()).to(y) / 128
        y = (
            y + (table[(latent.detach() * 128 + 128).long()] - y).detach()
            if y.requires_grad
            else table[(latent * 128 + 128).long()]
        )
    return y


def laplacian_bits(value: Tensor, scale: Tensor) -> Tensor:
    """Bits of `value` under a zero-mean Laplacian of standard deviation `scale` integrated over unit intervals.

    Residuals of this codec are heavier-tailed than Gaussians: the same predictions cost 2 % less under a Laplacian.
    """
    rate = math.sqrt(2) / scale
    magnitude = value.abs()
    # Within the central interval the two tails are cut away; beyond it the interval lies on one exponential.
    centre = 1 - 0.5 * (torch.exp(-rate * (0.5 - magnitude).clamp_min(0)) + torch.exp(-rate * (0.5 + magnitude)))
    flank_log = -rate * (magnitude - 0.5).clamp_min(0) + torch.log(-torch.expm1(-rate)) - math.log(2)
    bits = torch.where(magnitude < 0.5, -torch.log(centre.clamp_min(1e-9)), -flank_log)
    return bits * (1 / math.log(2))


def optimised_rounding(residual: Tensor, scale: Tensor) -> Tensor:
    """The symbols that a scalar quantiser chooses (`runtime.latents.rounding_offsets`), with ideal Laplacian code
    lengths."""
    with torch.no_grad():
        rate = math.sqrt(2) / scale
        above_zero = torch.log(-torch.expm1(-rate / 2)) - torch.log(-torch.expm1(-rate)) + math.log(2) + rate / 2
        magnitude = residual.abs()
        more_bits = torch.where(magnitude < 1, above_zero, rate) / math.log(2)
        return torch.sign(residual) * torch.floor(magnitude + 0.5 - BIT_WORTH / 2 * more_bits).clamp_min(0)


def mirrored(images: Tensor, margin: int) -> Tensor:
    """Images (N, C, H, W), H and W at least core.MIRRORED, with `margin` pixels around them, those of
    `runtime.core.pixels_to_planes`."""
    for axis in (2, 3):
        outside = torch.arange(margin, device=images.device).clamp(max=core.MIRRORED - 1)
        inside = torch.arange(length := images.shape[axis], device=images.device)
        images = images.index_select(axis, torch.cat([outside.flip(0), inside, length - 1 - outside]))
    return images


class LatentCodec(nn.Module):
    """A whole codec as one trainable module; `forward` takes images in full-scale units and one quality each.

    Subclasses have an `architecture`, the coding `steps` and the networks.
    """

    architecture: str
    steps: tuple[CodingStep, ...]
    latent_channels: int
    gain_count: int
    """Gains of the latent that are learned; `_spread` gives each channel its own."""
    gain_groups: Sequence[Sequence[int]]
    """Those that `training.tune_gains` moves together."""
    hyper_channels = HYPER_CHANNELS

    analysis: nn.Module
    """Planes (N, 12, H/2, W/2) to the latent's accumulator (N, C, H/16, W/16)."""
    hyper_analysis: nn.Module
    """Companded latent (N, C, h, w) to the hyper-latent accumulator (N, 64, h/4, w/4)."""
    hyper_synthesis: nn.Module
    """Companded hyper-latent and quality plane (N, 65, h/4, w/4) to features and the parameters of the first step."""
    context_steps: nn.ModuleList
    """One for each further step: features and the companded latents coded so far to its parameters, and perhaps to
    features for the steps after it."""
    synthesis: nn.Module
    """Latent (N, 2 C, h, w), wholes and quarters, and the wholes companded with the quality plane (N, C + 1, h, w), to
    planes (N, 12, 8h, 8w). Its `linear` is what linear filters alone make of the latent."""

    def __init__(self) -> None:
        super().__init__()
        gains = self.gain_count + HYPER_CHANNELS
        self.finest_log_gain = nn.Parameter(torch.full((gains,), -3.0))
        self.log_gain_steps = nn.Parameter(torch.full((GAIN_ANCHORS - 1, gains), 0.0))
        self.hyper_log_scale = nn.Parameter(torch.full((HYPER_CHANNELS,), 2.0))
        self.register_buffer("mean_shift", torch.full((self.latent_channels,), FINE_EXP, dtype=torch.uint8))
        """The means' unit: 2**mean_shift quarters of a latent."""
        self.gain_table: Tensor | None = None
        """The gains of a bundle (100, latent + hyper channels), which then replace the learned ones."""
        self.entropy_tables = core.EntropyTables(*laplacian_tables(trellis=True))
        """Of the trellis' two quantisers. What the encoder chooses depends on them."""
        self.symbol_counts: np.ndarray | None = None
        """(2 SCALE_TABLES, M) int64, where symbols are to be counted: how often |symbol| was 0, 1, ... per table."""
        self.exact = False
        self.networks = True
        """Off: the synthesis is its linear filters alone, so that the entropy model warms up at little cost."""

    def _spread(self, gains: Tensor) -> Tensor:
        """Learned gains (..., gain_count + hyper channels), log2, to one for each channel."""
        raise NotImplementedError

    def _gather(self, gains: Tensor) -> Tensor:
        """Undoes `_spread`."""
        raise NotImplementedError

    def learn_gains(self) -> None:
        """Turn the gains of a bundle into learned ones: between anchors, what is nearest to them in octaves."""
        table = self.gain_table
        if table is None:
            return
        wanted = self._gather(torch.log2(table.double() / TRELLIS_STEP))
        position = torch.linspace(0, GAIN_ANCHORS - 1, len(table), dtype=torch.float64)
        weight = (1 - (position[:, None] - torch.arange(GAIN_ANCHORS)).abs()).clamp_min(0)
        self.set_learned_gains(torch.linalg.lstsq(weight, wanted).solution)
        self.gain_table = None

    def log_gains(self, quality: Tensor) -> Tensor:
        """log2 of the scalar quantiser's step in latent units, (N, latent + hyper channels), for quality positions (N,)
        in [0, 1].

        Never below the least that `_spread` allows and never rising with quality, by construction.
        """
        anchors = self._spread(self.learned_gains())
        position = quality.clamp(0, 1) * (GAIN_ANCHORS - 1)
        left = position.floor().clamp(max=GAIN_ANCHORS - 2).long()
        fraction = (position - left).unsqueeze(1)
        return anchors[left] * (1 - fraction) + anchors[left + 1] * fraction

    def learned_gains(self) -> Tensor:
        """(GAIN_ANCHORS, gain_count + hyper channels), log2, before `_spread`."""
        steps = F.softplus(self.log_gain_steps).flip(0).cumsum(0).flip(0)
        return F.softplus(self.finest_log_gain) + torch.cat([steps, torch.zeros_like(steps[:1])])

    def set_learned_gains(self, anchors: Tensor) -> None:
        """The parameters with which `learned_gains` gives `anchors`, or what is next to them and does not rise."""
        falls = torch.cat([anchors[:-1] - anchors[1:], anchors[-1:]]).clamp_min(1e-3)
        stored = falls.expm1().log().to(self.finest_log_gain)
        with torch.no_grad():
            self.log_gain_steps.copy_(stored[:-1])
            self.finest_log_gain.copy_(stored[-1])

    def gains(self, quality: Tensor) -> Tensor:
        """Steps of the trellis in latent units, (N, latent + hyper channels, 1, 1); when exact, on the runtime's grid
        of 1/256."""
        if self.gain_table is not None:
            return self.gain_table[torch.round(quality * (len(self.gain_table) - 1)).long()][:, :, None, None]
        gain = TRELLIS_STEP * 2.0 ** self.log_gains(quality)
        if self.exact:
            unit = 2.0 ** -(GAIN_EXP + FINE_EXP)
            gain = round_straight_through(gain / unit) * unit
        return gain[:, :, None, None]

    def _code(
        self, value: Tensor, mean: Tensor, log2_scale: Tensor, gain: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantise `value` around `mean` (latent units): the decoded whole latent and its quarters, both as the numbers
        that the networks see in full-scale units, and the bits.

        `log2_scale` is that of the latent; dividing by the gain makes it the symbol's. Only positions in `mask` count.
        """
        residual = (value - mean) / gain
        scale = 2.0 ** (log2_scale - torch.log2(gain)).clamp_min(math.log2(SMALLEST_SCALE))
        if self.training:
            # The scalar quantiser that stands for the trellis, and is differentiable.
            scalar, its_scale = TRELLIS_STEP * residual, TRELLIS_STEP * scale
            bits = laplacian_bits(scalar + torch.rand_like(scalar) - 0.5, its_scale)
        if self.training and not self.exact:
            level = optimised_rounding(scalar, its_scale) / (TRELLIS_STEP / 2)
        else:
            level, coded_bits = self._search(residual, scale, mask)
            bits = bits if coded_bits is None else coded_bits
        symbol = residual + (level / 2 - residual).detach()
        latent = mean + symbol * gain
        if not self.exact:
            return saturate(latent / 128, False), torch.zeros_like(latent), bits
        # Halves round up, as the runtime's integer shifts do.
        fine = 2**FINE_EXP
        offset = torch.floor(symbol * gain * fine + 0.5)
        rounded = torch.clamp(mean * fine + offset, -128 * fine, 127 * fine + 1).detach()
        whole = torch.floor(rounded / fine + 0.5)
        smooth = latent.clamp(-128, 127.25)  # the gradient's way
        return (smooth + (whole - smooth).detach()) / 128, (rounded - whole * fine).detach() / 128, bits

    def _search(self, residual: Tensor, scale: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The levels, in half steps, that the encoder chooses for residuals (N, C, h, w), in steps, and, unless it
        trains, their bits; 0 at positions that are not in `mask`."""
        table = torch.round(SCALE_STEPS_PER_OCTAVE * torch.log2(scale / SMALLEST_SCALE)).clamp(0, SCALE_TABLES - 1)
        orders = (value.detach().permute(0, 2, 3, 1).cpu().numpy() for value in (residual, table))
        residuals, tables = (np.ascontiguousarray(order, kind) for order, kind in zip(orders, "fB", strict=True))
        here = np.ones(residuals.shape[1:3], bool) if mask is None else mask.cpu().numpy() > 0
        levels = np.zeros_like(residuals)
        bits = lengths = None
        coded = self.entropy_tables.radii[:SCALE_TABLES] > 0
        if not self.training:
            bits = np.zeros_like(residuals)
            lengths = code_lengths(self.entropy_tables.frequencies, self.entropy_tables.radii, core.MAX_SYMBOL + 1)
        for image in range(len(residuals)):
            own = tables[image, here]
            found, symbols, used = core.search(
                self.entropy_tables,
                residuals[image, here].ravel(),
                own.ravel(),
                TRELLIS_BIT_WORTH,
                TRELLIS_STATES,
            )
            magnitude = np.abs(symbols)
            levels[image, here] = found.reshape(own.shape)
            if bits is not None and lengths is not None:
                own_bits = np.zeros(own.shape, np.float32)
                own_bits[coded[own]] = lengths[used, magnitude]
                bits[image, here] = own_bits
            if self.symbol_counts is not None:
                np.add.at(self.symbol_counts, (used, magnitude), 1)

        def planes(order: np.ndarray) -> Tensor:
            return torch.from_numpy(order).permute(0, 3, 1, 2).to(residual)

        return planes(levels), None if bits is None else planes(bits)

    def quality_plane(self, quality: Tensor, like: Tensor) -> Tensor:
        """A plane (N, 1, h, w) holding the quality position, -127/128 at the coarsest to 127/128 at the finest."""
        plane = torch.round(quality * 254 - 127) / 128
        return plane[:, None, None, None].expand(-1, 1, *like.shape[2:])

    def latent(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in full-scale units to latents (N, C, H/16, W/16) in latent units."""
        planes, ring = F.pixel_unshuffle(mirrored(images, MARGIN), 2), MARGIN // 16
        return 128 * self.analysis(planes)[:, :, ring:-ring, ring:-ring]

    def code(self, latent: Tensor, quality: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latent to (decoded latent (N, 2 C, h, w), bits of each coding step, the hyper-latent's first)."""
        gain, hyper_gain = self.gains(quality).split([self.latent_channels, self.hyper_channels], 1)
        seen = compand(saturate(latent / 128, self.exact), self.exact)
        hyper = 128 * self.hyper_analysis(seen)
        zeros = torch.zeros_like(hyper)
        hyper, _, hyper_bits = self._code(hyper, zeros, zeros + self.hyper_log_scale[:, None, None], hyper_gain)
        plane = self.quality_plane(quality, hyper)
        features, parameters = self.hyper_synthesis(torch.cat([compand(hyper, self.exact), plane], 1))
        height, width = latent.shape[2:]
        rows, columns = (torch.arange(side, device=latent.device) for side in (height, width))
        parity = (rows[:, None] + columns) % 2
        decoded, quarters, companded = (torch.zeros_like(latent) for _ in range(3))
        bits = [hyper_bits]
        mean_unit = 128 * 2.0 ** (self.mean_shift.to(latent.dtype) - FINE_EXP)[:, None, None]
        for index, step in enumerate(self.steps):
            if index:
                parameters = self.context_steps[index - 1](features, companded[:, : step.context])
                if isinstance(parameters, tuple):
                    features, parameters = parameters
            mean, log_scale = parameters.chunk(2, 1)
            part = slice(step.first, step.last)
            log2_scale = log_scale * (128 / SCALE_STEPS_PER_OCTAVE) + LOG2_SCALE_BIAS
            mean = mean_unit[part] * mean
            mask = None if step.parity is None else (parity == step.parity).to(latent.dtype)
            whole, rest, step_bits = self._code(latent[:, part], mean, log2_scale, gain[:, part], mask)
            if mask is not None:
                whole, rest, step_bits = whole * mask, rest * mask, step_bits * mask
            pad = [0, 0, 0, 0, step.first, self.latent_channels - step.last]
            decoded, quarters = decoded + F.pad(whole, pad), quarters + F.pad(rest, pad)
            companded = companded + F.pad(compand(whole, self.exact), pad)
            bits.append(step_bits)
        return torch.cat([decoded, quarters], 1), bits

    def reconstruct(self, decoded: Tensor, quality: Tensor) -> Tensor:
        """Decoded latents (N, 2 C, h, w) in full-scale units to images (N, 3, 16h, 16w) in full-scale units."""
        if not self.networks:
            planes = self.synthesis.linear(decoded)
        else:
            plane = self.quality_plane(quality, decoded)
            companded = compand(decoded[:, : self.latent_channels], self.exact)
            planes = self.synthesis(decoded, torch.cat([companded, plane], 1))
        return F.pixel_shuffle(planes, 2)

    def forward(self, images: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W), sides multiples of 64, and quality positions (N,): (decoded, bits per pixel (N,))."""
        decoded, bits_per_pixel = self.rate(images, quality)
        return self.reconstruct(decoded, quality), bits_per_pixel

    def rate(self, images: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, but for the decoded latents (N, 2 C, H/16, W/16) instead of the images."""
        decoded, bits = self.code(self.latent(images), quality)
        pixels = decoded.shape[2] * decoded.shape[3] * 16**2
        return decoded, sum(part.flatten(1).sum(1) for part in bits) / pixels

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.finest_log_gain.device

    def set_exact(self, exact: bool) -> None:
        set_exact(self, exact)

    def named_networks(self) -> dict[str, tuple[nn.Module, dict[str, int]]]:
        """Each network by the name the runtime knows it under, with its inputs' channels."""
        steps = {
            f"context_{i}": (module, {"features": module.takes, "coded": self.steps[i].context})
            for i, module in enumerate(self.context_steps, 1)
        }
        return {
            "analysis": (self.analysis, {"planes": 12}),
            "hyper_analysis": (self.hyper_analysis, {"latent": self.latent_channels}),
            "hyper_synthesis": (self.hyper_synthesis, {"hyper": HYPER_CHANNELS + 1}),
            **steps,
            "synthesis": (self.synthesis, {"latent": 2 * self.latent_channels, "companded": self.latent_channels + 1}),
        }
