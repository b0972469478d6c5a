"""Which way each weight is rounded: layer-wise reconstruction from the second moments of the layer's input.

A layer with weights w and rounded weights q errs by (w - q) x on an input patch x. With the bias corrected for the mean
error (Nagel et al., 2019, there for E[x] from batch normalisation, here measured), what is left is the quadratic form
(w - q) C (w - q)^T in the patches' covariance C: the objective of AdaRound (Nagel et al., 2020). AdaRound relaxes it
and descends by stochastic gradients; here it is solved on C itself, first column by column with each column's error
passed on to those that can still make up for it (OPTQ: Frantar et al., 2023), then by coordinate descent until no
single weight can improve it. It needs no gradients and takes seconds per layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .qat import ExactConv2d

PATCHES_PER_BATCH = 1500
"""Patches of each layer that are drawn from a batch of images."""
DAMPING = 1e-3
"""Of the mean variance, added to each: weights of inputs that were never seen still stay near their values."""
SWEEPS = 4
"""Of coordinate descent at most; two or three usually suffice."""


class Moments:
    """Running first and second moments of a layer's input patches (I,) in float64."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self._sum = torch.zeros(size, dtype=torch.float64)
        self._products = torch.zeros(size, size, dtype=torch.float64)

    def add(self, patches: Tensor) -> None:
        """`patches` (M, I)."""
        self.count += len(patches)
        self._sum += patches.sum(0)
        self._products += patches.T @ patches

    @property
    def mean(self) -> Tensor:
        return self._sum / self.count

    @property
    def covariance(self) -> Tensor:
        """(I, I), shrunk towards its diagonal: what few patches say about many correlations is mostly chance, and
        rounding that believed it would do worse on other pictures than rounding to nearest."""
        raw = self._products / self.count - torch.outer(self.mean, self.mean)
        doubt = len(raw) / (len(raw) + self.count)
        return (1 - doubt) * raw + doubt * torch.diag(raw.diagonal())


@contextmanager
def observed_patches(module: nn.Module, seed: int = 0) -> Iterator[dict[str, Moments]]:
    """Moments, by layer, of the input patches of every ExactConv2d that runs inside the context."""
    moments: dict[str, Moments] = {}
    generator = torch.Generator().manual_seed(seed)

    def observer(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def observe(layer: ExactConv2d, inputs: tuple[Tensor, ...]) -> None:
            patches = F.unfold(inputs[0].detach(), layer.weight.shape[2:], padding=layer.padding, stride=layer.stride)
            patches = patches.transpose(1, 2).flatten(0, 1)
            if len(patches) > PATCHES_PER_BATCH:
                patches = patches[torch.randint(len(patches), (PATCHES_PER_BATCH,), generator=generator)]
            moments.setdefault(name, Moments(patches.shape[1])).add(patches)

        return observe

    hooks = [
        layer.register_forward_pre_hook(observer(name))
        for name, layer in module.named_modules()
        if isinstance(layer, ExactConv2d)
    ]
    try:
        yield moments
    finally:
        for hook in hooks:
            hook.remove()


def error_feedback(weight: Tensor, covariance: Tensor, limit: int) -> Tensor:
    """Integers (O, I) for `weight` (O, I), in units of a step: OPTQ, inputs of large variance first."""
    order = covariance.diagonal().argsort(descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(covariance[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    rest, rounded = weight[:, order].float(), torch.empty_like(weight, dtype=torch.float32)
    for column in range(weight.shape[1]):
        value = rest[:, column]
        rounded[:, order[column]] = value.round().clamp(-limit, limit)
        error = (value - rounded[:, order[column]]) / upper[column, column]
        rest[:, column:] -= torch.outer(error, upper[column, column:])
    return rounded


def coordinate_descent(weight: Tensor, rounded: Tensor, covariance: Tensor, limit: int) -> Tensor:
    """Improve `rounded` (O, I), one column after the other, as long as any single weight can be improved."""
    covariance = covariance.float()
    rounded = rounded.clone()
    gradient = (weight.float() - rounded) @ covariance
    for _ in range(SWEEPS):
        changed = False
        for column in range(weight.shape[1]):
            better = rounded[:, column] + gradient[:, column] / covariance[column, column]
            # More than half a step, so that rounding errors cannot move a weight to and fro.
            better = torch.where((better - rounded[:, column]).abs() > 0.501, better.round(), rounded[:, column])
            change = better.clamp(-limit, limit) - rounded[:, column]
            if change.any():
                changed = True
                rounded[:, column] += change
                gradient -= torch.outer(change, covariance[column])
        if not changed:
            break
    return rounded


def round_adaptively(weight: Tensor, covariance: Tensor, limit: int) -> Tensor:
    """Integers within +-limit, (O, I) float64, for `weight` (O, I) in units of a step.

    They never err more, in the quadratic form of `covariance` (I, I), than rounding to nearest.
    """
    variance = covariance.diagonal().mean().clamp_min(1e-12)
    damped = covariance + DAMPING * variance * torch.eye(len(covariance), dtype=covariance.dtype)
    nearest = weight.float().round().clamp(-limit, limit)
    rounded = coordinate_descent(weight, error_feedback(weight, damped, limit), damped, limit)
    worse = reconstruction_error(weight, rounded, damped) > reconstruction_error(weight, nearest, damped)
    rounded[worse] = nearest[worse]
    return rounded.double()


def reconstruction_error(weight: Tensor, rounded: Tensor, covariance: Tensor) -> Tensor:
    """(O,) float64: (w - q) C (w - q)^T per output channel."""
    difference = weight.double() - rounded.double()
    return ((difference @ covariance) * difference).sum(1)
