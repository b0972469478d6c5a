"""From a float hyperprior-class codec to a bundle: convert on photographs, count symbols, write, and measure the loss.

One bundle has the one trade-off that the float model was trained for, at quality 60. The other qualities are the same
networks with a finer or coarser quantisation step, twice as coarse for every 20 less.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from ..calibration.entropy_tables import fitted_tables, laplacian_tables
from ..calibration.qat import to_full_scale
from ..runtime import backends, core
from ..runtime.bundle import Bundle
from ..runtime.codec import Codec
from ..runtime.coding import TileCoder
from ..runtime.errors import InputError
from ..runtime.latents import (
    FINE_EXP,
    GAIN_EXP,
    SCALE_STEPS_PER_OCTAVE,
    SCALE_TABLES,
    SMALLEST_SCALE,
    CodingStep,
    code_lengths,
)
from . import conversion
from .bundling import QUALITIES, write_codec
from .models.hyperprior import OWN_QUALITY, QUALITIES_PER_OCTAVE, Hyperprior
from .tracing import trace

MEASURED_QUALITIES = (40, 50, 60, 70, 80)
CROP = 256
FITTED_CROPS, COUNTED_CROPS, BATCH = 12, 48, 1
MAX_SYMBOL = 512
MEASURED_IMAGES, MEASURED_SIDE = 6, 512
"""The held-out images that the loss is measured on, and the most of each, from its middle."""
LEAST_IMAGES = 5


@dataclass
class ExportReport:
    """What an export did and cost. Rates are in bits per pixel; the integers' are those of whole `.lnt` files."""

    model: str
    identity: str
    conversion: conversion.Report
    measured_images: int
    points: list[dict[str, float]] = field(default_factory=list)
    """quality, bpp, psnr, and where the float model tells its rate float_bpp, float_psnr."""


class CalibrationImages:
    """(H, W, 3) uint8 photographs: crops to fit and tune on, and some held out to measure on."""

    def __init__(self, images: list[np.ndarray], seed: int = 0) -> None:
        large = [image for image in images if min(image.shape[:2]) >= CROP]
        if len(large) < LEAST_IMAGES:
            raise InputError(
                f"{len(large)} of {len(images)} images have {CROP} pixels or more on both sides: give at least "
                f"{LEAST_IMAGES}, better 50, photographs of the kind that the codec is for"
            )
        held = min(MEASURED_IMAGES, len(large) // 5)
        spread = np.linspace(0, len(large) - 1, held).round().astype(int)
        self.measured = [large[i] for i in spread]
        self.fitted = [image for i, image in enumerate(large) if i not in spread]
        self._rng = np.random.default_rng(seed)

    def crops(self, count: int) -> np.ndarray:
        """(count, CROP, CROP, 3) uint8: random crops of random images, each image in turn where there are enough."""
        order = np.resize(self._rng.permutation(len(self.fitted)), count)
        return np.stack([self._crop(self.fitted[i]) for i in order])

    def _crop(self, image: np.ndarray) -> np.ndarray:
        y, x = (int(self._rng.integers(side - CROP + 1)) for side in image.shape[:2])
        patch = image[y : y + CROP, x : x + CROP]
        return patch[:, ::-1] if self._rng.random() < 0.5 else patch


def load_hyperprior(path: Path) -> tuple[str, Hyperprior]:
    """(name, codec) that `export_model` kept in `path`. Raises InputError for any other file."""
    try:
        stored = torch.load(path, weights_only=True)
        return stored["hyperprior"], Hyperprior.from_dict(stored)
    except Exception as error:  # torch.load raises what the unpickler, the zip reader or the file system raised
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not a codec that `linnet export --keep` wrote ({reason})") from error


def export_model(
    name: str, model: nn.Module, images: list[np.ndarray], out: Path, steps: int, keep: Path | None = None
) -> ExportReport:
    """Convert a float model that follows `docs/export.md`, write its bundle to `out` and the PyTorch codec to `keep`.

    `images` are photographs (H, W, 3) uint8; `steps` of tuning follow the fit. Raises UsageError for a model that
    cannot become exact, InputError for too few images.
    """
    photographs = CalibrationImages(images)
    crops = photographs.crops(FITTED_CROPS)
    codec, found = conversion.convert(
        model, to_full_scale(crops), lambda: to_full_scale(photographs.crops(BATCH)), steps
    )
    if keep is not None:
        torch.save(codec.as_dict(name), keep)
    identity = write_hyperprior(name, codec, photographs.crops(COUNTED_CROPS), out)
    report = ExportReport(name, identity, found, len(photographs.measured))
    report.points = _measure(model, out, photographs.measured)
    return report


def write_hyperprior(name: str, codec: Hyperprior, crops: np.ndarray, out: Path) -> str:
    """Write the bundle of an exact codec, its entropy tables fitted to `crops` (N, H, W, 3) uint8, sides multiples of
    64; returns its identity."""
    networks = {network: trace(network, module, inputs) for network, (module, inputs) in codec.named_networks().items()}
    channels, hyper = len(codec.latents.unit), codec.hyper_latents
    manifest = {
        "name": name,
        "architecture": "hyperprior" if hyper else "factorized",
        "latent_channels": channels,
        "hyper_channels": len(codec.medians) if hyper else 0,
        "coding_steps": [asdict(CodingStep(0, channels, None, 0))],
        "own_quality": OWN_QUALITY,
    }
    frequencies, radii = laplacian_tables()
    tables = {**_glue(codec, crops), "frequencies": frequencies, "radii": radii}
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "uncounted.lntb"
        write_codec(first, manifest, networks, tables)
        tables["frequencies"], tables["radii"] = fitted_tables(_symbol_counts(Bundle.open(first), crops))
    return write_codec(out, manifest, networks, tables)


def quality_steps() -> np.ndarray:
    """(100,): quantisation steps in the float model's units."""
    return np.exp2((OWN_QUALITY - np.arange(1, QUALITIES + 1)) / QUALITIES_PER_OCTAVE)


def _glue(codec: Hyperprior, crops: np.ndarray) -> dict[str, np.ndarray]:
    """The integer tables between the networks but for the entropy tables."""
    unit = codec.latents.unit.double().numpy()
    fine = 2 ** (GAIN_EXP + FINE_EXP)
    gains = np.clip(np.rint(quality_steps()[:, None] * fine / unit), 2**GAIN_EXP, 2**15 - 1)
    coarser = SCALE_STEPS_PER_OCTAVE * np.log2(gains * unit / fine)  # than a step of 1
    means, densities = _fixed_densities(codec, crops)
    fixed = np.concatenate([means, densities]).astype(np.int8)
    shifts = codec.mean_shift.numpy()
    tables = {"companding": np.arange(-128, 128).astype(np.int8)}
    if codec.hyper_latents is None:
        return {
            **tables,
            "gains": gains.astype(np.int16),
            "mean_shifts": shifts,
            "table_offsets": np.rint(-coarser).astype(np.int16),
            "hyper_parameters": np.zeros(0, np.int8),
            "latent_parameters": fixed,
        }
    # The scale that the hyper-synthesis gives is v + 128 steps; their log-scale, and the size of the step beside it.
    scale = np.maximum(np.arange(256), 0.5)
    first = SCALE_STEPS_PER_OCTAVE * np.log2(codec.scale_step.double().numpy() / SMALLEST_SCALE)
    hyper_gains = np.rint(fine / codec.hyper_latents.unit.double().numpy())
    return {
        **tables,
        "gains": np.concatenate([gains, np.tile(hyper_gains, (QUALITIES, 1))], 1).astype(np.int16),
        "mean_shifts": np.concatenate([shifts, np.full(len(means), FINE_EXP)]).astype(np.uint8),
        "table_offsets": np.rint(np.pad(first - coarser, ((0, 0), (0, len(means))))).astype(np.int16),
        "hyper_parameters": fixed,
        "log_scales": np.rint(SCALE_STEPS_PER_OCTAVE * np.log2(scale)).astype(np.int8),
    }


def _fixed_densities(codec: Hyperprior, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean in whole latents, entropy table) of each channel whose density no network tells, at a step of 1."""
    lattice = codec.hyper_latents or codec.latents
    with torch.no_grad():
        latents = [codec.latent(crop[None]) for crop in to_full_scale(crops)]
        values = [codec.hyper_latent(latent) for latent in latents] if codec.hyper_latents else latents
        symbols = torch.cat([torch.round(v - codec.medians[:, None, None])[0].flatten(1) for v in values], 1)
    largest = symbols.abs().clamp(max=MAX_SYMBOL - 1).long().numpy()
    counts = np.stack([np.bincount(row, minlength=MAX_SYMBOL) for row in largest])
    lengths = code_lengths(*laplacian_tables(), MAX_SYMBOL)
    return (codec.medians / lattice.unit).round().numpy(), (counts @ lengths.T).argmin(1)


def _symbol_counts(bundle: Bundle, crops: np.ndarray) -> np.ndarray:
    """(1, SCALE_TABLES, MAX_SYMBOL): how often the encoder writes |symbol| under each table."""
    backend = backends.select("auto", bundle)
    counts = np.zeros((SCALE_TABLES, MAX_SYMBOL), np.int64)
    coders = [TileCoder(bundle, backend, quality) for quality in MEASURED_QUALITIES]
    for crop in tqdm(crops, desc="counting symbols", unit="crop", disable=None):
        planes = core.pixels_to_planes(np.ascontiguousarray(crop), 0, 0, crop.shape[1], crop.shape[0])
        latents = backend.run("analysis", {"planes": planes[None]})[0]
        for coder in coders:
            ((symbols, tables),), _ = coder.symbols(latents)
            np.add.at(counts, (tables, np.minimum(np.abs(symbols), MAX_SYMBOL - 1)), 1)
    return counts[None]


def _measure(model: nn.Module, out: Path, images: list[np.ndarray]) -> list[dict[str, float]]:
    """Rate and PSNR of the float model (ideal code lengths) and of the bundle (whole files), means over `images`."""
    codec = Codec.open(out)
    points = []
    for quality in tqdm(MEASURED_QUALITIES, desc="measuring", unit="quality", disable=None):
        step = float(quality_steps()[quality - 1])
        rows = []
        for image in images:
            image = _middle(image)
            data = codec.encode(image, quality=quality)
            pixels = image.shape[0] * image.shape[1]
            row = [8 * len(data) / pixels, _psnr(codec.decode(data), image)]
            if hasattr(model, "evaluate"):
                true, bits = _float_codec(model, image, step)
                row += [bits / pixels, _psnr(true, image)]
            rows.append(row)
        means = np.mean(rows, 0).round(4).tolist()
        keys = ("bpp", "psnr", "float_bpp", "float_psnr")
        points.append({"quality": quality, **dict(zip(keys, means, strict=False))})
    return points


def _float_codec(model: nn.Module, image: np.ndarray, step: float) -> tuple[np.ndarray, float]:
    """(decoded image, bits) of the float model on an image whose sides are padded to multiples of 64."""
    height, width = image.shape[:2]
    full = conversion.unit_images(to_full_scale(image[None]))
    padded = F.pad(full, (0, -width % 64, 0, -height % 64), "replicate")
    with torch.no_grad():
        decoded, bits_per_pixel = model.evaluate(padded, step)
    pixels = decoded[0, :, :height, :width].mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return pixels, bits_per_pixel.item() * padded.shape[2] * padded.shape[3]


def _middle(image: np.ndarray) -> np.ndarray:
    y, x = (max(0, side - MEASURED_SIDE) // 2 for side in image.shape[:2])
    return np.ascontiguousarray(image[y : y + MEASURED_SIDE, x : x + MEASURED_SIDE])


def _psnr(found: np.ndarray, true: np.ndarray) -> float:
    error = np.square(found.astype(np.float64) - true).mean()
    return 10 * np.log10(255**2 / max(error, 1e-9))
