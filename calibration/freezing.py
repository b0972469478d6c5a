"""Freezes a trained layer to the integers that the runtime computes with."""

from __future__ import annotations

import numpy as np
import torch

from ..runtime.network import FLOAT, FREE, WEIGHT_LIMIT, WIDE_WEIGHT_LIMIT, Conv
from .qat import ExactConv2d


def freeze_conv(layer: ExactConv2d, name: str, source: str, output: str) -> Conv:
    """The integer convolution that `layer` computes when its `exact` is on.

    `source` holds `layer.copies` copies of the layer's input, one after the other.
    """
    with torch.no_grad():
        weight, bias, exponent = layer.integers()
    split = [weight.numpy().astype(np.int16)] if layer.format == FLOAT else split_weight(weight.numpy(), layer.copies)
    return Conv(
        name=name,
        source=source,
        output=output,
        weight=np.concatenate(split, axis=1),
        bias=bias.numpy().astype(np.int32),
        shift=np.zeros(len(bias), np.uint8) if layer.format == FREE else exponent.numpy().astype(np.uint8),
        stride=layer.stride,
        padding=layer.padding,
        raw=layer.raw,
        format=layer.format,
        bits=layer.bits[1],
        scale=np.exp2(-exponent.numpy()) if layer.format == FREE else None,
    )


def split_weight(weight: np.ndarray, copies: int) -> list[np.ndarray]:
    """`copies` int8 arrays that sum to the integers `weight`, each as large as it can be; even where `weight` is."""
    parts, rest = [], weight.astype(np.int64)
    limit = WEIGHT_LIMIT if not (rest % 2).any() else WIDE_WEIGHT_LIMIT
    for _ in range(copies):
        part = np.clip(rest, -limit, limit)
        parts.append(part.astype(np.int8))
        rest = rest - part
    return parts
