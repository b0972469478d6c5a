"""A GPU that is not there: TensorRT, pycuda and CUDA graphs, with the members of `tensorrt_api`, over numpy.

Engines compute with the reference backend. As on a GPU, work put on a stream runs when the stream is waited for, and
memory is addressed by number. What real ones leave undefined is an error here: a call without a current context, an
address outside of an allocation or not aligned, a member that this version does not have.
"""

from __future__ import annotations

import ctypes
import hashlib
import inspect
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorrt_api

from linnet.runtime.backends import cuda_graph, pixels_reference
from linnet.runtime.backends import tensorrt as real
from linnet.runtime.backends.pixels_reference import WEIGHTS, Colour
from linnet.runtime.backends.reference import run_network
from linnet.runtime.network import Add, Conv, Network

ALIGNMENT = 256
FAKE_LAYER_MS = 0.25


class Machine:
    """The machine that the fakes share: what it is, what went on, and what goes wrong on request."""

    def __init__(self, version: str = "10.13.3", networks: dict[bytes, Network] | None = None) -> None:
        self.version = version
        self.gpu, self.capability, self.driver = "Fake Orin", (8, 7), 12060
        self.shared_memory = False
        self.networks = {hashlib.sha256(graph).hexdigest(): network for graph, network in (networks or {}).items()}
        self.allocations: dict[int, int] = {}
        """Address -> size of what is not freed."""
        self.current = threading.local()
        self.counts: dict[str, int] = {}
        self.streams: dict[int, Any] = {}
        self.graphs: dict[int, Any] = {}
        self.flags: list[object] = []
        self.configs: list[Any] = []
        self.given_timings: list[bytes] = []
        # What goes wrong:
        self.wrong_bits: Callable[[str], bool] = lambda network: False
        self.fails: set[str] = set()
        """Members that answer None or False after they logged an error."""
        self.capture_error = 0
        self.step: Callable[[int], None] = lambda step: None

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def depth(self) -> int:
        return getattr(self.current, "depth", 0)

    def need_context(self) -> None:
        assert self.depth() == 1, "no current context"

    def allocate(self, size: int) -> tuple[int, Any]:
        self.need_context()
        memory = np.full(size + ALIGNMENT, 0x55, np.uint8)
        address = -(-memory.ctypes.data // ALIGNMENT) * ALIGNMENT
        self.allocations[address] = size
        return address, memory

    @contextmanager
    def holding(self, *arrays: np.ndarray) -> Iterator[list[int]]:
        """The addresses of copies of `arrays` in the GPU's memory."""
        kept = [np.array(array) for array in arrays]
        found = {array.ctypes.data: array.nbytes for array in kept}
        self.allocations.update(found)
        yield list(found)
        for address in found:
            del self.allocations[address]

    def memory(self, address: int, size: int) -> np.ndarray:
        inside = any(
            start <= address and address + size <= start + length for start, length in self.allocations.items()
        )
        assert inside, "address outside of every allocation"
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def _assemble(name: str, table: str, behaviour: dict[str, Any], version: tuple[int, int]) -> ModuleType:
    """A module with exactly the table's members of this version, which do what `behaviour` says.

    Names with an underscore are the fake's own and stay.
    """
    listed = tensorrt_api.members(table)
    _same_names(listed, behaviour)
    module = ModuleType(name)
    for owner in {member.owner for member in listed}:
        known = [member for member in listed if member.owner == owner]
        inside = vars(behaviour[owner]) if owner else behaviour
        space = {key: value for key, value in inside.items() if owner and _own(key)}
        for member in known:
            if member.exists_in(version):
                space[member.name] = (
                    _settable(member.name) if member.settable else _checked(inside[member.name], member)
                )
        if not owner:
            for key, value in space.items():
                setattr(module, key, value)
            continue
        base = behaviour[owner].__bases__
        setattr(module, owner, type(owner, (_Strict, *base) if base == (object,) else base, space))
    return module


def _own(name: str) -> bool:
    return name.startswith("_") and name not in ("__init__", "__dict__", "__weakref__")


def _same_names(listed: list[tensorrt_api.Member], behaviour: dict[str, Any]) -> None:
    """Behaviour and table have the same members."""
    given = set()
    for key, value in behaviour.items():
        if inspect.isclass(value) and not (isinstance(value, type) and issubclass(value, Exception)):
            given |= {
                f"{key}.{name}" for name in vars(value) if not _own(name) and name not in ("__dict__", "__weakref__")
            }
        else:
            given.add(key)
    wanted = {str(member) for member in listed if not member.settable}
    assert given == wanted, given ^ wanted


class _Strict:
    """No attributes but the listed ones, as with classes of the real bindings."""

    def __setattr__(self, name: str, value: object) -> None:
        listed = getattr(type(self), name, None)
        if not name.startswith("_") and not isinstance(listed, property):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        object.__setattr__(self, name, value)


class _Derivable:
    """The base of what linnet derives from; such classes take attributes."""


def _settable(name: str) -> property:
    def setter(self: Any, value: object) -> None:
        object.__setattr__(self, f"_set_{name}", value)

    return property(lambda self: getattr(self, f"_set_{name}", None), setter)


def _checked(value: Any, member: tensorrt_api.Member) -> Any:
    """A function that takes the parameters of the table and no others."""
    if member.parameters is None:
        return value
    names = (["self"] if member.owner else []) + list(member.parameters)
    signature = inspect.Signature([inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names])

    def call(*arguments: Any, **named: Any) -> Any:
        signature.bind(*arguments, **named)
        return value(*arguments, **named)

    return call


def _fused(node: Any) -> str:
    """How TensorRT names a layer: after the graph's nodes that it made one of."""
    return f"{node.name}/weight_float + {node.output}/nchw/wide" if isinstance(node, Conv) else f"{node.output}/nchw"


def _constants(**values: object) -> type:
    return type("Constants", (), values)


def tensorrt(machine: Machine) -> ModuleType:
    """The fake of the module `tensorrt`."""
    version = tuple(int(part) for part in machine.version.split(".")[:2])

    def fails(member: str, logger: Any) -> bool:
        machine.count(member)
        if member in machine.fails:
            logger.log(ILogger.ERROR, f"{member} went\nwrong")
        return member in machine.fails

    class IHostMemory(bytes):
        """Only the buffer interface is used."""

    class ILogger(_Derivable):
        INTERNAL_ERROR, ERROR, WARNING, _INFO = range(4)

        def __init__(self) -> None: ...

        def log(self, severity: int, msg: str) -> None: ...

    class IProgressMonitor(_Derivable):
        def __init__(self) -> None: ...

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None: ...

    class ITimingCache:
        def _set(self, content: bytes) -> Any:
            self._content = content
            return self

        def serialize(self) -> IHostMemory:
            return IHostMemory(b"timings " + self._content.removeprefix(b"timings "))

    class IBuilderConfig:
        def _of(self, logger: Any) -> Any:
            self._logger, self._limits, self._cleared, self._flags, self._timing = logger, {}, [], [], None
            return self

        def set_memory_pool_limit(self, pool: object, pool_size: int) -> None:
            self._limits[pool] = pool_size

        def clear_flag(self, flag: object) -> None:
            self._cleared.append(flag)

        def set_flag(self, flag: object) -> None:
            self._flags.append(flag)

        def add_optimization_profile(self, profile: Any) -> int:
            self._profile = profile
            return -1 if fails("IBuilderConfig.add_optimization_profile", self._logger) else 0

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            machine.given_timings.append(serialized_timing_cache)
            return module.ITimingCache()._set(serialized_timing_cache)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            if cache._content not in (b"",) and not cache._content.startswith(b"timings "):
                return False
            self._timing = cache
            return not fails("IBuilderConfig.set_timing_cache", self._logger)

        def get_timing_cache(self) -> Any:
            return self._timing

    class IOptimizationProfile:
        def set_shape(self, input: str, min: tuple, opt: tuple, max: tuple) -> None:
            if not min == opt == max:
                raise ValueError("the tests know static shapes only")
            self._shapes = {**getattr(self, "_shapes", {}), input: min}

    class Builder:
        def __init__(self, logger: Any) -> None:
            if fails("Builder", logger):
                raise TypeError("pybind11::init(): factory function returned nullptr")
            self._logger = logger

        def create_network(self, flags: int) -> Any:
            machine.flags.append(flags)
            if fails("Builder.create_network", self._logger):
                return None
            return SimpleNamespace(graph=None)

        def create_builder_config(self) -> Any:
            machine.configs.append(module.IBuilderConfig()._of(self._logger))
            return machine.configs[-1]

        def create_optimization_profile(self) -> Any:
            return module.IOptimizationProfile()

        def build_serialized_network(self, network: Any, config: Any) -> IHostMemory | None:
            machine.need_context()
            monitor = getattr(config, "progress_monitor", None)
            monitor.phase_start("Building", None, 3)
            monitor.phase_start("Timing", "Building", 5)
            for step in range(3):
                machine.step(step)
                if not monitor.step_complete("Building", step):
                    return None
            monitor.phase_finish("Building")
            if fails("Builder.build_serialized_network", self._logger):
                return None
            self._logger.log(ILogger._INFO, "not worth keeping")
            return IHostMemory(json.dumps({"graph": network.graph, "shapes": config._profile._shapes}).encode())

    class ParserError:
        def desc(self) -> str:
            return "no importer for Abacus"

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self._network, self._logger = network, logger

        def parse(self, model: bytes) -> bool:
            if fails("OnnxParser.parse", self._logger):
                return False
            self._network.graph = hashlib.sha256(model).hexdigest()
            return True

        num_errors = property(lambda self: 1)

        def get_error(self, index: int) -> Any:
            return module.ParserError()

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            machine.need_context()
            if fails("Runtime.deserialize_cuda_engine", self._logger):
                return None
            return module.ICudaEngine()._of(json.loads(bytes(serialized_engine)), self._logger)

    class ICudaEngine:
        def _of(self, plan: dict[str, Any], logger: Any) -> Any:
            self._logger, self._network = logger, machine.networks[plan["graph"]]
            self._inputs = {name: tuple(shape) for name, shape in plan["shapes"].items()}
            outputs = self._network.output_shapes(self._inputs)
            self._outputs = dict(zip(self._network.outputs, outputs, strict=True))
            raw = zip(self._network.outputs, self._network.raw_outputs, strict=True)
            self._types = {
                **dict.fromkeys(self._inputs, DataType.INT8),
                **{n: DataType.FLOAT if r else DataType.INT8 for n, r in raw},
            }
            return self

        num_io_tensors = property(lambda self: len(self._types))
        device_memory_size_v2 = property(lambda self: 1000 + sum(map(np.prod, self._inputs.values())))

        def get_tensor_name(self, index: int) -> str:
            return sorted(self._types)[index]

        def get_tensor_dtype(self, name: str) -> object:
            return self._types[name]

        def create_engine_inspector(self) -> Any:
            return module.EngineInspector()._of(self)

        def create_execution_context(self, strategy: object) -> Any:
            machine.need_context()
            return module.IExecutionContext()._of(self)

    class EngineInspector:
        def _of(self, engine: Any) -> Any:
            self._engine = engine
            return self

        def get_engine_information(self, format: object) -> str:
            assert format == "JSON"
            kinds = {Conv: "CaskConvolution", Add: "PointWiseV2"}
            layers = [
                {"Name": _fused(n), "LayerType": kinds.get(type(n), "Shuffle")} for n in self._engine._network.nodes
            ]
            return json.dumps({"Layers": [*layers, "a layer without details"], "Bindings": []})

    class IProfiler(_Derivable):
        def __init__(self) -> None: ...

        def report_layer_time(self, layer_name: str, ms: float) -> None: ...

    class IExecutionContext:
        def _of(self, engine: Any) -> Any:
            self._engine, self._shapes, self._addresses, self._scratch = engine, {}, {}, (0, 0)
            return self

        def set_input_shape(self, name: str, shape: tuple) -> bool:
            self._shapes[name] = shape
            return shape == self._engine._inputs[name]

        def set_tensor_address(self, name: str, memory: int) -> bool:
            self._addresses[name] = memory
            return memory % ALIGNMENT == 0 and name in self._engine._types

        def set_device_memory(self, memory: int, size: int) -> None:
            self._scratch = memory, size

        def get_tensor_shape(self, name: str) -> list[int]:
            return list(self._engine._outputs[name])

        def execute_async_v3(self, stream_handle: int) -> bool:
            machine.need_context()
            engine = self._engine
            if fails("IExecutionContext.execute_async_v3", engine._logger):
                return False
            assert self._scratch[1] >= engine.device_memory_size_v2
            assert set(self._shapes) == set(engine._inputs)
            machine.streams[stream_handle]._put(self._compute)
            return True

        def _compute(self) -> None:
            engine = self._engine
            machine.memory(*self._scratch)
            inputs = {
                name: machine.memory(self._addresses[name], int(np.prod(shape))).view(np.int8).reshape(shape)
                for name, shape in engine._inputs.items()
            }
            for name, value in zip(engine._outputs, run_network(engine._network, inputs), strict=True):
                if machine.wrong_bits(engine._network.name):
                    value.flat[value.size // 2] += 1
                found = np.ascontiguousarray(value)
                machine.memory(self._addresses[name], found.nbytes)[:] = found.view(np.uint8).ravel()
            if self.profiler is not None:
                for node in engine._network.nodes:
                    self.profiler.report_layer_time(_fused(node), FAKE_LAYER_MS)
                self.profiler.report_layer_time("Reformatting CopyNode for Input Tensor 0", FAKE_LAYER_MS)

    DataType = _constants(INT8="int8", FLOAT="float32")
    behaviour: dict[str, Any] = {
        "__version__": machine.version,
        "BuilderFlag": _constants(TF32="TF32", INT8="INT8"),
        "DataType": DataType,
        "ExecutionContextAllocationStrategy": _constants(USER_MANAGED="USER_MANAGED"),
        "LayerInformationFormat": _constants(JSON="JSON"),
        "MemoryPoolType": _constants(WORKSPACE="WORKSPACE"),
        # The number changed in 11, so it may not be written down anywhere.
        "NetworkDefinitionCreationFlag": _constants(STRONGLY_TYPED=1 if version < (11, 0) else 0),
        "ProfilingVerbosity": _constants(DETAILED="DETAILED"),
    }
    for cls in (
        Builder, EngineInspector, IBuilderConfig, ICudaEngine, IExecutionContext, ILogger, IOptimizationProfile,
        IProfiler, IProgressMonitor, ITimingCache, OnnxParser, ParserError, Runtime,
    ):  # fmt: skip
        behaviour[cls.__name__] = cls
    module = _assemble("tensorrt", tensorrt_api.TENSORRT, behaviour, version)
    return module


def pycuda_driver(machine: Machine) -> ModuleType:
    """The fake of the module `pycuda.driver`."""

    class Error(Exception): ...

    class Context:
        def detach(self) -> None:
            machine.count("detach")

        def push(self) -> None:
            machine.current.depth = machine.depth() + 1

        def pop(self) -> None:
            machine.need_context()
            machine.current.depth = machine.depth() - 1

    class Device:
        def __init__(self, ordinal: int) -> None: ...

        def name(self) -> str:
            return machine.gpu

        def compute_capability(self) -> tuple[int, int]:
            return machine.capability

        def get_attribute(self, attr: object) -> int:
            return int(machine.shared_memory)

        def retain_primary_context(self) -> Any:
            return module.Context()

    class Stream:
        def __init__(self) -> None:
            machine.need_context()
            self._work: list[Callable[[], None]] = []
            self._captured: list[Callable[[], None]] | None = None
            machine.streams[id(self)] = self

        handle = property(id)

        def synchronize(self) -> None:
            machine.need_context()
            work, self._work = self._work, []
            for piece in work:
                piece()

        def _put(self, piece: Callable[[], None]) -> None:
            (self._work if self._captured is None else self._captured).append(piece)

    class _Memory:
        def _allocate(self, size: int) -> Any:
            self._address, self._keep = machine.allocate(size)
            return self

    class DeviceAllocation(_Memory):
        def free(self) -> None:
            machine.need_context()
            del machine.allocations[self._address]

        def __int__(self) -> int:
            return self._address

    class PagelockedHostAllocation(_Memory):
        def free(self) -> None:
            machine.need_context()
            del machine.allocations[self._address]

        def get_device_pointer(self) -> int:
            assert machine.shared_memory
            return self._address

        @property
        def __array_interface__(self) -> dict[str, Any]:
            size = machine.allocations[self._address]
            return {"data": (self._address, False), "shape": (size,), "typestr": "|u1", "version": 3}

    def pagelocked_empty(shape: int, dtype: type, mem_flags: int) -> np.ndarray:
        assert dtype == np.uint8
        assert bool(mem_flags) == machine.shared_memory
        if "pagelocked_empty" in machine.fails:
            raise Error("out of memory")
        allocation = module.PagelockedHostAllocation()._allocate(shape)
        array = np.asarray(allocation)
        assert array.base is allocation
        return array

    def mem_alloc(bytes: int) -> Any:
        return module.DeviceAllocation()._allocate(bytes)

    def memcpy_htod_async(dest: int, src: np.ndarray, stream: Any) -> None:
        machine.need_context()
        machine.count("copy")

        def copy() -> None:
            machine.memory(dest, src.nbytes)[:] = src

        stream._put(copy)

    def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Any) -> None:
        machine.need_context()
        machine.count("copy")

        def copy() -> None:
            dest.reshape(-1).view(np.uint8)[:] = machine.memory(src, dest.nbytes)

        stream._put(copy)

    behaviour: dict[str, Any] = {
        "Error": Error,
        "init": lambda: None,
        "get_version": lambda: (12, 6, 0),
        "get_driver_version": lambda: machine.driver,
        "device_attribute": _constants(INTEGRATED="INTEGRATED"),
        "host_alloc_flags": _constants(DEVICEMAP=2),
        "pagelocked_empty": pagelocked_empty,
        "mem_alloc": mem_alloc,
        "memcpy_htod_async": memcpy_htod_async,
        "memcpy_dtoh_async": memcpy_dtoh_async,
    }
    for cls in (Context, Device, DeviceAllocation, PagelockedHostAllocation, Stream):
        behaviour[cls.__name__] = cls
    module = _assemble("pycuda.driver", tensorrt_api.PYCUDA, behaviour, (0, 0))
    return module


def pycuda_compiler(machine: Machine) -> ModuleType:
    """The fake of the module `pycuda.compiler`: kernels that do what `pixels_reference` says."""

    def in_rows(address: int, rows: int, length: int, stride: int) -> np.ndarray:
        memory = machine.memory(address, stride * (rows - 1) + length)
        return np.lib.stride_tricks.as_strided(memory, (rows, length), (stride, 1))

    def write(planes: int, pixels: np.ndarray, x: int, y: int, blocks_w: int, blocks_h: int) -> None:
        value = pixels_reference.rgb_to_planes(pixels, x, y, 2 * blocks_w, 2 * blocks_h)
        machine.memory(planes, value.nbytes)[:] = value.view(np.uint8).ravel()

    def rgb_to_planes(
        frame: int, width: int, height: int, stride: int, x: int, y: int, blocks_w: int, blocks_h: int, planes: int
    ) -> None:
        pixels = in_rows(frame, height, 3 * width, stride).reshape(height, width, 3)
        write(planes, pixels, x, y, blocks_w, blocks_h)

    def nv12_to_planes(
        luma: int, chroma: int, width: int, height: int, luma_stride: int, chroma_stride: int, x: int, y: int,
        blocks_w: int, blocks_h: int, *rest: int,
    ) -> None:  # fmt: skip
        colour = next(
            c
            for c in (Colour(m, full) for m in WEIGHTS for full in (False, True))
            if (c.y_offset, *c.to_rgb) == rest[:-1]
        )
        pairs = in_rows(chroma, height // 2, width, chroma_stride).reshape(height // 2, width // 2, 2)
        pixels = pixels_reference.nv12_to_rgb(in_rows(luma, height, width, luma_stride), pairs, colour)
        write(rest[-1], pixels, x, y, blocks_w, blocks_h)

    kernels = {"rgb_to_planes": rgb_to_planes, "nv12_to_planes": nv12_to_planes}

    class SourceModule:
        def __init__(self, source: str, options: list[str], no_extern_c: bool) -> None:
            machine.need_context()
            machine.count("SourceModule")
            assert no_extern_c
            assert all(f'extern "C" __global__ void {name}(' in source for name in kernels)

        def get_function(self, name: str) -> Callable[..., None]:
            def call(*values: Any, grid: tuple[int, int], block: tuple[int, int, int], stream: Any) -> None:
                machine.need_context()
                machine.count(name)
                assert all(isinstance(value, np.int32 | np.uintp) for value in values)
                stream._put(lambda: kernels[name](*map(int, values)))

            return call

    return _assemble("pycuda.compiler", tensorrt_api.PYCUDA_COMPILER, {"SourceModule": SourceModule}, (0, 0))


class Driver:
    """The six functions of the CUDA driver's library behind `cuda_graph`, by their C interface."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def _new(self, reference: Any, work: list[Callable[[], None]]) -> int:
        self._machine.graphs[len(self._machine.graphs) + 1] = work
        reference._obj.value = len(self._machine.graphs)
        return 0

    def cuStreamBeginCapture_v2(self, stream: int, mode: int) -> int:
        self._machine.count("capture")
        self._machine.streams[stream]._captured = []
        return 0

    def cuStreamEndCapture(self, stream: int, graph: Any) -> int:
        taken, self._machine.streams[stream]._captured = self._machine.streams[stream]._captured, None
        return self._machine.capture_error or self._new(graph, taken)

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: int) -> int:
        return self._new(executable, self._machine.graphs[graph.value])

    def cuGraphLaunch(self, executable: Any, stream: int) -> int:
        self._machine.need_context()
        self._machine.count("launch")
        for piece in self._machine.graphs[executable.value]:
            self._machine.streams[stream]._put(piece)
        return 0

    def cuGraphDestroy(self, graph: Any) -> int:
        self._machine.graphs[graph.value] = None
        return 0

    def cuGraphExecDestroy(self, executable: Any) -> int:
        self._machine.need_context()
        self._machine.graphs[executable.value] = None
        return 0


def install(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `machine` be the one that linnet finds."""
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt(machine))
    package = ModuleType("pycuda")
    package.driver, package.compiler = pycuda_driver(machine), pycuda_compiler(machine)
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", package.driver)
    monkeypatch.setitem(sys.modules, "pycuda.compiler", package.compiler)
    driver = Driver(machine)
    monkeypatch.setattr(cuda_graph, "driver", lambda: driver)
    real.this_gpu.cache_clear()
