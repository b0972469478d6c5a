"""A codec with a wavelet-like analysis transform, a hyperprior with coding steps from coarse to fine, and a synthesis.

The analysis is linear: four levels of convolutions that start as the 6/10 wavelet (Villasenor et al., 1995) and are
trained with everything else. Each level splits the half-size picture of the level before it; the bands, from 1/16 of
the picture's sides to 1/2, are packed into 768 channels at 1/16. Each level is coded after the coarser ones, in the two
colours of a checkerboard on its own grid (He et al., 2021), under means and scales that small networks predict from a
hyperprior (joint autoregressive and hierarchical priors, Minnen et al., 2018) and from all that is decoded, of which
they see the magnitudes. The synthesis mirrors the analysis and adds a network's correction. Gain vectors give one set
of weights every quality (Cui et al., 2021).

The networks are plain modules over `ExactConv2d`, concatenation, selection of channels, pixel (un)shuffle, edge padding
and saturating addition, so that `export.tracing` can turn each into an integer network. What happens between them
(quantisation, companding, gains) is the codec's integer glue; `runtime` does the same in integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...calibration.qat import DepthToSpace, EdgePad, ExactConv2d, Join, SaturatingAdd, Select, SpaceToDepth
from ...runtime.latents import FINE_EXP, CodingStep
from ...runtime.network import FLOAT, FLOAT_BITS
from .latent_codec import HYPER_CHANNELS, LatentCodec

COLOURS, COARSE, BANDS = 3, 12, 9
"""Bands of level 4 at 1/16 (its lowpass and three details of three colours), and of levels 3 at 1/8, 2 at 1/4 and 1 at
1/2 (three details of three colours)."""
BLOCKS = {3: 2, 2: 4, 1: 8}
"""Positions of a level's grid to one at 1/16, per side."""
FIRST = {3: COARSE, 2: COARSE + 4 * BANDS, 1: COARSE + 20 * BANDS}
"""First channel of a level in the latent."""
LATENT_CHANNELS = COARSE + 84 * BANDS
LATENT_BITS = 8 + FINE_EXP
"""Of a latent as the linear filters of the synthesis see it, in quarters."""
FINEST_LOG2_GAIN = -1.0
"""log2 of the smallest quantisation step in latent units."""
COLOUR = (((0, 0), (1, 1)), ((0, 1), (1, 0)))
"""(dy, dx) of the positions of a 2x2 group that are coded together: the two colours of a checkerboard."""
PER_COLOUR = 2 * BANDS
"""Channels of one colour of a level, on the grid of the next coarser level."""


def _coding_steps() -> tuple[CodingStep, ...]:
    steps = [CodingStep(0, COARSE, parity=0, context=0), CodingStep(0, COARSE, parity=1, context=COARSE)]
    for level, first in FIRST.items():
        half = PER_COLOUR * (BLOCKS[level] // 2) ** 2
        steps += [CodingStep(first + i * half, first + (i + 1) * half, None, first + i * half) for i in range(2)]
    return tuple(steps)


CODING_STEPS = _coding_steps()


def packed_phases(block: int, which: Sequence[tuple[int, int]]) -> list[int]:
    """Channels of bands that `SpaceToDepth` by `block` packed as (dy, dx, band): those at some positions of each 2x2
    group, in the order (group, position in the group, band), which `DepthToSpace` by block / 2 turns into channels
    (position in the group, band). Bands stand together: unpacking moves runs of bytes instead of single ones."""
    half = block // 2
    return [
        ((2 * y + dy) * block + 2 * x + dx) * BANDS + band
        for y in range(half)
        for x in range(half)
        for dy, dx in which
        for band in range(BANDS)
    ]


def checkerboard(level: int) -> list[int]:
    """The channels of a level packed by `SpaceToDepth`, in the order in which they are coded."""
    return [channel for which in COLOUR for channel in packed_phases(BLOCKS[level], which)]


def grid_channels(level: int) -> list[int]:
    """Places in the latent that `F.pixel_shuffle` by the level's block turns into its bands."""
    block = BLOCKS[level]
    place = {channel: i for i, channel in enumerate(checkerboard(level))}
    return [FIRST[level] + place[position * BANDS + band] for band in range(BANDS) for position in range(block**2)]


def colour_channels(level: int, colour: int) -> range:
    """Places in the latent of one colour of a level, which `DepthToSpace` by half the level's block turns into channels
    (position in the group, band) on the grid of the next coarser level."""
    count = PER_COLOUR * (BLOCKS[level] // 2) ** 2
    return range(FIRST[level] + colour * count, FIRST[level] + (colour + 1) * count)


BAND_OF_CHANNEL = list(range(COARSE)) + [
    COARSE + (3 - level) * BANDS + channel % BANDS for level in BLOCKS for channel in checkerboard(level)
]
"""The band of each channel; the channels of a band share their gains."""
BAND_COUNT = max(BAND_OF_CHANNEL) + 1
_DETAIL_GROUPS = [
    [COLOURS + BANDS * level + 3 * detail + colour for detail in details for colour in colours]
    for level in range(4)
    for colours in ((0,), (1, 2))
    for details in ((0, 1), (2,))
]
GAIN_GROUPS = ((0,), (1, 2), *_DETAIL_GROUPS)
"""Bands whose gains go together: of the lowpass and of each level, from 4 on, brightness and colours, and of each of
these the diagonal details and the others."""


@dataclass(frozen=True)
class Widths:
    """Channels of the networks that predict means and scales."""

    hyper8: int = 32
    hyper16: int = 48
    """Of the hyper-analysis at 1/8 and 1/16."""
    features: int = 96
    """At 1/16 and coarser: of both hyper networks and the steps of levels 4 and 3."""
    fine_features: int = 32
    """What is handed on to the steps of levels 2 and 1, at 1/8 and 1/4."""
    fine: int = 64
    """Of those steps."""


def _linear(channels_in: int, channels_out: int, kernel: int, bits_in: int, **options: Any) -> ExactConv2d:
    """A linear filter. The picture goes through up to eight of them, one after the other: in 8 bits each would add as
    much noise as rounding the pixels does."""
    layer = ExactConv2d(channels_in, channels_out, kernel, **options)
    layer.format, layer.bits = FLOAT, (bits_in, FLOAT_BITS)
    return layer


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = ExactConv2d(channels, channels, 3)
        self.mix = ExactConv2d(channels, channels, 1)
        self.add = SaturatingAdd()

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.mix(self.spatial(x)))


class Analysis(nn.Module):
    """Planes (N, 12, H/2, W/2) to the latent's accumulator (N, 768, H/16, W/16)."""

    def __init__(self) -> None:
        super().__init__()
        seen = (8, FLOAT_BITS, FLOAT_BITS)
        self.low1, self.low2, self.low3 = (_linear(4 * COLOURS, COLOURS, 3, bits) for bits in seen)
        self.detail1, self.detail2, self.detail3 = (_linear(4 * COLOURS, BANDS, 5, bits, raw=True) for bits in seen)
        self.coarse = _linear(4 * COLOURS, COARSE, 5, FLOAT_BITS, raw=True)
        self.pack2, self.pack4, self.pack8 = (SpaceToDepth(block) for block in (2, 4, 8))
        order = list(range(COARSE))
        for level, first in FIRST.items():
            order += [first + channel for channel in checkerboard(level)]
        self.order = Select(order)

    def forward(self, planes: Tensor) -> Tensor:
        level1 = self.pack8(self.detail1(planes))
        planes = self.pack2(self.low1(planes))
        level2 = self.pack4(self.detail2(planes))
        planes = self.pack2(self.low2(planes))
        level3 = self.pack2(self.detail3(planes))
        coarse = self.coarse(self.pack2(self.low3(planes)))
        return self.order(torch.cat([coarse, level3, level2, level1], 1))


class Rectify(nn.Module):
    """Companded latents (N, C, h, w) to (N, 2C, h, w): their positive parts, then their negative parts, -1 for 0.

    Scales follow from the neighbours' magnitudes, and one layer after the other would have to find that out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rectify = ExactConv2d(channels, 2 * channels, 1)
        parts = torch.cat([torch.eye(channels), -torch.eye(channels)])
        self.rectify.set_weight(2 * parts[:, :, None, None])
        nn.init.constant_(self.rectify.bias, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.rectify(x)


class Unpacked(nn.Module):
    """A level, or one colour of it, in the latent (N, C, h, w) as channels (colour, position in the group, band) on the
    grid of the next coarser level; with `parents` as bands on its own grid."""

    def __init__(self, level: int, colours: Sequence[int] = (0, 1), *, parents: bool = False) -> None:
        super().__init__()
        half = BLOCKS[level] // 2
        self.colours = nn.ModuleList(Select(colour_channels(level, colour)) for colour in colours)
        self.unpack = DepthToSpace(half) if half > 1 else None
        self.order = None
        if parents:
            places = [place for colour in COLOUR for place in colour]
            runs = [places.index((dy, dx)) * BANDS for dy in (0, 1) for dx in (0, 1)]
            self.order = Select([first + band for first in runs for band in range(BANDS)])
            self.apart = DepthToSpace(2)

    def forward(self, latent: Tensor) -> Tensor:
        parts = [colour(latent) for colour in self.colours]
        if self.unpack is not None:
            parts = [self.unpack(part) for part in parts]
        x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        return x if self.order is None else self.apart(self.order(x))


class HyperAnalysis(nn.Module):
    """Companded latent (N, 768, h, w) to the hyper-latent accumulator (N, 64, h/4, w/4)."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.level1, self.level2 = Unpacked(1), Unpacked(2)
        self.coarse = Select(range(FIRST[2]))
        self.rectify1, self.rectify2, self.rectify = Rectify(2 * PER_COLOUR), Rectify(2 * PER_COLOUR), Rectify(FIRST[2])
        self.down8 = ExactConv2d(4 * PER_COLOUR, widths.hyper8, 3, 2)
        self.down16 = ExactConv2d(4 * PER_COLOUR + widths.hyper8, widths.hyper16, 3, 2)
        self.down32 = ExactConv2d(2 * FIRST[2] + widths.hyper16, widths.features, 3, 2)
        self.down64 = ExactConv2d(widths.features, HYPER_CHANNELS, 3, 2, raw=True)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.down8(self.rectify1(self.level1(latent)))
        x = self.down16(torch.cat([self.rectify2(self.level2(latent)), x], 1))
        x = self.down32(torch.cat([self.rectify(self.coarse(latent)), x], 1))
        return self.down64(x)


class ParameterHead(nn.Module):
    """Features to (mean, log-scale) of one coding step: (N, C, h, w) to (N, 2n, h, w)."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.hidden = ExactConv2d(channels, channels, 1)
        self.out = ExactConv2d(channels, 2 * outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x))


class HyperSynthesis(nn.Module):
    """Companded hyper-latent and quality plane (N, 65, h/4, w/4) to features (N, 96, h, w) and the first parameters."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.up2 = ExactConv2d(HYPER_CHANNELS + 1, 4 * widths.features, 3)
        self.up1 = ExactConv2d(widths.features, 4 * widths.features, 3)
        self.head = ParameterHead(widths.features, COARSE)

    def forward(self, hyper: Tensor) -> tuple[Tensor, Tensor]:
        features = F.pixel_shuffle(self.up1(F.pixel_shuffle(self.up2(hyper), 2)), 2)
        return features, self.head(features)


class CoarseStep(nn.Module):
    """Features (N, 96, h, w) and the companded latents coded so far to the parameters of a step of level 4 or 3."""

    def __init__(self, step: CodingStep, widths: Widths) -> None:
        super().__init__()
        self.takes = widths.features
        self.rectify = Rectify(step.context)
        self.context = ExactConv2d(self.takes + 3 * step.context, widths.features, 3)
        self.head = ParameterHead(widths.features, step.channels)

    def forward(self, features: Tensor, coded: Tensor) -> Tensor:
        return self.head(self.context(torch.cat([features, coded, self.rectify(coded)], 1)))


class FineHead(nn.Module):
    """What is known on the grid of the next coarser level (N, C, h', w') to the parameters of one colour of a level
    (N, 2n, h, w)."""

    def __init__(self, level: int, channels: int, width: int) -> None:
        super().__init__()
        self.context = ExactConv2d(channels, width, 3)
        self.hidden = ExactConv2d(width, width, 1)
        self.out = ExactConv2d(width, 2 * PER_COLOUR, 1)
        self.means, self.scales = Select(range(PER_COLOUR)), Select(range(PER_COLOUR, 2 * PER_COLOUR))
        self.pack = SpaceToDepth(BLOCKS[level] // 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.out(self.hidden(self.context(x)))
        return torch.cat([self.pack(self.means(x)), self.pack(self.scales(x))], 1)


class RefiningStep(nn.Module):
    """The first step of level 2 or 1: features on the grid two levels up and the companded latents coded so far to the
    level's features, on the grid of the next coarser level, and to the parameters of one colour. Features travel packed
    to 1/16."""

    def __init__(self, level: int, widths: Widths) -> None:
        super().__init__()
        self.half = BLOCKS[level] // 2
        # The features come from 1/16 with all that is coded there, or from level 2's grid with its bands.
        if level == 2:
            channels, known, self.known = widths.features, FIRST[2], Select(range(FIRST[2]))
        else:
            channels, known, self.known = widths.fine_features, 2 * PER_COLOUR, Unpacked(2)
        self.takes = channels * (self.half // 2) ** 2
        self.unpack = DepthToSpace(self.half // 2)
        self.rectify_known = Rectify(known)
        self.up = ExactConv2d(channels + 2 * known, 4 * widths.fine_features, 3)
        self.pack = SpaceToDepth(self.half)
        self.parents, self.rectify = Unpacked(level + 1, parents=True), Rectify(BANDS)
        self.head = FineHead(level, widths.fine_features + 2 * BANDS, widths.fine)

    def forward(self, features: Tensor, coded: Tensor) -> tuple[Tensor, Tensor]:
        if self.half > 2:
            features = self.unpack(features)
        features = F.pixel_shuffle(self.up(torch.cat([features, self.rectify_known(self.known(coded))], 1)), 2)
        parents = self.rectify(self.parents(coded))
        return self.pack(features), self.head(torch.cat([features, parents], 1))


class FineStep(nn.Module):
    """The second step of level 2 or 1: the level's features, packed to 1/16, and the companded latents coded so far to
    the parameters of the other colour."""

    def __init__(self, level: int, widths: Widths) -> None:
        super().__init__()
        self.half = BLOCKS[level] // 2
        self.takes = widths.fine_features * self.half**2
        self.unpack = DepthToSpace(self.half)
        self.parents, self.colour = Unpacked(level + 1, parents=True), Unpacked(level, (0,))
        self.rectify = Rectify(BANDS + PER_COLOUR)
        self.head = FineHead(level, widths.fine_features + 2 * (BANDS + PER_COLOUR), widths.fine)

    def forward(self, features: Tensor, coded: Tensor) -> Tensor:
        known = torch.cat([self.parents(coded), self.colour(coded)], 1)
        return self.head(torch.cat([self.unpack(features), self.rectify(known)], 1))


class FineLatent(nn.Module):
    """Some channels of the latent (N, 1536, h, w), wholes and quarters, as one number each; their grid is `block` times
    finer."""

    def __init__(self, places: Sequence[int]) -> None:
        super().__init__()
        self.whole, self.quarters = Select(places), Select([LATENT_CHANNELS + place for place in places])
        self.join = Join(FINE_EXP)

    def forward(self, latent: Tensor, block: int = 1) -> Tensor:
        whole, quarters = self.whole(latent), self.quarters(latent)
        if block > 1:
            whole, quarters = F.pixel_shuffle(whole, block), F.pixel_shuffle(quarters, block)
        return self.join(whole, quarters)


class Synthesis(nn.Module):
    """Latent (N, 1536, h, w), whole and quarters, and the whole companded with the quality plane (N, 769, h, w), to
    planes (N, 12, 8h, 8w)."""

    def __init__(self) -> None:
        super().__init__()

        self.lowpass, self.band4, self.band3, self.band2, self.band1 = (
            FineLatent(places)
            for places in (range(COLOURS), range(COLOURS, COARSE), *(grid_channels(level) for level in BLOCKS))
        )
        self.edge = EdgePad(2)
        self.low4, self.low3, self.low2, self.low1 = (
            _linear(COLOURS, 4 * COLOURS, 5, bits, padding=0) for bits in (LATENT_BITS, *[FLOAT_BITS] * 3)
        )
        self.detail4, self.detail3, self.detail2, self.detail1 = (
            _linear(BANDS, 4 * COLOURS, 3, LATENT_BITS) for _ in range(4)
        )
        self.add4, self.add3, self.add2, self.add1 = (SaturatingAdd(FLOAT_BITS, FLOAT_BITS) for _ in range(4))
        self.narrow = SaturatingAdd(FLOAT_BITS, 8)
        self.up = DepthToSpace(2)

        self.coarse = Select([*range(FIRST[2]), LATENT_CHANNELS])
        self.phases2, self.phases1 = Unpacked(2), Unpacked(1)
        self.enter = ExactConv2d(FIRST[2] + 1, 4 * 64, 3)
        self.merge8 = ExactConv2d(64 + 2 * PER_COLOUR, 80, 3)
        self.blocks = nn.ModuleList(ResidualBlock(80) for _ in range(2))
        self.up4 = ExactConv2d(80, 4 * 24, 3)
        self.pack = SpaceToDepth(2)
        self.merge4 = ExactConv2d(24 + 2 * PER_COLOUR + 16 * COLOURS, 48, 3)
        self.block4 = ResidualBlock(48)
        self.out = ExactConv2d(48, 48, 3)
        self.add = SaturatingAdd(FLOAT_BITS, 8)

    def _filtered(self, latent: Tensor) -> tuple[Tensor, Tensor]:
        """What the linear filters make of the latent: planes of the lowpass picture and of the finest details."""
        low = self.lowpass(latent)
        low = self.up(self.add4(self.low4(self.edge(low)), self.detail4(self.band4(latent))))
        low = self.up(self.add3(self.low3(self.edge(low)), self.detail3(self.band3(latent, 2))))
        low = self.up(self.add2(self.low2(self.edge(low)), self.detail2(self.band2(latent, 4))))
        return self.low1(self.edge(low)), self.detail1(self.band1(latent, 8))

    def linear(self, latent: Tensor) -> Tensor:
        """The planes that the linear filters alone give."""
        return self.narrow(*self._filtered(latent))

    def forward(self, latent: Tensor, companded: Tensor) -> Tensor:
        low, details = self._filtered(latent)
        planes = self.narrow(low, details)
        x = F.pixel_shuffle(self.enter(self.coarse(companded)), 2)
        x = self.merge8(torch.cat([x, self.phases2(companded)], 1))
        for block in self.blocks:
            x = block(x)
        x = F.pixel_shuffle(self.up4(x), 2)
        x = self.merge4(torch.cat([x, self.phases1(companded), self.pack(planes)], 1))
        return self.add(self.up(self.out(self.block4(x))), self.add1(low, details))


class Wavelet(LatentCodec):
    """The whole codec as one trainable module; see `LatentCodec`."""

    architecture = "wavelet2"
    steps = CODING_STEPS
    latent_channels = LATENT_CHANNELS
    gain_count = BAND_COUNT
    gain_groups = GAIN_GROUPS
    widths = Widths()

    def __init__(self) -> None:
        super().__init__()
        widths = self.widths
        self.analysis = Analysis()
        self.hyper_analysis = HyperAnalysis(widths)
        self.hyper_synthesis = HyperSynthesis(widths)
        self.context_steps = nn.ModuleList(
            [CoarseStep(step, widths) for step in CODING_STEPS[1:4]]
            + [RefiningStep(2, widths), FineStep(2, widths), RefiningStep(1, widths), FineStep(1, widths)]
        )
        self.synthesis = Synthesis()

    def _spread(self, gains: Tensor) -> Tensor:
        """One gain for each band, at least FINEST_LOG2_GAIN; those of the hyper-latent stay at least 0."""
        bands, hyper = gains.split([BAND_COUNT, self.hyper_channels], -1)
        return torch.cat([bands[..., BAND_OF_CHANNEL] + FINEST_LOG2_GAIN, hyper], -1)

    def _gather(self, gains: Tensor) -> Tensor:
        latent, hyper = gains.split([LATENT_CHANNELS, self.hyper_channels], -1)
        first_channels = [BAND_OF_CHANNEL.index(band) for band in range(BAND_COUNT)]
        return torch.cat([latent[..., first_channels] - FINEST_LOG2_GAIN, hyper], -1)


class Micro(Wavelet):
    """The codec for small cameras: the same transforms, with narrow networks to predict means and scales."""

    architecture = "wavelet2-micro"
    widths = Widths(hyper8=8, hyper16=16, features=44, fine_features=8, fine=16)
