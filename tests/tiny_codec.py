"""A codec of 120 kilobytes that obeys every rule of the arithmetic contract: the conformance vectors are made with it.

It is not trained. A linear bypass over 16x16 blocks keeps the eight lowest cosines of each colour, so that its pictures
can be recognised; around it stand random layers of all kinds that bundles have. It never changes, so neither do the
vectors, whatever codec the package ships. Somebody who writes a decoder needs this small bundle and no other.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from linnet.calibration.certificate import certificate
from linnet.calibration.entropy_tables import laplacian_tables
from linnet.calibration.known_answers import known_answers
from linnet.calibration.onnx_forms import onnxruntime_form, qdq_form
from linnet.runtime.bundle import pack_arrays, write_bundle
from linnet.runtime.latents import (
    FINE_EXP,
    GAIN_EXP,
    SCALE_STEPS_PER_OCTAVE,
    SMALLEST_SCALE,
    TRELLIS_STATES,
    CodingStep,
    companding_table,
)
from linnet.runtime.network import (
    FLOAT,
    Add,
    Concat,
    Conv,
    DepthToSpace,
    EdgePad,
    Join,
    Network,
    Node,
    Select,
    SpaceToDepth,
    arrays,
    describe,
)
from linnet.runtime.tiles import BLOCK

COLOURS, FREQUENCIES = 3, ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0), (1, 2), (2, 1))
LATENTS, HYPER, FEATURES = COLOURS * len(FREQUENCIES), 6, 8
STEPS = (
    CodingStep(0, 6, parity=0, context=0),
    CodingStep(0, 6, parity=1, context=6),
    CodingStep(6, 12, parity=None, context=6),
    CodingStep(12, LATENTS, parity=None, context=12),
)
LARGEST_STEP, SMALLEST_STEP = 16.0, 0.25
"""Quantisation at quality 1 and 100, in whole latents."""
UNIT = 64
"""The weight that stands for 1 in the bypass."""


class _Layers:
    """Random convolutions. RandomState's numbers are the same in every version of numpy."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.RandomState(seed)

    def fine(self, source: str, output: str, inputs: int, outputs: int, kernel: int, bits: int) -> Conv:
        """A convolution in format "fp32-exact", to a tensor of so many bits, that keeps the loudness."""
        weight = 2 * self._random.randint(-190, 191, (outputs, inputs, kernel, kernel)).astype(np.int16)
        bias = (2 * self._random.randint(-500, 500, outputs) + 1).astype(np.int32)
        shift = np.full(outputs, round(math.log2(220 * math.sqrt(inputs) * kernel)))
        node = _conv(source, output, weight, bias, shift, 1, kernel // 2)
        return replace(node, format=FLOAT, bits=bits)

    def conv(
        self, source: str, output: str, inputs: int, outputs: int, kernel: int, *,
        stride: int = 1, quieter: int = 0, raw: bool = False,
    ) -> Conv:  # fmt: skip
        """Keeps the loudness of its input, or lowers it by 2**quieter."""
        weight = 2 * self._random.randint(-12, 13, (outputs, inputs, kernel, kernel)).astype(np.int8)
        bias = (2 * self._random.randint(-500, 500, outputs) + 1).astype(np.int32)
        shift = round(math.log2(14 * math.sqrt(inputs) * kernel)) + quieter
        return _conv(source, output, weight, bias, np.full(outputs, shift), stride, kernel // 2, raw)


def _conv(
    source: str, output: str, weight: np.ndarray, bias: np.ndarray, shift: np.ndarray, stride: int, padding: int,
    raw: bool = False,
) -> Conv:  # fmt: skip
    return Conv(output, source, output, weight, bias, shift.astype(np.uint8), stride, padding, raw)


def _cosines() -> np.ndarray:
    """(8, 16, 16): the basis of FREQUENCIES over a block."""
    wave = np.cos(np.pi * np.outer(np.arange(3), 2 * np.arange(BLOCK) + 1) / (2 * BLOCK))
    return np.stack([np.outer(wave[v], wave[u]) for v, u in FREQUENCIES])


def _planes_of_block(values: np.ndarray) -> np.ndarray:
    """(..., 16, 16) to (..., 4, 8, 8): the planes that the networks see, one for each phase of 2 x 2 pixels."""
    split = values.reshape(*values.shape[:-2], BLOCK // 2, 2, BLOCK // 2, 2)
    return np.moveaxis(split, (-3, -1), (-4, -3)).reshape(*values.shape[:-2], 4, BLOCK // 2, BLOCK // 2)


def _even(values: np.ndarray) -> np.ndarray:
    return (2 * np.rint(values / 2)).astype(np.int8)


def _bypass_in() -> Conv:
    """Blocks of pixels to latents: inner products with the cosines."""
    weight = np.zeros((LATENTS, 12, BLOCK // 2, BLOCK // 2), np.int8)
    shift = np.zeros(LATENTS)
    for number, (basis, frequency) in enumerate(zip(_cosines(), FREQUENCIES, strict=True)):
        for colour in range(COLOURS):
            weight[number * COLOURS + colour, 4 * colour : 4 * colour + 4] = _planes_of_block(_even(UNIT * basis))
            shift[number * COLOURS + colour] = math.log2(UNIT * BLOCK**2) - np.count_nonzero(frequency)
    return _conv("planes", "bypass", weight, np.ones(LATENTS, np.int32), shift, BLOCK // 2, 0, raw=True)


def _bypass_out() -> Conv:
    """Latents, whole and then quarters, to blocks of pixels."""
    weight = np.zeros((12 * (BLOCK // 2) ** 2, 2 * LATENTS, 1, 1), np.int8)
    by_plane = weight.reshape(COLOURS, 4, BLOCK // 2, BLOCK // 2, 2 * LATENTS)
    for number, basis in enumerate(_cosines()):
        for colour in range(COLOURS):
            channel = number * COLOURS + colour
            by_plane[colour, ..., channel] = _planes_of_block(_even(UNIT * basis))
            by_plane[colour, ..., LATENTS + channel] = _planes_of_block(_even(UNIT / 4 * basis))
    bias, shift = np.ones(len(weight), np.int32), np.full(len(weight), math.log2(UNIT))
    return _conv("latent", "blocks", weight, bias, shift, 1, 0)


def networks() -> dict[str, Network]:
    """The seven networks of the camera codec, much smaller."""
    layers = _Layers(4)
    conv, fine = layers.conv, layers.fine
    built: dict[str, Network] = {}

    def network(name: str, inputs: dict[str, int], outputs: tuple[str, ...], nodes: list[Node]) -> None:
        built[name] = Network(name, inputs, outputs, tuple(nodes))

    network("analysis", {"planes": 12}, ("latent",), [
        SpaceToDepth("packed", "planes", "packed", 2), conv("packed", "down4", 48, 6, 3),
        conv("down4", "down8", 6, 6, 3, stride=2),
        conv("down8", "down16", 6, LATENTS, 3, stride=2, quieter=5, raw=True), _bypass_in(),
        Add("sum", ("down16", "bypass"), "latent", raw=True),
    ])  # fmt: skip
    network("hyper_analysis", {"latent": LATENTS}, ("hyper",), [
        conv("latent", "down2", LATENTS, FEATURES, 3, stride=2),
        conv("down2", "hyper", FEATURES, HYPER, 3, stride=2, quieter=3, raw=True),
    ])  # fmt: skip
    network("hyper_synthesis", {"hyper": HYPER + 1}, ("features", "parameters"), [
        conv("hyper", "up2", HYPER + 1, 4 * FEATURES, 3), DepthToSpace("grown2", "up2", "grown2", 2),
        conv("grown2", "up1", FEATURES, 4 * FEATURES, 3), DepthToSpace("features", "up1", "features", 2),
        conv("features", "hidden", FEATURES, FEATURES, 1),
        conv("hidden", "parameters", FEATURES, 2 * STEPS[0].channels, 1, quieter=3),
    ])  # fmt: skip
    network("context_1", {"features": FEATURES, "coded": 6}, ("parameters",), [
        Concat("both", ("features", "coded"), "both"), conv("both", "hidden", FEATURES + 6, FEATURES, 3),
        conv("hidden", "parameters", FEATURES, 12, 1, quieter=3),
    ])  # fmt: skip
    # One that works at twice the resolution and hands its features on.
    network("context_2", {"features": FEATURES, "coded": 6}, ("refined", "parameters"), [
        Concat("both", ("features", "coded"), "both"), conv("both", "up", FEATURES + 6, 4 * FEATURES, 3),
        DepthToSpace("fine", "up", "fine", 2), SpaceToDepth("refined", "fine", "refined", 2),
        conv("fine", "few", FEATURES, 3, 1, quieter=3), SpaceToDepth("gathered", "few", "gathered", 2),
        Select("parameters", "gathered", "parameters", tuple(reversed(range(12)))),
    ])  # fmt: skip
    network("context_3", {"features": 4 * FEATURES, "coded": 12}, ("parameters",), [
        DepthToSpace("fine", "features", "fine", 2, phases_first=True),
        Select("some", "coded", "some", (11, 0, 3, 5, 7, 1, 2, 8)), DepthToSpace("grown", "some", "grown", 2),
        Concat("both", ("fine", "grown"), "both"), conv("both", "hidden", FEATURES + 2, 6, 3, quieter=3),
        SpaceToDepth("parameters", "hidden", "parameters", 2),
    ])  # fmt: skip
    network("synthesis", {"latent": 2 * LATENTS, "companded": LATENTS + 1}, ("planes",), [
        conv("companded", "enter", LATENTS + 1, 6, 3), conv("enter", "mix", 6, 6, 1),
        Add("sum", ("enter", "mix"), "sum", raw=False),
        Select("low", "latent", "low", tuple(range(6))), EdgePad("edge", "low", "edge", 1),
        replace(conv("edge", "smooth", 6, 6, 3), padding=0),
        Select("quarters", "latent", "quarters", tuple(range(LATENTS, LATENTS + 6))),
        Join("joined", ("low", "quarters"), "joined", 10), fine("joined", "wide", 6, 6, 3, 12),
        fine("wide", "mixed", 6, 6, 1, 12), Add("broad", ("wide", "mixed"), "broad", raw=False, bits=12),
        Add("narrow", ("smooth", "broad"), "narrow", raw=False),
        Add("residual", ("sum", "narrow"), "residual", raw=False),
        conv("residual", "up8", 6, 4 * 6, 3), DepthToSpace("grown8", "up8", "grown8", 2),
        conv("grown8", "up4", 6, 4 * 6, 3), DepthToSpace("grown4", "up4", "grown4", 2),
        conv("grown4", "up2", 6, 4 * 12, 3, quieter=4), DepthToSpace("grown2", "up2", "grown2", 2),
        _bypass_out(), DepthToSpace("picture", "blocks", "picture", BLOCK // 2),
        Add("planes", ("grown2", "picture"), "planes", raw=False),
    ])  # fmt: skip
    return built


def tables(trellis: int) -> dict[str, np.ndarray]:
    """Steps in a geometric row from LARGEST_STEP to SMALLEST_STEP, alike for all channels."""
    quality = np.arange(100)[:, None] / 99
    steps = LARGEST_STEP * (SMALLEST_STEP / LARGEST_STEP) ** quality * np.ones(LATENTS + HYPER)
    offsets = SCALE_STEPS_PER_OCTAVE * (1 - np.log2(steps) - math.log2(SMALLEST_SCALE))
    frequencies, radii = laplacian_tables(trellis=trellis > 0)
    return {
        "gains": np.rint(steps * 2 ** (GAIN_EXP + FINE_EXP)).astype(np.int16),
        "mean_shifts": np.array([FINE_EXP - 1] * 6 + [FINE_EXP] * (LATENTS - 6 + HYPER), np.uint8),
        "table_offsets": np.rint(offsets).astype(np.int16),
        "hyper_parameters": np.array([0] * HYPER + [16] * HYPER, np.int8),
        "companding": companding_table(),
        "frequencies": frequencies,
        "radii": radii,
    }


def write(path: Path, trellis: int = TRELLIS_STATES) -> str:
    """The bundle's identity. Raises UsageError where a layer breaks a rule."""
    built = networks()
    manifest = {
        "name": "tiny", "architecture": "tiny", "latent_channels": LATENTS, "hyper_channels": HYPER,
        "coding_steps": [asdict(step) for step in STEPS], "trellis": trellis,
        "halo": {
            "analysis": math.ceil(built["analysis"].receptive_radius() * 2 / BLOCK),
            "synthesis": math.ceil(built["synthesis"].receptive_radius()),
        },
        "kmac_per_pixel": {"encoder": 0.0, "decoder": 0.0},
        "networks": {name: describe(network) for name, network in built.items()},
    }  # fmt: skip
    stored = {f"{name}/{key}": value for name, network in built.items() for key, value in arrays(network).items()}
    members = {
        "networks.npz": pack_arrays(stored),
        "tables.npz": pack_arrays(tables(trellis)),
        "known_answers.npz": pack_arrays(known_answers(built)),
        "certificate.json": json.dumps(certificate(built), indent=1).encode(),
    }
    for name, network in built.items():
        members[f"onnx/{name}.onnxruntime.onnx"] = onnxruntime_form(network)
        members[f"onnx/{name}.qdq.onnx"] = qdq_form(network)
    return write_bundle(path, manifest, members)
