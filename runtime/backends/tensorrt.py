"""TensorRT on an NVIDIA GPU: runs the engines that `linnet build` left in the engine cache, a few per network.

Shapes are static, so that TensorRT plans kernels and memory for exactly that tile; a larger tensor is computed in
pieces of an engine's shape (`cutting`), a batch of another size is cut and filled up. Nothing is built here. An engine
whose bits differ from what was proved when it was built is refused.

TensorRT (10.3 to 11.x) and pycuda are imported here only, and only when a `Gpu` is opened. TensorRT answers None or
False and explains itself in its log alone, hence `Log.require`.

Threads: `run` may be called from several threads at once. A call makes the GPU's primary context current for its
length, and takes a lane (stream, memory, execution contexts) for each batch; there are two, so that one copies while
the other computes, within a call or between two callers. Engines are loaded by one thread at a time.
"""

from __future__ import annotations

import hashlib
import importlib
import queue
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..core import PLANES, planes_to_pixels
from ..errors import Absent, MachineError
from ..network import Network
from ..tiles import Rect
from . import cuda_graph, cuda_pixels, tensorrt_layers
from .cuda_pixels import GROUP_PIXELS, Frame, PixelKernels
from .cutting import Geometry, Piece
from .engines import EngineCache, Record, Shape, Target, differences, digest, inputs_at
from .layers import LayerTime

OLDEST = (10, 3)
LANES = 2
LOG_LINES = 20
ALIGNMENT = 256
"""What TensorRT asks of addresses."""
REMEDY = "use --backend onnxruntime"


def _import(name: str, remedy: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise Absent(f"{name} cannot be imported ({error})", remedy) from error


class Gpu:
    """TensorRT, CUDA and the first GPU. What touches the GPU happens inside `with gpu.current():`."""

    def __init__(self) -> None:
        self.trt = _import("tensorrt", f"it comes with JetPack or pip install tensorrt; {REMEDY}")
        self.version: str = self.trt.__version__
        if tuple(int(part) for part in self.version.split(".")[:2]) < OLDEST:
            raise Absent(f"TensorRT {self.version} is older than {'.'.join(map(str, OLDEST))}", f"update it; {REMEDY}")
        self.cuda = _import("pycuda.driver", f"pip install pycuda where the CUDA toolkit is; {REMEDY}")
        try:
            self.cuda.init()
            device = self.cuda.Device(0)
            self._context = device.retain_primary_context()
        except self.cuda.Error as error:
            raise Absent(f"CUDA does not start here ({error})", f"check the driver; {REMEDY}") from error
        weakref.finalize(self, self._context.detach)  # pycuda's own destructor takes it for a context of another kind
        self.name: str = device.name()
        self.compute_capability: tuple[int, int] = device.compute_capability()
        self.shared_memory = bool(device.get_attribute(self.cuda.device_attribute.INTEGRATED))
        compiled, driver = self.cuda.get_version(), self.cuda.get_driver_version()
        self.cuda_version = f"{'.'.join(map(str, compiled))} driver {driver}"
        self._kernels: PixelKernels | None = None
        self._compiling = threading.Lock()

    def pixel_kernels(self) -> PixelKernels:
        """The kernels between frames and planes, compiled when they are first asked for."""
        with self._compiling:
            if self._kernels is None:
                with self.current():
                    self._kernels = cuda_pixels.with_pycuda()
                weakref.finalize(self, _close_kernels, self._context, self._kernels)  # runs before the context goes
            return self._kernels

    @contextmanager
    def current(self) -> Iterator[None]:
        """The GPU's primary context, current in this thread."""
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def facts(self, graph: bytes, target: Target) -> dict[str, str]:
        """Everything but the builder's options that an engine depends on."""
        return {
            "onnx": hashlib.sha256(graph).hexdigest(),
            "tensorrt": self.version,
            "cuda": self.cuda_version,
            "gpu": self.name,
            "compute_capability": ".".join(map(str, self.compute_capability)),
            "shapes": str(target),
        }


def _close_kernels(context: Any, kernels: PixelKernels) -> None:
    context.push()
    kernels.close()
    context.pop()


@cache
def this_gpu() -> Gpu:
    """The one of this process. It keeps the primary context, which other libraries use too, until the process ends."""
    return Gpu()


class Log:
    """Gives TensorRT a logger and keeps its last warnings and errors. Must outlive everything that was given it."""

    def __init__(self, gpu: Gpu) -> None:
        trt = gpu.trt
        self._version = gpu.version
        lines = self._lines = deque[str](maxlen=LOG_LINES)
        kept = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING)

        class Logger(trt.ILogger):  # type: ignore[name-defined,misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:  # called from TensorRT's threads
                if severity in kept:
                    lines.append(" ".join(msg.split()))

        self.logger = Logger()

    def require(self, value: Any, what: str) -> Any:
        """`value`, unless it is None or False: then a MachineError with what TensorRT said."""
        if value is None or value is False:
            raise self.error(what)
        return value

    def error(self, what: str) -> MachineError:
        said = "; ".join(self._lines) or "it gives no reason"
        self._lines.clear()
        return MachineError(f"TensorRT {self._version} cannot {what}: {said}")


@dataclass(frozen=True)
class _Tensor:
    """One input or output of an engine, and where it lies in a lane's memory."""

    name: str
    shape: Shape
    dtype: np.dtype[Any]
    offset: int

    @property
    def end(self) -> int:
        return self.offset + int(np.prod(self.shape)) * self.dtype.itemsize

    def of(self, memory: np.ndarray) -> np.ndarray:
        """The tensor as a view of `memory`."""
        return memory[self.offset : self.end].view(self.dtype).reshape(self.shape)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class FramePlanes:
    """Planes (1, h, w, 12) int8 of a region of a frame in the GPU's memory, where `TensorRTBackend.run` takes an array.

    Each piece is written straight into the engine's input. The frame must be complete when `run` is called (its stream
    synchronised), and stay as it is until `run` returns.
    """

    def __init__(self, gpu: Gpu, frame: Frame, region: Rect) -> None:
        self._gpu, self._kernels, self._frame, self._region = gpu, gpu.pixel_kernels(), frame, region
        self.shape = (1, region.height // 2, region.width // 2, PLANES)

    def write(self, address: int, part: tuple[int, slice, slice], stream: Any) -> None:
        """Enqueue writing the rows and columns `part` of the planes to `address`."""
        _, rows, columns = part
        x, y = self._region.x + 2 * columns.start, self._region.y + 2 * rows.start
        width, height = 2 * (columns.stop - columns.start), 2 * (rows.stop - rows.start)
        self._kernels.to_planes(self._frame, x, y, width, height, address, stream)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """A copy in the processor's memory, for backends that compute there."""
        planes = np.empty(self.shape, np.int8)
        with self._gpu.current():
            stream, memory = self._gpu.cuda.Stream(), self._gpu.cuda.mem_alloc(planes.nbytes)
            try:
                self.write(int(memory), (0, slice(0, self.shape[1]), slice(0, self.shape[2])), stream)
                self._gpu.cuda.memcpy_dtoh_async(planes, int(memory), stream)
                stream.synchronize()
            finally:
                memory.free()
        return planes


class GpuFrame:
    """A frame in the GPU's memory as `Codec.encode_frame` takes it (see `rows.FrameRows`)."""

    def __init__(self, gpu: Gpu, frame: Frame) -> None:
        gpu.pixel_kernels()  # what does not compile is to be known now
        self._gpu, self._frame = gpu, frame
        self.width, self.height = frame.width, frame.height

    def planes(self, region: Rect) -> FramePlanes:
        """A region, its width a multiple of 8 and its other numbers even; outside, the frame is mirrored."""
        return FramePlanes(self._gpu, self._frame, region)

    def rows(self, y: int, count: int) -> np.ndarray:
        """Rows y .. y + count as (count, width, 3) uint8 RGB, copied: overview levels are made by the processor."""
        region = Rect(0, y, self.width, count).aligned(GROUP_PIXELS)
        planes = np.asarray(self.planes(region))[0]
        return planes_to_pixels(planes, (0, y - region.y, self.width, count))


Inputs = Mapping[str, np.ndarray] | Mapping[str, FramePlanes]


class Engine:
    """A deserialized engine and the layout of its tensors: inputs first, then outputs, in the network's order."""

    def __init__(self, gpu: Gpu, log: Log, runtime: Any, plan: bytes, network: Network, target: Target) -> None:
        self.target, self.geometry = target, Geometry.of(network)
        self.engine = log.require(runtime.deserialize_cuda_engine(plan), f"load the engine of {target}")
        self.scratch_bytes = int(self.engine.device_memory_size_v2)
        shapes = dict(target.shapes)
        kinds = [np.dtype(np.float32 if raw else np.int8) for raw in network.raw_outputs]
        outputs = zip(network.outputs, network.output_shapes(shapes), kinds, strict=True)
        offset = 0

        def laid(name: str, shape: Shape, dtype: np.dtype[Any]) -> _Tensor:
            nonlocal offset
            tensor = _Tensor(name, shape, dtype, offset)
            offset = _aligned(tensor.end)
            return tensor

        self.inputs = [laid(name, shapes[name], np.dtype(np.int8)) for name in network.inputs]
        self.input_bytes = offset
        self.outputs = [laid(*output) for output in outputs]
        self.tensor_bytes = offset
        self._check(gpu)

    def pieces(self, inputs: Inputs) -> list[Piece]:
        """The pieces of `inputs` that the engine computes one by one."""
        count, *size = inputs[self.inputs[0].name].shape[:3]
        return self.geometry.pieces(count, tuple(size), self.target.size)

    def outputs_for(self, inputs: Inputs) -> list[np.ndarray]:
        """Empty arrays for the results of `inputs`, which may be larger than the engine."""
        whole = inputs[self.inputs[0].name].shape
        heights = (tensor.shape[1] * whole[1] // self.target.size[0] for tensor in self.outputs)
        widths = (tensor.shape[2] * whole[2] // self.target.size[1] for tensor in self.outputs)
        return [
            np.empty((whole[0], height, width, tensor.shape[3]), tensor.dtype)
            for height, width, tensor in zip(heights, widths, self.outputs, strict=True)
        ]

    def _check(self, gpu: Gpu) -> None:
        """The engine's tensors are the network's."""
        trt, engine = gpu.trt, self.engine
        names = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
        types = {np.dtype(np.int8): trt.DataType.INT8, np.dtype(np.float32): trt.DataType.FLOAT}
        tensors = [*self.inputs, *self.outputs]
        fits = names == {tensor.name for tensor in tensors}
        if not fits or any(engine.get_tensor_dtype(tensor.name) != types[tensor.dtype] for tensor in tensors):
            raise MachineError(f"the engine of {self.target} has other tensors than the network: build it again")


@dataclass
class _Bound:
    """An engine in a lane: its execution context, and the graphs that replay it."""

    context: Any
    graphs: dict[bool, cuda_graph.Graph] = field(default_factory=dict)
    """With inputs that are copied from the processor's memory, and without."""
    runs: int = 0


class Lane:
    """A stream, and memory that the engines share in turn: one batch at a time is in a lane.

    Where CPU and GPU share memory nothing is copied: the GPU reads and writes the pinned pages themselves.
    """

    def __init__(self, gpu: Gpu, log: Log) -> None:
        self._gpu, self._log = gpu, log
        self._stream = gpu.cuda.Stream()
        self._host: Any = None
        self._device: Any = None
        self._scratch: Any = None
        self._address = 0
        self._sizes = (0, 0)
        self._bound: dict[Engine, _Bound] = {}
        self.without_graph = ""
        self._layer_times: list[LayerTime] | None = None

    def start(self, engine: Engine, pieces: Sequence[Piece], inputs: Inputs) -> None:
        """Enqueue the engine over `pieces` of `inputs` (at most its batch); returns before it has run."""
        bound, copied = self._bind(engine), True
        for tensor in engine.inputs:
            value, size = inputs[tensor.name], tensor.shape[1:3]
            if isinstance(value, FramePlanes):
                copied, slot_bytes = False, (tensor.end - tensor.offset) // engine.target.batch
                for number, piece in enumerate(pieces):
                    address = self._address + tensor.offset + number * slot_bytes
                    value.write(address, piece.source(*size), self._stream)
            else:
                for slot, piece in zip(tensor.of(self._host), pieces, strict=False):
                    slot[...] = value[piece.source(*size)]
        if copied not in bound.graphs and bound.runs and not self.without_graph:
            # TensorRT finishes its own preparations in the first run; from the second on it only enqueues.
            try:
                bound.graphs[copied] = cuda_graph.Graph(
                    self._stream.handle, lambda: self._enqueue(engine, bound.context, copied)
                )
            except (MachineError, self._gpu.cuda.Error) as error:
                self.without_graph = str(error)
        if copied in bound.graphs:
            bound.graphs[copied].launch(self._stream.handle)
        else:
            self._enqueue(engine, bound.context, copied)
        bound.runs += 1

    def finish(self, engine: Engine, pieces: Sequence[Piece], outputs: list[np.ndarray]) -> None:
        """Wait for the batch and copy what is right of each piece to `outputs`."""
        self._stream.synchronize()
        for tensor, output in zip(engine.outputs, outputs, strict=True):
            heights = engine.target.size[0], tensor.shape[1]
            for slot, piece in zip(tensor.of(self._host), pieces, strict=False):
                inside, outside = piece.kept(*heights)
                output[outside] = slot[inside]

    def _enqueue(self, engine: Engine, context: Any, copied: bool) -> None:
        cuda, middle, end = self._gpu.cuda, engine.input_bytes, engine.tensor_bytes
        if copied and not self._gpu.shared_memory:
            cuda.memcpy_htod_async(self._address, self._host[:middle], self._stream)
        self._log.require(context.execute_async_v3(self._stream.handle), f"run {engine.target}")
        if not self._gpu.shared_memory:
            cuda.memcpy_dtoh_async(self._host[middle:end], self._address + middle, self._stream)

    def _bind(self, engine: Engine) -> _Bound:
        """The engine's context with this lane's addresses."""
        self._reserve(engine.tensor_bytes, engine.scratch_bytes)
        if engine in self._bound:
            return self._bound[engine]
        what = f"prepare {engine.target}"
        strategy = self._gpu.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._log.require(engine.engine.create_execution_context(strategy), what)
        if self._layer_times is not None:
            network = engine.target.network
            context.profiler = tensorrt_layers.profiler(self._gpu.trt, engine.engine, network, self._layer_times)
        if engine.scratch_bytes:
            context.set_device_memory(int(self._scratch), engine.scratch_bytes)
        for tensor in engine.inputs:
            self._log.require(context.set_input_shape(tensor.name, tensor.shape), what)
        for tensor in [*engine.inputs, *engine.outputs]:
            self._log.require(context.set_tensor_address(tensor.name, self._address + tensor.offset), what)
        for tensor in engine.outputs:
            shape = tuple(context.get_tensor_shape(tensor.name))
            self._log.require(shape == tensor.shape, f"{what}: {tensor.name} would be {shape}, not {tensor.shape}")
        self._bound[engine] = bound = _Bound(context)
        return bound

    def _reserve(self, tensor_bytes: int, scratch_bytes: int) -> None:
        """Grow the memory if need be, which ends every context and graph that holds its addresses."""
        if tensor_bytes <= self._sizes[0] and scratch_bytes <= self._sizes[1]:
            return
        cuda = self._gpu.cuda
        self._release_memory()
        self._sizes = max(tensor_bytes, self._sizes[0]), max(scratch_bytes, self._sizes[1])
        try:
            flags = cuda.host_alloc_flags.DEVICEMAP if self._gpu.shared_memory else 0
            self._host = cuda.pagelocked_empty(self._sizes[0], np.uint8, mem_flags=flags)
            if self._gpu.shared_memory:
                self._address = int(self._host.base.get_device_pointer())
            else:
                self._device = cuda.mem_alloc(self._sizes[0])
                self._address = int(self._device)
            self._scratch = cuda.mem_alloc(self._sizes[1]) if self._sizes[1] else None
        except cuda.Error as error:
            wanted = sum(self._sizes)
            self._release_memory()
            self._sizes = (0, 0)
            raise MachineError(
                f"the GPU has no {wanted / 2**20:.0f} MiB left ({error}): use a smaller --tile or another backend"
            ) from error

    def _release_memory(self) -> None:
        for engine in list(self._bound):
            self.forget(engine)
        for memory in (self._device, self._scratch, None if self._host is None else self._host.base):
            if memory is not None:
                memory.free()
        self._device = self._scratch = self._host = None

    def time_layers(self, times: list[LayerTime] | None) -> None:
        """From now on add what each layer takes to `times`, or no longer."""
        for engine in list(self._bound):  # a profiler belongs to an execution context
            self.forget(engine)
        self._layer_times = times
        self.without_graph = "" if times is None else "its layers are timed"

    def forget(self, engine: Engine) -> None:
        bound = self._bound.pop(engine, None)
        for graph in bound.graphs.values() if bound is not None else ():
            graph.destroy()

    def release(self) -> None:
        """Give everything back; the context must be current."""
        self.settle()
        self._release_memory()
        self._stream = None

    def settle(self) -> None:
        """Wait for work whose results nobody wants any more: it still uses memory."""
        with suppress(self._gpu.cuda.Error):  # a failed kernel is reported again here
            self._stream.synchronize()


class Runner:
    """Loads engines and runs them in lanes; TensorRT's objects live as long as this one."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.log = gpu, Log(gpu)
        with gpu.current():
            try:
                self._runtime = self.log.require(gpu.trt.Runtime(self.log.logger), "start")
            except TypeError as error:  # how the bindings say that a constructor gave nothing
                raise self.log.error("start") from error
            lanes = self._lanes = [Lane(gpu, self.log) for _ in range(LANES)]
        self._free: queue.LifoQueue[Lane] = queue.LifoQueue()  # a second lane takes memory only when it is needed
        for lane in lanes:
            self._free.put(lane)
        self.close = weakref.finalize(self, _release, gpu, lanes)
        """Gives the GPU's memory back; also called when this object or the program ends."""

    def load(self, plan: bytes, network: Network, target: Target) -> Engine:
        with self.gpu.current():
            return Engine(self.gpu, self.log, self._runtime, plan, network, target)

    def forget(self, engine: Engine) -> None:
        """Let go of an engine that no other thread runs."""
        with self.gpu.current():
            for lane in self._lanes:
                lane.forget(engine)

    @contextmanager
    def layer_times(self) -> Iterator[list[LayerTime]]:
        """While open, every layer is timed; no other thread may run."""
        times: list[LayerTime] = []
        self._time_layers(times)
        try:
            yield times
        finally:
            self._time_layers(None)

    def _time_layers(self, times: list[LayerTime] | None) -> None:
        with self.gpu.current():
            for lane in self._lanes:
                lane.time_layers(times)

    def run(self, engine: Engine, inputs: Inputs) -> list[np.ndarray]:
        """All of `inputs`, batch by batch, two of them under way at a time."""
        pieces = engine.pieces(inputs)
        outputs = engine.outputs_for(inputs)
        running: deque[tuple[Lane, Sequence[Piece]]] = deque()

        def finish() -> Lane:
            lane, part = running.popleft()
            try:
                lane.finish(engine, part, outputs)
            except BaseException:
                self._free.put(lane)
                raise
            return lane

        def lane() -> Lane:
            """A free lane, else our own oldest one, else the next that another thread gives back."""
            with suppress(queue.Empty):
                return self._free.get_nowait()
            return finish() if running else self._free.get()

        with self.gpu.current():
            try:
                for start in range(0, len(pieces), engine.target.batch):
                    part = pieces[start : start + engine.target.batch]
                    running.append((lane(), part))
                    running[-1][0].start(engine, part, inputs)
                while running:
                    self._free.put(finish())
            except self.gpu.cuda.Error as error:
                raise MachineError(f"CUDA failed while running {engine.target} ({error}): {REMEDY}") from error
            finally:
                for unfinished, _ in running:
                    unfinished.settle()
                    self._free.put(unfinished)
        return outputs


def _release(gpu: Gpu, lanes: list[Lane]) -> None:
    with gpu.current():
        for lane in lanes:
            lane.release()


class NoEngine(MachineError):
    """There is no engine for the shape of this call; other calls may find theirs."""


class TensorRTBackend:
    """A bundle's engines on a GPU. Raises Absent where there is no GPU or no engine, MachineError where all are stale.

    Each engine is checked when it is loaded, at the first call with its shape: it must compute what the engine that
    was built and compared with the known answers computed. `close()` gives the GPU's memory back.
    """

    name = "tensorrt"

    def __init__(self, bundle: Bundle) -> None:
        self._bundle, self._cache = bundle, EngineCache(bundle)
        self._gpu = this_gpu()
        self._graphs = bundle.graphs("qdq")
        self._records, self._reasons = self._usable()
        self._geometries = {name: Geometry.of(network) for name, network in bundle.networks.items()}
        self._loaded: dict[Target, Engine | MachineError] = {}
        self._loading = threading.Lock()
        self._runner = Runner(self._gpu)
        self.layer_times, self.close = self._runner.layer_times, self._runner.close

    def _usable(self) -> tuple[list[Record], dict[str, str]]:
        """The stored engines that fit this machine, and for networks with others why those do not."""
        usable, reasons = [], {}
        for record in self._cache.records():
            name = record.target.network
            facts = self._gpu.facts(self._graphs.get(name, b""), record.target)
            reason = record.rejected or "; ".join(differences(record.facts, facts))
            if reason:
                reasons[name] = f"{record.target}: {reason}"
            else:
                usable.append(record)
        if not usable and reasons:
            raise MachineError(f"no stored engine fits ({next(iter(reasons.values()))}): run `linnet build` again")
        if not usable:
            raise Absent(
                f"no engine of bundle {self._bundle.name} is in {self._cache.root}",
                "run `linnet build BUNDLE --device this`, or use --backend onnxruntime",
            )
        return usable, reasons

    @property
    def detail(self) -> str:
        return f"TensorRT {self._gpu.version} on {self._gpu.name}, {len(self._records)} engines"

    def gpu_frame(self, frame: Frame) -> GpuFrame:
        """A frame in the GPU's memory (in its primary context) for `Codec.encode_frame`, which then copies no pixel."""
        return GpuFrame(self._gpu, frame)

    def run(self, network: str, inputs: Inputs) -> list[np.ndarray]:
        shapes = tuple((name, inputs[name].shape) for name in self._bundle.networks[network].inputs)
        return self._runner.run(self._engine(Target(network, shapes)), inputs)

    def _engine(self, wanted: Target) -> Engine:
        """The loaded engine for `wanted`: of those that fit the one that costs the least."""
        costs = [(self._work(record.target, wanted), record) for record in self._records]
        fitting = [(cost, -record.target.batch, record) for cost, record in costs if cost is not None]
        if not fitting:
            known = self._reasons.get(wanted.network)
            raise NoEngine(
                f"no TensorRT engine for {wanted}{f' ({known})' if known else ''}: "
                "`linnet build` with this --size and --tile makes one"
            )
        record = min(fitting, key=lambda fit: fit[:2])[2]
        with self._loading:
            if record.target not in self._loaded:
                try:
                    self._loaded[record.target] = self._load(record)
                except MachineError as error:
                    self._loaded[record.target] = error
            found = self._loaded[record.target]
        if isinstance(found, MachineError):
            raise found
        return found

    def _work(self, target: Target, wanted: Target) -> float | None:
        """What the engine `target` costs for `wanted`, filled-up batches included; None where it cannot compute it."""
        if target.network != wanted.network:
            return None
        geometry = self._geometries[target.network]
        pieces = wanted.batch * geometry.count(wanted.size, target.size)
        return -(-pieces // target.batch) * target.batch * geometry.work(target.size) or None

    def _load(self, record: Record) -> Engine:
        target = record.target
        plan = self._cache.plan(record)
        if plan is None:
            raise MachineError(f"the engine of {target} is damaged or gone: run `linnet build` again")
        engine = self._runner.load(plan, self._bundle.networks[target.network], target)
        if digest(self._runner.run(engine, inputs_at(self._bundle, target))) != record.answer:
            raise MachineError(
                f"the engine of {target} computes other values than when it was built: rejected; run `linnet build "
                "--force`, or use --backend onnxruntime"
            )
        return engine
