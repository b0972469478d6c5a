"""The linear filters of networks in 16-bit integers of the native core: all of the analysis, and half of the synthesis.

ONNX Runtime computes them too, in float32. But few channels leave the units of its convolutions idle, and between them
every number is moved several times; here each result is written to where it is read next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from .. import filtering
from ..cores import usable_cores
from ..network import Network
from .filter_plan import Fill, Filters, Gather, Narrow, Plan, Step, Stored, plan
from .layers import LayerTime

if TYPE_CHECKING:
    from . import Backend

LEAST_ROWS = 16
"""Rows that a thread computes at once: fewer are not worth the start."""


class _Item:
    """One item of a batch: its tensors that are arrays, and those that are planes."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        self.values, self.planes = values, dict[str, filtering.Planes]()


class FilterBackend:
    """Runs those of `networks` that have filters in them, see `runs`, on `threads` (None: all cores).

    What else such a network has is a network of its own (`filter_plan.Plan.rest`), for `rest`, which runs them by the
    same names. Calls may come from several threads.
    """

    name = "onnxruntime"
    kernels = "filters"

    def __init__(
        self, networks: Mapping[str, Network], threads: int | None = None, rest: Backend | None = None
    ) -> None:
        self._networks, self._rest = networks, rest
        self._plans: dict[str, Plan | None] = {}
        self._threads = threads or usable_cores()
        self._pool = ThreadPoolExecutor(self._threads) if self._threads > 1 else None
        self._times: list[LayerTime] | None = None

    def runs(self, network: str) -> bool:
        """Whether `network` is one of them."""
        return self._plan(network) is not None

    def _plan(self, network: str) -> Plan | None:
        """Made when it is first asked for: another backend may be chosen before."""
        if network not in self._plans:
            found = plan(self._networks[network])
            self._plans[network] = found if found and (self._rest or not found.rest) else None
        return self._plans[network]

    @contextmanager
    def layer_times(self) -> Iterator[list[LayerTime]]:
        """While open, layers are timed; the list is complete at the end. Calls must come from one thread."""
        self._times = times = []
        with ExitStack() as stack:
            others = stack.enter_context(self._rest.layer_times()) if self._rest else []  # type: ignore[attr-defined]
            try:
                yield times
            finally:
                self._times = None
        times += others

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        own, found = self._networks[network], self._plan(network)
        assert found is not None, "ask `runs` first"
        shapes = own.shapes({name: value.shape for name, value in inputs.items()})
        items = [
            _Item({name: np.ascontiguousarray(value[number]) for name, value in inputs.items()})
            for number in range(shapes[next(iter(inputs))][0])
        ]
        self._each(items, lambda item, pool: self._do(network, found.before, found.planes, shapes, item, pool))
        if found.rest:
            assert self._rest is not None
            read_later = {step.planes for step in found.after if isinstance(step, Narrow)}
            for item in items:
                item.planes = {name: item.planes[name] for name in read_later}
            feed = {name: _stacked([item.values[name] for item in items]) for name in found.rest.inputs}
            for name, value in zip(found.rest.outputs, self._rest.run(network, feed), strict=True):
                for item, part in zip(items, value, strict=True):
                    item.values[name] = part
            self._each(items, lambda item, pool: self._do(network, found.after, found.planes, shapes, item, pool))
        return [_stacked([item.values[name] for item in items]) for name in own.outputs]

    def _each(self, items: Sequence[_Item], do: Callable[[_Item, ThreadPoolExecutor | None], None]) -> None:
        """Threads share the items, or where there is one its rows."""
        if len(items) > 1 and self._pool and self._times is None:
            list(self._pool.map(lambda item: do(item, None), items))
        else:
            for item in items:
                do(item, self._pool)

    def _do(
        self,
        network: str,
        steps: Sequence[Step],
        stored: Mapping[str, Stored],
        shapes: Mapping[str, tuple[int, ...]],
        item: _Item,
        pool: ThreadPoolExecutor | None,
    ) -> None:
        """Take `steps` in order; threads of `pool` share the rows of convolutions."""
        for step in steps:
            started = time.perf_counter_ns()
            if step.makes in stored and step.makes not in item.planes:
                tensor, border = stored[step.makes].tensor, stored[step.makes].border
                item.planes[step.makes] = filtering.Planes(*shapes[tensor][1:], border)
            if isinstance(step, Fill):
                item.planes[step.makes].fill(item.values[step.makes])
            elif isinstance(step, Gather):
                item.planes[step.makes].join(item.values[step.values], step.whole, step.part, step.shift)
            elif isinstance(step, Narrow):
                added = None if step.added is None else item.values[step.added]
                item.values[step.makes] = item.planes[step.planes].narrow(step.bits, added)
            else:
                if step.makes not in stored and step.makes not in item.values:
                    item.values[step.makes] = np.empty(shapes[step.makes][1:], np.float32)
                self._filter(step, item, pool)
            if step.makes in stored and stored[step.makes].edge:
                item.planes[step.makes].repeat_edge()
            if self._times is not None:
                layer = step.layer if isinstance(step, Filters) else step.makes
                seconds = (time.perf_counter_ns() - started) / 1e9
                self._times.append(LayerTime(network, layer, type(step).__name__, started, seconds))

    def _filter(self, step: Filters, item: _Item, pool: ThreadPoolExecutor | None) -> None:
        terms = [(weights, item.planes[source]) for weights, source in step.terms]
        target = item.planes[step.makes] if step.makes in item.planes else item.values[step.makes]
        height = terms[0][1].height
        parts = max(1, min(self._threads, height // LEAST_ROWS)) if pool else 1
        edges = [height * part // parts for part in range(parts + 1)]

        def rows(first: int, last: int) -> None:
            filtering.filter_rows(terms, target, step.places, first, last, step.grow)

        list((pool.map if pool and parts > 1 else map)(rows, edges[:-1], edges[1:]))


def _stacked(items: Sequence[np.ndarray]) -> np.ndarray:
    return items[0][None] if len(items) == 1 else np.stack(items)
