"""What of a network the native filters compute, and in which steps: `plan`. The rest of it is a network of its own.

Filters are the convolutions in "fp32-exact", and with them goes all that has more than 8 bits. Nothing is only moved
between them: a channel is followed back to the convolution that it comes from (`_Origin`), which then writes it to
where it is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .. import filtering
from ..network import (
    FLOAT,
    MIN_SHIFT,
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


@dataclass
class Stored:
    """Planes: the tensor whose shape they have, how far the convolutions that read them see around them, and whether
    the outermost values are repeated there (None: nobody looks)."""

    tensor: str
    border: int = 0
    edge: bool | None = None


@dataclass(frozen=True)
class Fill:
    """`filtering.Planes.fill` with an input of the network."""

    makes: str


@dataclass(frozen=True)
class Gather:
    """`filtering.Planes.join` of channels of an input of the network."""

    makes: str
    values: str
    whole: np.ndarray
    part: np.ndarray
    shift: int


@dataclass(frozen=True)
class Filters:
    """`filtering.filter_rows` of one or two convolutions, (filter, planes) each, to planes or an output."""

    layer: str
    terms: tuple[tuple[filtering.Filter, str], ...]
    makes: str
    places: np.ndarray
    grow: int = 1


@dataclass(frozen=True)
class Narrow:
    """`filtering.Planes.narrow` to a tensor of 8 bits, `added` being another one."""

    makes: str
    planes: str
    bits: int
    added: str | None


Step = Fill | Gather | Filters | Narrow


@dataclass
class Plan:
    """The steps before the rest of the network, which reads what they make, and those after it.

    `planes` says by name what to allocate. Without `rest` there is nothing but filters.
    """

    planes: dict[str, Stored] = field(default_factory=dict)
    before: list[Step] = field(default_factory=list)
    rest: Network | None = None
    after: list[Step] = field(default_factory=list)


class _Origin(NamedTuple):
    """A channel that holds at (y, x) what `channel` of `tensor` holds at (block * y + dy, block * x + dx)."""

    tensor: str
    channel: int
    block: int
    dy: int
    dx: int


class _Unfit(Exception):
    """The network has something that is not foreseen here."""


def plan(network: Network) -> Plan | None:
    """How the native filters compute `network`; None where they cannot."""
    try:
        return _Planner(network).plan
    except _Unfit:
        return None


class _Planner:
    """Walks the nodes twice: first it learns where everything comes from, then it says what is to be done."""

    def __init__(self, network: Network) -> None:
        self._network, self._bits = network, network.bits
        self.plan = Plan()
        self._wide = self._wide_nodes()
        self._require(any(isinstance(node, Conv) for node in self._wide.values()))
        self.plan.rest = self._rest()
        # Channels of inputs: of which one, and which, as `whole` of `filtering.Planes.join` has them.
        self._of_input = {
            name: (name, np.arange(channels, dtype=np.int32).reshape(1, 1, -1))
            for name, channels in network.inputs.items()
        }
        self._origins: dict[str, list[_Origin]] = {}
        self._edges: dict[str, tuple[str, int]] = {}
        """EdgePad's outputs: which tensor is padded, and how far."""
        self._sums: dict[str, tuple[Conv, Conv]] = {}
        for node in network.nodes:
            self._learn(node)
        for node in self._wide.values():
            self._do(node)
        steps = [*self.plan.before, *self.plan.after]
        made = {step.makes for step in steps}
        read = {*network.outputs, *self.plan.planes, *(self.plan.rest.inputs if self.plan.rest else ())}
        self._require(made | set(network.inputs) >= read)
        self._require(all(step.makes in read for step in steps if isinstance(step, Filters)))

    def _require(self, condition: object) -> None:
        if not condition:
            raise _Unfit

    def _wide_nodes(self) -> dict[str, Node]:
        """By output: filters, and the nodes that read or make what has more than 8 bits or is raw."""
        wide: dict[str, Node] = {}
        tensors: set[str] = set()
        raw = self._network.raw
        for node in self._network.nodes:
            is_filter = isinstance(node, Conv) and node.format == FLOAT
            if is_filter or isinstance(node, Join) or tensors.intersection(sources(node)):
                wide[node.output] = node
                if self._bits[node.output] > 8 or node.output in raw:
                    tensors.add(node.output)
        return wide

    def _rest(self) -> Network | None:
        """What wide sums read of the other nodes, and all that this needs; what wide nodes make of it are inputs."""
        made = {node.output: node for node in self._network.nodes}
        read = dict.fromkeys(s for node in self._wide.values() if isinstance(node, Add) for s in node.sources)
        outputs = tuple(name for name in read if name in made and name not in self._wide)
        if not outputs:
            return None
        needed: set[str] = set()
        inputs: set[str] = set()
        waiting = list(outputs)
        while waiting:
            name = waiting.pop()
            if name in self._network.inputs or name in self._wide:
                inputs.add(name)
            elif name not in needed:
                needed.add(name)
                waiting += sources(made[name])
        return Network(
            self._network.name,
            {name: count for name, count in self._network.channels.items() if name in inputs},
            outputs,
            tuple(node for node in self._network.nodes if node.output in needed),
        )

    def _learn(self, node: Node) -> None:
        if node.output not in self._wide:
            self._follow_input(node)
        elif isinstance(node, Conv):
            side = node.weight.shape[2]
            source, width = self._edges.get(node.source, (node.source, node.padding))
            padded = source != node.source
            self._require(node.format == FLOAT and node.stride == 1 and side % 2 and width == side // 2)
            self._require(not (padded and node.padding))
            stored = self.plan.planes.setdefault(source, Stored(source))
            self._require(stored.edge in (None, padded))
            stored.edge, stored.border = padded, max(stored.border, width)
            self._origins[node.output] = [_Origin(node.output, c, 1, 0, 0) for c in range(len(node.weight))]
        elif isinstance(node, EdgePad):
            self._edges[node.output] = node.source, node.width
        elif isinstance(node, SpaceToDepth | Concat | Select):
            self._require(all(source in self._origins for source in sources(node)))
            self._origins[node.output] = self._followed(node)

    def _follow_input(self, node: Node) -> None:
        """As far as `filtering.Planes.join` can."""
        if not isinstance(node, Select | DepthToSpace) or node.source not in self._of_input:
            return
        name, channels = self._of_input[node.source]
        if isinstance(node, Select):
            self._of_input[node.output] = name, channels[..., list(node.channels)]
        elif len(channels) == 1:
            b = node.block
            split = channels.reshape((b, b, -1) if node.phases_first else (-1, b, b))
            self._of_input[node.output] = name, split if node.phases_first else np.moveaxis(split, 0, 2)

    def _followed(self, node: SpaceToDepth | Concat | Select) -> list[_Origin]:
        """Where the output's channels come from."""
        if isinstance(node, Concat):
            return [origin for source in node.sources for origin in self._origins[source]]
        origins = self._origins[node.source]
        if isinstance(node, Select):
            return [origins[channel] for channel in node.channels]
        phases = [(dy, dx) for dy in range(node.block) for dx in range(node.block)]
        return [
            _Origin(o.tensor, o.channel, o.block * node.block, dy * o.block + o.dy, dx * o.block + o.dx)
            for dy, dx in phases
            for o in origins
        ]

    def _do(self, node: Node) -> None:
        if isinstance(node, Conv):
            source = node.source
            # Two channels are moved at a time.
            self._require(source not in self._network.inputs or self._network.inputs[source] % 2 == 0)
            if source in self._network.inputs and Fill(source) not in self.plan.before:
                self._step(Fill(source))
            if not any(isinstance(reader, Add) for reader in self._network.readers[node.output]):
                self._step(self._alone(node))
        elif isinstance(node, Join):
            self._step(self._gather(node))
        elif isinstance(node, Add):
            self._add(node)
        elif isinstance(node, DepthToSpace):
            self._require(node.source in self._sums)
            self._step(self._summed(node.source, node.output, node))

    def _step(self, step: Step) -> None:
        """Once something waits for the rest of the network, all does."""
        waits = self.plan.after or (isinstance(step, Narrow) and step.added is not None)
        (self.plan.after if waits else self.plan.before).append(step)

    def _gather(self, node: Join) -> Gather:
        self._require(all(source in self._of_input for source in node.sources))
        (values, whole), (same, part) = (self._of_input[source] for source in node.sources)
        self._require(values == same and whole.shape == part.shape)
        return Gather(node.output, values, np.ascontiguousarray(whole), np.ascontiguousarray(part), node.bits - 8)

    def _filter(self, node: Conv) -> tuple[filtering.Filter, str]:
        shift = self._bits[node.source] - 1 + node.shift.astype(int) - (0 if node.raw else node.bits - 1)
        self._require(shift.min() >= MIN_SHIFT and shift.max() <= (63 if node.raw else 31))
        weights = filtering.Filter(node.weight, node.bias, shift.astype(np.uint8), 0 if node.raw else node.bits)
        return weights, self._edges.get(node.source, (node.source, 0))[0]

    def _alone(self, node: Conv) -> Filters:
        """To the one tensor in which its results are read: another's source, or an output."""
        read = [name for name in (*self.plan.planes, *self._network.outputs) if name in self._origins]
        targets = [name for name in read if any(o.tensor == node.output for o in self._origins[name])]
        self._require(len(targets) == 1 and node.raw == (targets[0] in self._network.outputs))
        self._require(all(o.tensor in self._origins for o in self._origins[targets[0]]))
        own = [(place, o) for place, o in enumerate(self._origins[targets[0]]) if o.tensor == node.output]
        block = own[0][1].block
        self._require(all(o.block == block for _, o in own) and block * len(node.weight) <= filtering.MAX_TARGETS)
        places = np.full((block, block, len(node.weight)), -1, np.int32)
        for place, o in own:
            places[o.dy, o.dx, o.channel] = place
        return Filters(node.name, (self._filter(node),), targets[0], places)

    def _add(self, node: Add) -> None:
        a, b = (self._wide.get(source) for source in node.sources)
        if isinstance(a, Conv) and isinstance(b, Conv):
            self._require(not node.raw and a.bits == b.bits > 8 and node.bits in (8, a.bits) and len(a.weight) % 2 == 0)
            self._sums[node.output] = a, b
            readers = self._network.readers[node.output]
            grown = [isinstance(reader, DepthToSpace) for reader in readers]
            if any(grown):
                self._require(all(grown) and node.bits > 8)
                return  # computed where it goes
            planes = f"{a.output}+{b.output}"
            if planes not in self.plan.planes:
                self.plan.planes[planes] = Stored(a.output)
                self._step(self._summed(node.output, planes))
            if node.bits == 8:
                self._step(Narrow(node.output, planes, a.bits, None))
            return
        # On top of such a sum what the rest of the network gives, in 8 bits.
        totals = [source for source in node.sources if source in self._sums]
        added = [source for source in node.sources if self.plan.rest and source in self.plan.rest.outputs]
        self._require(len(totals) == 1 and len(added) == 1 and node.bits == 8)
        a, b = self._sums[totals[0]]
        self._require(self._bits[totals[0]] == a.bits)
        self._step(Narrow(node.output, f"{a.output}+{b.output}", a.bits, added[0]))

    def _summed(self, total: str, target: str, growing: DepthToSpace | None = None) -> Filters:
        a, b = self._sums[total]
        grow = growing.block if growing else 1
        places = np.arange(len(a.weight), dtype=np.int32)
        if growing and growing.phases_first:
            places = places.reshape(-1, grow * grow).T.ravel()
        terms = self._filter(a), self._filter(b)
        return Filters(f"{a.name}+{b.name}", terms, target, places.reshape(1, 1, -1).copy(), grow)
