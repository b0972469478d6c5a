"""An integer network as data: a list of convolutions and exact operators over int8 tensors.

This is what calibration hands to the runtime and what every backend computes. The numpy reference executes it as
written; the ONNX graphs beside it in a bundle are other spellings of the same list. See `docs/integers.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from .errors import InputError

ACTIVATION_EXP = 7
"""Every activation has scale 2**-7 and zero point 0: int8 -128..127 stands for -1..127/128."""
WEIGHT_LIMIT = 126
"""Largest weight magnitude. Weights are even (see the parity rule), so this is the largest even int8."""
MIN_SHIFT = 2
"""Smallest right shift from accumulator to int8; below it odd accumulators could still tie."""
MAX_SHIFT = 24
ACCUMULATOR_LIMIT = 1 << 24
"""Accumulators stay below this, so that fp32 holds every partial sum exactly."""
EXACT, FLOAT, FREE, WIDE = "int8-exact", "fp32-exact", "int8", "w8a16b32"
"""Formats of a convolution, see `Conv`."""
FORMATS = (EXACT, FLOAT, FREE, WIDE)
FLOAT_BITS = 12
"""Most bits of an activation in "fp32-exact"."""
FLOAT_WEIGHT_LIMIT = 4094
"""Largest weight magnitude there: even, and 11 significant bits, as TF32 has them."""
WIDE_WEIGHT_LIMIT = 127
WIDE_ACCUMULATOR_LIMIT = 1 << 31
"""For the two other formats: int32 holds every partial sum, and fp64 does with room to spare."""


@dataclass(frozen=True)
class Conv:
    """2-D convolution with zero padding. int8 in; int8 out by shift, rounding and saturation, or float32 if `raw`.

    weight (O, I, k, k) int8 even; bias (O,) int32 odd; shift (O,) uint8: the accumulator of output channel o has the
    scale 2**-(ACTIVATION_EXP + shift[o]). `raw` gives the accumulator itself, times that scale, as float32: exact.

    That is the format "int8-exact". In "fp32-exact" inputs and outputs may have up to 12 bits, a number of n bits
    having the scale 2**-(n - 1) (`bits` are the output's), and weights are int16; all other rules are the same. In
    "w8a16b32" inputs and outputs may have 16 bits, weights are any int8 but -128, biases any int32, accumulators stay
    below 2**31 and halves round up.
    In "int8" weights and biases are as free, the accumulator has the scale 2**-ACTIVATION_EXP * scale[o] with any
    float32 `scale` (O,), and the output is the product of the two in float32, rounded half to even.
    """

    name: str
    source: str
    output: str
    weight: np.ndarray
    bias: np.ndarray
    shift: np.ndarray
    stride: int
    padding: int
    raw: bool
    format: str = EXACT
    bits: int = 8
    scale: np.ndarray | None = None


@dataclass(frozen=True)
class Add:
    """Sum of two tensors, saturated. The narrower one is widened first; where the output has fewer bits than the wider
    one, halves round up. Or, if `raw`, one float32 addition of two raw tensors (encoder side only). `bits` are the
    output's."""

    name: str
    sources: tuple[str, str]
    output: str
    raw: bool
    bits: int = 8


@dataclass(frozen=True)
class Join:
    """One number of `bits` bits of two int8 ones, a whole part and a fraction: whole * 2**(bits - 8) + fraction."""

    name: str
    sources: tuple[str, str]
    output: str
    bits: int


@dataclass(frozen=True)
class Concat:
    """Channel concatenation."""

    name: str
    sources: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class DepthToSpace:
    """Channels (C * b * b) to a b times larger plane; channel c * b * b + dy * b + dx goes to phase (dy, dx), or with
    `phases_first` channel (dy * b + dx) * C + c, which undoes SpaceToDepth."""

    name: str
    source: str
    output: str
    block: int
    phases_first: bool = False


@dataclass(frozen=True)
class SpaceToDepth:
    """Channels (C, ...) to (b * b * C) of a b times smaller plane, int8 or raw, whose sides are multiples of b: phase
    (dy, dx) of channel c goes to channel (dy * b + dx) * C + c, which is ONNX's order and not DepthToSpace's."""

    name: str
    source: str
    output: str
    block: int


@dataclass(frozen=True)
class Select:
    """Channel i of the output is channel `channels[i]` of the input, int8 or raw; each is taken at most once."""

    name: str
    source: str
    output: str
    channels: tuple[int, ...]


@dataclass(frozen=True)
class EdgePad:
    """A plane that is larger by `width` positions on each side, where the outermost values are repeated."""

    name: str
    source: str
    output: str
    width: int


Node = Conv | Add | Join | Concat | DepthToSpace | SpaceToDepth | Select | EdgePad
OPERATORS: dict[str, type[Node]] = {kind.__name__: kind for kind in Node.__args__}  # type: ignore[attr-defined]


def sources(node: Node) -> tuple[str, ...]:
    """The tensors that `node` reads."""
    return node.sources if isinstance(node, Add | Join | Concat) else (node.source,)


@dataclass(frozen=True)
class Network:
    """Nodes in execution order. `inputs` maps names to channels; tensors at the boundary are NHWC."""

    name: str
    inputs: Mapping[str, int]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]

    def macs(self, channels: Mapping[str, int] | None = None) -> list[tuple[str, float]]:
        """(convolution, multiply-accumulates per position of the first input's plane), in order."""
        scale = dict.fromkeys(self.inputs, 1.0)
        counts = []
        for node in self.nodes:
            if isinstance(node, Conv):
                scale[node.output] = scale[node.source] / node.stride
                counts.append((node.name, node.weight.size * scale[node.output] ** 2))
            else:
                scale[node.output] = scale[sources(node)[0]] * growth(node)
        return counts

    def output_shapes(self, inputs: Mapping[str, tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Shapes (N, H, W, C) of the outputs for inputs of the shapes `inputs`."""
        shapes = self.shapes(inputs)
        return [shapes[name] for name in self.outputs]

    def shapes(self, inputs: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """Shapes (N, H, W, C) of all tensors for inputs of the shapes `inputs`."""
        shapes = dict(inputs)
        for node in self.nodes:
            if isinstance(node, Conv):
                n, h, w, _ = shapes[node.source]
                grown = 2 * node.padding - node.weight.shape[2]
                shapes[node.output] = (
                    n, (h + grown) // node.stride + 1, (w + grown) // node.stride + 1, len(node.weight)
                )  # fmt: skip
            elif isinstance(node, DepthToSpace):
                n, h, w, c = shapes[node.source]
                shapes[node.output] = (n, h * node.block, w * node.block, c // node.block**2)
            elif isinstance(node, SpaceToDepth):
                n, h, w, c = shapes[node.source]
                shapes[node.output] = (n, h // node.block, w // node.block, c * node.block**2)
            elif isinstance(node, Select):
                shapes[node.output] = (*shapes[node.source][:3], len(node.channels))
            elif isinstance(node, EdgePad):
                n, h, w, c = shapes[node.source]
                shapes[node.output] = (n, h + 2 * node.width, w + 2 * node.width, c)
            elif isinstance(node, Concat):
                shapes[node.output] = (*shapes[node.sources[0]][:3], sum(shapes[s][3] for s in node.sources))
            else:
                shapes[node.output] = shapes[node.sources[0]]
        return shapes

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each tensor."""
        shapes = self.shapes({name: (1, 1 << 10, 1 << 10, channels) for name, channels in self.inputs.items()})
        return {name: shape[3] for name, shape in shapes.items()}

    @property
    def readers(self) -> dict[str, list[Node]]:
        """The nodes that read each tensor, one that reads it twice twice; empty for tensors that none reads."""
        readers: dict[str, list[Node]] = {name: [] for name in self.inputs}
        readers |= {node.output: [] for node in self.nodes}
        for node in self.nodes:
            for source in sources(node):
                readers[source].append(node)
        return readers

    @property
    def bits(self) -> dict[str, int]:
        """Width of each integer tensor by name, 8 to 16: activations have the scale 2**-(bits - 1)."""
        bits = dict.fromkeys(self.inputs, 8)
        for node in self.nodes:
            bits[node.output] = node.bits if isinstance(node, Conv | Add | Join) else bits[sources(node)[0]]
        return bits

    @property
    def formats(self) -> set[str]:
        """Formats of the convolutions."""
        return {node.format for node in self.nodes if isinstance(node, Conv)}

    @property
    def raw_outputs(self) -> tuple[bool, ...]:
        """Whether each output is float32 and not int8."""
        raw = self.raw
        return tuple(name in raw for name in self.outputs)

    @property
    def raw(self) -> set[str]:
        """The tensors that are float32 and not integer."""
        raw: set[str] = set()
        for node in self.nodes:
            if node.raw if isinstance(node, Conv | Add) else sources(node)[0] in raw:
                raw.add(node.output)
        return raw

    def receptive_radius(self, output: str | None = None) -> float:
        """How far, in positions of the input planes, an output position sees to either side (the larger side), beyond
        those that it stands for itself where its plane is coarser."""
        low = dict.fromkeys(self.inputs, 0.0)
        high = dict(low)
        jump = dict.fromkeys(self.inputs, 1.0)
        for node in self.nodes:
            if isinstance(node, Conv):
                step = jump[node.source]
                reach = node.weight.shape[2] - 1 - node.padding
                low[node.output] = low[node.source] + node.padding * step
                high[node.output] = high[node.source] + reach * step
                jump[node.output] = step * node.stride
                continue
            step = jump[sources(node)[0]]
            low[node.output] = max(low[s] for s in sources(node))
            high[node.output] = max(high[s] for s in sources(node))
            jump[node.output] = step / growth(node)
            if isinstance(node, SpaceToDepth):
                high[node.output] += (node.block - 1) * step
            elif isinstance(node, EdgePad):  # what follows is counted from the padded plane's corner
                low[node.output] += node.width * step
                high[node.output] -= node.width * step
        names = self.outputs if output is None else (output,)
        return max(max(low[n], high[n] - max(0.0, jump[n] - 1)) for n in names)


def growth(node: Node) -> float:
    """How many times as many positions the output's side has as the input's."""
    if isinstance(node, DepthToSpace):
        return node.block
    return 1 / node.block if isinstance(node, SpaceToDepth) else 1


def describe(network: Network) -> dict[str, Any]:
    """The network's structure as JSON, fields at their defaults left out; the arrays travel apart (see `arrays`)."""
    nodes = []
    for node in network.nodes:
        stated = {f.name: getattr(node, f.name) for f in fields(node)}
        kept = {
            f.name: stated[f.name]
            for f in fields(node)
            if not isinstance(stated[f.name], np.ndarray) and stated[f.name] != f.default
        }
        nodes.append({"op": type(node).__name__, **kept})
    return {"inputs": dict(network.inputs), "outputs": list(network.outputs), "nodes": nodes}


def arrays(network: Network) -> dict[str, np.ndarray]:
    """Weights, biases, shifts and free scales by "convolution.field"."""
    return {
        f"{node.name}.{field}": getattr(node, field)
        for node in network.nodes
        if isinstance(node, Conv)
        for field in ("weight", "bias", "shift", "scale")
        if getattr(node, field) is not None
    }


def rebuild(name: str, structure: Mapping[str, Any], stored: Mapping[str, np.ndarray]) -> Network:
    """Inverse of `describe` and `arrays`. Raises InputError for an operator that this version does not know."""
    nodes: list[Node] = []
    for stated in structure["nodes"]:
        stated = dict(stated)
        op = stated.pop("op")
        if op == "Conv":
            own = {f: stored.get(f"{stated['name']}.{f}") for f in ("weight", "bias", "shift", "scale")}
            node = Conv(**stated, **own)
            if node.format not in FORMATS:
                raise InputError(
                    f"network {name} uses the format {node.format}, which this version of linnet does not know: "
                    "update linnet"
                )
            nodes.append(node)
        elif op in OPERATORS:
            # JSON has lists where nodes have tuples.
            nodes.append(OPERATORS[op](**{k: tuple(v) if isinstance(v, list) else v for k, v in stated.items()}))
        else:
            raise InputError(
                f"network {name} uses operator {op}, which this version of linnet does not know: update linnet"
            )
    return Network(name, dict(structure["inputs"]), tuple(structure["outputs"]), tuple(nodes))
