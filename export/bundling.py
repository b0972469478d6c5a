"""From a training checkpoint to a codec bundle: trace, freeze, prove, spell out for every backend, write."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from ..calibration import tensorrt_rules
from ..calibration.certificate import certificate
from ..calibration.entropy_tables import fitted_tables, laplacian_tables
from ..calibration.known_answers import known_answers
from ..calibration.onnx_forms import onnxruntime_form, qdq_form
from ..calibration.qat import ExactConv2d
from ..runtime import core
from ..runtime.backends import filter_plan
from ..runtime.bundle import Bundle, pack_arrays, write_bundle
from ..runtime.errors import InputError, UsageError
from ..runtime.latents import (
    FINE_EXP,
    GAIN_EXP,
    SCALE_STEPS_PER_OCTAVE,
    SCALE_TABLES,
    SMALLEST_SCALE,
    TRELLIS_STATES,
    companding_table,
)
from ..runtime.network import EXACT, FLOAT, Conv, Network, arrays, describe
from ..runtime.tiles import BLOCK
from .models.latent_codec import HYPER_CHANNELS, LOG2_SCALE_BIAS, LatentCodec
from .models.wavelet import Micro, Wavelet
from .tracing import trace

MODELS: dict[str, type[LatentCodec]] = {model.architecture: model for model in (Wavelet, Micro)}
QUALITIES = 100
COUNTED_QUALITIES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
COUNTED_ROUNDS = 3
PLANE_STEP = 2
"""Pixels per position of the planes that enter the analysis."""


def load_codec(weights: Path) -> tuple[LatentCodec, np.ndarray | None]:
    """The codec with the averaged weights of a training checkpoint, in exact evaluation mode, and the symbols
    that the training counted (2, SCALE_TABLES, M), if it did."""
    codec, counts = _load_checkpoint(weights)
    codec.set_exact(True)
    return codec.eval(), counts


def load_float_codec(weights: Path) -> LatentCodec:
    """The codec with the averaged weights of a training checkpoint, in float evaluation mode."""
    return _load_checkpoint(weights)[0].eval()


def _load_checkpoint(weights: Path) -> tuple[LatentCodec, np.ndarray | None]:
    try:
        checkpoint = torch.load(weights, weights_only=True)
        codec = MODELS[checkpoint["architecture"]]()
        codec.load_state_dict(checkpoint["average"])
    except (OSError, KeyError, TypeError, RuntimeError, UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{weights} is not a training checkpoint of linnet ({reason})") from error
    counts = checkpoint.get("symbol_counts")
    if counts is not None and counts.ndim != 3:
        raise InputError(f"{weights} was trained for a scalar quantiser: train it on (--start) for the trellis")
    return codec, None if counts is None else counts.numpy()


def count_symbols(codec: LatentCodec, images: torch.Tensor) -> torch.Tensor:
    """(2, SCALE_TABLES, 512) int64: the symbols of `images` at COUNTED_QUALITIES, for `fitted_tables`.

    What the encoder chooses follows the tables, and these follow what it chooses: they are fitted several times.
    """
    training, tables = codec.training, codec.entropy_tables
    codec.eval()
    with torch.no_grad():
        for _ in range(COUNTED_ROUNDS):
            codec.symbol_counts = np.zeros((2 * SCALE_TABLES, core.MAX_SYMBOL + 1), np.int64)
            for quality in COUNTED_QUALITIES:
                for part in images.split(8):
                    codec.code(codec.latent(part), torch.full((len(part),), quality, device=codec.device))
            counts = codec.symbol_counts.reshape(2, SCALE_TABLES, -1)
            codec.entropy_tables = core.EntropyTables(*fitted_tables(counts))
    codec.symbol_counts, codec.entropy_tables = None, tables
    codec.train(training)
    return torch.from_numpy(counts)


def load_bundle_into_codec(bundle: Bundle) -> LatentCodec:
    """The PyTorch model that computes what `bundle` computes: its integers become the layers' weights, exactly."""
    architecture = bundle.manifest["architecture"]
    if architecture not in MODELS:
        raise UsageError(f"bundle {bundle.name} holds a codec of another kind ({architecture})")
    codec = MODELS[architecture]()
    networks = codec.named_networks()
    for name, (module, _) in networks.items():
        if bundle.networks[name].formats - {EXACT, FLOAT}:
            raise UsageError(f"network {name} is not exact in fp32: only such bundles become PyTorch models again")
        for node in bundle.networks[name].nodes:
            if isinstance(node, Conv):
                layer = module.get_submodule(node.name)
                scale = torch.from_numpy(np.exp2(-node.shift.astype(np.float64)))
                layer.fixed_exponents = torch.from_numpy(node.shift.astype(np.float32))
                layer.copies = node.weight.shape[1] // layer.weight.shape[1]
                weight = sum(np.split(node.weight.astype(np.float64), layer.copies, axis=1))
                with torch.no_grad():
                    layer.gain.fill_(1.0)
                    layer.weight.copy_(torch.from_numpy(weight) * scale[:, None, None, None])
                    layer.bias.copy_(
                        torch.from_numpy(node.bias.astype(np.float64)) * scale * 2.0 ** (1 - layer.bits[0])
                    )
    codec.entropy_tables = bundle.entropy_tables
    codec.gain_table = torch.from_numpy(bundle.gains.astype(np.float32)) * 2.0 ** -(GAIN_EXP + FINE_EXP)
    codec.mean_shift.copy_(torch.from_numpy(bundle.mean_shifts[: codec.latent_channels]))
    scales = torch.from_numpy(bundle.hyper_parameters[codec.hyper_channels :].astype(np.float32))
    with torch.no_grad():
        codec.hyper_log_scale.copy_(scales / SCALE_STEPS_PER_OCTAVE + LOG2_SCALE_BIAS)
    codec.set_exact(True)
    return codec.eval()


def trainable_codec(bundle: Bundle) -> LatentCodec:
    """As `load_bundle_into_codec`, but to train on from: scales follow the weights again, and gains are learned (those
    of the bundle, to a few thousandths of an octave)."""
    codec = load_bundle_into_codec(bundle)
    for layer in codec.modules():
        if isinstance(layer, ExactConv2d):
            if layer.copies > 1:
                raise UsageError(f"bundle {bundle.name} has wide layers, which cannot be trained on")
            layer.fixed_exponents = None
            layer.set_weight(layer.weight.detach().clone())
    codec.learn_gains()
    codec.set_exact(False)
    return codec.train()


def quality_tables(codec: LatentCodec) -> tuple[np.ndarray, np.ndarray]:
    """(gains, table offsets), each (100, latent + hyper channels) int16: quantisation steps in 1/256 and their log."""
    with torch.no_grad():
        quality = torch.arange(QUALITIES) / (QUALITIES - 1)
        gains = codec.gains(quality)[:, :, 0, 0].double().numpy()
    first_table = -SCALE_STEPS_PER_OCTAVE * math.log2(SMALLEST_SCALE)
    offsets = SCALE_STEPS_PER_OCTAVE * (LOG2_SCALE_BIAS - np.log2(gains)) + first_table
    stored = np.clip(np.rint(gains * 2 ** (GAIN_EXP + FINE_EXP)), 2**GAIN_EXP, 2**15 - 1)
    return stored.astype(np.int16), np.rint(offsets).astype(np.int16)


def hyper_parameters(codec: LatentCodec) -> np.ndarray:
    """(2 * hyper channels,) int8: mean 0 and the learned log-scale per hyper channel, as a network would give it."""
    log_scale = codec.hyper_log_scale.detach().numpy() - LOG2_SCALE_BIAS
    scaled = np.clip(np.rint(log_scale * SCALE_STEPS_PER_OCTAVE), -128, 127)
    return np.concatenate([np.zeros(HYPER_CHANNELS), scaled]).astype(np.int8)


def complexity(networks: dict[str, Network]) -> dict[str, float]:
    """Thousands of multiply-accumulates per pixel: of each network, and of the encoder's and the decoder's path."""
    per_position = {name: sum(count for _, count in network.macs()) for name, network in networks.items()}
    positions_per_pixel = {"analysis": 1 / PLANE_STEP**2, "hyper_synthesis": 1 / (4 * BLOCK) ** 2}
    kmac = {name: count * positions_per_pixel.get(name, 1 / BLOCK**2) / 1000 for name, count in per_position.items()}
    encoder = sum(value for name, value in kmac.items() if name != "synthesis")
    decoder = sum(value for name, value in kmac.items() if not name.endswith("analysis"))
    return {name: round(value, 3) for name, value in {**kmac, "encoder": encoder, "decoder": decoder}.items()}


def export_codec(weights: Path, out: Path) -> str:
    """Write the bundle of a checkpoint of `training.train` to `out`; returns its identity.

    Raises UsageError where a rule of the integer contract is broken.
    """
    return bundle_codec(*load_codec(weights), out)


def bundle_codec(codec: LatentCodec, counts: np.ndarray | None, out: Path) -> str:
    """As `export_codec`, of a codec in memory and the symbols counted for its entropy tables."""
    networks = {name: trace(name, module, channels) for name, (module, channels) in codec.named_networks().items()}
    gains, offsets = quality_tables(codec)
    frequencies, radii = laplacian_tables(trellis=True) if counts is None else fitted_tables(counts)
    tables = {
        "gains": gains,
        "mean_shifts": np.concatenate([codec.mean_shift.numpy(), np.full(HYPER_CHANNELS, FINE_EXP)]).astype(np.uint8),
        "table_offsets": offsets,
        "hyper_parameters": hyper_parameters(codec),
        "companding": companding_table(),
        "frequencies": frequencies,
        "radii": radii,
    }
    manifest = {
        "name": out.stem,
        "architecture": codec.architecture,
        "latent_channels": codec.latent_channels,
        "hyper_channels": HYPER_CHANNELS,
        "coding_steps": [asdict(step) for step in codec.steps],
        "trellis": TRELLIS_STATES,
    }
    return write_codec(out, manifest, networks, tables)


def write_codec(
    out: Path, manifest: dict[str, Any], networks: dict[str, Network], tables: dict[str, np.ndarray]
) -> str:
    """Prove `networks`, spell them out for every backend and write the bundle; returns its identity.

    `manifest` holds what only the caller knows of the codec. Raises RuleBroken if the networks break a rule.
    """
    manifest = {
        **manifest,
        "halo": {
            "analysis": math.ceil(networks["analysis"].receptive_radius() * PLANE_STEP / BLOCK),
            "synthesis": math.ceil(networks["synthesis"].receptive_radius()),
        },
        "kmac_per_pixel": complexity(networks),
        "networks": {name: describe(network) for name, network in networks.items()},
    }
    stored = {f"{name}/{key}": value for name, network in networks.items() for key, value in arrays(network).items()}
    members = {
        "networks.npz": pack_arrays(stored),
        "tables.npz": pack_arrays(tables),
        "known_answers.npz": pack_arrays(known_answers(networks)),
        "certificate.json": json.dumps(certificate(networks, manifest["halo"]), indent=1).encode(),
    }
    # Other formats than the contract's have no Q/DQ form: such a bundle runs on ONNX Runtime's CPU kernels only.
    exact = all(network.formats <= {EXACT, FLOAT} for network in networks.values())
    qdq_forms = {name: qdq_form(network) for name, network in networks.items()} if exact else {}
    tensorrt_rules.check(qdq_forms)
    members |= {f"onnx/{name}.qdq.onnx": graph for name, graph in qdq_forms.items()}
    for name, network in networks.items():
        members[f"onnx/{name}.onnxruntime.onnx"] = onnxruntime_form(network)
        filters = filter_plan.plan(network)
        if filters and filters.rest:
            members[f"onnx/{name}.rest.onnx"] = onnxruntime_form(filters.rest)
    return write_bundle(out, manifest, members)
