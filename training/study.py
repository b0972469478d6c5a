"""Where to spend multiplications: `python -m linnet.training.study PHOTOGRAPHS OUT --start linnet/bundles/camera.lntb`.

Trains one shape of the predicting networks after the other for the transforms of --start, which stay as they are, with
equal steps, seeds, pictures and learning rates, then encodes the validation pictures with each of them in turns.
OUT/study.json keeps what is done: it stops and resumes at any moment. Rates are those of the validation pictures, with
a Laplacian's code lengths.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from ..calibration.qat import ExactConv2d
from ..export.bundling import MODELS, bundle_codec, load_codec
from ..export.models.latent_codec import LatentCodec
from ..export.models.wavelet import FineHead, Micro, Rectify, Widths
from ..runtime.bundle import Bundle
from ..runtime.codec import Codec
from .data import Photographs
from .train import train
from .tune_gains import Slope

ROUNDS, QUALITY = 5, 60
"""How often the validation pictures are encoded, and how well, to time it."""


@dataclass(frozen=True)
class Variant:
    """The predicting networks of `Micro` with other widths, with layers changed by `change`, or with the modules
    `blind`, whose outputs are zero: what they cost is not saved then, only what they tell."""

    what: str
    widths: dict[str, int] = field(default_factory=dict)
    change: Callable[[LatentCodec], None] | None = None
    blind: Sequence[str] = ()

    def model(self, architecture: str) -> type[LatentCodec]:
        """The codec as a class, as the others of `MODELS` are."""

        def build(codec: LatentCodec) -> None:
            Micro.__init__(codec)
            if self.change:
                self.change(codec)
            for name in self.blind:
                codec.get_submodule(name).register_forward_hook(lambda module, inputs, output: 0 * output)

        widths = replace(Micro.widths, **self.widths)
        return type("Studied", (Micro,), {"architecture": architecture, "widths": widths, "__init__": build})


def _heads(codec: LatentCodec) -> list[FineHead]:
    return [module for module in codec.modules() if isinstance(module, FineHead)]


def _resized(layer: ExactConv2d, size: int) -> ExactConv2d:
    outputs, inputs = layer.weight.shape[:2]
    return ExactConv2d(inputs, outputs, size)


def _kernels(size: int, *levels: int) -> Callable[[LatentCodec], None]:
    """Contexts of another kernel at some of the fine levels."""

    def change(codec: LatentCodec) -> None:
        for level, head in zip((2, 2, 1, 1), _heads(codec), strict=True):
            if level in levels:
                head.context = _resized(head.context, size)

    return change


def _pointwise_features(codec: LatentCodec) -> None:
    step = codec.get_submodule("context_steps.5")
    step.up = _resized(step.up, 1)


def _hidden_layers(count: int) -> Callable[[LatentCodec], None]:
    def change(codec: LatentCodec) -> None:
        for head in _heads(codec):
            width = head.out.weight.shape[1]
            head.hidden = nn.Sequential(*(ExactConv2d(width, width, 1) for _ in range(count)))

    return change


def _signed(codec: LatentCodec) -> None:
    """The signed numbers and their negatives instead of their positive and their negative parts."""
    for module in codec.modules():
        if isinstance(module, Rectify):
            module.rectify.set_weight(module.rectify.weight.detach() * module.rectify.gain / 2)
            nn.init.zeros_(module.rectify.bias)
            module.requires_grad_(False)


_FIRST_COLOUR = [f"context_steps.{step}.colour" for step in (4, 6)]
_COARSER = [
    *(f"context_steps.{step}.parents" for step in (3, 4, 5, 6)),
    "context_steps.3.known",
    "context_steps.5.known",
]

VARIANTS = {
    "micro": Variant("as micro"),
    "camera": Variant("all as wide as camera's", asdict(Widths())),
    "features-24": Variant("24 channels at 1/16 instead of 44", {"features": 24}),
    "features-96": Variant("96 channels at 1/16 instead of 44", {"features": 96}),
    "fine-8": Variant("contexts of the fine levels 8 wide instead of 16", {"fine": 8}),
    "fine-32": Variant("contexts of the fine levels 32 wide instead of 16", {"fine": 32}),
    "handed-4": Variant("4 features handed on to the fine levels instead of 8", {"fine_features": 4}),
    "handed-16": Variant("16 features handed on to the fine levels instead of 8", {"fine_features": 16}),
    "hyper-half": Variant("hyper-analysis half as wide", {"hyper8": 4, "hyper16": 8}),
    "kernel-1": Variant("1 x 1 contexts at the fine levels instead of 3 x 3", change=_kernels(1, 2, 1)),
    "finest-1": Variant("1 x 1 contexts at level 1", change=_kernels(1, 1)),
    "kernel-5": Variant("5 x 5 contexts at the fine levels", change=_kernels(5, 2, 1)),
    "up-1": Variant("1 x 1 where features are handed on to level 1", change=_pointwise_features),
    "deeper": Variant("two hidden layers more at the fine levels", change=_hidden_layers(3)),
    "shallower": Variant("no hidden layer at the fine levels", change=_hidden_layers(0)),
    "no-hyper": Variant("nothing from the hyper-latent", blind=["hyper_analysis"]),
    "one-pass": Variant("fine levels in one pass: no first colour for the second", blind=_FIRST_COLOUR),
    "no-coarser": Variant("fine levels that do not see the coarser ones", blind=_COARSER),
    "signed": Variant("no magnitudes: signed numbers as inputs", change=_signed),
}


def learn(name: str, folder: Path, out: Path, start: Path, steps: int, threads: int) -> dict[str, Any]:
    """Train a variant, write its bundle to OUT/NAME.lntb; what it costs and its validation curve."""
    variant, architecture, bundle = VARIANTS[name], f"study-{name}", out / f"{name}.lntb"
    MODELS[architecture] = variant.model(architecture)
    try:
        train(folder, out / name, steps=steps, start=start, model=architecture, count=False, threads=threads)
        if not variant.blind:
            bundle_codec(*load_codec(out / name / "last.pt"), bundle)
    finally:
        del MODELS[architecture]
    with (out / name / "curve.csv").open() as file:
        last = [float(value) for value in list(csv.reader(file))[-1]]
    result: dict[str, Any] = {"what": variant.what, "points": list(zip(last[5::2], last[6::2], strict=True))}
    return result if variant.blind else result | {"kmac_per_pixel": Bundle.open(bundle).kmac_per_pixel}


def time_encoders(names: Sequence[str], pictures: Sequence[np.ndarray], out: Path) -> dict[str, float]:
    """Nanoseconds per pixel of encoding `pictures` on one thread, medians of ROUNDS in turns."""
    codecs = {name: Codec.open(out / f"{name}.lntb", threads=1) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    pixels = sum(picture.shape[0] * picture.shape[1] for picture in pictures)
    for round_ in tqdm(range(ROUNDS + 1), desc="encoding in turns", unit="round", disable=None):
        for name, codec in codecs.items():
            started = time.perf_counter()
            for picture in pictures:
                codec.encode(picture, quality=QUALITY)
            if round_:  # the first one prepares
                samples[name].append((time.perf_counter() - started) * 1e9 / pixels)
    return {name: statistics.median(values) for name, values in samples.items()}


def more_bits(points: list[list[float]], reference: list[list[float]]) -> float:
    """How many more bits `points` (bits per pixel, dB) take than the curve `reference` at equal PSNR, as a share, the
    mean over them."""
    slope = Slope([(rate, db) for rate, db in reference])
    return math.expm1(statistics.mean(slope.worse((rate, db)) for rate, db in points))


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown, one row for each variant."""
    lines = [
        "| predicting networks | kMAC/px: hyper, coarse, fine | encoder | encoding | bits at equal PSNR | bits |",
        "|---|---|---|---|---|---|",
    ]
    reference = next(iter(results.values()))["points"]
    for result in results.values():
        cost = result.get("kmac_per_pixel")
        parts = "| " if cost is None else f"{_parts(cost)} | {cost['encoder']:.2f}"
        speed = f"{1e3 / result['ns_per_pixel']:.1f} MP/s" if "ns_per_pixel" in result else ""
        change = "" if result["points"] == reference else f"{more_bits(result['points'], reference):+.1%}"
        bits = " ".join(f"{rate:.3g}" for rate, _ in result["points"])
        lines.append(f"| {result['what']} | {parts} | {speed} | {change} | {bits} |")
    return "\n".join(lines)


def _parts(cost: dict[str, float]) -> str:
    fine = sum(cost[f"context_{step}"] for step in (4, 5, 6, 7))
    coarse = sum(cost[f"context_{step}"] for step in (1, 2, 3))
    return f"{cost['hyper_analysis'] + cost['hyper_synthesis']:.2f}, {coarse:.2f}, {fine:.2f}"


def study(
    folder: Path, out: Path, start: Path, steps: int, names: Sequence[str], threads: int = 1
) -> dict[str, dict[str, Any]]:
    """Results of the variants `names`, which OUT/study.json keeps; those that it holds are not trained again."""
    out.mkdir(parents=True, exist_ok=True)
    kept = out / "study.json"
    stored = json.loads(kept.read_text()) if kept.exists() else {"steps": steps, "results": {}}
    if stored["steps"] != steps:
        raise SystemExit(
            f"{kept} holds a study of {stored['steps']} steps: give --steps {stored['steps']}, or another OUT"
        )
    for name in tqdm(names, desc="variants", unit="variant", disable=None):
        if name not in stored["results"]:
            stored["results"][name] = learn(name, folder, out, start, steps, threads)
            _keep(kept, stored)
    results = {name: stored["results"][name] for name in names}
    built = [name for name in names if "kmac_per_pixel" in results[name]]
    for name, speed in time_encoders(built, Photographs(folder).validation, out).items():
        results[name]["ns_per_pixel"] = speed
    _keep(kept, stored)
    return results


def _keep(path: Path, stored: dict[str, Any]) -> None:
    """Whole or not at all: hours of training stand in it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(stored, indent=1))
    temporary.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, help="folder of photographs")
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--start", type=Path, required=True, help="checkpoint or bundle whose transforms are kept")
    parser.add_argument("--steps", type=int, default=1000, help="of training for each variant (default 1000)")
    parser.add_argument("--variants", nargs="+", choices=tuple(VARIANTS), default=tuple(VARIANTS), metavar="NAME",
                        help=f"the first is the reference; {', '.join(VARIANTS)} (default all)")  # fmt: skip
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    given = (arguments.images, arguments.out, arguments.start, arguments.steps, arguments.variants, arguments.threads)
    print(table(study(*given)))


if __name__ == "__main__":
    main()
