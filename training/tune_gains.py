"""Quantisation steps by search instead of gradients: `python -m linnet.training.tune_gains IMAGES CHECKPOINT OUT.pt`.

Training descends a smooth rate, in which noise stands for the trellis, and leaves the steps of a quality where that one
is least. Here they are moved, a group of bands at a time, while the bits that are coded fall at equal distortion.
Between two anchors of the quality scale gains are interpolated, so that at an anchor it counts alone and is searched
alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..calibration.entropy_tables import fitted_tables
from ..calibration.qat import to_full_scale
from ..export.bundling import count_symbols, load_codec
from ..export.models.latent_codec import GAIN_ANCHORS, LatentCodec
from ..runtime import core
from .bias import correct_bias
from .data import Photographs
from .train import COUNTED_CROPS, centre, decibels, distortion

PIECES, PIECE, BATCH = 18, 448, 3
"""Pictures, whose middles count. Many small crops are smooth, and gain decibels for hardly any bits."""
COUNTED_CROP = 256
FIRST_STEP, LAST_STEP = 0.25, 0.08
"""Octaves. A step is halved where neither direction helps."""
LEAST_GAIN = 0.0002
"""Share of the rate below which a move is taken for noise."""


class Slope:
    """The logarithm of the rate over the distortion in dB, through the anchors' points, straight between them and
    beyond: what a point would cost if only the quality were another."""

    def __init__(self, points: list[tuple[float, float]]) -> None:
        self._rates, self._distortions = np.log([rate for rate, _ in points]), np.array([db for _, db in points])

    def worse(self, point: tuple[float, float]) -> float:
        """How much more than that `point` takes, as a logarithm."""
        rate, db = point
        left = int(np.clip(np.searchsorted(self._distortions, db) - 1, 0, len(self._rates) - 2))
        (a, b), (x, y) = self._rates[left : left + 2], self._distortions[left : left + 2]
        return float(np.log(rate) - (a + (b - a) * (db - x) / (y - x)))


def tune(
    codec: LatentCodec, images: Tensor, *, structure: bool = False, rounds: int = 2, moved: Callable[[], object] = bool
) -> list[float]:
    """Move the gains of `codec`, which is exact and has counted entropy tables, so that `images` (N, 3, H, W), sides
    multiples of 64, take fewer bits at equal PSNR, or with `structure` at equal MS-SSIM.

    Returns what that saves at each anchor, as a share of the bits. `moved` is called after each group of gains.
    """
    codec.eval()
    with torch.no_grad():
        latents = torch.cat([codec.latent(part) for part in images.split(BATCH)])
        gains = codec.learned_gains()

        def point(anchor: int) -> tuple[float, float]:
            rate = db = 0.0
            codec.set_learned_gains(gains)
            for part, latent in zip(images.split(BATCH), latents.split(BATCH), strict=True):
                quality = torch.full((len(part),), anchor / (GAIN_ANCHORS - 1))
                decoded, bits = codec.code(latent, quality)
                pixels = codec.reconstruct(decoded, quality)
                rate += sum(step.sum().item() for step in bits)
                db += decibels(distortion(pixels, part, structure), structure).sum().item()
            return rate, db / len(images)

        slope = Slope([point(anchor) for anchor in range(GAIN_ANCHORS)])
        groups = [*codec.gain_groups, range(codec.gain_count, gains.shape[1])]
        saved = []
        for anchor in range(GAIN_ANCHORS):
            best, steps = 0.0, np.full(len(groups), FIRST_STEP)
            for _ in range(rounds):
                for index, group in enumerate(groups):
                    if abs(steps[index]) >= LAST_STEP:
                        before = gains[anchor].clone()
                        for step in (steps[index], -steps[index]):
                            gains[anchor, list(group)] += step
                            if (worse := slope.worse(point(anchor))) < best - LEAST_GAIN:
                                best, steps[index] = worse, step
                                break
                            gains[anchor] = before
                        else:
                            steps[index] /= 2
                    moved()
            saved.append(float(-np.expm1(best)))
        codec.set_learned_gains(gains)
    return saved


def middles(pictures: list[np.ndarray], rng: np.random.Generator) -> Tensor:
    """The middles (PIECES, 3, PIECE, PIECE) of that many pictures; SystemExit where so many are not large enough."""
    large = [picture for picture in pictures if min(picture.shape[:2]) >= PIECE]
    if len(large) < PIECES:
        raise SystemExit(f"{len(large)} pictures have {PIECE} x {PIECE} pixels or more: give at least {PIECES} such")
    return to_full_scale(np.stack([centre(large[number], PIECE) for number in rng.permutation(len(large))[:PIECES]]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of photographs")
    parser.add_argument("checkpoint", type=Path, help="of a training that is done")
    parser.add_argument("out", type=Path, help="the checkpoint to write: the same weights with other gains")
    parser.add_argument("--distortion", choices=("mse", "ms-ssim"), default="mse", help="what stays equal")
    parser.add_argument("--rounds", type=int, default=2, help="over all groups of gains, at each anchor (default 2)")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    photographs = Photographs(arguments.images)
    codec, counts = load_codec(arguments.checkpoint)
    counted = photographs.batch(COUNTED_CROPS, COUNTED_CROP, np.random.default_rng(0))
    if counts is None:
        counts = count_symbols(codec, counted).numpy()
    codec.entropy_tables = core.EntropyTables(*fitted_tables(counts))
    images = middles(photographs.train, np.random.default_rng(11))
    groups = len(codec.gain_groups) + 1
    with tqdm(total=GAIN_ANCHORS * arguments.rounds * groups, unit="group", disable=None) as bar:
        saved = tune(
            codec, images, structure=arguments.distortion == "ms-ssim", rounds=arguments.rounds, moved=bar.update
        )
    print("saved at each anchor: " + ", ".join(f"{share:.1%}" for share in saved))
    symbols = count_symbols(codec, counted)
    codec.entropy_tables = core.EntropyTables(*fitted_tables(symbols.numpy()))
    correct_bias(codec, counted)
    state = {"architecture": codec.architecture, "average": codec.state_dict()}
    torch.save(state | {"symbol_counts": symbols}, arguments.out)


if __name__ == "__main__":
    main()
