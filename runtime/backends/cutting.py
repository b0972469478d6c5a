"""Few engines for many shapes: a tensor is computed in overlapping pieces of the one shape that an engine has.

Every piece lies inside the tensor. Where its edge is the tensor's own, the network pads with zeros as it would have
done; where its edge is inside, the positions that can see beyond it, those within the receptive radius, are thrown
away and come from the next piece. So what is kept was computed from the same numbers, and is exact.

The other way, a tensor filled up to a larger engine, is not: zeros around it are no zeros any more after the first
bias, while at a tensor's edge every layer sees zeros. Hence no engine serves a tensor smaller than itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..network import Conv, Network, growth, sources

Place = tuple[int, int]
"""Height and width of a network's inputs."""
MOST_CUTS = 6
"""Pieces along one side that `few_places` considers."""
PIECE_MACS = 5e7
"""What cutting out a piece, starting it and putting it back costs beside its arithmetic, in multiplications: some ten
microseconds of a GPU that does a few 10^12 of them per second. Not measured."""
IMPOSSIBLE = 1e30
"""Work that no shape of engine can do."""


@dataclass(frozen=True)
class Span:
    """One axis of a piece, in input positions: it begins at `start`, and [first, last) of the tensor come from it."""

    start: int
    first: int
    last: int


@dataclass(frozen=True)
class Piece:
    """A piece of row `item` of a batch."""

    item: int
    rows: Span
    columns: Span

    def source(self, height: int, width: int) -> tuple[int, slice, slice]:
        """Where in the tensors its `height` x `width` positions lie."""
        rows, columns = self.rows.start, self.columns.start
        return self.item, slice(rows, rows + height), slice(columns, columns + width)

    def kept(self, height: int, output_height: int) -> tuple[tuple[slice, slice], tuple[int, slice, slice]]:
        """What is right of an output, in the piece and in the whole: `height` input rows are `output_height` rows."""

        def part(span: Span, origin: int) -> slice:
            first, last = span.first - origin, span.last - origin
            return slice(first * output_height // height, last * output_height // height)

        inside = part(self.rows, self.rows.start), part(self.columns, self.columns.start)
        return inside, (self.item, part(self.rows, 0), part(self.columns, 0))


@dataclass(frozen=True)
class Geometry:
    """What cutting needs to know of a network: pieces begin at multiples of `step`, and lose `margin` inside.

    `macs` are the multiplications per input position.
    """

    step: int
    margin: int
    macs: float = 0.0

    @classmethod
    def of(cls, network: Network) -> Geometry:
        """The step is the network's largest stride, so that a piece's strided layers fall on the same positions."""
        strides = dict.fromkeys(network.inputs, 1.0)
        for node in network.nodes:
            stride = node.stride if isinstance(node, Conv) else 1 / growth(node)
            strides[node.output] = strides[sources(node)[0]] * stride
        step = math.ceil(max(strides.values()))
        margin = math.ceil(network.receptive_radius() / step) * step
        return cls(step, margin, sum(count for _, count in network.macs()))

    def work(self, piece: Place) -> float:
        """What a piece costs, in multiplications."""
        return PIECE_MACS + self.macs * piece[0] * piece[1]

    def count(self, tensor: Place, piece: Place) -> int:
        """How many pieces cover a tensor; 0 where it cannot be cut so."""
        return len(spans(tensor[0], piece[0], self)) * len(spans(tensor[1], piece[1], self))

    def pieces(self, count: int, tensor: Place, piece: Place) -> list[Piece]:
        """The pieces that cover `count` tensors; none where they cannot be cut so."""
        rows, columns = (spans(length, side, self) for length, side in zip(tensor, piece, strict=True))
        return [Piece(item, row, column) for item in range(count) for row in rows for column in columns]


@lru_cache(maxsize=4096)
def spans(length: int, piece: int, geometry: Geometry) -> tuple[Span, ...]:
    """`length` positions covered by pieces; none where that is impossible."""
    if piece == length:
        return (Span(0, 0, length),)
    if piece > length or length % geometry.step or piece % geometry.step:
        return ()
    found: list[Span] = []
    covered = 0
    while covered < length:
        start = min(max(covered - geometry.margin, 0), length - piece)
        last = length if start + piece == length else start + piece - geometry.margin
        if last <= covered:
            return ()
        found.append(Span(start, covered, last))
        covered = last
    return tuple(found)


class _Choice:
    """The shapes that engines of one network might have, and what each would compute for each place."""

    def __init__(self, network: Network, wanted: Mapping[Place, Sequence[int]]) -> None:
        geometry = Geometry.of(network)
        self.places = list(wanted)
        self.candidates = [
            (height, width)
            for height in _sides({height for height, _ in self.places}, geometry)
            for width in _sides({width for _, width in self.places}, geometry)
        ]
        self.pieces = np.array([[geometry.count(place, shape) for place in self.places] for shape in self.candidates])
        of_piece = np.array([geometry.work(shape) for shape in self.candidates])
        calls = np.array([sum(wanted[place]) for place in self.places])
        self.work = np.where(self.pieces > 0, of_piece[:, None] * calls * self.pieces, IMPOSSIBLE)
        self.chosen: list[int] = []

    @property
    def now(self) -> np.ndarray:
        """The work for each place with what is chosen."""
        return self.work[self.chosen].min(axis=0, initial=IMPOSSIBLE)

    def saving(self) -> tuple[float, int]:
        """The most that one more shape would save, and which."""
        savings = np.maximum(self.now - self.work, 0).sum(axis=1)
        best = int(savings.argmax())
        return float(savings[best]), best


def few_places(
    networks: Mapping[str, Network], wanted: Mapping[str, Mapping[Place, Sequence[int]]], batch: int, more_work: float
) -> list[tuple[str, Place, int]]:
    """Few engines that serve every call: (network, height and width, batch, at most `batch`).

    `wanted` maps networks and the places that are asked of them to the batch of each such call. All calls together cost
    no more than the share `more_work` more than with engines of exactly those shapes, counted in multiplications, with
    PIECE_MACS for each piece. Shapes are taken one by one, each time the one that saves most.
    """
    choices = {name: _Choice(networks[name], places) for name, places in wanted.items()}
    enough = (1 + more_work) * sum(choice.work.min(axis=0).sum() for choice in choices.values())
    while sum(choice.now.sum() for choice in choices.values()) > enough:
        choice = max(choices.values(), key=_Choice.saving)
        choice.chosen.append(choice.saving()[1])
    found: dict[tuple[str, Place], int] = {}
    for name, choice in choices.items():
        for column, place in enumerate(choice.places):
            row = choice.chosen[int(choice.work[choice.chosen, column].argmin())]
            key = name, choice.candidates[row]
            most = max(wanted[name][place]) * int(choice.pieces[row, column])
            found[key] = min(batch, max(most, found.get(key, 0)))
    return [(name, place, count) for (name, place), count in found.items()]


def _sides(lengths: Iterable[int], geometry: Geometry) -> list[int]:
    """The lengths, and of each the sides of two, three... equal pieces; large ones first."""
    sides = set(lengths)
    for length in lengths:
        for count in range(2, MOST_CUTS + 1):
            side = (length + 2 * geometry.margin * (count - 1)) / count
            sides.add(min(length, math.ceil(side / geometry.step) * geometry.step))
    return sorted(sides, reverse=True)
