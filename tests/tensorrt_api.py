"""Every member of TensorRT and pycuda that linnet touches, written by hand; nothing else may be touched.

The fake of `fake_gpu.py` has exactly these members, and `test_tensorrt_api.py` looks each of them up in the real
bindings: so neither the code nor the fake can drift from the interface.

A line is `Class.member(parameters) -> result`, a constructor `Class(parameters)`, or without parentheses a property or
constant; ` =` after a property that is set. At its end may stand the versions that have it: `>= 10.4` or `< 11.0`.
Parameters are those that are passed, by the names that the bindings give them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Version = tuple[int, int]

TENSORRT = """
__version__
Builder(logger)
Builder.build_serialized_network(network, config) -> IHostMemory
Builder.create_builder_config() -> IBuilderConfig
Builder.create_network(flags) -> INetworkDefinition
Builder.create_optimization_profile() -> IOptimizationProfile
BuilderFlag.INT8                                                            < 11.0
BuilderFlag.TF32
DataType.FLOAT
DataType.INT8
EngineInspector.get_engine_information(format) -> str
ExecutionContextAllocationStrategy.USER_MANAGED
IBuilderConfig.add_optimization_profile(profile) -> int
IBuilderConfig.builder_optimization_level =
IBuilderConfig.clear_flag(flag) -> None
IBuilderConfig.create_timing_cache(serialized_timing_cache) -> ITimingCache
IBuilderConfig.get_timing_cache() -> ITimingCache
IBuilderConfig.max_aux_streams =
IBuilderConfig.max_num_tactics =                                            >= 10.4
IBuilderConfig.profiling_verbosity =
IBuilderConfig.progress_monitor =
IBuilderConfig.set_flag(flag) -> None
IBuilderConfig.set_memory_pool_limit(pool, pool_size) -> None
IBuilderConfig.set_timing_cache(cache, ignore_mismatch) -> bool
ICudaEngine.create_engine_inspector() -> EngineInspector
ICudaEngine.create_execution_context(strategy) -> IExecutionContext
ICudaEngine.device_memory_size_v2
ICudaEngine.get_tensor_dtype(name) -> DataType
ICudaEngine.get_tensor_name(index) -> str
ICudaEngine.num_io_tensors
IExecutionContext.execute_async_v3(stream_handle) -> bool
IExecutionContext.get_tensor_shape(name) -> Dims
IExecutionContext.profiler =
IExecutionContext.set_device_memory(memory, size) -> None
IExecutionContext.set_input_shape(name, shape) -> bool
IExecutionContext.set_tensor_address(name, memory) -> bool
ILogger()
ILogger.ERROR
ILogger.INTERNAL_ERROR
ILogger.WARNING
ILogger.log(severity, msg) -> None
IOptimizationProfile.set_shape(input, min, opt, max) -> None
IProfiler()
IProfiler.report_layer_time(layer_name, ms) -> None
IProgressMonitor()
IProgressMonitor.phase_finish(phase_name) -> None
IProgressMonitor.phase_start(phase_name, parent_phase, num_steps) -> None
IProgressMonitor.step_complete(phase_name, step) -> bool
ITimingCache.serialize() -> IHostMemory
LayerInformationFormat.JSON
MemoryPoolType.WORKSPACE
NetworkDefinitionCreationFlag.STRONGLY_TYPED
OnnxParser(network, logger)
OnnxParser.get_error(index) -> IParserError
OnnxParser.num_errors
OnnxParser.parse(model) -> bool
ParserError.desc() -> str
ProfilingVerbosity.DETAILED
Runtime(logger)
Runtime.deserialize_cuda_engine(serialized_engine) -> ICudaEngine
"""

PYCUDA = """
Context.detach()
Context.pop()
Context.push()
Device(ordinal)
Device.compute_capability()
Device.get_attribute(attr)
Device.name()
Device.retain_primary_context()
DeviceAllocation.free()
Error
PagelockedHostAllocation.free()
PagelockedHostAllocation.get_device_pointer()
Stream()
Stream.handle
Stream.synchronize()
device_attribute.INTEGRATED
get_driver_version()
get_version()
host_alloc_flags.DEVICEMAP
init()
mem_alloc(bytes)
memcpy_dtoh_async(dest, src, stream)
memcpy_htod_async(dest, src, stream)
pagelocked_empty(shape, dtype, mem_flags)
"""

PYCUDA_COMPILER = """
SourceModule(source, options, no_extern_c)
SourceModule.get_function(name)
"""


@dataclass(frozen=True)
class Member:
    """`owner` is "" for a member of the module; `name` "__init__" for a constructor. `parameters` None: no call."""

    owner: str
    name: str
    parameters: tuple[str, ...] | None
    result: str
    settable: bool
    since: Version = (0, 0)
    until: Version = (99, 0)

    def __str__(self) -> str:
        return f"{self.owner}.{self.name}".strip(".")

    def exists_in(self, version: Version) -> bool:
        return self.since <= version < self.until


_LINE = re.compile(
    r"(?:(?P<owner>\w+)\.)?(?P<name>\w+)(?P<call>\((?P<parameters>[\w, ]*)\))?(?: -> (?P<result>\w+))?(?P<settable> =)?"
    r"(?:\s+(?P<bound>>=|<) (?P<version>[\d.]+))?"
)


def members(table: str) -> list[Member]:
    """The lines of one of the tables."""
    found = []
    for line in table.split("\n"):
        if not line:
            continue
        match = _LINE.fullmatch(line.rstrip())
        assert match, line
        owner, name, result = (match[key] or "" for key in ("owner", "name", "result"))
        parameters = None
        if match["call"]:
            parameters = tuple(match["parameters"].replace(" ", "").split(",")) if match["parameters"] else ()
            if not owner and name[0].isupper():
                owner, name = name, "__init__"
        bounds = {}
        if match["bound"]:
            major, minor = match["version"].split(".")
            bounds["since" if match["bound"] == ">=" else "until"] = int(major), int(minor)
        found.append(Member(owner, name, parameters, result, bool(match["settable"]), **bounds))
    return found
