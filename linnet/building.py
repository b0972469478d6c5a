"""`linnet build`: TensorRT engines for the frames that a device will see, or only the plan of it.

Which shapes a frame needs is not worked out but observed: a frame of that size is coded and decoded with a backend that
writes down what it is asked for. So the plan cannot differ from what a session asks for later.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from typing import Any

import numpy as np

from . import defaults
from .runtime import backends
from .runtime.backends import cutting
from .runtime.backends.engines import BuildOptions, EngineCache, Target
from .runtime.bundle import Bundle, locate
from .runtime.codec import Codec
from .runtime.errors import Absent, MachineError, UsageError
from .runtime.writer import PictureWriter

GRAPHS = "graphs"
"""Folder of the ONNX files in the commands of a dry run."""


@dataclass(frozen=True)
class Device:
    """What is known of a device before it is seen. `compute_capabilities` empty: any.

    `workspace_mib` bounds what one layer may take beside its tensors: TensorRT's own default is all memory, which on
    these devices the processor needs too. `batch` is the number of tiles that run at once.
    """

    what: str
    compute_capabilities: tuple[tuple[int, int], ...]
    workspace_mib: int
    batch: int


ORIN = ((8, 7),)
DEVICES = {
    "orin-nano": Device("Jetson Orin Nano", ORIN, 512, 4),
    "orin-nx": Device("Jetson Orin NX", ORIN, 1024, 4),
    "agx-orin": Device("Jetson AGX Orin", ORIN, 2048, 8),
    "thor": Device("Jetson Thor", ((11, 0), (10, 1)), 4096, 8),  # renamed between CUDA 12 and 13
    "this": Device("the GPU of this machine", (), 1024, 8),
}


class _Observer:
    """A backend that computes zeros, and notes the batches of each network by height and width."""

    name = "observer"

    def __init__(self, bundle: Bundle) -> None:
        self._networks = bundle.networks
        self.seen: dict[str, dict[cutting.Place, list[int]]] = {}

    def run(self, network: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        structure = self._networks[network]
        shapes = {name: inputs[name].shape for name in structure.inputs}
        ((count, *place),) = {shape[:3] for shape in shapes.values()}
        self.seen.setdefault(network, {}).setdefault(tuple(place), []).append(count)
        kinds = (np.float32 if raw else np.int8 for raw in structure.raw_outputs)
        return [np.zeros(shape, kind) for shape, kind in zip(structure.output_shapes(shapes), kinds, strict=True)]


@dataclass(frozen=True)
class _Blank:
    """A black frame that takes no memory."""

    width: int
    height: int

    def rows(self, y: int, count: int) -> np.ndarray:
        return np.zeros((count, self.width, 3), np.uint8)


def asked_for(
    bundle: Bundle, sizes: Iterable[tuple[int, int]], *, tile: int | None, levels: int, decoder: bool
) -> dict[str, dict[cutting.Place, list[int]]]:
    """What frames of `sizes` ask of each network: heights and widths, and the batch of each call."""
    observer = _Observer(bundle)
    codec = Codec(bundle, observer, threads=1)
    for width, height in sizes:
        written = BytesIO()
        codec.encode_frame(PictureWriter(written), _Blank(width, height), tile=tile, levels=levels)
        if decoder:
            for level in range(levels + 1):
                for _ in codec.strips(written.getvalue(), level=level):
                    pass
    return observer.seen


def targets(
    bundle: Bundle,
    asked: Mapping[str, Mapping[cutting.Place, list[int]]],
    batch: int,
    more_work: float = defaults.MORE_WORK_PERCENT / 100,
) -> list[Target]:
    """The engines for what is `asked_for`, with batches of at most `batch`, network by network.

    Large tensors are computed in overlapping pieces so that few engines do; `more_work` is the share of additional
    work that this may cost (0: an engine for every shape).
    """
    return [
        Target(network, tuple((name, (count, *place, c)) for name, c in bundle.networks[network].inputs.items()))
        for network, place, count in cutting.few_places(bundle.networks, asked, batch, more_work)
    ]


def trtexec(target: Target, options: BuildOptions, graph: str) -> str:
    """The command line of NVIDIA's own tool that builds the same engine."""
    shapes = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in target.shapes)
    arguments = [
        "trtexec",
        f"--onnx={graph}",
        f"--saveEngine={str(target).replace(' ', '-')}.engine",
        "--stronglyTyped" if options.strongly_typed else "--int8",
        "--noTF32",
        f"--shapes={shapes}",
        f"--memPoolSize=workspace:{options.workspace_mib}M",
        f"--builderOptimizationLevel={options.optimization_level}",
        "--maxAuxStreams=0",
        "--profilingVerbosity=detailed",
        "--timingCacheFile=timing.cache",
        "--skipInference",
    ]
    if options.max_tactics is not None:
        arguments.append(f"--maxTactics={options.max_tactics}")
    return shlex.join(arguments)


def main(options: argparse.Namespace) -> int:
    """The command; exit status 3 where an engine could not be built or was rejected."""
    device = DEVICES[options.device]
    bundle = Bundle.open(options.bundle)
    wanted = BuildOptions(
        workspace_mib=options.workspace or device.workspace_mib,
        strongly_typed=not options.weakly_typed,
        max_tactics=options.max_tactics,
    )
    cache = EngineCache(bundle)
    builder = None if options.dry_run else _builder(bundle, cache, device)
    asked = asked_for(bundle, options.size, tile=options.tile, levels=options.levels, decoder=not options.encoder_only)
    engines = targets(bundle, asked, device.batch, options.more_work / 100)
    if builder is None:
        print("\n".join(_plan(bundle, options.bundle, device, wanted, engines, cache)))
        return 0
    failures = 0
    try:
        for number, target in enumerate(engines, 1):
            reasons = builder.stale(target, wanted)
            if not reasons and not options.force:
                print(f"{target}: up to date")
                continue
            with _Bar(f"{number}/{len(engines)} {target}") as progress:
                try:
                    record = builder.make(target, wanted, progress)
                except MachineError as error:
                    failures += 1
                    print(f"linnet: {error}", file=sys.stderr)
                    continue
            why = "; ".join(reasons) or "forced"
            if record.rejected:
                failures += 1
                print(f"linnet: {target} is rejected: {record.rejected}", file=sys.stderr)
                continue
            without = f"; this TensorRT has no {', '.join(record.skipped)}" if record.skipped else ""
            print(f"{target}: built in {record.build_s} s and its bits proved ({why}){without}")
    finally:
        builder.close()
    if failures:
        print(f"linnet: {failures} of {len(engines)} engines are missing: the next backend will do their work",
              file=sys.stderr)  # fmt: skip
    return 3 if failures else 0


def _builder(bundle: Bundle, cache: EngineCache, device: Device) -> Any:
    from .runtime.backends.engine_builder import EngineBuilder
    from .runtime.backends.tensorrt import this_gpu

    gpu = this_gpu()
    if device.compute_capabilities and gpu.compute_capability not in device.compute_capabilities:
        raise UsageError(
            f"this GPU is {gpu.name} and not that of {device.what}: engines are built where they run; "
            "use --device this, or --dry-run for the plan"
        )
    try:
        trusted = backends.select("onnxruntime", bundle)
    except MachineError:
        trusted = backends.select("reference", bundle)
    return EngineBuilder(bundle, cache, gpu, trusted)


def _plan(
    bundle: Bundle, path: str | None, device: Device, options: BuildOptions, engines: list[Target], cache: EngineCache
) -> list[str]:
    """What a build would do here, and how to do it with trtexec."""
    builder, here = None, "can be built"
    try:
        builder = _builder(bundle, cache, device)
    except (Absent, UsageError) as error:
        here = f"cannot be built: {error}"
    settings = ", ".join(f"{name} {value}" for name, value in asdict(options).items() if value is not None)
    text = [
        f"bundle   {bundle.name} {bundle.identity[:16]}",
        f"device   {device.what}",
        f"here     {here}",
        f"options  {settings}",
        f"folder   {cache.folder}",
        "",
        f"{len(engines)} engines:",
    ]
    for target in engines:
        reasons = "; ".join(builder.stale(target, options)) or "up to date" if builder else ""
        text.append(f"  {target}{': ' if reasons else ''}{reasons}")
    source = locate(path)
    text += ["", "The same engines with trtexec, for pipelines of your own (compare the bundle's known answers there):"]
    if source.is_dir():
        folder = str(source)
    else:
        folder = GRAPHS
        text.append(shlex.join(["python3", "-m", "zipfile", "-e", str(source), GRAPHS]))
    return text + [trtexec(t, options, f"{folder}/onnx/{t.network}.qdq.onnx") for t in engines]


class _Bar:
    """The builder's outermost phase, on a terminal only."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._bar: Any = None

    def __enter__(self) -> Callable[[str, int, int], None] | None:
        if not sys.stderr.isatty():
            return None
        from tqdm import tqdm

        self._bar = tqdm(desc=self._what, unit="step", leave=False, file=sys.stderr, dynamic_ncols=True)
        return self._advance

    def _advance(self, phase: str, done: int, steps: int) -> None:
        self._bar.set_postfix_str(phase, refresh=False)
        self._bar.total = steps
        self._bar.n = done
        self._bar.refresh()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
