"""A float network as stages: a convolution, an optional move from depth to space, an optional non-linearity.

What stands in a `nn.Sequential` is rewritten exactly: a transposed convolution becomes a convolution whose output
channels hold the phases of the finer plane, the first convolution on an image one on the planes that the runtime
feeds, and grouped convolutions dense ones. Layers that have no such form are refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..runtime.errors import UsageError
from .models.compressai import GDN

FITTED = GDN | nn.GELU | nn.SiLU | nn.ELU | nn.PReLU
"""Activations that are regressed onto exact layers: all that sees one position at a time could be."""
ALLOWED = (
    "Conv2d, ConvTranspose2d of stride 2 that doubles the side, and after one of these PixelShuffle, ReLU, "
    "LeakyReLU, GDN, GELU, SiLU, ELU or PReLU"
)
PLANE_STEP = 2
"""Pixels per position of the planes that the runtime feeds the analysis and takes from the synthesis."""


@dataclass(frozen=True)
class Stage:
    """weight (O, I, K, K) and bias (O,) in float, then `upscale` from depth to space, then `activation`."""

    name: str
    weight: Tensor
    bias: Tensor
    stride: int
    padding: int
    upscale: int = 1
    activation: nn.Module | None = None

    @property
    def channels(self) -> int:
        """After the move from depth to space."""
        return len(self.weight) // self.upscale**2

    def linear(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return F.pixel_shuffle(y, self.upscale) if self.upscale > 1 else y

    def activate(self, x: Tensor) -> Tensor:
        return x if self.activation is None else self.activation(x)

    def __call__(self, x: Tensor) -> Tensor:
        return self.activate(self.linear(x))


def read_stages(name: str, network: nn.Module) -> list[Stage]:
    """The stages of a (nested) `nn.Sequential`. Raises UsageError naming the layer that has no exact form."""
    found: list[Stage] = []
    for path, layer in _layers(name, network):
        if isinstance(layer, nn.Conv2d):
            found.append(_of_convolution(path, layer))
        elif isinstance(layer, nn.ConvTranspose2d):
            found.append(_of_transposed(path, layer))
        elif isinstance(layer, nn.Identity):
            continue
        elif not found or found[-1].activation is not None:
            raise _refused(path, layer, "it does not follow a convolution")
        elif isinstance(layer, nn.PixelShuffle) and found[-1].upscale == 1:
            found[-1] = replace(found[-1], upscale=layer.upscale_factor)
        elif isinstance(layer, nn.ReLU | nn.LeakyReLU | FITTED) or _is_gdn(layer):
            found[-1] = replace(found[-1], activation=layer)
        else:
            raise _refused(path, layer, f"{type(layer).__name__} is not one of them")
    if not found:
        raise UsageError(f"{name} has no layers: it must be a nn.Sequential of {ALLOWED}")
    return found


def _layers(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential):
        for child, layer in module.named_children():
            yield from _layers(f"{name}.{child}", layer)
    else:
        yield name, module


def _is_gdn(layer: nn.Module) -> bool:
    """Somebody else's GDN: fitted by what it computes, so that its class does not matter."""
    return type(layer).__name__ in ("GDN", "GDN1")


def _refused(path: str, layer: nn.Module, why: str) -> UsageError:
    return UsageError(f"layer {path} ({type(layer).__name__}) cannot become exact: {why}; use {ALLOWED}")


def _one(path: str, layer: nn.Module, what: str, value: object) -> int:
    """The common value of a pair of sizes."""
    values = set(value) if isinstance(value, tuple) else {value}
    if len(values) != 1 or not isinstance(size := values.pop(), int):
        raise _refused(path, layer, f"its {what} is {value}, not one number for both directions")
    return size


def _bias(layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    return torch.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach()


def _of_convolution(path: str, layer: nn.Conv2d) -> Stage:
    _one(path, layer, "kernel", layer.kernel_size)
    if layer.padding_mode != "zeros" or _one(path, layer, "dilation", layer.dilation) != 1:
        raise _refused(path, layer, "it has a dilation or pads with something else than zeros")
    weight, groups = layer.weight.detach(), layer.groups
    if groups > 1:
        dense = weight.new_zeros(layer.out_channels, layer.in_channels, *weight.shape[2:])
        rows, columns = layer.out_channels // groups, layer.in_channels // groups
        for g in range(groups):
            part = slice(g * rows, (g + 1) * rows)
            dense[part, g * columns : (g + 1) * columns] = weight[part]
        weight = dense
    stride, padding = _one(path, layer, "stride", layer.stride), _one(path, layer, "padding", layer.padding)
    return Stage(path, weight, _bias(layer), stride, padding)


def _of_transposed(path: str, layer: nn.ConvTranspose2d) -> Stage:
    """Output 2 i + d of the finer plane is a sum over inputs i + o with the taps k = d + padding - 2 o."""
    kernel, padding = _one(path, layer, "kernel", layer.kernel_size), _one(path, layer, "padding", layer.padding)
    extra, stride = (_one(path, layer, "size", value) for value in (layer.output_padding, layer.stride))
    if stride != 2 or kernel + extra - 2 * padding != 2 or layer.groups != 1 or max(layer.dilation) != 1:
        raise _refused(path, layer, "it does not double the side with stride 2, one group and no dilation")
    weight = layer.weight.detach()  # (I, O, K, K)
    taps = {(d, o): d + padding - 2 * o for d in (0, 1) for o in range(-kernel, kernel + 1)}
    taps = {place: tap for place, tap in taps.items() if 0 <= tap < kernel}
    reach = max(abs(o) for _, o in taps)
    side = 2 * reach + 1
    phases = weight.new_zeros(layer.out_channels, 2, 2, layer.in_channels, side, side)
    for (dy, oy), ky in taps.items():
        for (dx, ox), kx in taps.items():
            phases[:, dy, dx, :, oy + reach, ox + reach] = weight[:, :, ky, kx].T
    return Stage(path, phases.flatten(0, 2), _bias(layer).repeat_interleave(4), 1, reach, upscale=2)


def on_planes(stage: Stage) -> Stage:
    """A first convolution (O, 3, K, K) of even stride on images as one on `pixel_unshuffle(images, 2)`."""
    if stage.weight.shape[1] != 3 or stage.stride % PLANE_STEP:
        raise UsageError(
            f"layer {stage.name} takes {stage.weight.shape[1]} channels with stride {stage.stride}: the first layer "
            "of the analysis must take the 3 of an image with an even stride"
        )
    kernel = stage.weight.shape[2]
    places = [divmod(k - stage.padding, PLANE_STEP) for k in range(kernel)]  # (position, phase) of each tap
    reach = max(abs(position) for position, _ in places)
    planes = stage.weight.new_zeros(len(stage.weight), 3, 2, 2, 2 * reach + 1, 2 * reach + 1)
    for ky, (y, dy) in enumerate(places):
        for kx, (x, dx) in enumerate(places):
            planes[:, :, dy, dx, y + reach, x + reach] = stage.weight[:, :, ky, kx]
    return replace(stage, weight=planes.flatten(1, 3), stride=stage.stride // PLANE_STEP, padding=reach)


def to_planes(stage: Stage) -> Stage:
    """A last stage that doubles the side to 3 channels as one that stops at `pixel_unshuffle(images, 2)`."""
    if stage.channels != 3 or stage.upscale != PLANE_STEP or stage.activation is not None:
        raise UsageError(
            f"layer {stage.name} gives {stage.channels} channels at {stage.upscale} times the side: the last layer of "
            "the synthesis must double the side and give the 3 of an image"
        )
    return replace(stage, upscale=1)


def run(stages: list[Stage], x: Tensor) -> Tensor:
    """What the stages compute, in float."""
    for stage in stages:
        x = stage(x)
    return x
