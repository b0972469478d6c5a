"""Latents of a batch of tiles to entropy-coded payloads and back.

The order is fixed by the bundle: first the hyper-latent under a fixed table per channel, then each coding step under
the parameters that the networks predict from everything decoded before it. A codec without hyper-latents has fixed
parameters for its latents instead. Nothing here crosses a tile's border: a
payload decodes by itself. The decoder repeats the encoder's calls exactly, and the networks are integers, so both
see the same tables on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np

from . import core
from .backends import Backend
from .bundle import Bundle
from .errors import InputError
from .latents import BIT_WORTH, TRELLIS_BIT_WORTH, CodingStep, quality_value
from .rate import RateCurve
from .stages import ENTROPY, stage
from .tiles import BLOCK, HYPER_BLOCK

HYPER_SHRINK = HYPER_BLOCK // BLOCK


class _Symbols(Protocol):
    """What differs between coding and decoding one step of one tile: fills `decoded` and `companded` in place."""

    def __call__(
        self,
        tile: int,
        step: core.Step,
        parameters: np.ndarray,
        decoded: np.ndarray,
        companded: np.ndarray,
        value: np.ndarray | None,
    ) -> None: ...


class TileCoder:
    """Codes tiles of one bundle at one quality (1..100) on one backend. Calls may come from one thread at a time."""

    def __init__(self, bundle: Bundle, backend: Backend, quality: int, pool: ThreadPoolExecutor | None = None) -> None:
        self._bundle, self._backend, self._pool = bundle, backend, pool
        self._gains = bundle.gains[quality - 1]
        self._offsets = bundle.table_offsets[quality - 1]
        self._quality_value = quality_value(quality)

    @stage(ENTROPY)
    def encode(self, latents: np.ndarray, curve: RateCurve | None = None) -> tuple[list[bytes], np.ndarray]:
        """Latents (N, h, w, C) float32 in full-scale units, sides multiples of 4: payloads, decoded (N, h, w, 2 C).

        `curve` is shown the symbols on the way.
        """
        symbols, decoded = self.symbols(latents, curve)
        tables = self._bundle.entropy_tables
        return self._each(lambda tile: core.rans_encode(tables, *symbols[tile]), len(latents)), decoded

    def symbols(
        self, latents: np.ndarray, curve: RateCurve | None = None
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
        """As `encode`, but (coded symbols, table index of each) of each tile instead of payloads."""
        tables, trellis = self._bundle.entropy_tables, self._bundle.trellis
        bit_worth = TRELLIS_BIT_WORTH if trellis else BIT_WORTH
        symbols: list[list[np.ndarray]] = [[] for _ in latents]
        indices: list[list[np.ndarray]] = [[] for _ in latents]

        def quantize(tile, step, parameters, decoded, companded, value):  # type: ignore[no-untyped-def]
            residual, table_index = core.step_residuals(step, value, parameters)
            levels, tile_symbols, tile_indices = core.search(tables, residual, table_index, bit_worth, trellis)
            core.dequantize(step, parameters, levels, decoded, companded)
            symbols[tile].append(tile_symbols)
            indices[tile].append(tile_indices)
            if curve is not None:
                curve.observe(step, value, parameters, hyper=value.shape[:2] != latents.shape[1:3])

        hyper = None
        if self._bundle.hyper_channels:
            seen = core.compand(latents, self._bundle.companding)
            hyper = self._backend.run("hyper_analysis", {"latent": seen})[0]
        decoded = self._walk(latents.shape, quantize, hyper, latents)
        joined = [(np.concatenate(s), np.concatenate(i)) for s, i in zip(symbols, indices, strict=True)]
        return joined, decoded

    @stage(ENTROPY)
    def decode(self, payloads: Sequence[bytes], names: Sequence[str], height: int, width: int) -> np.ndarray:
        """Payloads of tiles of `height` x `width` latents to decoded latents (N, h, w, 2 C) int8, whole and quarters.

        Raises InputError naming the tile (by `names`) whose payload is damaged.
        """
        tables, trellis = self._bundle.entropy_tables, self._bundle.trellis
        decoders = [_of_tile(name, core.RansDecoder, payload) for name, payload in zip(names, payloads, strict=True)]

        def dequantize(tile, step, parameters, decoded, companded, value):  # type: ignore[no-untyped-def]
            table_index = core.step_tables(step, parameters)
            levels = _of_tile(names[tile], decoders[tile].decode, tables, table_index, trellis)
            core.dequantize(step, parameters, levels, decoded, companded)

        shape = (len(payloads), height, width, self._bundle.latent_channels)
        decoded = self._walk(shape, dequantize, None, None)
        for name, decoder in zip(names, decoders, strict=True):
            _of_tile(name, decoder.finish)
        return decoded

    def _walk(
        self, shape: tuple[int, ...], code: _Symbols, hyper: np.ndarray | None, latents: np.ndarray | None
    ) -> np.ndarray:
        """The one order of coding, shared by both directions; returns the decoded latents."""
        bundle = self._bundle
        if bundle.latent_parameters is not None:
            features = None
            parameters_all = np.broadcast_to(bundle.latent_parameters, (*shape[:3], 2 * shape[3])).copy()
        else:
            features, parameters_all = self._walk_hyper(shape, code, hyper)
        decoded, companded = np.zeros((*shape[:3], 2 * shape[3]), np.int8), np.zeros(shape, np.int8)
        for index, coding_step in enumerate(bundle.steps):
            if index:
                context = np.ascontiguousarray(companded[..., : coding_step.context])
                outputs = self._backend.run(f"context_{index}", {"features": features, "coded": context})
                # A step may hand its successors features of its own.
                features, parameters_all = outputs[0] if len(outputs) > 1 else features, outputs[-1]
            if bundle.log_scales is not None:
                means, scales = np.split(parameters_all, 2, axis=-1)
                parameters_all = np.concatenate([means, bundle.log_scales[scales.astype(np.int16) + 128]], axis=-1)
            self._code_step(coding_step, parameters_all, code, decoded, companded, latents)
        return decoded

    def _walk_hyper(
        self, shape: tuple[int, ...], code: _Symbols, hyper: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The hyper-latent's part of the order; returns (features, parameters of the first step)."""
        bundle, count, (height, width) = self._bundle, shape[0], shape[1:3]
        hyper_height, hyper_width = height // HYPER_SHRINK, width // HYPER_SHRINK
        channels = bundle.hyper_channels
        hyper_decoded = np.zeros((count, hyper_height, hyper_width, 2 * channels), np.int8)
        # Where the network wants it, the quality rides along as one more channel: how coarse the input is.
        seen_channels = bundle.inputs("hyper_synthesis")["hyper"]
        hyper_seen = np.full((count, hyper_height, hyper_width, seen_channels), self._quality_value, np.int8)
        hyper_companded = np.zeros((count, hyper_height, hyper_width, channels), np.int8)
        parameters = np.broadcast_to(bundle.hyper_parameters, (hyper_height, hyper_width, 2 * channels)).copy()
        step = self._step(CodingStep(0, channels, None, 0), hyper_companded.shape, bundle.latent_channels)

        def code_hyper(tile: int) -> None:
            value = None if hyper is None else hyper[tile]
            code(tile, step, parameters, hyper_decoded[tile], hyper_companded[tile], value)

        self._each(code_hyper, count)
        hyper_seen[..., :channels] = hyper_companded
        outputs = self._backend.run("hyper_synthesis", {"hyper": hyper_seen})
        return outputs[0], outputs[-1]

    def _code_step(
        self,
        coding_step: CodingStep,
        parameters: np.ndarray,
        code: _Symbols,
        decoded: np.ndarray,
        companded: np.ndarray,
        latents: np.ndarray | None,
    ) -> None:
        step = self._step(coding_step, companded.shape, 0)

        def code_tile(tile: int) -> None:
            value = None if latents is None else latents[tile]
            code(tile, step, parameters[tile], decoded[tile], companded[tile], value)

        self._each(code_tile, len(decoded))

    def _step(self, step: CodingStep, shape: tuple[int, ...], table_base: int) -> core.Step:
        part = slice(table_base + step.first, table_base + step.last)
        return core.Step(
            height=shape[1],
            width=shape[2],
            channels=shape[3],
            first=step.first,
            last=step.last,
            parity=-1 if step.parity is None else step.parity,
            gain=self._gains[part],
            mean_shift=self._bundle.mean_shifts[part],
            table_offset=self._offsets[part],
            companding=self._bundle.companding,
            tables=self._bundle.scale_tables,
        )

    def _each(self, function: Callable, count: int) -> list:  # type: ignore[type-arg]
        """`function` of each tile number, in parallel where there is a pool (the native core releases the lock)."""
        return list((self._pool.map if self._pool else map)(function, range(count)))


def _of_tile(name: str, function: Callable, *arguments: object) -> object:  # type: ignore[type-arg]
    """Call `function`; where the payload is damaged, say in which tile."""
    try:
        return function(*arguments)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
