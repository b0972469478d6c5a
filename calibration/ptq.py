"""Post-training quantisation: a float codec of ExactConv2d layers becomes one that computes well in integers.

The codec stays a PyTorch module: `quantise` rescales channels (`equalisation`), moves weights onto their integer grid
(`rounding`) and corrects biases, all in place, so that switching `exact` on gives the deployed network. It looks at
images, never at labels or gradients. Quantisation-aware training (`linnet.training`) is what remains when the loss
that `report` measures is still too large.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from ..runtime.errors import UsageError
from ..runtime.network import EXACT, FLOAT, FREE, MAX_SHIFT
from .equalisation import equalise, observed_outputs
from .formats import FORMATS, set_format
from .observers import OBSERVERS, Histogram, steps
from .qat import ExactConv2d
from .rounding import Moments, observed_patches, round_adaptively

QUALITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Quality positions that calibration images take in turn."""
BATCH = 4
ROUNDINGS = ("adaptive", "nearest")


class FloatCodec(Protocol):
    """What these tools ask of a codec, a torch module besides. `export.models.latent_codec.LatentCodec` is one.

    Calling it with images (N, 3, H, W) in full-scale units and quality positions (N,) in [0, 1] gives (decoded images,
    bits per pixel (N,)). `named_networks` gives (module, channels of each argument of its forward) by network name;
    the modules consist of `ExactConv2d`, `SaturatingAdd`, `torch.cat` and `F.pixel_shuffle`.
    """

    def __call__(self, images: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]: ...

    def set_exact(self, exact: bool) -> None: ...

    def named_networks(self) -> dict[str, tuple[nn.Module, dict[str, int]]]: ...


@dataclass(frozen=True)
class Method:
    """How to quantise. The default is what `linnet calibrate` does.

    `observer` chooses the limits of activations that equalisation stretches to full scale, `weight_observer` those of
    weights, per output channel: clipping a weight for the sake of the others seldom pays. `wide` names layers whose
    weights are sums of so many int8 weights, one more bit per doubling. `per_tensor` gives all channels of a layer one
    weight scale: the naive baseline.
    """

    observer: str = "minmax"
    weight_observer: str = "minmax"
    equalise: bool = True
    rounding: str = "adaptive"
    format: str = EXACT
    correct_bias: bool = True
    wide: Mapping[str, int] = field(default_factory=dict)
    per_tensor: bool = False

    def __post_init__(self) -> None:
        for observer in (self.observer, self.weight_observer):
            if observer not in OBSERVERS:
                raise UsageError(f"observer {observer} does not exist: choose from {', '.join(OBSERVERS)}")
        if self.format not in FORMATS:
            raise UsageError(f"format {self.format} does not exist: choose from {', '.join(FORMATS)}")
        if self.rounding not in ROUNDINGS:
            raise UsageError(f"rounding {self.rounding} does not exist: choose from {', '.join(ROUNDINGS)}")


def layers(codec: nn.Module) -> dict[str, ExactConv2d]:
    """The codec's convolutions by name, in the order of the module."""
    return {name: layer for name, layer in codec.named_modules() if isinstance(layer, ExactConv2d)}


def check_layers(codec: FloatCodec, method: Method) -> None:
    """Raise UsageError where `method` names a layer that the codec lacks, or one that cannot be widened."""
    known = layers(codec)  # type: ignore[arg-type]
    for name in method.wide:
        if name not in known:
            raise UsageError(f"the codec has no layer {name}; it has {', '.join(known)}")
        if known[name].format == FLOAT:
            raise UsageError(f"layer {name} has weights of 12 bits already: leave it out of --wide")


def run(codec: FloatCodec, images: Tensor, qualities: Sequence[float] = QUALITIES) -> Iterable[int]:
    """Code `images` once, their qualities in turn, for the sake of observers; yields how many each step coded."""
    with torch.no_grad():
        for first in range(0, len(images), BATCH):
            part = images[first : first + BATCH]
            codec(part, torch.tensor([qualities[(first + i) % len(qualities)] for i in range(len(part))]))
            yield len(part)


def quantise(
    codec: FloatCodec, images: Tensor, method: Method, progress: Callable[[str, int, int], None] | None = None
) -> FloatCodec:
    """Quantise `codec` in place, looking at `images` (N, 3, H, W) in full-scale units, sides multiples of 64.

    Returns its float twin: the same layers and scales before anything was rounded, with `exact` off. `progress` is
    told (what is being done, steps done, steps in all). Raises UsageError for a layer in `wide` that the codec lacks.
    """
    report = progress or (lambda *_: None)
    module: nn.Module = codec  # type: ignore[assignment]
    convolutions = layers(module)
    check_layers(codec, method)
    for name, copies in method.wide.items():
        convolutions[name].copies = copies
    for name, (network, _) in codec.named_networks().items():
        set_format(name, network, method.format)
    if method.equalise:
        _equalise(codec, images, method.observer, report)
    codec.set_exact(False)
    twin = copy.deepcopy(codec)
    codec.set_exact(True)
    moments: dict[str, Moments] = {}
    if method.correct_bias or method.rounding == "adaptive":
        with observed_patches(module) as moments:
            done = 0
            for coded in run(codec, images):
                done += coded
                report("observing inputs", done, len(images))
    for number, (name, layer) in enumerate(convolutions.items(), 1):
        round_layer(layer, moments.get(name), method)
        report("rounding weights", number, len(convolutions))
    return twin


def _equalise(codec: FloatCodec, images: Tensor, observer: str, report: Callable[[str, int, int], None]) -> None:
    codec.set_exact(False)
    with ExitStack() as observed:
        outputs: list[dict[str, Histogram]] = [
            observed.enter_context(observed_outputs(network)) for network, _ in codec.named_networks().values()
        ]
        done = 0
        for coded in run(codec, images):
            done += coded
            report("observing activations", done, len(images))
    for (network, channels), histograms in zip(codec.named_networks().values(), outputs, strict=True):
        equalise(network, channels, histograms, observer)


def round_layer(layer: ExactConv2d, moments: Moments | None, method: Method) -> None:
    """Move one layer's weights onto the integer grid and correct its bias for the mean error that this makes."""
    effective, bias = (value.detach().double() for value in layer.effective())
    weight = effective.flatten(1)
    spacing, limit = layer.grid
    exponents = _exponents(layer, effective, method)
    step = spacing * torch.exp2(-exponents.double())[:, None]
    wanted = weight / step
    if method.rounding == "adaptive" and moments is not None:
        rounded = round_adaptively(wanted, moments.covariance, limit)
    else:
        rounded = wanted.round().clamp(-limit, limit)
    if method.correct_bias and moments is not None:
        bias = bias + ((wanted - rounded) * step) @ moments.mean
    with torch.no_grad():
        layer.gain.fill_(1.0)
        layer.weight.copy_((rounded * step).reshape(layer.weight.shape))
        layer.bias.copy_(bias)
    layer.fixed_exponents = exponents.to(layer.weight.dtype)


def _exponents(layer: ExactConv2d, weight: Tensor, method: Method) -> Tensor:
    """(O,): the scale of output channel o's integers is 2**-e."""
    peaks = layer.exponents(weight)
    if method.per_tensor:
        return peaks.min().expand_as(peaks)
    if method.weight_observer == "minmax":
        return peaks
    histogram = Histogram(len(weight))
    histogram.add(weight.flatten(1).numpy())
    spacing, levels = layer.grid
    step = (
        torch.from_numpy(steps(histogram, method.weight_observer, levels, power_of_two=layer.format != FREE)) / spacing
    )
    # An observer may clip, which makes the grid finer; it never gives a coarser one than the weights' peak needs.
    return torch.where(step > 0, -torch.log2(step.clamp_min(2.0**-30)), peaks).maximum(peaks).clamp(max=MAX_SHIFT)
