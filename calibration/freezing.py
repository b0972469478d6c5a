"""Freezes a trained layer to the integers that the runtime computes with."""

from __future__ import annotations

import numpy as np
import torch

from ..runtime.network import WEIGHT_LIMIT, Conv
from .qat import ExactConv2d


def freeze_conv(layer: ExactConv2d, name: str, source: str, output: str) -> Conv:
    """The integer convolution that `layer` computes when its `exact` is on.

    `source` holds `layer.copies` copies of the layer's input, one after the other.
    """
    with torch.no_grad():
        weight, bias, exponent = layer.integers()
    return Conv(
        name=name,
        source=source,
        output=output,
        weight=np.concatenate(split_weight(weight.numpy(), layer.copies), axis=1),
        bias=bias.numpy().astype(np.int32),
        shift=exponent.numpy().astype(np.uint8),
        stride=layer.stride,
        padding=layer.padding,
        raw=layer.raw,
    )


def split_weight(weight: np.ndarray, copies: int) -> list[np.ndarray]:
    """`copies` int8 arrays of even weights that sum to the even integers `weight`, each as large as it can be."""
    parts, rest = [], weight.astype(np.int64)
    for _ in range(copies):
        part = np.clip(rest, -WEIGHT_LIMIT, WEIGHT_LIMIT)
        parts.append(part.astype(np.int8))
        rest = rest - part
    return parts
