"""Which numbers a network computes with, layer by layer.

- `int8-exact`: the contract of `docs/integers.md`, the same bits in every arithmetic, by proof.
- `fp32-exact`: the same contract with up to 12 bits, for the few linear filters that hand the picture on. Layers that
  have it keep it, whatever is asked for.
- `w8a16b32`: 8-bit weights, 16-bit activations, 32-bit biases, as CNNF has it. Exact in int32, int64 and fp64; not in
  fp32, so TensorRT has no form of it. Inputs and outputs of a network keep 8 bits, for the glue around it.
- `int8`: free weight scales. One float32 product per output decides its rounding, which the reference and ONNX Runtime
  compute alike, but there is no proof for others; so only what feeds nothing back may use it: the synthesis. A backend
  that rounds otherwise fails the known answers and is refused.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from ..runtime.network import EXACT, FLOAT_BITS, FREE, WIDE
from .qat import ExactConv2d, Join, LayerTracer, SaturatingAdd

FORMATS = (EXACT, FREE, WIDE)
"""What a whole codec can be asked to have."""
MAY_BE_FREE = ("synthesis",)
"""Networks whose output is pixels: a difference there stays where it is."""


def set_format(name: str, module: nn.Module, format: str) -> None:
    """Set the format of every layer of the network `name`; a network that may not have it stays `int8-exact`."""
    if format == FREE and name not in MAY_BE_FREE:
        format = EXACT
    nodes = list(LayerTracer().trace(module).nodes)
    narrow: set[str] = set()
    for node in reversed(nodes):
        moves = node.op == "output" or node.target in (torch.cat, functional.pixel_shuffle)
        if moves and (node.op == "output" or node.name in narrow):
            narrow.update(source.name for source in node.all_input_nodes)
    bits: dict[str, int] = {}
    for node in nodes:
        sources = [bits[source.name] for source in node.all_input_nodes]
        bits[node.name] = sources[0] if sources else 8
        layer = module.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(layer, Join):
            bits[node.name] = 8 + layer.bits
        elif isinstance(layer, ExactConv2d | SaturatingAdd) and 8 < max(layer.bits) <= FLOAT_BITS:
            bits[node.name] = layer.bits[1]
            continue
        if isinstance(layer, ExactConv2d | SaturatingAdd):
            bits[node.name] = 16 if format == WIDE and node.name not in narrow else 8
            layer.bits = sources[0], bits[node.name]
        if isinstance(layer, ExactConv2d):
            layer.format = format
