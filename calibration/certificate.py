"""The proof that an integer network gives the same bits in every arithmetic, from its graph and weights alone.

Each convolution is checked against the rules of `docs/integers.md`; the outcome is the bundle's `certificate.json`,
one sheet per layer with the bound, the headroom, the shifts and the parity. A network that breaks a rule is refused
with the layer's and the rule's name.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from ..runtime.errors import UsageError
from ..runtime.network import (
    ACCUMULATOR_LIMIT,
    ACTIVATION_EXP,
    EXACT,
    FREE,
    MAX_SHIFT,
    MIN_SHIFT,
    WEIGHT_LIMIT,
    WIDE,
    WIDE_ACCUMULATOR_LIMIT,
    WIDE_WEIGHT_LIMIT,
    Add,
    Concat,
    Conv,
    DepthToSpace,
    Network,
)


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

    In the format w8a16b32 it is proved that no partial sum leaves int32; there, rounding is defined as halves up. In
    the format int8 the same, and nothing about the float32 product that follows.
    """
    exact = node.format == EXACT
    weight_limit, accumulator_limit = (
        (WEIGHT_LIMIT, ACCUMULATOR_LIMIT) if exact else (WIDE_WEIGHT_LIMIT, WIDE_ACCUMULATOR_LIMIT)
    )

    def require(condition: bool, rule: str, detail: str) -> None:
        if not condition:
            raise RuleBroken(network, node.name, rule, detail)

    require(node.weight.dtype == np.int8, "weights are int8", f"they are {node.weight.dtype}")
    require(node.bias.dtype == np.int32, "biases are int32", f"they are {node.bias.dtype}")
    weight = node.weight.astype(np.int64)
    peak = int(np.abs(weight).max())
    require(peak <= weight_limit, f"weights within +-{weight_limit}", f"the largest is {peak}")
    shift = node.shift.astype(np.int64)
    require(bool((shift <= MAX_SHIFT).all()), f"shift at most {MAX_SHIFT}", f"the largest is {shift.max()}")
    bias = node.bias.astype(np.int64)
    # The input is -128..127, or as much of 16 bits: 128 times the sum of magnitudes bounds every partial sum, too.
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
        require(bool((shift >= MIN_SHIFT).all()), f"shift at least {MIN_SHIFT}", f"the smallest is {shift.min()}")
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


def prove(network: Network) -> list[LayerProof]:
    """Prove a whole network: known operators, tensors defined before use, int8 where int8 is due, every convolution."""
    kinds = dict.fromkeys(network.inputs, "int8")  # or int16, between layers of the format w8a16b32
    proofs = []
    for node in network.nodes:
        sources = (node.source,) if isinstance(node, Conv | DepthToSpace) else node.sources
        for source in sources:
            if source not in kinds:
                raise RuleBroken(network.name, node.name, "inputs exist", f"{source} is not defined before it is used")
        int16 = kinds[sources[0]] == "int16"
        if isinstance(node, Conv) and node.format != WIDE and (int16 or node.bits > 8):
            raise RuleBroken(network.name, node.name, "16 bits are of w8a16b32 only", f"it is {node.format}")
        expected = "raw" if isinstance(node, Add) and node.raw else "int16" if int16 else "int8"
        wrong = [source for source in sources if kinds[source] != expected]
        if wrong:
            raise RuleBroken(network.name, node.name, f"inputs are {expected}", f"{wrong[0]} is {kinds[wrong[0]]}")
        if isinstance(node, Conv):
            proofs.append(prove_conv(network.name, node, 16 if int16 else 8))
        elif not isinstance(node, Add | Concat | DepthToSpace):
            raise RuleBroken(network.name, str(node), "allowed operators", f"{type(node).__name__} is not one of them")
        if isinstance(node, Conv | Add):
            kinds[node.output] = "raw" if node.raw else f"int{node.bits}"
        else:
            kinds[node.output] = expected
    for output in network.outputs:
        if kinds.get(output) == "int16":
            raise RuleBroken(network.name, output, "outputs have 8 bits", "it has 16")
    return proofs


def certificate(networks: dict[str, Network]) -> dict[str, object]:
    """The proof sheet of all networks as JSON."""
    return {
        "contract": {
            "activation_exp": ACTIVATION_EXP,
            "accumulator_limit": ACCUMULATOR_LIMIT,
            "weight_limit": WEIGHT_LIMIT,
            "min_shift": MIN_SHIFT,
            "max_shift": MAX_SHIFT,
        },
        "networks": {name: [_sheet(proof) for proof in prove(network)] for name, network in networks.items()},
    }


def _sheet(proof: LayerProof) -> dict[str, object]:
    """The proof as JSON; the contract's own format goes without saying."""
    sheet = asdict(proof)
    if proof.format == EXACT:
        del sheet["format"]
    return sheet
