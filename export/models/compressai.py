"""The three hyperprior-class codecs that CompressAI publishes weights for, as plain PyTorch that loads those files.

Written from the papers: the factorized prior and the scale hyperprior are Balle et al., "Variational image compression
with a scale hyperprior" (2018); the mean-scale hyperprior is Minnen et al., "Joint autoregressive and hierarchical
priors" (2018) without its context model; GDN is Balle et al., "Density modeling of images using a generalized
normalization transformation" (2016). Parameters carry the names of the published files. CompressAI is not needed.

These are float models. `export.conversion` turns one into a codec of exact integer layers; it asks of a module no more
than the protocol of `docs/export.md`, which these three follow.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.errors import InputError

SMALLEST_SCALE = 0.11
"""Standard deviations below this one are coded with this one, as the published tables do."""
LEAST_LIKELIHOOD = 1e-9
BOTTLENECK_WIDTHS = (1, 3, 3, 3, 3, 1)
QUANTILE_LOGIT = math.log(2 / 1e-9 - 1)


class _LowerBound(torch.autograd.Function):
    """max(x, bound) whose gradient still lets values below the bound grow."""

    @staticmethod
    def forward(ctx, x: Tensor, bound: float) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def, override]
        (x,) = ctx.saved_tensors
        return gradient * ((x >= ctx.bound) | (gradient < 0)), None


class GDN(nn.Module):
    """Generalised divisive normalisation: y_i = x_i / sqrt(beta_i + sum_j gamma_ij x_j^2); `inverse` multiplies.

    `beta` (C,) and `gamma` (C, C) are stored as square roots over a small pedestal, which keeps them positive.
    """

    PEDESTAL = 2.0**-36
    LEAST_BETA = 1e-6

    def __init__(self, channels: int, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.sqrt(torch.ones(channels) + self.PEDESTAL))
        self.gamma = nn.Parameter(torch.sqrt(0.1 * torch.eye(channels) + self.PEDESTAL))

    def forward(self, x: Tensor) -> Tensor:
        beta = _LowerBound.apply(self.beta, math.sqrt(self.LEAST_BETA + self.PEDESTAL)) ** 2 - self.PEDESTAL
        gamma = _LowerBound.apply(self.gamma, math.sqrt(self.PEDESTAL)) ** 2 - self.PEDESTAL
        norm = F.conv2d(x**2, gamma[:, :, None, None], beta)
        return x * (torch.sqrt(norm) if self.inverse else torch.rsqrt(norm))


class EntropyBottleneck(nn.Module):
    """A learned density per channel: its cumulative is a small monotone network (Balle et al., 2018, appendix 6.1).

    `quantiles` (C, 1, 3): where the cumulative reaches the lower tail, the median, the upper tail.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        scale = 10 ** (1 / (len(BOTTLENECK_WIDTHS) - 1))
        for i, (inner, outer) in enumerate(pairwise(BOTTLENECK_WIDTHS)):
            start = math.log(math.expm1(1 / scale / outer))
            self.register_parameter(f"_matrix{i}", nn.Parameter(torch.full((channels, outer, inner), start)))
            self.register_parameter(f"_bias{i}", nn.Parameter(torch.rand(channels, outer, 1) - 0.5))
            if i < len(BOTTLENECK_WIDTHS) - 2:
                self.register_parameter(f"_factor{i}", nn.Parameter(torch.zeros(channels, outer, 1)))
        self.quantiles = nn.Parameter(torch.tensor([-10.0, 0.0, 10.0]).repeat(channels, 1, 1))

    @property
    def medians(self) -> Tensor:
        """(C,)"""
        return self.quantiles[:, 0, 1].detach()

    def _logits(self, values: Tensor, frozen: bool = False) -> Tensor:
        """Logits of the cumulative at `values` (C, 1, n)."""
        parameters = {name: p.detach() if frozen else p for name, p in self.named_parameters()}
        for i in range(len(BOTTLENECK_WIDTHS) - 1):
            values = F.softplus(parameters[f"_matrix{i}"]) @ values + parameters[f"_bias{i}"]
            if f"_factor{i}" in parameters:
                values = values + torch.tanh(parameters[f"_factor{i}"]) * torch.tanh(values)
        return values

    def likelihood(self, values: Tensor, step: float = 1.0) -> Tensor:
        """Probability of the interval of width `step` around each of `values` (N, C, H, W)."""
        flat = values.transpose(0, 1).flatten(1).unsqueeze(1)
        lower, upper = self._logits(flat - step / 2), self._logits(flat + step / 2)
        sign = -torch.sign(lower + upper).detach()  # subtract in the tail where sigmoids keep their precision
        share = (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()
        share = share.squeeze(1).unflatten(1, (len(values), *values.shape[2:])).transpose(0, 1)
        return _LowerBound.apply(share, LEAST_LIKELIHOOD)

    def quantise(self, values: Tensor, step: float = 1.0) -> Tensor:
        """`values` with uniform noise in training, else rounded to multiples of `step` around the medians."""
        if self.training:
            return values + (torch.rand_like(values) - 0.5) * step
        medians = self.medians[:, None, None]
        return torch.round((values - medians) / step) * step + medians

    def quantile_loss(self) -> Tensor:
        """Pulls `quantiles` to their places; trains nothing else."""
        target = torch.tensor([-QUANTILE_LOGIT, 0.0, QUANTILE_LOGIT])
        return (self._logits(self.quantiles, frozen=True) - target).abs().sum()


def gaussian_likelihood(values: Tensor, scales: Tensor) -> Tensor:
    """Probability of the unit interval around `values` under zero-mean Gaussians of standard deviation `scales`."""
    scales = _LowerBound.apply(scales, SMALLEST_SCALE)
    values = values.abs()
    share = torch.special.ndtr((0.5 - values) / scales) - torch.special.ndtr((-0.5 - values) / scales)
    return _LowerBound.apply(share, LEAST_LIKELIHOOD)


def conv(channels_in: int, channels_out: int, kernel: int = 5, stride: int = 2) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2)


def deconv(channels_in: int, channels_out: int) -> nn.ConvTranspose2d:
    """Doubles the side."""
    return nn.ConvTranspose2d(channels_in, channels_out, 5, 2, 2, output_padding=1)


class FactorizedPrior(nn.Module):
    """bmshj2018-factorized: images (N, 3, H, W) in 0..1 to latents (N, M, H/16, W/16) with one density per channel."""

    absolute_hyper_input = False
    bottleneck_of_latent = True

    def __init__(self, N: int, M: int) -> None:
        super().__init__()
        self.g_a = nn.Sequential(conv(3, N), GDN(N), conv(N, N), GDN(N), conv(N, N), GDN(N), conv(N, M))
        self.g_s = nn.Sequential(
            deconv(M, N), GDN(N, True), deconv(N, N), GDN(N, True), deconv(N, N), GDN(N, True), deconv(N, 3)
        )
        self.entropy_bottleneck = EntropyBottleneck(M if self.bottleneck_of_latent else N)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `evaluate` with the model's own step: what training minimises."""
        return self.evaluate(images)

    def evaluate(self, images: Tensor, step: float = 1.0) -> tuple[Tensor, Tensor]:
        """Images in 0..1: (decoded images, bits per pixel (N,)). `step` widens the latent's quantisation."""
        y, bits = self.code(self.g_a(images), step)
        return self.g_s(y), bits / (images.shape[2] * images.shape[3])

    def code(self, y: Tensor, step: float) -> tuple[Tensor, Tensor]:
        """Latents to (quantised latents, bits (N,))."""
        y = self.entropy_bottleneck.quantise(y, step)
        return y, _bits(self.entropy_bottleneck.likelihood(y, step))


class ScaleHyperprior(FactorizedPrior):
    """bmshj2018-hyperprior: a hyper-latent (N, N, H/64, W/64) tells the standard deviation of each latent."""

    absolute_hyper_input = True
    bottleneck_of_latent = False

    def __init__(self, N: int, M: int) -> None:
        super().__init__(N, M)
        self.h_a = nn.Sequential(conv(M, N, 3, 1), nn.ReLU(), conv(N, N), nn.ReLU(), conv(N, N))
        self.h_s = nn.Sequential(deconv(N, N), nn.ReLU(), deconv(N, N), nn.ReLU(), conv(N, M, 3, 1), nn.ReLU())

    def parameters_of(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Hyper-latents to the (scales, means) of the latents."""
        scales = self.h_s(z)
        return scales, torch.zeros_like(scales)

    def code(self, y: Tensor, step: float) -> tuple[Tensor, Tensor]:
        z = self.entropy_bottleneck.quantise(self.h_a(y.abs() if self.absolute_hyper_input else y))
        scales, means = self.parameters_of(z)
        symbols = (y - means) / step
        symbols = symbols + torch.rand_like(y) - 0.5 if self.training else torch.round(symbols)
        bits = _bits(self.entropy_bottleneck.likelihood(z)) + _bits(gaussian_likelihood(symbols, scales / step))
        return symbols * step + means, bits


class MeanScaleHyperprior(ScaleHyperprior):
    """mbt2018-mean: the hyper-latent tells the mean of each latent, too."""

    absolute_hyper_input = False

    def __init__(self, N: int, M: int) -> None:
        super().__init__(N, M)
        wide = M * 3 // 2
        self.h_a = nn.Sequential(conv(M, N, 3, 1), nn.LeakyReLU(), conv(N, N), nn.LeakyReLU(), conv(N, N))
        self.h_s = nn.Sequential(deconv(N, M), nn.LeakyReLU(), deconv(M, wide), nn.LeakyReLU(), conv(wide, 2 * M, 3, 1))

    def parameters_of(self, z: Tensor) -> tuple[Tensor, Tensor]:
        scales, means = self.h_s(z).chunk(2, 1)
        return scales, means


def _bits(likelihood: Tensor) -> Tensor:
    return -torch.log2(likelihood).flatten(1).sum(1)


MODELS: dict[str, type[FactorizedPrior]] = {
    "bmshj2018-factorized": FactorizedPrior,
    "bmshj2018-hyperprior": ScaleHyperprior,
    "mbt2018-mean": MeanScaleHyperprior,
}
PUBLISHED_WIDTHS = {
    "bmshj2018-factorized": {**dict.fromkeys(range(1, 6), (128, 192)), **dict.fromkeys(range(6, 9), (192, 320))},
    "bmshj2018-hyperprior": {**dict.fromkeys(range(1, 6), (128, 192)), **dict.fromkeys(range(6, 9), (192, 320))},
    "mbt2018-mean": {**dict.fromkeys(range(1, 5), (128, 192)), **dict.fromkeys(range(5, 9), (192, 320))},
}
"""(N, M) of each published quality."""


def _current_name(key: str) -> str:
    """The name of a parameter in today's files, whatever version of CompressAI wrote `key`."""
    key = key.removeprefix("module.")
    parts = {"matrices": "_matrix", "biases": "_bias", "factors": "_factor"}
    match = re.fullmatch(r"entropy_bottleneck\._?(matrices|biases|factors)\.(\d+)", key)
    return f"entropy_bottleneck.{parts[match[1]]}{match[2]}" if match else key


def load_model(name: str, weights: Path, quality: int | None = None) -> FactorizedPrior:
    """The float model `name` (a key of MODELS) with the state dict in `weights`, in evaluation mode.

    N and M are read from the weights; where `quality` (1..8) is given they must be the published ones. Raises
    InputError for a file that is not such a state dict, naming what is missing.
    """
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises what the unpickler, the zip reader or the file system raised
        raise InputError(f"{weights} is not a PyTorch state dict ({_first_sentence(error)})") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{weights} is not a PyTorch state dict: it does not map names to tensors")
    state = {_current_name(key): value for key, value in state.items()}
    try:
        widths = (state["g_a.0.weight"].shape[0], state["g_a.6.weight"].shape[0])
    except KeyError as error:
        raise InputError(f"{weights} has no {error.args[0]}: it is not a state dict of {name}") from error
    published = PUBLISHED_WIDTHS[name].get(quality or 0)
    if quality is not None and widths != published:
        raise InputError(
            f"{weights} has N, M = {widths}, {name} at quality {quality} has {published}: "
            "name the quality that the file is of, or leave --quality out"
        )
    model = MODELS[name](*widths)
    wanted = model.state_dict()
    for key, value in wanted.items():
        found = state.get(key)
        if found is None or found.shape != value.shape:
            shape = "is missing" if found is None else f"has shape {tuple(found.shape)}, not {tuple(value.shape)}"
            raise InputError(f"{weights}: {key} {shape}: it is not a state dict of {name}")
        if not torch.isfinite(found).all():
            raise InputError(f"{weights}: {key} holds values that are not finite: the file is damaged")
    model.load_state_dict({key: state[key] for key in wanted})
    return model.eval()


def _first_sentence(error: Exception) -> str:
    return str(error).split("\n")[0].split(". ")[0] or type(error).__name__
