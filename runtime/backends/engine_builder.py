"""Builds TensorRT engines, proves their bits and stores them.

A fresh engine must give, at its own shapes, what a backend gives that has just reproduced the bundle's known answers.
One that does not is never stored: builders choose other kernels per device, version and even run, and nothing but the
arithmetic contract says what they may compute.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import MachineError
from . import Backend, check_known_answer
from .engines import BuildOptions, EngineCache, Record, Target, digest, inputs_at
from .tensorrt import Engine, Gpu, Log, Runner

MIB = 1 << 20

Progress = Callable[[str, int, int], None]
"""Called with (phase, steps done, steps) from TensorRT's threads."""


@dataclass(frozen=True)
class Built:
    """What the builder gives. `timings` are its measurements of kernels, `skipped` the options it does not have."""

    plan: bytes
    timings: bytes
    skipped: list[str]


def build(
    gpu: Gpu, graph: bytes, target: Target, options: BuildOptions, timings: bytes, progress: Progress | None = None
) -> Built:
    """One engine of the Q/DQ model `graph`. `timings` are those of earlier builds, empty for none.

    Raises MachineError with TensorRT's own words where it fails, KeyboardInterrupt where progress was interrupted.
    """
    trt, log, skipped = gpu.trt, Log(gpu), []
    try:
        builder = trt.Builder(log.logger)
    except TypeError as error:  # how the bindings say that a constructor gave nothing
        raise log.error("start its builder") from error
    network = log.require(builder.create_network(_network_flags(gpu, options)), "create a network")
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(graph):  # `graph` must live until the engine is built: the network points into it
        errors = [parser.get_error(index).desc() for index in range(parser.num_errors)]
        raise log.error(f"read the graph of {target} ({'; '.join(errors) or 'no reason given'})")
    config = log.require(builder.create_builder_config(), "configure a build")
    monitor = _monitor(trt, progress)
    _configure(gpu, config, options, monitor, skipped)
    cache = _timing_cache(config, timings)
    if cache is None:
        skipped.append("timing cache")
    profile = log.require(builder.create_optimization_profile(), "create a profile")
    for name, shape in target.shapes:
        try:
            profile.set_shape(name, shape, shape, shape)
        except ValueError as error:
            raise log.error(f"take the shape {shape} of {name} ({error})") from error
    if config.add_optimization_profile(profile) < 0:
        raise log.error(f"take the shapes of {target}")
    with gpu.current():
        serialized = builder.build_serialized_network(network, config)
    if serialized is None and monitor.interrupted:
        raise KeyboardInterrupt
    plan = bytes(log.require(serialized, f"build {target}"))
    measured = None if cache is None else config.get_timing_cache().serialize()
    return Built(plan, b"" if measured is None else bytes(measured), skipped)


def _network_flags(gpu: Gpu, options: BuildOptions) -> int:
    if options.strongly_typed:
        return 1 << int(gpu.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    if not hasattr(gpu.trt.BuilderFlag, "INT8"):
        raise MachineError(f"TensorRT {gpu.version} has strongly typed networks only: build without --weakly-typed")
    return 0


def _configure(gpu: Gpu, config: Any, options: BuildOptions, monitor: Any, skipped: list[str]) -> None:
    """Set the options that this version has, and note the others in `skipped`."""
    trt = gpu.trt
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * MIB)
    # All sums are exact in TF32 too; cleared so that nothing but the certificate has to be believed.
    config.clear_flag(trt.BuilderFlag.TF32)
    if not options.strongly_typed:
        # Not FP16 beside it: that would allow raw accumulators, which need 24 bits, to be computed in 11.
        config.set_flag(trt.BuilderFlag.INT8)
    wanted = {
        "builder_optimization_level": options.optimization_level,
        "max_num_tactics": options.max_tactics,
        "max_aux_streams": 0,  # lanes bring the streams
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,  # names of layers, for the profiler
        "progress_monitor": monitor,
    }
    for name, value in wanted.items():
        if value is None:
            continue
        if hasattr(config, name):
            setattr(config, name, value)
        else:
            skipped.append(name)


def _timing_cache(config: Any, timings: bytes) -> Any:
    """The cache that was set: of `timings`, or an empty one where those are damaged or another device's; else None."""
    for content in dict.fromkeys((timings, b"")):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return cache
    return None


def _monitor(trt: Any, progress: Progress | None) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined,misc]
        """Reports the outermost phase. An interruption may not pass through TensorRT: it is kept and ends the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._steps: dict[str, int] = {}

        def _report(self, phase: str, done: int) -> None:
            try:
                if progress is not None and phase in self._steps:
                    progress(phase, done, self._steps[phase])
            except KeyboardInterrupt:
                self.interrupted = True

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._steps[phase_name] = num_steps
                self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            self._report(phase_name, self._steps.get(phase_name, 0))

    return Monitor()


class _AnswersAt:
    """The known answers of a bundle at the shapes of a target, from a backend that reproduces the bundle's own."""

    def __init__(self, bundle: Bundle, target: Target, trusted: Backend) -> None:
        self.name = bundle.name
        self._inputs = inputs_at(bundle, target)
        check_known_answer(trusted, bundle, target.network)
        self.outputs = trusted.run(target.network, self._inputs)

    def known_answer(self, network: str) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
        return self._inputs, self.outputs


class _One:
    """A single engine as a backend."""

    name = "tensorrt"

    def __init__(self, runner: Runner, engine: Engine) -> None:
        self._runner, self._engine = runner, engine

    def run(self, network: str, inputs: Any) -> list[np.ndarray]:
        return self._runner.run(self._engine, inputs)


class EngineBuilder:
    """Builds engines of one bundle into one cache. `trusted` computes what they must compute."""

    def __init__(self, bundle: Bundle, cache: EngineCache, gpu: Gpu, trusted: Backend) -> None:
        self._bundle, self._cache, self._gpu, self._trusted = bundle, cache, gpu, trusted
        self._graphs = bundle.graphs("qdq")
        self._runner = Runner(gpu)
        self.close = self._runner.close

    def stale(self, target: Target, options: BuildOptions) -> list[str]:
        """Why `target` would be built; empty where it would not."""
        return self._cache.stale(target, self._gpu.facts(self._graphs[target.network], target), options)

    def make(self, target: Target, options: BuildOptions, progress: Progress | None = None) -> Record:
        """Build, prove and store one engine. One whose bits differ is rejected: see the record.

        Raises MachineError where TensorRT cannot build it or the trusted backend is wrong.
        """
        graph = self._graphs[target.network]
        facts = self._gpu.facts(graph, target)
        started = time.perf_counter()
        built = build(self._gpu, graph, target, options, self._cache.timings(facts), progress)
        build_s = round(time.perf_counter() - started, 1)
        if built.timings:
            self._cache.store_timings(facts, built.timings)
        engine = self._runner.load(built.plan, self._bundle.networks[target.network], target)
        answers = _AnswersAt(self._bundle, target, self._trusted)
        rejected = ""
        try:
            check_known_answer(_One(self._runner, engine), answers, target.network)
        except MachineError as error:
            rejected = str(error)
        finally:
            self._runner.forget(engine)
        record = Record(target, facts, options, "", digest(answers.outputs), rejected, built.skipped, build_s)
        return self._cache.store(record, None if rejected else built.plan)
