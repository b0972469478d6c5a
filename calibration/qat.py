"""Layers that train in floating point and compute, bit for bit, what the integer network computes.

Activations live in units of full scale: a value `a` in [-1, 127/128] stands for the int8 number 128 * a. Saturation
is the network's only non-linearity, so a layer costs nothing but its multiplications on every backend. With
`exact` off the layers only saturate (float training); with it on they also round weights, biases and activations
to the grid of `docs/integers.md`, with straight-through gradients, and the forward pass in fp32 *is* the deployed
network: every number is an integer below 2**24 times a power of two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..runtime.network import (
    ACCUMULATOR_LIMIT,
    ACTIVATION_EXP,
    EXACT,
    FLOAT,
    FLOAT_WEIGHT_LIMIT,
    FREE,
    MAX_SHIFT,
    MIN_SHIFT,
    WEIGHT_LIMIT,
    WIDE_WEIGHT_LIMIT,
)

FULL_SCALE = 1.0 - 2.0**-ACTIVATION_EXP
"""Largest activation, 127/128."""
LEAK = 0.1
"""Gradient of the saturation outside its range; the forward pass is exactly flat there."""


def to_full_scale(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 on `device` in full-scale units: pixel 128 is 0."""
    planes = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).contiguous()
    return planes.float().sub_(128).div_(128)


def round_straight_through(x: Tensor) -> Tensor:
    """Round to nearest; the gradient passes unchanged (Bengio et al., 2013)."""
    return x + (torch.round(x) - x).detach()


class _Saturate(torch.autograd.Function):
    """Clip (and round) with a small gradient outside the range: a channel that always saturates can recover."""

    @staticmethod
    def forward(ctx, x: Tensor, rounding: Callable[[Tensor], Tensor] | None, bits: int) -> Tensor:  # type: ignore[no-untyped-def, override]
        unit = 2.0 ** (bits - 1)
        y = rounding(x * unit) / unit if rounding else x
        ctx.save_for_backward(x)
        ctx.largest = 1.0 - 1.0 / unit
        return y.clamp(-1.0, ctx.largest)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def, override]
        (x,) = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(gradient, x, -1.0, ctx.largest)
        return inside.mul_(1 - LEAK).add_(gradient, alpha=LEAK), None, None


def saturate(x: Tensor, exact: bool, bits: int = 8) -> Tensor:
    """Clip to [-1, 1 - 2**-(bits - 1)] and, when `exact`, round to multiples of 2**-(bits - 1)."""
    return _Saturate.apply(x, torch.round if exact else None, bits)


def _halves_up(x: Tensor) -> Tensor:
    return torch.floor(x + 0.5)


def weight_exponents(weight: Tensor, limit: int = WEIGHT_LIMIT) -> Tensor:
    """Per output channel the largest e such that |weight| * 2**e stays within `limit`. Shape (O,)."""
    peak = weight.detach().flatten(1).abs().amax(1).clamp_min(2.0**-18)
    return torch.floor(torch.log2(limit / peak)).clamp(MIN_SHIFT, MAX_SHIFT)


class ExactConv2d(nn.Module):
    """Convolution whose frozen form has even int8 weights, odd int32 biases and power-of-two scales.

    `raw` keeps the accumulator (no rounding, no saturation): for values that leave the network and are quantised
    elsewhere. `gain` is a power of two between the stored and the effective weight: it sets the layer's learning
    rate relative to its weights' magnitude, which spans three decades across this codec. `copies` > 1 makes the layer
    wide: the integer network sees its input so many times, and each weight is the sum of as many int8 weights. Two
    copies are one bit more, at twice the multiplications, within the contract. `format` and `bits` (of the input and of
    the output) are those of `runtime.network.Conv`; they matter where `exact` is on. Only "int8-exact" can be trained.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        padding: int | None = None,
        raw: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.raw = stride, raw
        self.padding = kernel // 2 if padding is None else padding
        self.weight = nn.Parameter(torch.empty(channels_out, channels_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels_out))
        self.register_buffer("gain", torch.tensor(1.0))
        nn.init.kaiming_normal_(self.weight)
        self.copies = 1
        self.format, self.bits = EXACT, (8, 8)
        self.fixed_exponents: Tensor | None = None
        """(O,), where calibration has chosen the scales; else they follow the weights."""
        self.exact = False

    def set_weight(self, weight: Tensor) -> None:
        """Make `weight` (O, I, K, K) the effective weight, with the `gain` that stores it at about 1 / sqrt(fan-in)."""
        fan_in = weight[0].numel()
        rms = weight.pow(2).mean().sqrt().clamp_min(1e-8)
        gain = 2.0 ** torch.round(torch.log2(rms * fan_in**0.5))
        with torch.no_grad():
            self.gain.copy_(gain)
            self.weight.copy_(weight / gain)

    def effective(self) -> tuple[Tensor, Tensor]:
        """Weight and bias before rounding."""
        return self.weight * self.gain, self.bias

    @property
    def is_exact(self) -> bool:
        """Whether the format is one of those that fp32 computes exactly, with even weights and odd biases."""
        return self.format in (EXACT, FLOAT)

    @property
    def grid(self) -> tuple[int, int]:
        """(distance between neighbouring integer weights, how many of them lie above 0)."""
        spacing, limit = {EXACT: (2, WEIGHT_LIMIT), FLOAT: (2, FLOAT_WEIGHT_LIMIT)}.get(
            self.format, (1, WIDE_WEIGHT_LIMIT)
        )
        return spacing, limit * self.copies // spacing

    def exponents(self, weight: Tensor) -> Tensor:
        """(O,): e per output channel, such that `weight` spans the integers at the scale 2**-e."""
        if self.fixed_exponents is not None:
            return self.fixed_exponents
        spacing, levels = self.grid
        if self.is_exact:
            # Rounding adds at most 1 to each weight, so no partial sum leaves the contract's bound.
            magnitude = weight.detach().flatten(1).abs().sum(1) + self.bias.detach().abs()
            room = ACCUMULATOR_LIMIT / 2 ** (self.bits[0] - 1) - weight[0].numel()
            bounded = torch.floor(torch.log2(room / magnitude.clamp_min(2.0**-18))).clamp(min=MIN_SHIFT)
            return weight_exponents(weight, spacing * levels).minimum(bounded)
        if self.format != FREE:
            return weight_exponents(weight, spacing * levels)
        peak = weight.detach().flatten(1).abs().amax(1).clamp_min(2.0**-18)
        return -torch.log2(peak / levels)

    def integers(self) -> tuple[Tensor, Tensor, Tensor]:
        """(weight, bias, exponent): integers, even and odd if the format asks for it, and e per output channel with
        scale 2**-e."""
        weight, bias = self.effective()
        spacing, levels = self.grid
        exponent = self.exponents(weight)
        per_step = (2.0**exponent / spacing).reshape(-1, 1, 1, 1)
        weight_int = spacing * torch.round(weight * per_step).clamp(-levels, levels)
        scaled_bias = bias.double() * 2.0 ** (exponent.double() + self.bits[0] - 1)
        bias_int = 2 * torch.floor(scaled_bias / 2) + 1 if self.is_exact else torch.round(scaled_bias)
        return weight_int, bias_int, exponent

    def forward(self, x: Tensor) -> Tensor:
        if self.exact and not self.is_exact:
            return self._free_forward(x)
        weight, bias = self.effective()
        if self.exact:
            with torch.no_grad():
                weight_int, bias_int, exponent = self.integers()
                weight_grid = weight_int * (2.0**-exponent).reshape(-1, 1, 1, 1)
                bias_grid = (bias_int * 2.0 ** -(exponent.double() + self.bits[0] - 1)).to(bias.dtype)
            weight = weight + (weight_grid - weight).detach() if self.training else weight_grid
            bias = bias + (bias_grid - bias).detach() if self.training else bias_grid
        y = self._convolve(x, weight, bias)
        return y if self.raw else saturate(y, self.exact, self.bits[1])

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The convolution. Kernels of several strides go by blocks of one stride: PyTorch's gradient of a 32x32 kernel
        takes ten times as long."""
        blocks, rest = divmod(weight.shape[2], self.stride)
        sides = [(side + 2 * self.padding) % self.stride for side in x.shape[2:]]
        # Gradients of few channels take half the time with channels last.
        x, weight = (value.contiguous(memory_format=torch.channels_last) for value in (x, weight))
        if self.stride == 1 or blocks == 1 or rest or any(sides):
            return F.conv2d(x, weight, bias, self.stride, self.padding)
        x = F.pixel_unshuffle(F.pad(x, [self.padding] * 4), self.stride)
        return F.conv2d(x, F.pixel_unshuffle(weight, self.stride), bias)

    def _free_forward(self, x: Tensor) -> Tensor:
        """The integer layer in the formats beyond fp32's exact range, computed in fp64."""
        weight, bias, exponent = self.integers()
        unit = 2.0 ** (self.bits[0] - 1)
        y = F.conv2d(x.double() * unit, weight.double(), bias.double(), self.stride, self.padding)
        if self.format == FREE:
            scale = (2.0**-exponent).float().reshape(-1, 1, 1)
            return (torch.round(y.float() * scale) / 2**ACTIVATION_EXP).clamp(-1.0, FULL_SCALE)
        y = y * (2.0 ** -exponent.double() / unit).reshape(-1, 1, 1)
        return (y if self.raw else _Saturate.apply(y, _halves_up, self.bits[1])).float()


class SaturatingAdd(nn.Module):
    """Sum of two tensors, saturated. Nothing is rounded but where the output has fewer bits than an input, halves up.

    `bits` of the wider input and of the output are 8 but in the formats "fp32-exact" and "w8a16b32".
    """

    def __init__(self, bits_in: int = 8, bits_out: int = 8) -> None:
        super().__init__()
        self.bits = (bits_in, bits_out)
        self.exact = False

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        narrower = self.exact and self.bits[1] < self.bits[0]
        return _Saturate.apply(a + b, _halves_up if narrower else None, self.bits[1])


class Join(nn.Module):
    """One number of 8 + `bits` bits of a whole part and of a fraction that is counted in 2**-bits of its unit."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, whole: Tensor, fraction: Tensor) -> Tensor:
        return whole + fraction * 2.0**-self.bits


class _Select(torch.autograd.Function):
    """Indexing whose gradient writes each channel once: autograd's own adds them up, at several times the cost."""

    @staticmethod
    def forward(ctx, x: Tensor, channels: tuple[int, ...]) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.channels, ctx.of = list(channels), x.shape[1]
        return x[:, ctx.channels]

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def, override]
        result = gradient.new_zeros(len(gradient), ctx.of, *gradient.shape[2:])
        result[:, ctx.channels] = gradient
        return result, None


class Select(nn.Module):
    """Some channels of a tensor, each at most once, in the order of `channels`."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)

    def forward(self, x: Tensor) -> Tensor:
        return _Select.apply(x, self.channels)


class SpaceToDepth(nn.Module):
    """`runtime.network.SpaceToDepth`: (N, C, H, W) to (N, b * b * C, H / b, W / b)."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        b = self.block
        blocks = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
        return blocks.reshape(n, b * b * c, h // b, w // b)


class DepthToSpace(nn.Module):
    """Undoes `SpaceToDepth`: phases first, unlike `F.pixel_shuffle`."""

    def __init__(self, block: int) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        b = self.block
        blocks = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
        return blocks.reshape(n, c // (b * b), h * b, w * b)


class EdgePad(nn.Module):
    """Repeats the outermost values `width` times on every side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, [self.width] * 4, mode="replicate")


LAYERS = (ExactConv2d, SaturatingAdd, Join, Select, SpaceToDepth, DepthToSpace, EdgePad)


class LayerTracer(fx.Tracer):
    """Follows a forward pass symbolically down to the layers of this module, which stay whole."""

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, LAYERS) or super().is_leaf_module(module, qualified_name)


def set_exact(module: nn.Module, exact: bool) -> None:
    """Switch every layer below `module` between float and integer arithmetic."""
    for child in module.modules():
        if hasattr(child, "exact"):
            child.exact = exact
