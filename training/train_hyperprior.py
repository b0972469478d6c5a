"""Trains a CompressAI-class codec: `python -m linnet.training.train_hyperprior mbt2018-mean IMAGES OUT.pt`.

For trying `linnet export compressai:...` without published weights: small models in minutes. Rate + lambda * squared
error on random crops, Adam with a cosine; the file has the published names, so that CompressAI reads it too.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..export.models.compressai import MODELS
from .data import Photographs

LEARNING_RATE = (1e-3, 1e-5)
GRADIENT_LIMIT = 1.0


def train(
    name: str, folder: Path, out: Path, widths: tuple[int, int], weight: float, minutes: float,
    start: Path | None = None, crop: int = 128, batch: int = 8, seed: int = 0,
) -> None:  # fmt: skip
    """Train model `name` with (N, M) = `widths` and lambda `weight` for `minutes`; writes its state dict to `out`.

    `start` names a state dict whose parameters of equal name and shape are taken over first.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    photographs = Photographs(folder)
    model = MODELS[name](*widths).train()
    if start is not None:
        own = model.state_dict()
        given = torch.load(start, weights_only=True)
        model.load_state_dict({k: given[k] if k in given and given[k].shape == v.shape else v for k, v in own.items()})
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE[0])
    began, seconds = time.monotonic(), 60 * minutes
    with tqdm(total=round(seconds), unit="s", mininterval=10) as bar:
        while (share := (time.monotonic() - began) / max(seconds, 1e-9)) < 1:
            high, low = LEARNING_RATE
            optimizer.param_groups[0]["lr"] = low + (high - low) * 0.5 * (1 + math.cos(math.pi * share))
            images = (photographs.batch(batch, crop, rng) * 128 + 128) / 255
            decoded, rate = model(images)
            error = (decoded - images).mul(255).square().mean()
            loss = rate.mean() + weight * error + model.entropy_bottleneck.quantile_loss() / 1000
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_LIMIT)
            optimizer.step()
            bar.update(round(share * seconds) - bar.n)
            bar.set_postfix(bpp=f"{rate.mean().item():.3f}", psnr=f"{10 * math.log10(255**2 / error.item()):.2f}")
    torch.save(model.state_dict(), out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=sorted(MODELS))
    parser.add_argument("images", type=Path, help="folder of photographs")
    parser.add_argument("out", type=Path, help="the state dict to write")
    parser.add_argument("--widths", type=int, nargs=2, default=(48, 64), metavar=("N", "M"))
    parser.add_argument("--weight", type=float, default=0.013, help="lambda (default 0.013, published quality 4)")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--start", type=Path, help="state dict to start from")
    arguments = parser.parse_args()
    train(
        arguments.model, arguments.images, arguments.out, tuple(arguments.widths), arguments.weight,
        arguments.minutes, arguments.start,
    )  # fmt: skip


if __name__ == "__main__":
    main()
