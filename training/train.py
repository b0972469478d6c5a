"""Trains a codec: `python -m linnet.training.train IMAGES OUT --minutes 120`.

Rate + lambda * distortion with a random quality per image; lambda and the gain vector move together. Three phases by
share of the whole: the linear filters alone (the entropy model warms up at a fifth of the cost), everything in floating
point, where weights are averaged, then quantisation-aware training under the integer contract with growing crops. Stops
and resumes at any moment. Writes OUT/last.pt, OUT/curve.csv. A codec that keeps the transforms that it starts with
learns to predict their latents, nothing else; one that keeps its latents learns to draw them, nothing else; one that is
trained for MS-SSIM keeps the linear filters.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_msssim import ms_ssim
from torch import Tensor, nn
from tqdm import tqdm

from ..calibration.entropy_tables import fitted_tables
from ..calibration.qat import ExactConv2d, set_exact, to_full_scale
from ..export.bundling import MODELS, count_symbols, trainable_codec
from ..export.models.latent_codec import LatentCodec
from ..runtime import core
from ..runtime.bundle import Bundle
from ..runtime.errors import LinnetError
from . import wavelets
from .bias import correct_bias
from .data import Photographs
from .initialise import is_linear

LAMBDA_RANGE = (0.0002, 0.09)
"""Weight of the mean squared error (levels of 0..255) against bits per pixel at quality 1 and 100."""
MS_SSIM_RANGE = (0.28, 110.0)
"""The same for 1 - MS-SSIM, where that is the distortion: about the lambdas of the published MS-SSIM models."""
ANCHORED = 0.1
"""Share of the squared error that stays in the loss then: MS-SSIM alone hardly sees colours and brightness drift."""
LEARNING_RATE = 3e-4
"""Adam's at the start, for the linear filters, biases, gains; it falls along a cosine to a thirtieth."""
MUON_FACTOR = 40 / 3
"""Muon's learning rate, for the networks' weights, by Adam's: 4e-3 at the start. 1e-2 is too much for small batches."""
GAIN_FACTOR = 4.0
"""Of Adam's learning rate for the gains, which are octaves and have far to go."""
STRUCTURE_FACTOR = 0.5
"""Of both learning rates where MS-SSIM is the distortion, whose gradients differ more from batch to batch."""
MUON_MOMENTUM = 0.95
MUON_ROWS = 128
"""Wider layers are orthogonalised in interleaved groups of at most this many output channels (for a sub-pixel
convolution: by phase), at a fraction of the cost."""
AVERAGE_DECAY = 0.9985
GRADIENT_LIMIT = 1.0
NORM_LIMIT = 1.4
"""Largest norm of a saturating layer's stored weight per output channel (it starts near 1). Without it Adam's noise
grows the weights until every activation is at a bound and nothing upstream learns."""
DEFAULT_MODEL = "wavelet2"
CHECKPOINT_SECONDS = 180
UNLIMITED = {"out", "mix"}
"""Layers that stay linear, which NORM_LIMIT does not concern, beside the linear filters."""
VALIDATION_QUALITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
REDRAWN = 8
"""How often a batch is drawn where its latents are kept: to encode it takes as long as to learn from it."""
ENCODED_BATCHES = 64
"""From so many of them, one picture of each, batches are drawn then."""
COUNTED_CROPS = 96
"""Training crops of 256 x 256 whose symbols make the entropy tables, and whose mean errors correct biases."""

PHASES = (
    # share of the training up to which the phase lasts, networks on, exact arithmetic, crop, batch
    (0.03, False, False, 192, 4),
    (0.70, True, False, 192, 4),
    (0.90, True, True, 192, 4),
    (1.00, True, True, 256, 2),
)
FLOAT_TUNING = 0.65
TUNING_PHASES = (
    (FLOAT_TUNING, True, False, 256, 3),
    (1.00, True, True, 256, 3),
)
"""For weights that are trained already (`--start`): no warm-up, and crops that MS-SSIM's five scales fit in."""


def distortion_weight(quality: Tensor, ends: tuple[float, float] = LAMBDA_RANGE) -> Tensor:
    """lambda for quality positions in [0, 1], geometric between the two ends."""
    low, high = ends
    return low * (high / low) ** quality


def loss_balance(quality: Tensor) -> Tensor:
    """By how much the loss of each quality counts, so that low and high rates weigh about the same."""
    return (distortion_weight(quality) / math.sqrt(LAMBDA_RANGE[0] * LAMBDA_RANGE[1])) ** -0.5


def distortion(decoded: Tensor, images: Tensor, structure: bool = False) -> Tensor:
    """(N,): of images in full-scale units the mean squared error in levels, or with `structure` 1 - MS-SSIM (Wang et
    al., 2003), for which they have more than 160 pixels a side."""
    if structure:
        return 1 - ms_ssim(decoded + 1, images + 1, data_range=255 / 128, size_average=False)
    return (decoded - images).mul(128).square().flatten(1).mean(1)


def decibels(error: Tensor, structure: bool = False) -> Tensor:
    """A `distortion` as PSNR, or with `structure` as -10 log10(1 - MS-SSIM)."""
    return 10 * torch.log10((1.0 if structure else 255**2) / error)


def losses(
    codec: LatentCodec, images: Tensor, quality: Tensor, structure: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, bits per pixel (N,), `distortion` (N,)) of `images`; low and high rates weigh about the same."""
    decoded, bits_per_pixel = codec(images, quality)
    weighted, error = weighted_distortion(decoded, images, quality, structure)
    return (loss_balance(quality) * (bits_per_pixel + weighted)).mean(), bits_per_pixel, error


def weighted_distortion(
    decoded: Tensor, images: Tensor, quality: Tensor, structure: bool = False
) -> tuple[Tensor, Tensor]:
    """(N,) each: the bits per pixel that the distortion counts for, and the `distortion`."""
    error = distortion(decoded, images)
    weighted = distortion_weight(quality) * error
    if structure:
        error = distortion(decoded, images, structure)
        weighted = distortion_weight(quality, MS_SSIM_RANGE) * error + ANCHORED * weighted
    return weighted, error


def validate(codec: LatentCodec, images: list[np.ndarray], structure: bool = False) -> list[tuple[float, float]]:
    """(bits per pixel, `decibels`) at each validation quality over 256x256 centre crops of `images`."""
    codec.eval()
    crops = to_full_scale(np.stack([centre(image, 256) for image in images]), codec.device)
    points = []
    with torch.no_grad():
        for quality in VALIDATION_QUALITIES:
            position = torch.full((len(crops),), quality, device=codec.device)
            _, rate, error = losses(codec, crops, position, structure)
            points.append((rate.mean().item(), decibels(error, structure).mean().item()))
    codec.train()
    return points


def centre(image: np.ndarray, side: int) -> np.ndarray:
    """The `side` x `side` pixels in the middle of (H, W, 3), which is at least as large."""
    y, x = ((length - side) // 2 for length in image.shape[:2])
    return image[y : y + side, x : x + side]


def limit_norms(codec: LatentCodec) -> None:
    """Project the weights of the saturating layers back to NORM_LIMIT."""
    with torch.no_grad():
        for name, layer in codec.named_modules():
            if (
                isinstance(layer, ExactConv2d)
                and not layer.raw
                and layer.weight.requires_grad
                and not (is_linear(name) or name.split(".")[-1] in UNLIMITED)
            ):
                layer.weight.copy_(torch.renorm(layer.weight, 2, 0, NORM_LIMIT))


class Optimizer:
    """Muon (Jordan et al., 2024) for the networks' weights, Adam for the linear filters, biases and gains.

    Per step Muon costs a quarter more than Adam and the rate at equal quality falls more than twice as fast.
    """

    def __init__(self, codec: LatentCodec) -> None:
        self.matrices: list[tuple[nn.Parameter, slice]] = []
        for name, layer in codec.named_modules():
            if isinstance(layer, ExactConv2d) and not is_linear(name):
                groups = -(-layer.weight.shape[0] // MUON_ROWS)
                self.matrices += [(layer.weight, slice(first, None, groups)) for first in range(groups)]
        orthogonalised = {id(weight) for weight, _ in self.matrices}
        gains = [codec.finest_log_gain, codec.log_gain_steps, codec.hyper_log_scale]
        apart = orthogonalised | {id(gain) for gain in gains}
        rest = [p for p in codec.parameters() if id(p) not in apart]
        self.adam = torch.optim.Adam([{"params": rest, "factor": 1.0}, {"params": gains, "factor": GAIN_FACTOR}])
        self.momentum = [torch.zeros_like(weight[rows].flatten(1)) for weight, rows in self.matrices]

    def step(self, rate: float) -> None:
        """Update from the parameters' gradients at `rate` (Adam's; Muon's is in proportion)."""
        for group in self.adam.param_groups:
            group["lr"] = rate * group["factor"]
        self.adam.step()
        rate *= MUON_FACTOR
        with torch.no_grad():
            for (weight, rows), momentum in zip(self.matrices, self.momentum, strict=True):
                if weight.grad is not None:
                    gradient = weight.grad[rows].flatten(1)
                    momentum.lerp_(gradient, 1 - MUON_MOMENTUM)
                    update = orthogonalised(gradient.lerp(momentum, MUON_MOMENTUM))
                    step = rate * max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                    weight[rows] -= step * update.view_as(weight[rows])

    def state_dict(self) -> dict[str, Any]:
        return {"adam": self.adam.state_dict(), "muon": self.momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adam.load_state_dict(state["adam"])
        for own, stored in zip(self.momentum, state["muon"], strict=True):
            own.copy_(stored)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Nearly the orthogonal factor of `matrix`'s polar decomposition: three Newton-Schulz steps (Jordan et al., 2024).

    In the precision of `matrix`: torch.optim.Muon works in bfloat16, 2.5 times as slow on a CPU without AMX.
    """
    x = matrix / matrix.norm().clamp_min(1e-7)
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(3):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if tall else x


def average_into(average: LatentCodec, codec: LatentCodec, decay: float) -> None:
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), codec.state_dict().values(), strict=True):
            if kept.is_floating_point():
                kept.lerp_(new, 1 - decay)


def freeze(codec: LatentCodec, what: str | None) -> None:
    """Let a part of `codec` stay as it is: its "transforms", the linear "filters" in them, the "latents" and with them
    everything but the synthesis, or nothing.

    MS-SSIM hardly sees brightness and colours drift. The filters' gradients are mostly noise then, a hundred times as
    large as all others together: after 950 steps of it quality 100 took twice the bits, at 1.4 dB less.
    """
    if what == "latents":
        codec.requires_grad_(False)
        codec.synthesis.requires_grad_(True)
    for transform in (codec.analysis, codec.synthesis):
        for name, layer in transform.named_modules():
            if what == "transforms" or (what == "filters" and is_linear(name)):
                layer.requires_grad_(False)


def take_transforms(codec: LatentCodec, weights: dict[str, Tensor]) -> None:
    """Set both transforms of `codec`, and its gains, to those of another codec with the same transforms."""
    own = codec.state_dict()
    taken = [name for name in weights if name.startswith(("analysis.", "synthesis.")) or name == "mean_shift"]
    for name in taken:
        if name not in own or own[name].shape != weights[name].shape:
            raise SystemExit(f"--start holds a codec with other transforms than {codec.architecture} ({name})")
    for name in taken:
        own[name].copy_(weights[name])
    for name in ("finest_log_gain", "log_gain_steps"):  # not those of the hyper-latent, which is another
        own[name][..., : codec.gain_count] = weights[name][..., : codec.gain_count]


def _stored(source: Path, device: torch.device) -> dict[str, Any]:
    """What a checkpoint holds, or of a bundle its weights."""
    if source.suffix != ".lntb":
        return torch.load(source, weights_only=True, map_location=device)
    try:
        codec = trainable_codec(Bundle.open(source))
    except LinnetError as error:
        raise SystemExit(f"--start: {error}") from error
    return {"architecture": codec.architecture, "average": codec.state_dict()}


class Trainer:
    """One training run in OUT, alone or as one of `processes` workers that average their gradients.

    Every worker draws its own batches and takes the same steps; worker 0 keeps the clock and writes the files.
    """

    def __init__(
        self,
        folder: Path,
        out: Path,
        minutes: float,
        seed: int,
        *,
        steps: int | None = None,
        start: Path | None = None,
        structure: bool = False,
        keep: str | None = None,
        only_exact: bool = False,
        model: str | None = None,
        device: str = "cpu",
        batch: int | None = None,
        learning_rate: float = LEARNING_RATE,
        count: bool = True,
        worker: int = 0,
        processes: int = 1,
    ) -> None:
        self.checkpoint, self.seconds, self.most_steps = out / "last.pt", minutes * 60, steps
        self.structure, self.only_exact = structure, only_exact
        self.worker, self.processes, self.learning_rate, self.count = worker, processes, learning_rate, count
        self.photographs = Photographs(folder)
        self.device, self.batch = torch.device(device), batch
        source = self.checkpoint if self.checkpoint.exists() else start
        state = None if source is None else _stored(source, self.device)
        stored = None if state is None else state.get("architecture")
        architecture = model or stored or DEFAULT_MODEL
        if architecture not in MODELS:
            raise SystemExit(f"{source} holds a codec of architecture {stored}, which is none of {', '.join(MODELS)}")
        anew = architecture != stored
        if anew and source == self.checkpoint:
            raise SystemExit(f"{source} holds a codec of architecture {stored}, not {model}: leave --model out")
        self.codec = MODELS[architecture]().to(self.device)
        self.steps, self.elapsed = 0, 0.0
        self.tuning = start is not None and not anew
        self.kept = "transforms" if anew and start is not None else keep
        if source == self.checkpoint:
            self.kept = state.get("kept", self.kept)
        if keep not in (None, self.kept):
            raise SystemExit(f"--keep {keep} does not go with {source}, whose training keeps {self.kept or 'nothing'}")
        if self.kept == "latents" and not only_exact:
            raise SystemExit("--keep latents needs --only-exact: the latents to draw are those that integers give")
        if anew:
            torch.manual_seed(seed)
            beginning = MODELS[architecture]()
            wavelets.initialise(beginning, self.photographs.batch(400, 256, np.random.default_rng(seed)))
            self.codec.load_state_dict(beginning.state_dict())
            if state is not None:
                take_transforms(self.codec, state["average"])
        else:
            self.codec.load_state_dict(state["average"])
        self.optimizer = Optimizer(self.codec)
        self.average = copy.deepcopy(self.codec)
        if source == self.checkpoint:
            self.codec.load_state_dict(state["codec"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.steps, self.elapsed = state["steps"], state["elapsed"]
            self.tuning = state.get("tuning", self.tuning)
        freeze(self.codec, self.kept)
        if structure:
            freeze(self.codec, "filters")
        self.encoded: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=ENCODED_BATCHES)
        self.counts = None
        if self.kept == "latents":
            self.counts = state.get("symbol_counts")
            if self.counts is None:
                raise SystemExit(f"{source} has no symbol counts, which tell the latents: give a finished checkpoint")
            tables = core.EntropyTables(*fitted_tables(self.counts.numpy()))
            self.codec.entropy_tables = self.average.entropy_tables = tables
        self.phases = TUNING_PHASES if self.tuning else PHASES
        self.rng = np.random.default_rng((seed, self.steps, worker))
        torch.manual_seed(seed + self.steps + 1_000_003 * worker)

    def _position(self) -> int:
        """Steps or seconds done, whichever the training's length is given in."""
        return self.steps if self.most_steps else round(self.elapsed)

    @property
    def share(self) -> float:
        """How much of the training is done, 1 at its end; one in exact arithmetic alone begins late."""
        done = self.steps / self.most_steps if self.most_steps else self.elapsed / self.seconds
        return FLOAT_TUNING + (1 - FLOAT_TUNING) * done if self.only_exact else done

    def run(self) -> None:
        started = saved = time.monotonic() - self.elapsed
        saved += self.elapsed
        loss_average: float | None = None
        self.codec.train()
        bar = tqdm(
            total=self.most_steps or round(self.seconds), initial=self._position(),
            unit="step" if self.most_steps else "s", disable=True if self.worker else None,
        )  # fmt: skip
        while self.share < 1:
            loss, norm, rate = self._step()
            self.elapsed = self._agree(time.monotonic() - started)
            loss_average = loss if loss_average is None else 0.98 * loss_average + 0.02 * loss
            bar.update(self._position() - bar.n)
            bar.set_postfix(step=self.steps, loss=f"{loss_average:.3f}", refresh=False)
            now = time.monotonic()
            if not self.worker and (now - saved > CHECKPOINT_SECONDS or self.share >= 1):
                saved = now
                self._save([self.steps, round(self.elapsed), rate, loss_average, norm])
        bar.close()

    def _step(self) -> tuple[float, float, float]:
        """One optimisation step; returns the loss, the gradient's norm and the learning rate."""
        share = self.share
        _, networks, exact, crop, batch = next(phase for phase in self.phases if share < phase[0])
        if exact and not self.codec.exact:
            self.codec.load_state_dict(self.average.state_dict())  # which is better than the last weights
        for model in (self.codec, self.average):
            model.networks = networks
            model.set_exact(exact)
            if self.kept == "transforms":
                set_exact(model.analysis, True)
                set_exact(model.synthesis, True)
        fallen = (1 + 29 * 0.5 * (1 + math.cos(math.pi * share))) / 30
        rate = min(1.0, (self.steps + 1) / 500) * self.learning_rate * fallen
        if self.structure:
            rate *= STRUCTURE_FACTOR
        batch = self.batch or batch
        if self.kept == "latents":
            images, quality, decoded = self._encoded_batch(batch, crop)
        else:
            images, quality = self._batch(batch, crop)
        if self.kept == "transforms":
            loss = (loss_balance(quality) * self.codec.rate(images, quality)[1]).mean()
        elif self.kept == "latents":
            pixels = self.codec.reconstruct(decoded, quality)
            weighted, _ = weighted_distortion(pixels, images, quality, self.structure)
            loss = (loss_balance(quality) * weighted).mean()
        else:
            loss = losses(self.codec, images, quality, self.structure)[0]
        self.codec.zero_grad(set_to_none=True)
        loss.backward()
        if self.kept == "transforms":  # the latent's steps belong to the transforms
            for gains in (self.codec.finest_log_gain, self.codec.log_gain_steps):
                gains.grad[..., : self.codec.gain_count] = 0
        self._average_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.codec.parameters(), GRADIENT_LIMIT)
        if torch.isfinite(norm):
            self.optimizer.step(rate)
            limit_norms(self.codec)
        average_into(self.average, self.codec, min(AVERAGE_DECAY, (self.steps + 1) / (self.steps + 10)))
        self.steps += 1
        return loss.item(), norm.item(), rate

    def _batch(self, batch: int, crop: int) -> tuple[Tensor, Tensor]:
        """Images and their quality positions, one for each stratum, so that every batch spans the range."""
        images = self.photographs.batch(batch, crop, self.rng, self.device)
        quality = (np.arange(batch) + self.rng.random(batch)) / batch
        return images, torch.from_numpy(quality).float().to(self.device)

    def _encoded_batch(self, batch: int, crop: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, quality positions and decoded latents, of the batches that were encoded last."""
        if self.steps % REDRAWN == 0 or len(self.encoded) < ENCODED_BATCHES:
            images, quality = self._batch(batch, crop)
            with torch.no_grad():
                decoded, _ = self.codec.rate(images, quality)
            self.encoded.append((images.half(), quality, decoded.half()))  # 8-bit integers by 128: nothing is rounded
        chosen = self.rng.integers(len(self.encoded), size=batch)
        images, quality, decoded = (
            torch.stack([self.encoded[which][part][place] for place, which in enumerate(chosen)]).float()
            for part in range(3)
        )
        return images, quality, decoded

    def _average_gradients(self) -> None:
        if self.processes == 1:
            return
        gradients = [p.grad for p in self.codec.parameters() if p.grad is not None]
        flat = torch.nn.utils.parameters_to_vector(gradients)
        torch.distributed.all_reduce(flat)
        torch.nn.utils.vector_to_parameters(flat / self.processes, gradients)

    def _agree(self, seconds: float) -> float:
        """Worker 0's clock for everyone, so that all workers are in the same phase."""
        if self.processes == 1:
            return seconds
        clock = torch.tensor(seconds, dtype=torch.float64)
        torch.distributed.broadcast(clock, 0)
        return clock.item()

    def _save(self, row: list[float]) -> None:
        counts = self.counts
        if self.share >= 1 and self.count:
            crops = self.photographs.batch(COUNTED_CROPS, 256, np.random.default_rng(0), self.device)
            if self.kept != "transforms":
                correct_bias(self.average, crops)
            if counts is None:
                counts = count_symbols(self.average, crops)
        points = validate(self.average, self.photographs.validation, self.structure)
        with self.checkpoint.with_name("curve.csv").open("a", newline="") as file:
            csv.writer(file).writerow([*row, *(value for point in points for value in point)])
        state = {name: getattr(self, name).state_dict() for name in ("codec", "average", "optimizer")}
        if counts is not None:
            state["symbol_counts"] = counts
        temporary = self.checkpoint.with_suffix(".tmp")
        state |= {"architecture": self.codec.architecture, "tuning": self.tuning, "kept": self.kept}
        torch.save({**state, "steps": self.steps, "elapsed": self.elapsed}, temporary)
        temporary.replace(self.checkpoint)


def train(
    folder: Path,
    out: Path,
    minutes: float = 120.0,
    seed: int = 0,
    *,
    steps: int | None = None,
    start: Path | None = None,
    structure: bool = False,
    keep: str | None = None,
    only_exact: bool = False,
    model: str | None = None,
    device: str = "cpu",
    batch: int | None = None,
    learning_rate: float = LEARNING_RATE,
    count: bool = True,
    processes: int = 1,
    threads: int = 1,
) -> None:
    """Train for `steps`, or else for `minutes` of wall-clock time, in all, continuing what OUT holds, or else from the
    weights in `start`.

    With `structure` the distortion is 1 - MS-SSIM, and linear filters stay as they are. Where "transforms" are to
    `keep`, and always where `model` is another one than that in `start`, only what predicts the latents is trained, for
    the rate; where "latents" are, which wants `only_exact`, only the synthesis, for the distortion. `only_exact` leaves
    out what comes before quantisation-aware training. `batch` replaces that of all phases. Without `count` symbols are
    not counted at the end for the entropy tables, which stay a Laplacian's, nor biases corrected.
    """
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "steps": steps, "start": start, "structure": structure, "keep": keep,
        "only_exact": only_exact, "model": model, "device": device, "batch": batch, "learning_rate": learning_rate,
        "count": count,
    }  # fmt: skip
    if processes == 1:
        _work(0, folder, out, minutes, seed, settings, 1, threads)
    else:
        (out / "meeting").unlink(missing_ok=True)
        torch.multiprocessing.spawn(_work, (folder, out, minutes, seed, settings, processes, threads), processes)


def _work(
    worker: int,
    folder: Path,
    out: Path,
    minutes: float,
    seed: int,
    settings: dict[str, Any],
    processes: int,
    threads: int,
) -> None:
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    # TF32 keeps the exact phases exact (docs/integers.md), and its rounding is nothing to the float ones.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    if processes > 1:
        meeting = f"file://{out.resolve()}/meeting"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=worker, world_size=processes)
    Trainer(folder, out, minutes, seed, worker=worker, processes=processes, **settings).run()
    if processes > 1:
        torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of photographs")
    parser.add_argument("out", type=Path, help="folder for the checkpoint and the curve")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, default=120.0, help="wall-clock training time in all (default 120)")
    length.add_argument(
        "--steps", type=int, help="instead of a time, optimisation steps in all: the same on every machine"
    )
    parser.add_argument(
        "--start", type=Path,
        help="checkpoint or bundle whose weights a new run starts from; for another --model, whose transforms it keeps",
    )  # fmt: skip
    parser.add_argument(
        "--keep", choices=("transforms", "latents"),
        help="with --start: train only what predicts latents, for the rate, in half the time per step; or with "
        "--only-exact the synthesis alone, for the distortion",
    )  # fmt: skip
    parser.add_argument(
        "--only-exact", action="store_true",
        help="with --start: quantisation-aware training alone, at its learning rates, of weights that had it before",
    )  # fmt: skip
    parser.add_argument(
        "--distortion", choices=("mse", "ms-ssim"), default="mse",
        help="what the rate is traded for; ms-ssim wants --start with weights trained for mse",
    )  # fmt: skip
    parser.add_argument(
        "--model",
        choices=tuple(MODELS),
        help=f"architecture of a new codec (default {DEFAULT_MODEL}); weights have theirs",
    )
    parser.add_argument("--device", default="cpu", help="cuda for a GPU (default cpu)")
    parser.add_argument("--batch", type=int, help="images per step, instead of the phases' own")
    parser.add_argument(
        "--learning-rate", type=float, default=LEARNING_RATE,
        help=f"of Adam at the start, Muon's in proportion (default {LEARNING_RATE}); a tenth for weights that are done",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, default=1, help="data-parallel workers")
    parser.add_argument("--threads", type=int, default=1, help="threads per worker; one beats two beside other work")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    structure = arguments.distortion == "ms-ssim"
    if not arguments.learning_rate > 0:
        parser.error(f"--learning-rate {arguments.learning_rate:g}: use a positive number")
    from_nothing = arguments.start is None and not (arguments.out / "last.pt").exists()
    if arguments.keep and from_nothing:
        parser.error(f"--keep {arguments.keep} needs --start, a checkpoint that has them")
    if arguments.only_exact and from_nothing:
        parser.error("--only-exact needs --start, a checkpoint of a training that is done")
    if structure and from_nothing:
        parser.error("--distortion ms-ssim needs --start: train for mse first")
    train(
        arguments.images, arguments.out, arguments.minutes, arguments.seed,
        steps=arguments.steps, start=arguments.start, structure=structure, keep=arguments.keep,
        only_exact=arguments.only_exact, model=arguments.model,
        device=arguments.device, batch=arguments.batch, learning_rate=arguments.learning_rate,
        processes=arguments.processes, threads=arguments.threads,
    )  # fmt: skip


if __name__ == "__main__":
    main()
