"""Freezes a trained layer to the integers that the runtime computes with."""

from __future__ import annotations

import numpy as np
import torch

from ..runtime.network import Conv
from .qat import ExactConv2d


def freeze_conv(layer: ExactConv2d, name: str, source: str, output: str) -> Conv:
    """The integer convolution that `layer` computes when its `exact` is on."""
    with torch.no_grad():
        weight, bias, exponent = layer.integers()
    return Conv(
        name=name,
        source=source,
        output=output,
        weight=weight.numpy().astype(np.int8),
        bias=bias.numpy().astype(np.int32),
        shift=exponent.numpy().astype(np.uint8),
        stride=layer.stride,
        padding=layer.padding,
        raw=layer.raw,
    )
