"""Trains the camera codec: `python -m linnet.training.train IMAGES OUT --minutes 120`.

Rate + lambda * distortion with a random quality per image; lambda and the gain vector move together. Three phases by
share of the time: the linear bypass alone (the entropy model warms up at a fifth of the cost), everything in floating
point, then quantisation-aware training under the integer contract with growing crops. Weights are averaged; stops and
resumes at any moment. Writes OUT/last.pt, OUT/curve.csv.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..calibration.qat import ExactConv2d
from ..export.models.camera import Camera
from .data import Photographs, to_full_scale
from .initialise import initialise

LAMBDA_RANGE = (0.0011, 0.13)
"""Weight of the mean squared error (levels of 0..255) against bits per pixel at quality 1 and 100."""
LEARNING_RATE = (3e-4, 1e-5)
AVERAGE_DECAY = 0.9985
GRADIENT_LIMIT = 1.0
NORM_LIMIT = 1.4
"""Largest norm of a saturating layer's stored weight per output channel (it starts near 1). Without it Adam's noise
grows the weights until every activation is at a bound and nothing upstream learns."""
CHECKPOINT_SECONDS = 180
UNLIMITED = {"bypass", "out", "mix"}
"""Layers that stay linear, which NORM_LIMIT does not concern."""
VALIDATION_QUALITIES = (0.0, 0.25, 0.5, 0.75, 1.0)

PHASES = (
    # share of the time up to which the phase lasts, networks on, exact arithmetic, crop, batch
    (0.05, False, False, 128, 8),
    (0.68, True, False, 128, 8),
    (0.88, True, True, 128, 8),
    (1.00, True, True, 256, 2),
)


def distortion_weight(quality: Tensor) -> Tensor:
    """lambda for quality positions in [0, 1], geometric between the two ends."""
    low, high = LAMBDA_RANGE
    return low * (high / low) ** quality


def losses(codec: Camera, images: Tensor, quality: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, bits per pixel (N,), mean squared error in levels (N,)); low and high rates weigh about the same."""
    decoded, bits_per_pixel = codec(images, quality)
    error = (decoded - images).mul(128).square().flatten(1).mean(1)
    weight = distortion_weight(quality)
    balance = (weight / math.sqrt(LAMBDA_RANGE[0] * LAMBDA_RANGE[1])) ** -0.4
    return (balance * (bits_per_pixel + weight * error)).mean(), bits_per_pixel, error


def validate(codec: Camera, images: list[np.ndarray]) -> list[tuple[float, float]]:
    """(bits per pixel, PSNR in dB) at each validation quality over 256x256 centre crops of `images`."""
    codec.eval()
    crops = to_full_scale(np.stack([_centre(image, 256) for image in images]))
    points = []
    with torch.no_grad():
        for quality in VALIDATION_QUALITIES:
            _, rate, error = losses(codec, crops, torch.full((len(crops),), quality))
            points.append((rate.mean().item(), (10 * torch.log10(255**2 / error)).mean().item()))
    codec.train()
    return points


def _centre(image: np.ndarray, side: int) -> np.ndarray:
    y, x = ((length - side) // 2 for length in image.shape[:2])
    return image[y : y + side, x : x + side]


def limit_norms(codec: Camera) -> None:
    """Project the weights of the saturating layers back to NORM_LIMIT."""
    with torch.no_grad():
        for name, layer in codec.named_modules():
            if isinstance(layer, ExactConv2d) and not layer.raw and name.split(".")[-1] not in UNLIMITED:
                layer.weight.copy_(torch.renorm(layer.weight, 2, 0, NORM_LIMIT))


def average_into(average: Camera, codec: Camera, decay: float) -> None:
    with torch.no_grad():
        for kept, new in zip(average.state_dict().values(), codec.state_dict().values(), strict=True):
            kept.lerp_(new, 1 - decay)


def train(folder: Path, out: Path, minutes: float, seed: int) -> None:
    torch.set_flush_denormal(True)
    out.mkdir(parents=True, exist_ok=True)
    photographs = Photographs(folder)
    codec = Camera()
    optimizer = torch.optim.Adam(codec.parameters(), lr=LEARNING_RATE[0])
    average = copy.deepcopy(codec)
    step, elapsed = 0, 0.0
    checkpoint = out / "last.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        codec.load_state_dict(state["codec"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        step, elapsed = state["step"], state["elapsed"]
    else:
        torch.manual_seed(seed)
        initialise(codec, photographs.batch(400, 256, np.random.default_rng(seed)))
        average.load_state_dict(codec.state_dict())
    rng = np.random.default_rng((seed, step))
    torch.manual_seed(seed + step)
    started = saved = time.monotonic()
    before = elapsed
    curve = (out / "curve.csv").open("a", newline="")
    writer = csv.writer(curve)
    bar = tqdm(total=round(minutes * 60), initial=round(elapsed), unit="s", disable=None)
    codec.train()
    smooth: dict[str, float] = {}
    while elapsed < minutes * 60:
        share = elapsed / (minutes * 60)
        _, networks, exact, crop, batch = next(phase for phase in PHASES if share < phase[0])
        for model in (codec, average):
            model.networks = networks
            model.set_exact(exact)
        high, low = LEARNING_RATE
        rate = min(1.0, (step + 1) / 500) * (low + (high - low) * 0.5 * (1 + math.cos(math.pi * share)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        images = photographs.batch(batch, crop, rng)
        # One quality per stratum, so that every batch spans the range.
        quality = torch.from_numpy((np.arange(batch) + rng.random(batch)) / batch).float()
        loss, _, _ = losses(codec, images, quality)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(codec.parameters(), GRADIENT_LIMIT)
        if torch.isfinite(norm):
            optimizer.step()
            limit_norms(codec)
        average_into(average, codec, min(AVERAGE_DECAY, (step + 1) / (step + 10)))
        step += 1
        now = time.monotonic()
        elapsed = before + now - started
        bar.update(round(elapsed) - bar.n)
        smooth["loss"] = 0.98 * smooth.get("loss", loss.item()) + 0.02 * loss.item()
        if step % 20 == 0:
            bar.set_postfix(step=step, loss=f"{smooth['loss']:.3f}")
        if now - saved > CHECKPOINT_SECONDS or elapsed >= minutes * 60:
            saved = now
            points = validate(average, photographs.validation)
            writer.writerow(
                [step, round(elapsed), rate, smooth["loss"], norm.item(), *(v for point in points for v in point)]
            )
            curve.flush()
            state = {
                "codec": codec.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "elapsed": elapsed,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    bar.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of photographs")
    parser.add_argument("out", type=Path, help="folder for the checkpoint and the curve")
    parser.add_argument("--minutes", type=float, default=120.0, help="wall-clock training time (default 120)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads; one beats two beside other work")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.images, arguments.out, arguments.minutes, arguments.seed)


if __name__ == "__main__":
    main()
