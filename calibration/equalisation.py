"""Cross-layer equalisation: every channel between two layers fills the int8 range.

Nagel et al. (2019) rescale a channel where it is made and undo it where it is read, so that weights share a range. Here
all activations share the scale 2**-7 and saturation is the non-linearity, so the same move has another aim: a channel
that stays within a fraction of full scale uses a fraction of the 256 numbers. Its makers' rows are multiplied by s >= 1
and its readers' columns divided by s. The function stays the same as long as the channel does not saturate; one that
does saturate needs its saturation where it is, and is left alone. Channels that an addition or a pixel shuffle ties
together share one s; a network's inputs and outputs keep theirs, since the integer glue around them knows their scale.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..runtime.errors import UsageError
from .observers import Histogram, steps
from .qat import FULL_SCALE, DepthToSpace, EdgePad, ExactConv2d, Join, LayerTracer, SaturatingAdd, Select, SpaceToDepth


class ChannelGroups:
    """Which channels of a network must keep one common scale.

    `made` and `read` hold (layer's name, the group of each of its output or input channels).
    """

    def __init__(self, module: nn.Module, channels: Mapping[str, int]) -> None:
        self._parent: list[int] = []
        self._fixed: set[int] = set()
        made: list[tuple[str, np.ndarray]] = []
        read: list[tuple[str, np.ndarray]] = []
        tensors: dict[str, np.ndarray] = {}
        for node in LayerTracer().trace(module).nodes:
            sources = [tensors[argument.name] for argument in node.all_input_nodes if argument.name in tensors]
            target = module.get_submodule(node.target) if node.op == "call_module" else node.target
            if node.op == "placeholder":
                out = self._fix(self._new(channels[node.name]))
            elif node.op == "output":
                for source in sources:
                    self._fix(source)
                continue
            elif isinstance(target, ExactConv2d):
                read.append((str(node.target), sources[0]))
                out = self._new(len(target.weight))
                made.append((str(node.target), self._fix(out) if target.raw else out))
            elif isinstance(target, SaturatingAdd):
                made.append((str(node.target), sources[0]))
                out = self._unite(*sources)
            elif isinstance(target, Join):
                out = self._fix(self._unite(*sources))  # the fraction's unit is a part of the whole's
            elif target is torch.cat:
                order = {argument.name: ids for argument, ids in zip(node.all_input_nodes, sources, strict=True)}
                out = np.concatenate([order[argument.name] for argument in node.args[0]])
            elif target is functional.pixel_shuffle:
                out = self._unite_all(sources[0].reshape(-1, int(node.args[1]) ** 2).T)
            elif isinstance(target, DepthToSpace):
                out = self._unite_all(sources[0].reshape(target.block**2, -1))
            elif isinstance(target, SpaceToDepth):
                out = np.tile(sources[0], target.block**2)
            elif isinstance(target, Select):
                out = sources[0][list(target.channels)]
            elif isinstance(target, EdgePad) or target is operator.add:
                out = sources[0]
            else:
                raise UsageError(f"{node.name} ({target}) cannot be equalised: use the layers of calibration/qat.py")
            tensors[node.name] = out
        self.made = [(name, self._roots(ids)) for name, ids in made]
        self.read = [(name, self._roots(ids)) for name, ids in read]
        self.fixed = {self._root(group) for group in self._fixed}

    def _new(self, count: int) -> np.ndarray:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def _fix(self, ids: np.ndarray) -> np.ndarray:
        self._fixed.update(ids.tolist())
        return ids

    def _root(self, group: int) -> int:
        while self._parent[group] != group:
            self._parent[group] = group = self._parent[self._parent[group]]
        return group

    def _roots(self, ids: np.ndarray) -> np.ndarray:
        return np.array([self._root(group) for group in ids.tolist()])

    def _unite(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            self._parent[self._root(y)] = self._root(x)
        return a

    def _unite_all(self, phases: np.ndarray) -> np.ndarray:
        """One group for the phases (phases, channels) of each channel."""
        for phase in phases[1:]:
            self._unite(phases[0], phase)
        return phases[0]


@contextmanager
def observed_outputs(module: nn.Module) -> Iterator[dict[str, Histogram]]:
    """Histograms, by layer, of each output channel of the layers and additions that run inside the context."""
    histograms: dict[str, Histogram] = {}

    def observer(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def observe(_: nn.Module, __: tuple[Tensor, ...], y: Tensor) -> None:
            histogram = histograms.setdefault(name, Histogram(y.shape[1]))
            histogram.add(y.detach().transpose(0, 1).flatten(1).numpy())

        return observe

    hooks = [
        layer.register_forward_hook(observer(name))
        for name, layer in module.named_modules()
        if isinstance(layer, ExactConv2d | SaturatingAdd)
    ]
    try:
        yield histograms
    finally:
        for hook in hooks:
            hook.remove()


def equalise(
    module: nn.Module, channels: Mapping[str, int], outputs: Mapping[str, Histogram], observer: str
) -> dict[str, np.ndarray]:
    """Rescale the channels of one network in place.

    `outputs` are the histograms of its layers' and additions' outputs by name within `module`, from a float run;
    `observer` chooses the limit that becomes full scale. Returns the factors (O,) of each layer's output channels.
    """
    groups = ChannelGroups(module, channels)
    limit = np.zeros(len(groups._parent))
    for name, ids in groups.made:
        if name not in outputs:
            continue  # a layer that did not run
        histogram = outputs[name]
        saturates = histogram.peak >= FULL_SCALE
        reach = np.where(saturates, FULL_SCALE, steps(histogram, observer) * 127)
        np.maximum.at(limit, ids, reach)
    factor = np.where(limit > 0, FULL_SCALE / np.maximum(limit, 2.0**-10), 1.0).clip(min=1.0)
    factor[list(groups.fixed)] = 1.0
    factors = {}
    with torch.no_grad():
        for name, ids in groups.made:
            layer = module.get_submodule(name)
            if isinstance(layer, ExactConv2d):
                factors[name] = factor[ids]
                scale = torch.from_numpy(factor[ids]).to(layer.weight.dtype)
                layer.weight.mul_(scale[:, None, None, None])
                layer.bias.mul_(scale)
        for name, ids in groups.read:
            layer = module.get_submodule(name)
            scale = torch.from_numpy(factor[ids]).to(layer.weight.dtype)
            layer.weight.div_(scale[None, :, None, None])
    return factors
