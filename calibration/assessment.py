"""What quantisation cost: rate and distortion in float and in integers, and which layer is to blame.

Everything is measured on decoded 8-bit pixels, since every decoder ends there, and on the model's own estimate of the
bits (ideal code lengths; real files differ by the entropy tables' fit, equally for both).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .ptq import QUALITIES, FloatCodec, layers, run

Curve = list[tuple[float, float]]
"""(bits per pixel, PSNR in dB) points, one per quality."""
BdRate = Callable[[Sequence[tuple[float, float]], Sequence[tuple[float, float]]], float | None]
GLUE = "(between the networks)"
"""Stands for the codec's own integer arithmetic: the grid of the latents, gains and companding."""
SENSITIVITY_QUALITIES = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Points:
    """(N, Q) arrays for N images at Q qualities: bits per pixel and mean squared error in levels of 0..255."""

    bits_per_pixel: np.ndarray
    squared_error: np.ndarray

    def curves(self) -> list[Curve]:
        """One curve per image."""
        return [list(zip(*rows, strict=True)) for rows in zip(self.bits_per_pixel.tolist(), self._psnr(), strict=True)]

    def mean_curve(self) -> Curve:
        """Means over the images of bits per pixel and of PSNR."""
        psnr = np.array(self._psnr()).mean(0)
        return [(float(rate), float(quality)) for rate, quality in zip(self.bits_per_pixel.mean(0), psnr, strict=True)]

    def _psnr(self) -> list[list[float]]:
        return (10 * np.log10(255**2 / np.maximum(self.squared_error, 1e-3))).tolist()


def measure(
    codec: FloatCodec, images: Sequence[Tensor], qualities: Sequence[float] = QUALITIES
) -> Iterator[tuple[int, int, float, float]]:
    """(image, quality index, bits per pixel, mean squared error) as they are measured; `images` (N, 3, H, W) each."""
    first = 0
    with torch.no_grad():
        for part in images:
            for index, quality in enumerate(qualities):
                decoded, bits = codec(part, torch.full((len(part),), quality))
                pixels = (decoded * 128).round().clamp(-128, 127)
                errors = (pixels - part * 128).square().flatten(1).mean(1)
                for image in range(len(part)):
                    yield first + image, index, float(bits[image]), float(errors[image])
            first += len(part)


def collect(rows: Iterator[tuple[int, int, float, float]]) -> Points:
    """`measure`'s rows as arrays."""
    found = {(image, quality): values for image, quality, *values in rows}
    shape = (1 + max(image for image, _ in found), 1 + max(quality for _, quality in found), 2)
    values = np.array([found[image, quality] for image in range(shape[0]) for quality in range(shape[1])])
    values = values.reshape(shape)
    return Points(values[..., 0], values[..., 1])


@dataclass(frozen=True)
class LayerCost:
    """What quantising this layer alone costs the float codec.

    `sqnr_db`: power of its float output over the power of its error, on the same float inputs; `rounding_share`: how
    much of that error rounding its output to the activations' grid explains (the rest is the weights').
    `rate_percent` and `psnr_db`: mean change at equal quality setting; `bd_rate_percent`: of the two together.
    """

    layer: str
    sqnr_db: float | None
    rounding_share: float | None
    rate_percent: float
    psnr_db: float
    bd_rate_percent: float | None


def mean_bd_rate(reference: Points, test: Points, bd_rate: BdRate) -> float | None:
    """Mean over the images of each one's BD-rate; None where an image has none (a codec of a single quality)."""
    rates = [bd_rate(a, b) for a, b in zip(reference.curves(), test.curves(), strict=True)]
    return None if any(rate is None for rate in rates) else float(np.mean(rates))


def signal_to_noise(twin: FloatCodec, codec: FloatCodec, images: Tensor) -> dict[str, tuple[float, float]]:
    """(SQNR in dB, share of the noise that rounding the output makes) of each layer of the integer `codec`, on the
    inputs that the float `twin` gives it."""
    module: nn.Module = twin  # type: ignore[assignment]
    integer = layers(codec)  # type: ignore[arg-type]
    powers: dict[str, np.ndarray] = {}

    def observer(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def observe(_: nn.Module, inputs: tuple[Tensor, ...], y: Tensor) -> None:
            layer = integer[name]
            error = layer(inputs[0]) - y
            # A rounding error is uniform over a step; an accumulator that leaves as it is has none.
            rounding = 0.0 if layer.raw else error.numel() * 2.0 ** (-2 * (layer.bits[1] - 1)) / 12
            found = np.array([float(y.square().sum()), float(error.square().sum()), rounding])
            powers[name] = powers.get(name, 0) + found

        return observe

    hooks = [layer.register_forward_hook(observer(name)) for name, layer in layers(module).items()]
    try:
        for _ in run(twin, images):
            pass
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: (10 * math.log10(max(signal, 1e-30) / max(noise, 1e-30)), min(1.0, rounding / max(noise, 1e-30)))
        for name, (signal, noise, rounding) in powers.items()
    }


@contextmanager
def _one_quantised(twin: FloatCodec, codec: FloatCodec, name: str) -> Iterator[None]:
    """`twin` with one layer, or the arithmetic between the networks, in integers."""
    module: nn.Module = twin  # type: ignore[assignment]
    if name == GLUE:
        twin.set_exact(True)
        for layer in layers(module).values():
            layer.exact = False
        try:
            yield
        finally:
            twin.set_exact(False)
        return
    kept = module.get_submodule(name)
    module.set_submodule(name, codec.get_submodule(name))  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.set_submodule(name, kept)


def sensitivity(
    twin: FloatCodec,
    codec: FloatCodec,
    images: Tensor,
    bd_rate: BdRate,
    progress: Callable[[str, int, int], None],
    qualities: Sequence[float] = SENSITIVITY_QUALITIES,
) -> list[LayerCost]:
    """Each layer of `codec` alone in the float `twin`, the dearest first."""
    sqnr = signal_to_noise(twin, codec, images)
    names = [*(name for name in layers(codec) if name in sqnr), GLUE]  # type: ignore[arg-type]
    before = collect(measure(twin, [images], qualities))
    costs = []
    for number, name in enumerate(names, 1):
        with _one_quantised(twin, codec, name):
            after = collect(measure(twin, [images], qualities))
        rate, quality = np.array(after.mean_curve()).T
        base_rate, base_quality = np.array(before.mean_curve()).T
        costs.append(
            LayerCost(
                name,
                *sqnr.get(name, (None, None)),
                float(100 * (rate / base_rate - 1).mean()),
                float((quality - base_quality).mean()),
                mean_bd_rate(before, after, bd_rate),
            )
        )
        progress("one layer at a time", number, len(names))
    return sorted(costs, key=_dearness, reverse=True)


def _dearness(cost: LayerCost) -> tuple[bool, float, float]:
    """First what left no common quality range, then by BD-rate; for a codec of one quality 1 dB counts as 20 % rate."""
    return cost.bd_rate_percent is None, cost.bd_rate_percent or 0.0, cost.rate_percent - 20 * cost.psnr_db
