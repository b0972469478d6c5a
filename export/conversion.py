"""From a float codec to one of exact layers, on calibration photographs and in minutes.

1. Rewrite: every network becomes stages (`export.stages`), which compute the same numbers.
2. Fit, layer by layer: scales per channel that lose least, folded into the weights; GDN and its like become two 1x1
   convolutions by regression on what the float model computes.
3. Tune in exact arithmetic, with straight-through gradients: the analysis towards the float latents, the
   hyper-synthesis towards few bits, the synthesis towards the photographs. No term weighs rate against distortion, so
   the float model's trade is kept.

What a float codec must offer is `docs/export.md`.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ..calibration.observers import Histogram, steps
from ..calibration.qat import ExactConv2d
from ..runtime.errors import InputError, UsageError
from ..runtime.latents import FINE_EXP
from .models.compressai import gaussian_likelihood
from .models.hyperprior import (
    FITTED,
    RECTIFIED,
    Analysis,
    ExactStage,
    HyperAnalysis,
    Hyperprior,
    HyperSynthesis,
    Magnitude,
    StageShape,
    Synthesis,
)
from .stages import Stage, on_planes, read_stages, run, to_planes

UNIT_EXPONENTS = (-3, 2)
"""Latents are coded in units of 1/8 to 4: coarser ones could not hold a quantisation step of 1 in quarters."""
SAMPLES = 16384
"""Positions whose values a fitted activation sees."""
FIT_STEPS, FIT_BATCH, FIT_RATE = 800, 1024, 3e-3
RIDGE = 1e-4
SLOPES = (2.0, 5.0)
"""Of the hidden channels of a fitted activation at the start: two piecewise-linear bends per channel."""
TUNE_RATE = (2e-4, 4e-6)
"""Adam's, from the end of the warm-up on; follows a cosine."""
WARM_UP = 20
"""Steps. Adam's first ones move all weights at once, which a fitted network does not forgive."""
SHARES = {"analysis": 0.35, "hyper_analysis": 0.05, "hyper_synthesis": 0.2, "synthesis": 0.4}
"""Of the tuning steps."""
SMALL_SLOPE = 0.02
"""A leak up to this one is ReLU plus a mean; a steeper one is fitted like GDN."""
BORDER = 2
"""Latents at the edge of a crop that see its padding, which is grey here and black in the float model."""
SCALE_PERCENTILE = 99.95
"""Standard deviations above this one of their channel saturate."""

Batches = Callable[[], Tensor]
"""Gives random crops (N, 3, H, W) in full-scale units, sides multiples of 64."""


@dataclass
class Report:
    """What conversion found, for people and as JSON."""

    rewriting_error: dict[str, float] = field(default_factory=dict)
    """By network: largest difference of the rewritten float network from PyTorch's, relative to the largest value."""
    activation_sqnr_db: dict[str, float] = field(default_factory=dict)
    """By layer: signal to error of a fitted activation."""
    tuning_gain_db: dict[str, float] = field(default_factory=dict)
    """By network: how much smaller tuning made what it minimises, on the crops that were fitted."""
    network_sqnr_db: dict[str, float] = field(default_factory=dict)
    """By network: signal to error of the exact network's output against the float one's, for equal inputs."""


def convert(model: nn.Module, crops: Tensor, batches: Batches, steps: int) -> tuple[Hyperprior, Report]:
    """The exact codec of a float `model`, fitted on `crops` (N, 3, H, W) and tuned on `batches` for `steps`.

    Crops are in full-scale units with sides that are multiples of 64. Raises UsageError for a model that does not
    follow the protocol, naming the layer.
    """
    with torch.no_grad():
        codec, report = _fit_codec(model.eval(), crops)
    report.tuning_gain_db = _tune(codec, model, crops, batches, steps)
    codec.set_exact(True)
    codec.eval()
    with torch.no_grad():
        report.network_sqnr_db = _network_sqnr(codec, model, crops)
    return codec, report


def unit_images(images: Tensor) -> Tensor:
    """Full-scale units to the float models' 0..1."""
    return (images * 128 + 128) / 255


# Rewriting


def rewritten(model: nn.Module) -> dict[str, list[Stage]]:
    """The stages of each of the model's networks, the outer ones over planes of images in 0..1."""
    if not isinstance(model, nn.Module) or not hasattr(model, "g_a") or not hasattr(model, "g_s"):
        raise UsageError(
            f"the model is a {type(model).__name__} without networks g_a and g_s: docs/export.md says what it must have"
        )
    analysis, synthesis = read_stages("g_a", model.g_a), read_stages("g_s", model.g_s)
    shrink = math.prod(stage.stride for stage in analysis)
    grow = math.prod(stage.upscale for stage in synthesis)
    if shrink != 16 or grow != 16:
        raise UsageError(f"g_a shrinks the side {shrink} times and g_s grows it {grow} times: both must be 16")
    networks = {"analysis": [on_planes(analysis[0]), *analysis[1:]]}
    if hasattr(model, "h_a") != hasattr(model, "h_s"):
        raise UsageError("the model has only one of h_a and h_s: it needs both, or none")
    if hasattr(model, "h_a"):
        networks["hyper_analysis"] = read_stages("h_a", model.h_a)
        networks["hyper_synthesis"] = read_stages("h_s", model.h_s)
        shrink = math.prod(stage.stride for stage in networks["hyper_analysis"])
        grow = math.prod(stage.upscale for stage in networks["hyper_synthesis"])
        if shrink != 4 or grow != 4:
            raise UsageError(f"h_a shrinks the side {shrink} times and h_s grows it {grow} times: both must be 4")
    networks["synthesis"] = [*synthesis[:-1], to_planes(synthesis[-1])]
    return networks


def _rewriting_error(model: nn.Module, networks: dict[str, list[Stage]], image: Tensor) -> dict[str, float]:
    """Compares each rewritten network with PyTorch's on `image` (1, 3, H, W) in 0..1 and what follows from it."""
    try:
        latent = model.g_a(image)
        inputs = {"analysis": (F.pixel_unshuffle(image, 2), latent)}
        inputs["synthesis"] = (latent, F.pixel_unshuffle(model.g_s(latent), 2))
        if "hyper_analysis" in networks:
            hyper_input = latent.abs() if _absolute(model) else latent
            hyper = model.h_a(hyper_input)
            inputs["hyper_analysis"], inputs["hyper_synthesis"] = (hyper_input, hyper), (hyper, model.h_s(hyper))
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise UsageError(f"the model's networks do not run on an image one after the other ({reason})") from error
    for name, (_, output) in inputs.items():
        if not torch.isfinite(output).all():
            raise InputError(f"the float model's {name} gives values that are not finite: its weights are damaged")
    return {
        name: ((run(networks[name], x) - y).abs().max() / y.abs().max().clamp_min(1e-9)).item()
        for name, (x, y) in inputs.items()
    }


def _absolute(model: nn.Module) -> bool:
    return bool(getattr(model, "absolute_hyper_input", False))


# Fitting


def _fit_codec(model: nn.Module, crops: Tensor) -> tuple[Hyperprior, Report]:
    """Every network in exact layers, each fitted on what the ones before it give."""
    report, networks = Report(), rewritten(model)
    report.rewriting_error = _rewriting_error(model, networks, unit_images(crops[:1]))
    latents = [model.g_a(unit_images(crop[None])) for crop in crops]
    hyper_unit = None
    if "hyper_analysis" in networks:
        hyper_unit = _lattice_unit([_float_hyper(model, y) for y in latents])
    codec = Hyperprior(_lattice_unit(latents), hyper_unit)
    planes = [F.pixel_unshuffle(crop[None], 2) for crop in crops]
    stages = networks["analysis"]
    stages = [_over_pixels(stages[0]), *stages[1:]]
    codec.analysis = Analysis(_fit(stages, planes, torch.ones(12), 128 * codec.latents.unit, report, raw=True))
    latents = [codec.latent(crop[None]) for crop in crops]
    if hyper_unit is not None:
        _fit_hyper(codec, networks, latents, _absolute(model), report)
    else:
        _settle_densities(codec, latents, codec.latents.unit)
    stages = networks["synthesis"]
    # Whole latents and what is left of them enter apart, under the same weights.
    first = replace(stages[0], weight=stages[0].weight.repeat(1, 2, 1, 1))
    last = replace(stages[-1], weight=stages[-1].weight * (255 / 128), bias=stages[-1].bias * (255 / 128) - 1)
    coded = [codec.latents.both(codec.code(latent)) for latent in latents]
    unit = codec.latents.unit
    codec.synthesis = Synthesis(
        _fit([first, *stages[1:-1], last], coded, torch.cat([128 * unit, 128 * unit]), torch.ones(12), report)
    )
    return codec, report


def _over_pixels(stage: Stage) -> Stage:
    """A first stage over images in 0..1 as one over images in full-scale units.

    Its padding then stands for middle grey and not for black, which only the outermost latents of a frame notice.
    """
    return replace(
        stage, weight=stage.weight * (128 / 255), bias=stage.bias + stage.weight.sum((1, 2, 3)) * (128 / 255)
    )


def _lattice_unit(latents: list[Tensor]) -> Tensor:
    """(C,): the finest power of two per channel whose int8 range holds the values, within UNIT_EXPONENTS."""
    peak = torch.stack([y.abs().amax((0, 2, 3)) for y in latents]).amax(0).clamp_min(1e-6)
    return torch.exp2(torch.ceil(torch.log2(1.1 * peak / 127)).clamp(*UNIT_EXPONENTS))


def _settle_densities(codec: Hyperprior, values: list[Tensor], unit: Tensor) -> None:
    """Medians, on the lattice of whole latents, and spreads of the channels that no network tells a density of."""
    flat = torch.cat([value.transpose(0, 1).flatten(1) for value in values], 1)
    codec.medians.copy_(torch.round(flat.median(1).values / unit).clamp(-128, 127) * unit)
    codec.fixed_scale.copy_((flat - codec.medians[:, None]).square().mean(1).sqrt().clamp_min(0.05))


def _fit_hyper(
    codec: Hyperprior, networks: dict[str, list[Stage]], latents: list[Tensor], absolute: bool, report: Report
) -> None:
    unit, lattice = codec.latents.unit, codec.hyper_latents
    assert lattice is not None
    lead = Magnitude(len(unit)) if absolute else None
    seen = [codec.seen(latent) for latent in latents]
    inside = [lead(x) for x in seen] if lead else seen
    codec.hyper_analysis = HyperAnalysis(
        _fit(networks["hyper_analysis"], inside, 128 * unit, 128 * lattice.unit, report, raw=True), lead
    )
    hyper = [codec.hyper_latent(latent) for latent in latents]
    _settle_densities(codec, hyper, lattice.unit)
    medians = codec.medians[:, None, None]
    quarters = [lattice.quantise(z, medians) for z in hyper]
    stages = networks["hyper_synthesis"]
    stages = [*stages[:-1], _means_first(stages[-1], len(unit))]
    parameters = [run(stages, lattice.values(q)) for q in quarters]
    means, scales = zip(*(p.chunk(2, 1) for p in parameters), strict=True)
    # Means in quarters of a latent where their range allows, else in halves or whole ones.
    peak = torch.stack([m.abs().amax((0, 2, 3)) for m in means]).amax(0)
    codec.mean_shift.copy_(torch.ceil(torch.log2((4 * peak / (127 * unit)).clamp_min(1e-6))).clamp(0, FINE_EXP))
    flat = torch.cat([s.transpose(0, 1).flatten(1) for s in scales], 1).clamp_min(0)
    top = flat.kthvalue(max(1, math.ceil(flat.shape[1] * SCALE_PERCENTILE / 100)), 1).values
    codec.scale_step.copy_(top.clamp_min(0.5) / 255)
    out = torch.cat([codec.mean_unit, 128 * codec.scale_step])
    offset = torch.cat([torch.zeros(len(unit)), -torch.ones(len(unit))])
    seen = [lattice.whole(q) for q in quarters]
    codec.hyper_synthesis = HyperSynthesis(_fit(stages, seen, 128 * lattice.unit, out, report, offset=offset))


def _means_first(stage: Stage, channels: int) -> Stage:
    """The last stage of h_s, which gives scales or scales and means, as one that gives means and scales.

    A last ReLU is left to the saturation, whose lower end is scale 0.
    """
    if isinstance(stage.activation, nn.ReLU):
        stage = replace(stage, activation=None)
    if stage.activation is not None or stage.upscale > 1 or len(stage.weight) not in (channels, 2 * channels):
        raise UsageError(
            f"layer {stage.name} gives {len(stage.weight)} channels: h_s must end in a Conv2d that gives {channels} "
            f"scales, or {channels} scales and then {channels} means"
        )
    scales, *means = stage.weight.split(channels)
    scale_bias, *mean_bias = stage.bias.split(channels)
    weight = torch.cat([means[0] if means else torch.zeros_like(scales), scales])
    return replace(stage, weight=weight, bias=torch.cat([mean_bias[0] if means else 0 * scale_bias, scale_bias]))


def _fit(
    stages: list[Stage],
    own: list[Tensor],
    scale_in: Tensor,
    scale_out: Tensor,
    report: Report,
    *,
    raw: bool = False,
    offset: Tensor | None = None,
) -> list[ExactStage]:
    """The stages in exact layers. `own` are inputs in full-scale units, times `scale_in` (C,) the float network's; its
    output is `scale_out` times the exact one's less `offset`."""
    if stages[-1].activation is not None:
        raise UsageError(f"layer {stages[-1].name} is followed by an activation: the last one of a network must not be")
    if len(scale_in) != stages[0].weight.shape[1]:
        raise UsageError(
            f"layer {stages[0].name} takes {stages[0].weight.shape[1]} channels where {len(scale_in)} arrive"
        )
    true = [x * scale_in[:, None, None] for x in own]
    fitted = []
    for stage in stages[:-1]:
        exact = ExactStage(_shape(stage))
        rectified = exact.centre is not None
        linear = [stage.linear(x) for x in true]
        scale = _scale([y.clamp_min(0) if rectified else y for y in linear])
        _set(exact.conv, stage, scale_in, scale, torch.full_like(scale, -1.0 if rectified else 0.0))
        own, true = [exact.linear(x) for x in own], [stage.activate(y) for y in linear]
        if exact.centre is not None:
            _centre(exact.centre, own, [y / _wide(scale) for y in true])
        elif exact.mix is not None:
            scale = _scale(true)
            report.activation_sqnr_db[stage.name] = _fit_activation(exact, own, [y / _wide(scale) for y in true])
        own = [exact.activate(x) for x in own]
        scale_in = scale
        fitted.append(exact)
    exact = ExactStage(_shape(stages[-1], raw=raw))
    offset = torch.zeros_like(scale_out) if offset is None else offset
    _set(exact.conv, stages[-1], scale_in, scale_out, offset)
    return [*fitted, exact]


def _shape(stage: Stage, *, raw: bool = False) -> StageShape:
    outputs, inputs, kernel, _ = stage.weight.shape
    slope = 0.0 if isinstance(stage.activation, nn.ReLU) else getattr(stage.activation, "negative_slope", 1.0)
    kind = None if stage.activation is None else RECTIFIED if 0 <= slope <= SMALL_SLOPE else FITTED
    return StageShape(outputs, inputs, kernel, stage.stride, stage.padding, stage.upscale, kind, raw)


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None]


def _scale(values: list[Tensor]) -> Tensor:
    """(C,): what full scale stands for in each channel, so that rounding and saturating lose least."""
    histogram = Histogram(values[0].shape[1])
    for value in values:
        histogram.add(value.transpose(0, 1).flatten(1).numpy())
    scale = torch.from_numpy(128 * steps(histogram, "mse")).float()
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _set(conv: ExactConv2d, stage: Stage, scale_in: Tensor, scale_out: Tensor, offset: Tensor) -> None:
    """The stage's weights between full-scale units; `offset` (C,) is added to the output."""
    out = scale_out.repeat_interleave(stage.upscale**2)
    conv.set_weight(stage.weight * scale_in[:, None, None] / out[:, None, None, None])
    conv.bias.copy_(stage.bias / out + offset.repeat_interleave(stage.upscale**2))


def _centre(centre: ExactConv2d, own: list[Tensor], target: list[Tensor]) -> None:
    """Moves the zero of rectified values, which saturated at -1, back to 0; what a leak let through is added as a mean.

    At the usual slope of 0.01 a leak is a step or two of int8.
    """
    centre.set_weight(torch.eye(centre.weight.shape[0])[:, :, None, None])
    lost = sum((y - (x + 1)).mean((0, 2, 3)) for x, y in zip(own, target, strict=True)) / len(own)
    centre.bias.copy_(1 + lost)


def _samples(values: list[Tensor], picked: Tensor) -> Tensor:
    """(SAMPLES, C) of all positions."""
    return torch.cat([value.flatten(2).squeeze(0) for value in values], 1).T[picked]


def _fit_activation(exact: ExactStage, own: list[Tensor], target: list[Tensor]) -> float:
    """Fit `hidden` and `mix` so that they turn `own` into `target`, both in full-scale units; returns dB."""
    hidden, mix = exact.hidden, exact.mix
    assert hidden is not None and mix is not None
    positions = sum(value[0, 0].numel() for value in own)
    generator = torch.Generator().manual_seed(0)
    picked = torch.randint(positions, (SAMPLES,), generator=generator)
    x, y = _samples(own, picked)[:, :, None, None], _samples(target, picked)[:, :, None, None]
    channels = x.shape[1]
    identity = torch.eye(channels)[:, :, None, None]
    hidden.set_weight(torch.cat([slope * identity for slope in SLOPES]))
    hidden.bias.zero_()
    # The best mixture of what is there, by ridge regression ...
    features = torch.cat([x, hidden(x), torch.ones_like(x[:, :1])], 1).flatten(1)
    gram = features.T @ features / len(x) + RIDGE * torch.eye(features.shape[1])
    solution = torch.linalg.solve(gram, features.T @ y.flatten(1) / len(x))
    mix.set_weight(solution[:-1].T[:, :, None, None])
    mix.bias.copy_(solution[-1])
    # ... from which descent goes on.
    parameters = [*hidden.parameters(), *mix.parameters()]
    optimizer = torch.optim.Adam(parameters, FIT_RATE)
    with torch.enable_grad():
        for step in range(FIT_STEPS):
            optimizer.param_groups[0]["lr"] = FIT_RATE * 0.5 * (1 + math.cos(math.pi * step / FIT_STEPS))
            batch = torch.randint(len(x), (FIT_BATCH,), generator=generator)
            loss = (exact.activate(x[batch]) - y[batch]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return _sqnr(y, exact.activate(x))


def _sqnr(true: Tensor, found: Tensor) -> float:
    """Signal to error in dB."""
    return (10 * torch.log10(true.square().mean() / (found - true).square().mean().clamp_min(1e-20))).item()


# Tuning


def _tune(codec: Hyperprior, model: nn.Module, crops: Tensor, batches: Batches, steps: int) -> dict[str, float]:
    """Tune each network in turn; returns by how many dB its loss on `crops` fell."""
    codec.set_exact(True)
    losses = {
        "analysis": _analysis_loss,
        "hyper_analysis": _hyper_analysis_loss,
        "hyper_synthesis": _hyper_synthesis_loss,
        "synthesis": _synthesis_loss,
    }
    present = {name: module for name, (module, _) in codec.named_networks().items()}
    whole, gains = sum(SHARES[name] for name in present), {}
    with tqdm(total=steps, unit="step", disable=None) as bar:
        for name in SHARES:
            if name in present:
                bar.set_description(f"tuning {name}")
                share = round(steps * SHARES[name] / whole)
                gains[name] = round(
                    _descend(present[name], partial(losses[name], codec, model), crops, batches, share, bar), 2
                )
    return gains


def _descend(
    network: nn.Module, loss_of: Callable[[Tensor], Tensor], crops: Tensor, batches: Batches, steps: int, bar: tqdm
) -> float:
    """Adam on one network, undone if the loss on `crops` is no smaller afterwards; returns the gain in dB."""

    def judged() -> float:
        torch.manual_seed(0)  # for the noise of the rate
        with torch.no_grad():
            return sum(loss_of(crop[None]).item() for crop in crops)

    before, kept = judged(), copy.deepcopy(network.state_dict())
    network.train()
    optimizer = torch.optim.Adam(network.parameters())
    high, low = TUNE_RATE
    for step in range(steps):
        rate = low + (high - low) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / WARM_UP)
        loss = loss_of(batches())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bar.update()
    network.eval()
    after = judged()
    if not after < before:
        network.load_state_dict(kept)
        return 0.0
    return 10 * math.log10(before / after)


def _analysis_loss(codec: Hyperprior, model: nn.Module, images: Tensor) -> Tensor:
    """Squared error of the latents, in quantisation steps."""
    with torch.no_grad():
        target = model.g_a(unit_images(images))
    return (codec.latent(images) - target).square().mean()


def _hyper_analysis_loss(codec: Hyperprior, model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        latent = codec.latent(images)
        target = _float_hyper(model, latent)
    return (codec.hyper_latent(latent) - target).square().mean()


def _hyper_synthesis_loss(codec: Hyperprior, model: nn.Module, images: Tensor) -> Tensor:
    """Bits per latent, with the rounding replaced by noise."""
    with torch.no_grad():
        latent = codec.latent(images)
        quarters = codec.hyper_quarters(latent)
    means, scales = codec.parameters_of(quarters)
    noise = torch.rand_like(latent) - 0.5
    return -torch.log2(gaussian_likelihood(latent - means + noise, scales)).mean()


def _synthesis_loss(codec: Hyperprior, model: nn.Module, images: Tensor) -> Tensor:
    """Squared error of the decoded images."""
    with torch.no_grad():
        quarters = codec.code(codec.latent(images))
    return (codec.reconstruct(quarters) - images).square().mean()


def _network_sqnr(codec: Hyperprior, model: nn.Module, crops: Tensor) -> dict[str, float]:
    """Signal to error of each exact network against the float one for equal inputs, over `crops`."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    for image in crops[:, None]:
        latent = codec.latent(image)
        inner = (..., slice(BORDER, -BORDER), slice(BORDER, -BORDER))
        pairs["analysis"].append((model.g_a(unit_images(image))[inner], latent[inner]))
        if codec.hyper_latents is not None:
            pairs["hyper_analysis"].append((_float_hyper(model, latent), codec.hyper_latent(latent)))
            quarters = codec.hyper_quarters(latent)
            true = model.h_s(codec.hyper_latents.values(quarters))
            means, scales = codec.parameters_of(quarters)
            found = torch.cat([scales, means], 1)[:, : true.shape[1]]  # some give no means
            pairs["hyper_synthesis"].append((true, found))
        quarters = codec.code(latent)
        true = model.g_s(codec.latents.values(quarters)) * (255 / 128) - 1
        pairs["synthesis"].append((true, codec.reconstruct(quarters)))
    return {
        name: round(_sqnr(*(torch.cat([part.flatten() for part in side]) for side in zip(*found, strict=True))), 2)
        for name, found in pairs.items()
    }


def _float_hyper(model: nn.Module, latent: Tensor) -> Tensor:
    return model.h_a(latent.abs() if _absolute(model) else latent)
