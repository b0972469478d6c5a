"""A codec with a wavelet-like analysis transform, a hyperprior with coding steps from coarse to fine, and a synthesis.

The analysis is linear: four levels of overlapping filters that start as the 9/7 wavelet (Antonini et al., 1992) and
are trained with everything else. Their bands, from 1/16 of the picture's sides to 1/2, are packed into 576 channels at
1/16. Each level is coded after the coarser ones, in the two colours of a checkerboard on its own grid (He et al.,
2021), under means and scales that small networks predict from a hyperprior (joint autoregressive and hierarchical
priors, Minnen et al., 2018) and from all that is decoded. The synthesis adds a network's correction to overlapping
linear filters. Gain vectors give one set of weights every quality (Cui et al., 2021).

The networks are plain modules over `ExactConv2d`, concatenation, selection of channels, pixel (un)shuffle, edge padding
and saturating addition, so that `export.tracing` can turn each into an integer network. What happens between them
(quantisation, companding, gains) is the codec's integer glue; `runtime` does the same in integers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...calibration.ptq import Method, round_layer
from ...calibration.qat import DepthToSpace, EdgePad, ExactConv2d, SaturatingAdd, Select, SpaceToDepth, set_exact
from ...calibration.rounding import observed_patches
from ...runtime.latents import CodingStep
from .camera import FEATURE_CHANNELS, Camera, ContextStep, HyperAnalysis, HyperSynthesis, ResidualBlock

COLOURS, COARSE, BANDS, FINEST_BANDS = 3, 12, 9, 6
"""Bands of level 4 at 1/16 (its lowpass and three details of three colours), of levels 3 at 1/8 and 2 at 1/4 (three
details of three colours), and of level 1 at 1/2 (those of two colours: the third's are seldom worth their bits)."""
LEVEL3, LEVEL2, LEVEL1 = COARSE, COARSE + 4 * BANDS, COARSE + 20 * BANDS
"""First channels of these levels in the packed latent."""
LATENT_CHANNELS = LEVEL1 + 64 * FINEST_BANDS
FINE_FEATURES = 32
CODING_STEPS = (
    CodingStep(0, COARSE, parity=0, context=0),
    CodingStep(0, COARSE, parity=1, context=COARSE),
    CodingStep(LEVEL3, LEVEL3 + 18, parity=None, context=COARSE),
    CodingStep(LEVEL3 + 18, LEVEL2, parity=None, context=LEVEL2),
    CodingStep(LEVEL2, LEVEL2 + 72, parity=None, context=LEVEL2),
    CodingStep(LEVEL2 + 72, LEVEL1, parity=None, context=LEVEL1),
    CodingStep(LEVEL1, LEVEL1 + 32 * FINEST_BANDS, parity=None, context=LEVEL1),
    CodingStep(LEVEL1 + 32 * FINEST_BANDS, LATENT_CHANNELS, parity=None, context=LATENT_CHANNELS),
)
FINEST_LOG2_GAIN = -1.0
"""log2 of the smallest quantisation step in latent units."""


PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
"""(dy, dx) of the positions of a 2x2 group."""


def phases(bands: int, block: int, which: Sequence[tuple[int, int]] = PHASES) -> list[int]:
    """Channels of bands that were packed by `block` as (band, dy, dx): those of some phases of each 2x2 group, in the
    order (band, phase, position of the group), which depth-to-space by block / 2 turns into the phases of each band."""
    half = block // 2
    return [
        (band * block + 2 * y + dy) * block + 2 * x + dx
        for band in range(bands)
        for dy, dx in which
        for y in range(half)
        for x in range(half)
    ]


def checkerboard(bands: int, block: int) -> list[list[int]]:
    """The `phases` of the two colours of a checkerboard on the bands' grid."""
    return [phases(bands, block, which) for which in (((0, 0), (1, 1)), ((0, 1), (1, 0)))]


def _packed_order() -> list[int]:
    """For each coded channel its place in the concatenation of the packed levels."""
    order = list(range(COARSE))
    for first, bands, block in ((LEVEL3, BANDS, 2), (LEVEL2, BANDS, 4), (LEVEL1, FINEST_BANDS, 8)):
        order += [first + channel for colour in checkerboard(bands, block) for channel in colour]
    return order


PACKED_ORDER = _packed_order()
CODED_PLACE = [PACKED_ORDER.index(channel) for channel in range(LATENT_CHANNELS)]
"""For each channel of the packed levels its place in the coded latent."""


BAND_OF_CHANNEL = (
    list(range(COARSE))
    + [COARSE + i // 4 for i in range(4 * BANDS)]
    + [COARSE + BANDS + i // 16 for i in range(16 * BANDS)]
    + [COARSE + 2 * BANDS + i // 64 for i in range(64 * FINEST_BANDS)]
)
BAND_OF_CHANNEL = [BAND_OF_CHANNEL[channel] for channel in PACKED_ORDER]
"""The band of each coded channel; the channels of a band share their gains."""
BAND_COUNT = max(BAND_OF_CHANNEL) + 1


def _coded(first: int, channels: Iterable[int]) -> list[int]:
    """Places in the coded latent of `channels` of the level whose first packed channel is `first`."""
    return [CODED_PLACE[first + channel] for channel in channels]


LEVEL3_GRID = _coded(LEVEL3, range(4 * BANDS))
LEVEL2_GRID = _coded(LEVEL2, range(16 * BANDS))
"""Depth-to-space by 2 and by 4 turns these channels into the bands."""
LEVEL2_PHASES = _coded(LEVEL2, phases(BANDS, 4))
LEVEL1_PHASES = _coded(LEVEL1, phases(FINEST_BANDS, 8))
"""Depth-to-space by 2 and by 4 turns these into the 2x2 phases of the bands, at 1/8 and at 1/4."""


class Analysis(nn.Module):
    """Planes (N, 12, H/2, W/2) to the latent's accumulator (N, 576, H/16, W/16).

    Levels 2 to 4 look at the picture at half its size, in three colours of 8 bits: a quarter of the multiplications.
    """

    def __init__(self) -> None:
        super().__init__()
        self.low = ExactConv2d(12, COLOURS, 5)
        self.linear1 = ExactConv2d(12, FINEST_BANDS, 5, raw=True)
        self.linear2 = ExactConv2d(COLOURS, BANDS, 10, 2, padding=4, raw=True)
        self.linear3 = ExactConv2d(COLOURS, BANDS, 20, 4, padding=8, raw=True)
        self.linear4 = ExactConv2d(COLOURS, COARSE, 24, 8, padding=8, raw=True)
        self.order = Select(PACKED_ORDER)

    def forward(self, planes: Tensor) -> Tensor:
        low = self.low(planes)
        levels = (
            self.linear4(low),
            F.pixel_unshuffle(self.linear3(low), 2),
            F.pixel_unshuffle(self.linear2(low), 4),
            F.pixel_unshuffle(self.linear1(planes), 8),
        )
        return self.order(torch.cat(levels, 1))

    def linear(self, planes: Tensor) -> Tensor:
        return self(planes)


class Placed(NamedTuple):
    """Where a layer's kernels stand in a folded convolution: outputs first, first + distance, ...; top left corner."""

    layer: str
    first: int
    distance: int
    row: int
    column: int


@dataclass(frozen=True)
class Folded:
    """A convolution over a plane packed by `packings`, one after the other, that computes several layers or phases at
    once: `channels` inputs before packing, kernels with zeros around them to `side`."""

    channels: int
    outputs: int
    side: int
    packings: tuple[int, ...]
    placed: tuple[Placed, ...]
    raw: bool = True

    def convolution(self) -> ExactConv2d:
        packing = math.prod(self.packings)
        return ExactConv2d(self.channels * packing**2, self.outputs, self.side // packing, raw=self.raw)


FOLDED = {
    "low": Folded(
        12, 4 * COLOURS, 6, (2,), tuple(Placed("low", COLOURS * i, 1, *p) for i, p in enumerate(PHASES)), raw=False
    ),
    "level1": Folded(
        12, 4 * FINEST_BANDS, 6, (2,), tuple(Placed("linear1", i, 4, *p) for i, p in enumerate(PHASES))
    ),
    "level2": Folded(COLOURS, BANDS, 10, (2,), (Placed("linear2", 0, 1, 0, 0),)),
    "levels34": Folded(
        COLOURS, LEVEL2, 24, (2, 4), (
            Placed("linear4", 0, 1, 0, 0),
            *(Placed("linear3", COARSE + i, 4, 4 * y, 4 * x) for i, (y, x) in enumerate(PHASES)),
        ),
    ),
}  # fmt: skip


class FoldedAnalysis(nn.Module):
    """What `Analysis` computes, as convolutions that backends run well: at 1/4 and 1/16, of more channels."""

    def __init__(self, analysis: Analysis) -> None:
        super().__init__()
        self.pack2, self.pack4, self.pack = SpaceToDepth(2), SpaceToDepth(4), SpaceToDepth(4)
        for name, folded in FOLDED.items():
            self.add_module(name, folded.convolution())
            self._fold(analysis, name, folded)
        fine = BANDS + 4 * FINEST_BANDS
        # Where the packed channels of levels 2 and 1 stand after `pack`, which counts phases first.
        level2 = [LEVEL2 + channel % 16 * fine + channel // 16 for channel in range(16 * BANDS)]
        level1 = [0] * (64 * FINEST_BANDS)
        for place, channel in enumerate(phases(FINEST_BANDS, 8)):
            level1[channel] = LEVEL2 + place % 16 * fine + BANDS + place // 16
        packed = [*range(LEVEL2), *level2, *level1]
        self.order = Select([packed[channel] for channel in PACKED_ORDER])

    def _fold(self, analysis: Analysis, name: str, folded: Folded) -> None:
        convolution = self.get_submodule(name)
        kernels = torch.zeros(folded.outputs, folded.channels, folded.side, folded.side)
        with torch.no_grad():
            for place in folded.placed:
                layer = analysis.get_submodule(place.layer)
                weight, bias = layer.effective()
                side, outputs = weight.shape[2], _outputs(place, weight)
                kernels[outputs, :, place.row : place.row + side, place.column : place.column + side] = weight
                convolution.bias[outputs] = bias
                for attribute in ("exact", "copies", "format", "bits"):
                    setattr(convolution, attribute, getattr(layer, attribute))
            for block in folded.packings:
                kernels = SpaceToDepth(block)(kernels)
            convolution.weight.copy_(kernels)

    def forward(self, planes: Tensor) -> Tensor:
        packed = self.pack2(planes)
        low = self.low(packed)
        fine = self.pack(torch.cat([self.level2(low), self.level1(packed)], 1))
        return self.order(torch.cat([self.levels34(self.pack4(low)), fine], 1))

    def unfold_into(self, analysis: Analysis) -> None:
        """Set the weights of `analysis` to what is folded here."""
        with torch.no_grad():
            for name, folded in FOLDED.items():
                kernels, biases = self.get_submodule(name).effective()
                for block in reversed(folded.packings):
                    kernels = DepthToSpace(block)(kernels)
                for place in folded.placed:
                    layer = analysis.get_submodule(place.layer)
                    side, outputs = layer.weight.shape[2], _outputs(place, layer.weight)
                    layer.gain.fill_(1.0)
                    part = kernels[outputs, :, place.row : place.row + side, place.column : place.column + side]
                    layer.weight.copy_(part)
                    layer.bias.copy_(biases[outputs])


def _outputs(place: Placed, weight: Tensor) -> slice:
    return slice(place.first, place.first + place.distance * len(weight), place.distance)


class FineHead(nn.Module):
    """What is known at 1/4 (N, C, 4h, 4w) to the parameters of one colour of a level's checkerboard (N, 2n, h, w)."""

    def __init__(self, channels: int, bands: int, colour: list[int]) -> None:
        super().__init__()
        self.context = ExactConv2d(channels, 40, 3)
        self.out = ExactConv2d(40, 2 * bands, 1)
        self.pack = SpaceToDepth(4)
        # `colour` counts positions last, the packed channels count them first.
        self.colour = Select(
            [(channel % 16 * 2 + part) * bands + channel // 16 for part in range(2) for channel in colour]
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.colour(self.pack(self.out(self.context(x))))


def _level1_colour(colour: int) -> list[int]:
    """The colour's channels among the 2x2 phases of level 1's bands at 1/4, packed by 4."""
    order = phases(FINEST_BANDS, 8)
    return [order.index(channel) for channel in checkerboard(FINEST_BANDS, 8)[colour]]


class RefiningStep(nn.Module):
    """The first step of level 2: features (N, 96, h, w) and levels 4 and 3 to the features of all steps that follow,
    32 at 1/4 packed to (N, 512, h, w), and the parameters."""

    takes = FEATURE_CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.up8 = ExactConv2d(FEATURE_CHANNELS + LEVEL2, 4 * FINE_FEATURES, 3)
        self.up4 = ExactConv2d(FINE_FEATURES, 4 * FINE_FEATURES, 3)
        self.pack = SpaceToDepth(4)
        self.head = FineHead(FINE_FEATURES, BANDS, checkerboard(BANDS, 4)[0])

    def forward(self, features: Tensor, coded: Tensor) -> tuple[Tensor, Tensor]:
        coarse = F.pixel_shuffle(self.up8(torch.cat([features, coded], 1)), 2)
        fine = F.pixel_shuffle(self.up4(coarse), 2)
        return self.pack(fine), self.head(fine)


class FineStep(nn.Module):
    """Features (N, 512, h, w) and the companded latents coded so far to the parameters of a step of level 2 or 1."""

    takes = 16 * FINE_FEATURES

    def __init__(self, level: int, colour: int) -> None:
        super().__init__()
        self.unpack = DepthToSpace(4)
        self.level2 = Select(LEVEL2_GRID)
        self.level1 = Select(LEVEL1_PHASES) if (level, colour) == (1, 1) else None
        seen = FINE_FEATURES + BANDS + (4 * FINEST_BANDS if self.level1 else 0)
        if level == 2:
            self.head = FineHead(seen, BANDS, checkerboard(BANDS, 4)[colour])
        else:
            self.head = FineHead(seen, 4 * FINEST_BANDS, _level1_colour(colour))

    def forward(self, features: Tensor, coded: Tensor) -> Tensor:
        known = [self.unpack(features), F.pixel_shuffle(self.level2(coded), 4)]
        if self.level1 is not None:
            known.append(F.pixel_shuffle(self.level1(coded), 4))
        return self.head(torch.cat(known, 1))


class Synthesis(nn.Module):
    """Latent (N, 1152, h, w), whole and quarters, and the whole companded with the quality plane (N, 577, h, w), to
    planes (N, 12, 8h, 8w)."""

    def __init__(self) -> None:
        super().__init__()

        def both(coded: list[int]) -> list[int]:
            """Wholes and quarters of some channels."""
            return coded + [LATENT_CHANNELS + channel for channel in coded]

        self.take4 = Select(both(list(range(COARSE))))
        self.take3 = Select(both(LEVEL3_GRID))
        self.take21 = Select(both(LEVEL2_GRID) + both(LEVEL1_PHASES))
        self.edge = EdgePad(1)
        self.linear4 = ExactConv2d(2 * COARSE, 768, 3, padding=0)
        self.linear4.copies = 2  # the lowpass carries the picture's brightness: 6 bits of weight cost half a decibel
        self.linear3 = ExactConv2d(2 * BANDS, 192, 3)
        self.linear21 = ExactConv2d(2 * BANDS + 8 * FINEST_BANDS, 48, 3)

        self.coarse = Select([*range(LEVEL2), LATENT_CHANNELS])
        self.level2_phases, self.level2 = Select(LEVEL2_PHASES), Select(LEVEL2_GRID)
        self.level1_phases = Select(LEVEL1_PHASES)
        self.enter = ExactConv2d(LEVEL2 + 1, 4 * 64, 3)
        self.merge8 = ExactConv2d(64 + 4 * BANDS, 80, 3)
        self.blocks = nn.ModuleList(ResidualBlock(80) for _ in range(2))
        self.up4 = ExactConv2d(80, 4 * 40, 3)
        self.merge4 = ExactConv2d(40 + BANDS + 4 * FINEST_BANDS, 40, 3)
        self.block4 = ResidualBlock(40)
        self.out = ExactConv2d(40, 48, 3)
        self.add3, self.add21, self.add = SaturatingAdd(), SaturatingAdd(), SaturatingAdd()
        self.unpack = DepthToSpace(2)

    def _linear4(self, latent: Tensor) -> Tensor:
        """The linear filters' picture at 1/4, (N, 48, 4h, 4w)."""
        x4 = F.pixel_shuffle(self.linear4(self.edge(self.take4(latent))), 4)
        x3 = F.pixel_shuffle(self.linear3(F.pixel_shuffle(self.take3(latent), 2)), 2)
        x21 = self.linear21(F.pixel_shuffle(self.take21(latent), 4))
        return self.add21(self.add3(x4, x3), x21)

    def linear(self, latent: Tensor) -> Tensor:
        """The planes that the linear filters alone give."""
        return self.unpack(self._linear4(latent))

    def forward(self, latent: Tensor, companded: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.enter(self.coarse(companded)), 2)
        x = self.merge8(torch.cat([x, F.pixel_shuffle(self.level2_phases(companded), 2)], 1))
        for block in self.blocks:
            x = block(x)
        x = F.pixel_shuffle(self.up4(x), 2)
        level2, level1 = F.pixel_shuffle(self.level2(companded), 4), F.pixel_shuffle(self.level1_phases(companded), 4)
        x = self.merge4(torch.cat([x, level2, level1], 1))
        x = self.out(self.block4(x))
        return self.unpack(self.add(x, self._linear4(latent)))


class Wavelet(Camera):
    """The whole codec as one trainable module; see `Camera`."""

    architecture = "wavelet"
    steps = CODING_STEPS
    latent_channels = LATENT_CHANNELS
    gain_count = BAND_COUNT

    def _make_networks(self) -> None:
        self.analysis: nn.Module = Analysis()
        self.hyper_analysis = HyperAnalysis(LATENT_CHANNELS)
        self.hyper_synthesis = HyperSynthesis(COARSE)
        self.context_steps = nn.ModuleList(
            [ContextStep(step) for step in CODING_STEPS[1:4]]
            + [RefiningStep(), FineStep(2, 1), FineStep(1, 0), FineStep(1, 1)]
        )
        self.synthesis: nn.Module = Synthesis()

    def _spread(self, gains: Tensor) -> Tensor:
        """One gain for each band, at least FINEST_LOG2_GAIN; those of the hyper-latent stay at least 0."""
        bands, hyper = gains.split([BAND_COUNT, self.hyper_channels], -1)
        return torch.cat([bands[..., BAND_OF_CHANNEL] + FINEST_LOG2_GAIN, hyper], -1)

    def set_training_arithmetic(self, exact: bool) -> None:
        """The analysis' long kernels stay in float: rounded to nearest they would leak brightness into the details."""
        self.set_exact(exact)
        set_exact(self.analysis, False)
        self.analysis.low.exact = exact

    def finish(self, images: Tensor) -> None:
        """Round the analysis' kernels so that what they make of `images` changes least (`calibration.rounding`)."""
        self.set_training_arithmetic(True)
        with torch.no_grad(), observed_patches(self.analysis) as moments:
            for part in images.split(8):
                self.analysis(F.pixel_unshuffle(part, 2))
        for name, layer in self.analysis.named_modules():
            if isinstance(layer, ExactConv2d) and layer.raw:
                round_layer(layer, moments[name], Method())
                layer.fixed_exponents = None  # they follow from the rounded weights
        self.set_exact(True)

    def deployed_networks(self) -> dict[str, tuple[nn.Module, dict[str, int]]]:
        return {**self.named_networks(), "analysis": (FoldedAnalysis(self.analysis), {"planes": 12})}
