"""The proof that an integer network gives the same bits in every arithmetic, from its graph and weights alone.

Every operator is checked against the rules of `docs/integers.md`; the outcome is the bundle's `certificate.json`:
for each convolution the bound, the headroom, the shifts and the parity, and how far each network sees. A network that
breaks a rule is refused with the layer's and the rule's name. `linnet certificate` proves a bundle again and prints
the sheet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..runtime.bundle import Bundle
from ..runtime.errors import InputError, UsageError
from ..runtime.network import (
    ACCUMULATOR_LIMIT,
    ACTIVATION_EXP,
    EXACT,
    FLOAT,
    FLOAT_BITS,
    FLOAT_WEIGHT_LIMIT,
    FREE,
    MAX_SHIFT,
    MIN_SHIFT,
    OPERATORS,
    WEIGHT_LIMIT,
    WIDE,
    WIDE_ACCUMULATOR_LIMIT,
    WIDE_WEIGHT_LIMIT,
    Add,
    Concat,
    Conv,
    DepthToSpace,
    EdgePad,
    Join,
    Network,
    Node,
    Select,
    SpaceToDepth,
    sources,
)
from ..runtime.tiles import BLOCK

ENCODER_ONLY = ("analysis", "hyper_analysis")
"""Networks that only an encoder runs: they alone may give raw sums, which are quantised later."""
PIXELS_PER_POSITION = {"analysis": 2, "synthesis": BLOCK}
"""Of the planes that enter the networks whose neighbourhood crosses the borders of tiles."""


@dataclass(frozen=True)
class LayerProof:
    """What was proved of one convolution. `accumulator_bound` is the largest |sum| any int8 input can produce."""

    layer: str
    weight_peak: int
    accumulator_bound: int
    headroom_bits: float
    shift_min: int
    shift_max: int
    odd: bool
    format: str = EXACT


class RuleBroken(UsageError):
    """A layer breaks a rule of the arithmetic contract."""

    def __init__(self, network: str, layer: str, rule: str, detail: str) -> None:
        super().__init__(f"network {network}, layer {layer} breaks the rule '{rule}': {detail}")
        self.network, self.layer, self.rule = network, layer, rule


def prove_conv(network: str, node: Conv, bits_in: int = 8) -> LayerProof:
    """Prove one convolution, whose input has `bits_in` bits, or raise RuleBroken.

    The format fp32-exact keeps the contract with weights that TF32 holds, too. In the format w8a16b32 it is proved that
    no partial sum leaves int32; there, rounding is defined as halves up. In the format int8 the same, and nothing about
    the float32 product that follows.
    """
    exact = node.format in (EXACT, FLOAT)
    weight_limit = {EXACT: WEIGHT_LIMIT, FLOAT: FLOAT_WEIGHT_LIMIT}.get(node.format, WIDE_WEIGHT_LIMIT)
    accumulator_limit = ACCUMULATOR_LIMIT if exact else WIDE_ACCUMULATOR_LIMIT
    weight_type = np.int16 if node.format == FLOAT else np.int8

    def require(condition: bool, rule: str, detail: str) -> None:
        if not condition:
            raise RuleBroken(network, node.name, rule, detail)

    require(node.weight.dtype == weight_type, f"weights are {weight_type.__name__}", f"they are {node.weight.dtype}")
    require(node.bias.dtype == np.int32, "biases are int32", f"they are {node.bias.dtype}")
    require(node.shift.dtype == np.uint8, "scales are powers of two", f"shifts are {node.shift.dtype}, not uint8")
    weight, bias, shift = (array.astype(np.int64) for array in (node.weight, node.bias, node.shift))
    require(
        weight.ndim == 4 and weight.size > 0 and weight.shape[2] == weight.shape[3],
        "kernels are square",
        f"the weights are {weight.shape}",
    )
    channels = (len(weight),)
    require(
        bias.shape == channels and shift.shape == channels,
        "one bias and one shift per output channel",
        f"{bias.shape} and {shift.shape} for {channels[0]} channels",
    )
    require(node.stride >= 1 and node.padding >= 0, "strides and paddings count", f"{node.stride} and {node.padding}")
    peak = int(np.abs(weight).max())
    require(peak <= weight_limit, f"weights within +-{weight_limit}", f"the largest is {peak}")
    require(bool((shift <= MAX_SHIFT).all()), f"shift at most {MAX_SHIFT}", f"the largest is {shift.max()}")
    # The input is -128..127, or as much of more bits: 128 times the sum of magnitudes bounds every partial sum, too.
    bounds = (1 << (bits_in - 1)) * np.abs(weight).reshape(len(weight), -1).sum(1) + np.abs(bias)
    bound = int(bounds.max())
    require(
        bound < accumulator_limit,
        f"accumulators below 2^{accumulator_limit.bit_length() - 1}",
        f"channel {bounds.argmax()} can reach {bound}",
    )
    odd = bool((weight % 2 == 0).all() and (bias % 2 == 1).all())
    if node.format == FREE:
        free = node.scale is not None and node.scale.dtype == np.float32 and bool((node.scale > 0).all())
        require(free, "free scales are positive float32", "they are missing or are not")
        require(not node.raw and node.bits == 8, "int8 gives int8", "it is raw or has 16 bits")
    if not node.raw and exact:
        # A raw accumulator is not rounded, so it cannot tie.
        require(
            odd,
            "odd accumulators",
            "weights must be even and biases odd, or a sum can lie half way between two outputs",
        )
        right = bits_in - node.bits + int(shift.min())
        require(right >= MIN_SHIFT, f"shift at least {MIN_SHIFT}", f"the smallest is {right}")
    return LayerProof(
        node.name,
        peak,
        bound,
        float(np.round(np.log2(accumulator_limit / bound), 2)),
        int(shift.min()),
        int(shift.max()),
        odd,
        node.format,
    )


@dataclass(frozen=True)
class _Tensor:
    """`kind` is "int8" (scale 2**-7), an integer of more bits, or "raw".

    `step` is positions of the input's plane per position of this one.
    """

    kind: str
    channels: int
    step: float

    @property
    def bits(self) -> int:
        return 8 if self.kind == "raw" else int(self.kind.removeprefix("int"))


def _result(network: str, node: Node, inputs: list[_Tensor]) -> _Tensor:
    """What `node` makes of its inputs. Raises RuleBroken where kinds, channels or planes do not fit."""

    def require(condition: bool, rule: str, detail: str) -> None:
        if not condition:
            raise RuleBroken(network, node.name, rule, detail)

    first, raw = inputs[0], isinstance(node, Conv | Add) and node.raw
    if isinstance(node, Join):
        expected = ["int8", "int8"]
    elif isinstance(node, Conv | Add) and not (isinstance(node, Add) and raw):
        expected = ["int8" if source.kind == "raw" else source.kind for source in inputs]
    else:  # what only moves numbers takes any
        expected = ["raw" if raw else first.kind] * len(inputs)
    for wanted, source in zip(expected, inputs, strict=True):
        require(source.kind == wanted, f"inputs are {wanted}", f"one of them is {source.kind}")
    if isinstance(node, Conv):
        taken = node.weight.shape[1]
        require(taken == first.channels, "channels fit", f"it takes {taken} channels and gets {first.channels}")
        return _Tensor("raw" if raw else f"int{node.bits}", len(node.weight), first.step * node.stride)
    if isinstance(node, SpaceToDepth):
        return _Tensor(first.kind, first.channels * node.block**2, first.step * node.block)
    if isinstance(node, Select):
        fit = len(set(node.channels)) == len(node.channels) and set(node.channels) <= set(range(first.channels))
        require(fit, "channels fit", f"it does not take each of {first.channels} channels at most once")
        return _Tensor(first.kind, len(node.channels), first.step)
    if isinstance(node, EdgePad):
        require(node.width >= 0, "strides and paddings count", f"{node.width}")
        return first
    if isinstance(node, DepthToSpace):
        square = node.block**2
        require(
            node.block >= 1 and first.channels % square == 0,
            "channels fit",
            f"{first.channels} channels do not make blocks of {square}",
        )
        return _Tensor(first.kind, first.channels // square, first.step / node.block)
    steps, channels = {source.step for source in inputs}, [source.channels for source in inputs]
    require(len(steps) == 1, "planes of one size", f"its inputs have {sorted(steps)} times the input's step")
    if isinstance(node, Concat):
        return _Tensor(first.kind, sum(channels), first.step)
    if isinstance(node, Join):
        require(8 < node.bits <= FLOAT_BITS, f"9 to {FLOAT_BITS} bits", f"it makes {node.bits}")
    require(len(set(channels)) == 1, "equal scales and channels at adds", f"its inputs have {channels} channels")
    if isinstance(node, Add) and not raw:
        widest = max(source.bits for source in inputs)
        require(node.bits in (8, widest), "adds keep the width or give 8 bits", f"{node.bits} of {widest}")
    return _Tensor("raw" if raw else f"int{node.bits}", first.channels, first.step)


def prove(network: Network) -> list[LayerProof]:
    """Prove a whole network: known operators, tensors defined once and before use, int8 where int8 is due, planes and
    channels that fit, every convolution, raw sums only in what an encoder runs. Raises RuleBroken."""
    tensors = {name: _Tensor("int8", channels, 1.0) for name, channels in network.inputs.items()}
    proofs = []
    for node in network.nodes:
        if type(node) not in OPERATORS.values():
            raise RuleBroken(network.name, str(node), "allowed operators", f"{type(node).__name__} is not one of them")
        for source in sources(node):
            if source not in tensors:
                raise RuleBroken(network.name, node.name, "inputs exist", f"{source} is not defined before it is used")
        if node.output in tensors:
            raise RuleBroken(network.name, node.name, "tensors are defined once", f"{node.output} was there before")
        if isinstance(node, Conv):
            bits_in, most = tensors[node.source].bits, {WIDE: 16, FLOAT: FLOAT_BITS}.get(node.format, 8)
            if max(bits_in, node.bits) > most:
                rule = f"at most {most} bits in {node.format}"
                raise RuleBroken(network.name, node.name, rule, f"it takes {bits_in} and gives {node.bits}")
            proofs.append(prove_conv(network.name, node, bits_in))
        tensors[node.output] = _result(network.name, node, [tensors[source] for source in sources(node)])
    for output in network.outputs:
        if output not in tensors:
            raise RuleBroken(network.name, output, "outputs exist", "no operator makes it")
        if tensors[output].kind not in ("int8", "raw"):
            raise RuleBroken(network.name, output, "outputs have 8 bits", f"it is {tensors[output].kind}")
        if tensors[output].kind == "raw" and network.name not in ENCODER_ONLY:
            raise RuleBroken(
                network.name, output, "raw sums only in the encoder", f"only {' and '.join(ENCODER_ONLY)} may give them"
            )
    return proofs


def needed_halo(networks: Mapping[str, Network]) -> dict[str, int]:
    """Blocks of 16 pixels around a region that its exact values need, by network, from the receptive fields."""
    return {
        name: math.ceil(networks[name].receptive_radius() * pixels / BLOCK)
        for name, pixels in PIXELS_PER_POSITION.items()
        if name in networks
    }


def certificate(networks: Mapping[str, Network], halo: Mapping[str, int] | None = None) -> dict[str, Any]:
    """The proof sheet of all networks as JSON. With `halo` (blocks, by network, as a manifest states it) also that a
    window with this margin sees all that its pixels depend on. Raises RuleBroken."""
    sheet: dict[str, Any] = {
        "contract": {
            "activation_exp": ACTIVATION_EXP,
            "accumulator_limit": ACCUMULATOR_LIMIT,
            "weight_limit": WEIGHT_LIMIT,
            "min_shift": MIN_SHIFT,
            "max_shift": MAX_SHIFT,
        },
        "networks": {name: [_sheet(proof) for proof in prove(network)] for name, network in networks.items()},
    }
    sheet["receptive_radius"] = {name: network.receptive_radius() for name, network in networks.items()}
    if halo is not None:
        for name, needed in needed_halo(networks).items():
            if halo.get(name, 0) < needed:
                raise RuleBroken(
                    name,
                    networks[name].outputs[0],
                    "the halo covers the receptive field",
                    f"{networks[name].receptive_radius()} positions need {needed} blocks, not {halo.get(name, 0)}",
                )
        sheet["halo"] = {name: {"needed": n, "stated": halo[name]} for name, n in needed_halo(networks).items()}
    return sheet


def prove_bundle(bundle: Bundle) -> dict[str, Any]:
    """Prove `bundle` from its weights and graphs alone, and compare with the sheet that it carries.

    Raises InputError where a rule is broken or where the carried sheet says anything else.
    """
    try:
        proved = certificate(bundle.networks, bundle.manifest["halo"])
    except RuleBroken as error:
        raise InputError(f"bundle {bundle.name} is not exact: {error}") from error
    for section, stated in bundle.certificate.items():
        if proved.get(section) != stated:
            raise InputError(
                f"bundle {bundle.name}: section {section!r} of its certificate is not what its weights prove: "
                "get the bundle again"
            )
    return proved


def as_text(sheet: Mapping[str, Any]) -> str:
    """The sheet for a reader: a line per convolution, with the bound as a share of 2^24."""
    limit = sheet["contract"]["accumulator_limit"]
    lines = []
    for name, layers in sheet["networks"].items():
        lines.append(f"{name}: sees {sheet['receptive_radius'][name]:g} positions to each side")
        if name in sheet.get("halo", {}):
            halo = sheet["halo"][name]
            lines[-1] += f", needs a halo of {halo['needed']} blocks of {BLOCK} pixels, has {halo['stated']}"
        lines.append(
            f"  {'convolution':28} {'|w|':>4} {'|sum| below':>12} {'of 2^24':>8} {'headroom':>9} {'shift':>6}  sums"
        )
        for layer in layers:
            bound = layer["accumulator_bound"]
            shifts = f"{layer['shift_min']}-{layer['shift_max']}"
            lines.append(
                f"  {layer['layer']:28} {layer['weight_peak']:4} {bound:12} {bound / limit:8.1%} "
                f"{layer['headroom_bits']:4.1f} bits {shifts:>6}  {'odd' if layer['odd'] else 'raw'}"
            )
    return "\n".join(lines)


def _sheet(proof: LayerProof) -> dict[str, object]:
    """The proof as JSON; the contract's own format goes without saying."""
    sheet = asdict(proof)
    if proof.format == EXACT:
        del sheet["format"]
    return sheet
