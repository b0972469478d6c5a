"""From a PyTorch module to an integer network: follow the forward pass symbolically, freeze each layer on the way.

Understands modules made of the layers of `calibration.qat`, `torch.cat` over channels, `F.pixel_shuffle`, and `+`
between raw accumulators; anything else is refused by name.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import nn

from ..calibration.freezing import freeze_conv
from ..calibration.qat import DepthToSpace, EdgePad, ExactConv2d, Join, LayerTracer, SaturatingAdd, Select, SpaceToDepth
from ..runtime import network
from ..runtime.errors import UsageError
from ..runtime.network import Add, Concat, Network, Node


def trace(name: str, module: nn.Module, channels: Mapping[str, int]) -> Network:
    """The integer network of `module`. `channels` gives the channel count of each argument of its forward."""
    nodes: list[Node] = []
    inputs: dict[str, int] = {}
    outputs: tuple[str, ...] = ()
    raw: set[str] = set()
    for node in LayerTracer().trace(module).nodes:
        sources = [argument.name for argument in node.all_input_nodes]
        target = module.get_submodule(node.target) if node.op == "call_module" else node.target
        # Unlike a layer with weights, one that only moves values may be called more than once.
        label = node.name if any(done.name == node.target for done in nodes) else str(node.target)
        if raw.intersection(sources) and not isinstance(target, ExactConv2d | SaturatingAdd):
            raw.add(node.name)
        if node.op == "placeholder":
            inputs[node.name] = channels[node.name]
        elif node.op == "output":
            outputs = tuple(sources)
        elif isinstance(target, ExactConv2d):
            source = sources[0]
            if target.copies > 1:
                source = f"{node.name}_copies"
                nodes.append(Concat(source, (sources[0],) * target.copies, source))
            conv = freeze_conv(target, str(node.target), source, node.name)
            if conv.raw:
                raw.add(node.name)
            nodes.append(conv)
        elif isinstance(target, SaturatingAdd):
            nodes.append(Add(label, (sources[0], sources[1]), node.name, raw=False, bits=target.bits[1]))
        elif isinstance(target, Join):
            nodes.append(network.Join(label, (sources[0], sources[1]), node.name, 8 + target.bits))
        elif isinstance(target, Select):
            nodes.append(network.Select(label, sources[0], node.name, target.channels))
        elif isinstance(target, DepthToSpace):
            moved = network.DepthToSpace(label, sources[0], node.name, target.block, phases_first=True)
            nodes.append(moved)
        elif isinstance(target, EdgePad):
            nodes.append(network.EdgePad(label, sources[0], node.name, target.width))
        elif target is torch.cat:
            nodes.append(Concat(node.name, tuple(sources), node.name))
        elif target is nn.functional.pixel_shuffle:
            nodes.append(network.DepthToSpace(node.name, sources[0], node.name, int(node.args[1])))
        elif isinstance(target, SpaceToDepth):
            nodes.append(network.SpaceToDepth(label, sources[0], node.name, target.block))
        elif target is operator.add and raw.issuperset(sources):
            nodes.append(Add(node.name, (sources[0], sources[1]), node.name, raw=True))
        else:
            raise UsageError(
                f"network {name}: {node.name} ({target}) is not an exact operator; build the module from ExactConv2d, "
                "SaturatingAdd, Join, Select, SpaceToDepth, DepthToSpace, EdgePad, torch.cat and F.pixel_shuffle"
            )
    return Network(name, inputs, outputs, tuple(nodes))
