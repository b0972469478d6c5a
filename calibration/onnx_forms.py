"""Two ONNX spellings of an integer network, both made here because the device has no onnx package.

`qdq_form`: QuantizeLinear/DequantizeLinear around float operators, int8 with zero point 0, as TensorRT wants it.
`onnxruntime_form`: QLinearConv and MatMulInteger over uint8 activations with zero point 128, for which ONNX Runtime has
its fast x86 kernels. The shift of the zero point changes no value. Both take and give NHWC tensors, and hold integers
of more than 8 bits in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..runtime.errors import UsageError
from ..runtime.network import (
    ACTIVATION_EXP,
    EXACT,
    FLOAT,
    FREE,
    MIN_SHIFT,
    WIDE,
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
)

OPSET = 17
IR_VERSION = 8
"""What ONNX Runtime 1.14 and TensorRT 10.3 both read."""
ZERO_POINT = 128
FAST_CHANNELS = 4
"""Channels that ONNX Runtime's kernels take at a time."""
_TO_NCHW, _TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


class _Graph:
    """Collects nodes and initializers; equal constants are stored once."""

    def __init__(self, network: Network) -> None:
        self.network, self.bits = network, network.bits
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self.raw = network.raw
        self.floating = self.raw | {name for name, bits in self.bits.items() if bits > 8}
        """Tensors of the network that float32 holds."""

    def constant(self, name: str, value: np.ndarray) -> str:
        self.initializers.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def add(self, op: str, inputs: list[str], output: str, *, domain: str = "", **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], name=output, domain=domain, **attributes))
        return output

    def model(self, activation: int) -> bytes:
        inputs = [
            helper.make_tensor_value_info(name, activation, ["batch", f"{name}_height", f"{name}_width", channels])
            for name, channels in self.network.inputs.items()
        ]
        outputs = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT if name in self.raw else activation, [None] * 4)
            for name in self.network.outputs
        ]
        graph = helper.make_graph(self.nodes, self.network.name, inputs, outputs, list(self.initializers.values()))
        domains = {"": OPSET, **{node.domain: 1 for node in self.nodes if node.domain}}
        opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="linnet")
        onnx.checker.check_model(model)
        return model.SerializeToString()


def _geometry(node: Conv) -> dict[str, list[int]]:
    k = node.weight.shape[2]
    return {"kernel_shape": [k, k], "strides": [node.stride] * 2, "pads": [node.padding] * 4}


class _Integers:
    """Operators over integers of more than 8 bits, or sums on the way to fewer, in float32, which holds them exactly.

    `widened` gives the numbers of an int8 tensor times a power of two, `narrowed` quantises multiples of a power of
    two, to nearest: the two forms differ in how.
    """

    def __init__(
        self, graph: _Graph, widened: Callable[[str, float, str], str], narrowed: Callable[[str, float, str], str]
    ) -> None:
        self._graph, self._widened, self._narrowed = graph, widened, narrowed
        self._made: dict[tuple[str, int], str] = {}

    def floats(self, name: str, source: str, bits: int) -> str:
        """The tensor `name` of the network, whose alias is `source`, as numbers of `bits` bits; made on first use."""
        graph, missing = self._graph, bits - self._graph.bits[name]
        if graph.bits[name] > 8 and not missing:
            return source
        output = f"{source}/{bits}_bits"
        if (name, bits) not in self._made:
            if graph.bits[name] == 8:
                self._widened(source, 2.0**missing, output)
            else:
                factor = graph.constant(f"factor_{missing}", np.float32(2.0**missing))
                graph.add("Mul", [source, factor], output)
            self._made[name, bits] = output
        return output

    def convolutions(self, nodes: Sequence[Conv], source: str, outs: Sequence[str]) -> None:
        """Convolutions that read the same tensor, of one stride, each with the padding that keeps the planes, as one:
        few output channels cost as much as many.

        Every product and sum is exact, however it is ordered.
        """
        graph, side = self._graph, max(node.weight.shape[2] for node in nodes)
        bits = graph.bits[nodes[0].source]
        weights, biases = [], []
        for node in nodes:
            exponent = bits - 1 + node.shift.astype(np.float64)  # of the accumulator's scale
            scale = np.exp2(-exponent if node.raw else node.bits - 1 - exponent)
            around = (side - node.weight.shape[2]) // 2
            kernels = np.pad(node.weight, ((0, 0), (0, 0), (around, around), (around, around)))
            weights.append((kernels * scale[:, None, None, None]).astype(np.float32))
            biases.append((node.bias * scale).astype(np.float32))
        name = "+".join(node.name for node in nodes)
        inputs = [
            self.floats(nodes[0].source, source, bits),
            graph.constant(f"{name}/weight", np.concatenate(weights)),
            graph.constant(f"{name}/bias", np.concatenate(biases)),
        ]
        geometry = _geometry(next(node for node in nodes if node.weight.shape[2] == side))
        results = [out if node.raw else f"{out}/wide" for node, out in zip(nodes, outs, strict=True)]
        if len(nodes) == 1:
            graph.add("Conv", inputs, results[0], **geometry)
        else:
            together = graph.add("Conv", inputs, f"{name}/wide", **geometry)
            ends = np.cumsum([len(node.weight) for node in nodes])
            for node, end, result in zip(nodes, ends, results, strict=True):
                graph.add("Slice", [together, *_slice_bounds(graph, int(end) - len(node.weight), int(end), 1)], result)
        for node, result, out in zip(nodes, results, outs, strict=True):
            if not node.raw:
                self._rounded(result, node.bits, out)

    def _rounded(self, x: str, bits: int, out: str) -> None:
        """Clipping before rounding is clipping after it: the bounds are integers."""
        if bits == 8:
            self._narrowed(x, 1.0, out)
        else:
            self._graph.add("Round", [self._clipped(x, bits, f"{out}/clipped")], out)

    def addition(self, node: Add, sources: list[str], out: str) -> None:
        graph, wide = self._graph, max(self._graph.bits[name] for name in node.sources)
        terms = [self.floats(name, source, wide) for name, source in zip(node.sources, sources, strict=True)]
        total = graph.add("Add", terms, f"{out}/sum")
        if node.bits == wide:
            self._clipped(total, wide, out)
            return
        # The sum is whole, so that a half more moves halves up and nothing else.
        half = graph.add("Add", [total, graph.constant("half", np.float32(0.5))], f"{out}/half")
        self._narrowed(half, 2.0 ** (wide - node.bits), out)

    def join(self, node: Join, sources: list[str], out: str) -> None:
        whole, fraction = (
            self._widened(source, 2.0**exponent, f"{out}/{part}")
            for source, exponent, part in zip(sources, (node.bits - 8, 0), ("whole", "fraction"), strict=True)
        )
        self._graph.add("Add", [whole, fraction], out)

    def _clipped(self, x: str, bits: int, out: str) -> str:
        bounds = {"least": -(1 << (bits - 1)), "largest": (1 << (bits - 1)) - 1}
        names = [self._graph.constant(f"{key}_{bits}", np.float32(bound)) for key, bound in bounds.items()]
        return self._graph.add("Clip", [x, *names], out)


def qdq_form(network: Network) -> bytes:
    """The network as Q/DQ ONNX. Boundary tensors are int8 NHWC (raw outputs float32).

    What only moves integers stands between a DequantizeLinear and a QuantizeLinear of the same scale: TensorRT's
    parser lists no int8 for those operators, and takes such a group as the movement of int8 that it is. Raises
    UsageError for formats other than int8-exact and fp32-exact.
    """
    if network.formats - {EXACT, FLOAT}:
        raise UsageError(f"network {network.name} has no Q/DQ form: it is not exact in fp32")
    graph = _Graph(network)
    scale = graph.constant("scale", np.float32(2.0**-ACTIVATION_EXP))
    zero = graph.constant("zero", np.int8(0))
    floats: dict[str, str] = {}

    def dequantised(name: str) -> str:
        """The float twin of an int8 tensor, made on first use."""
        if name not in floats:
            floats[name] = graph.add("DequantizeLinear", [name, scale, zero], f"{name}/float")
        return floats[name]

    def widened(name: str, factor: float, output: str) -> str:
        factor *= 2**ACTIVATION_EXP
        return graph.add("Mul", [dequantised(name), graph.constant(f"times_{factor:g}", np.float32(factor))], output)

    def narrowed(name: str, factor: float, output: str) -> str:
        factor *= 2**ACTIVATION_EXP
        real = graph.add("Mul", [name, graph.constant(f"over_{factor:g}", np.float32(1 / factor))], f"{output}/real")
        return graph.add("QuantizeLinear", [real, scale, zero], output)

    integers = _Integers(graph, widened, narrowed)
    held: set[str] = set()  # tensors of the graph that are float32

    def moved(op: str, moving: list[str], output: str, *parameters: str, **attributes: object) -> None:
        if moving[0] in held:
            held.add(output)
            graph.add(op, [*moving, *parameters], output, **attributes)
            return
        result = graph.add(op, [*map(dequantised, moving), *parameters], f"{output}/moved", **attributes)
        graph.add("QuantizeLinear", [result, scale, zero], output)

    def taken(source: str, first: int, last: int, axis: int, output: str) -> str:
        """The slice [first, last) of one axis."""
        moved("Slice", [source], output, *_slice_bounds(graph, first, last, axis))
        return output

    alias = {name: f"{name}/nchw" for name in network.inputs}
    for name, inside in alias.items():
        moved("Transpose", [name], inside, perm=_TO_NCHW)
    for node in network.nodes:
        out = alias[node.output] = f"{node.output}/nchw"
        if node.output in graph.floating:
            held.add(out)
        if isinstance(node, Conv) and node.format == FLOAT:
            integers.convolutions([node], alias[node.source], [out])
        elif isinstance(node, Conv):
            weight = graph.constant(f"{node.name}/weight", node.weight)
            weight_scale = graph.constant(f"{node.name}/weight_scale", np.exp2(-node.shift.astype(np.float32)))
            weight_zero = graph.constant(f"{node.name}/weight_zero", np.zeros(len(node.weight), np.int8))
            weight = graph.add(
                "DequantizeLinear", [weight, weight_scale, weight_zero], f"{node.name}/weight_float", axis=0
            )
            bias = node.bias * np.exp2(-(ACTIVATION_EXP + node.shift.astype(np.float64)))
            bias = graph.constant(f"{node.name}/bias", bias.astype(np.float32))
            result = out if node.raw else f"{out}/wide"
            graph.add("Conv", [dequantised(alias[node.source]), weight, bias], result, **_geometry(node))
            if not node.raw:
                graph.add("QuantizeLinear", [result, scale, zero], out)
        elif isinstance(node, Add):
            sources = [alias[s] for s in node.sources]
            if node.raw:
                graph.add("Add", sources, out)
            elif graph.floating.intersection(node.sources):
                integers.addition(node, sources, out)
            else:
                graph.add("Add", [dequantised(s) for s in sources], f"{out}/wide")
                graph.add("QuantizeLinear", [f"{out}/wide", scale, zero], out)
        elif isinstance(node, Join):
            integers.join(node, [alias[s] for s in node.sources], out)
        elif isinstance(node, Concat):
            moved("Concat", [alias[s] for s in node.sources], out, axis=1)
        elif isinstance(node, DepthToSpace):
            moved("DepthToSpace", [alias[node.source]], out, blocksize=node.block, mode=_mode(node))
        elif isinstance(node, SpaceToDepth):
            moved("SpaceToDepth", [alias[node.source]], out, blocksize=node.block)
        elif isinstance(node, Select):
            channels = graph.constant(f"{node.output}/channels", np.array(node.channels))
            moved("Gather", [alias[node.source]], out, channels, axis=1)
        elif isinstance(node, EdgePad):
            # Pad repeats edges, too, but TensorRT pads int8 with 0 only.
            rows = alias[node.source]
            for axis, padded in ((2, f"{out}/rows"), (3, out)):
                first = taken(rows, 0, 1, axis, f"{padded}/first")
                last = taken(rows, -1, _END, axis, f"{padded}/last")
                moved("Concat", [first] * node.width + [rows] + [last] * node.width, padded, axis=axis)
                rows = padded
    for name in network.outputs:
        moved("Transpose", [alias[name]], name, perm=_TO_NHWC)
    return graph.model(TensorProto.INT8)


def onnxruntime_form(network: Network) -> bytes:
    """The network over uint8 with zero point 128. Boundary tensors are uint8 NHWC (raw outputs float32)."""
    if WIDE in network.formats:
        return _double_form(network)
    network = _with_fillers(network)
    graph = _Graph(network)
    scale = graph.constant("scale", np.float32(2.0**-ACTIVATION_EXP))
    zero = graph.constant("zero", np.uint8(ZERO_POINT))
    alias = {name: graph.add("Transpose", [name], f"{name}/nchw", perm=_TO_NCHW) for name in network.inputs}
    depth_first = _depth_first_sources(network)

    def widened(name: str, factor: float, output: str) -> str:
        return graph.add(
            "DequantizeLinear", [name, graph.constant(f"step_of_{factor:g}", np.float32(factor)), zero], output
        )

    def narrowed(name: str, factor: float, output: str) -> str:
        return graph.add(
            "QuantizeLinear", [name, graph.constant(f"step_of_{factor:g}", np.float32(factor)), zero], output
        )

    integers = _Integers(graph, widened, narrowed)
    for node in network.nodes:
        if node.output in alias:  # made beside another
            continue
        out = alias[node.output] = f"{node.output}/nchw"
        if isinstance(node, Conv):
            if node.format == FLOAT:
                beside = _beside(network, node)
                alias |= {other.output: f"{other.output}/nchw" for other in beside}
                integers.convolutions(beside, alias[node.source], [alias[other.output] for other in beside])
            elif node.raw:
                _raw_convolution(graph, node, alias[node.source], out)
            else:
                _quantised_convolution(graph, node, alias[node.source], out, depth_first.get(node.output))
        elif isinstance(node, Add):
            a, b = (alias[s] for s in node.sources)
            if node.raw:
                graph.add("Add", [a, b], out)
            elif graph.floating.intersection(node.sources):
                integers.addition(node, [a, b], out)
            else:
                graph.add("QLinearAdd", [a, scale, zero, b, scale, zero, scale, zero], out, domain="com.microsoft")
        elif isinstance(node, Join):
            integers.join(node, [alias[s] for s in node.sources], out)
        elif isinstance(node, Concat):
            graph.add("Concat", [alias[s] for s in node.sources], out, axis=1)
        elif isinstance(node, DepthToSpace):
            if node.source in depth_first or node.phases_first:
                _depth_to_space_nhwc(graph, node, alias[node.source], out)
            else:
                graph.add("DepthToSpace", [alias[node.source]], out, blocksize=node.block, mode="CRD")
        elif isinstance(node, SpaceToDepth):
            x = graph.add("Transpose", [alias[node.source]], f"{out}/nhwc", perm=_TO_NHWC)
            packed = _space_to_depth_nhwc(graph, node, network, x)
            graph.add("Transpose", [packed], out, perm=_TO_NCHW)
        elif isinstance(node, Select):
            channels = graph.constant(f"{node.output}/channels", np.array(node.channels))
            graph.add("Gather", [alias[node.source], channels], out, axis=1)
        elif isinstance(node, EdgePad):
            pads = graph.constant(f"{out}/pads", np.array([0, 0, node.width, node.width] * 2))
            graph.add("Pad", [alias[node.source], pads], out, mode="edge")
    for name in network.outputs:
        graph.add("Transpose", [alias[name]], name, perm=_TO_NHWC)
    return graph.model(TensorProto.UINT8)


def _beside(network: Network, node: Conv) -> list[Conv]:
    """The convolutions in format FLOAT that one can do together with `node`, which is one of them."""

    def keeps_planes(other: Node) -> bool:
        fits = isinstance(other, Conv) and other.format == FLOAT and other.source == node.source
        return fits and other.stride == 1 and 2 * other.padding + 1 == other.weight.shape[2]

    return [other for other in network.nodes if keeps_planes(other)] if keeps_planes(node) else [node]


def _mode(node: DepthToSpace) -> str:
    return "DCR" if node.phases_first else "CRD"


def _with_fillers(network: Network) -> Network:
    """The same network with copies of other channels, under zero weights, where they make a convolution's input a
    multiple of FAST_CHANNELS: ONNX Runtime takes twice as long for 41 channels as for 44."""
    made = {node.output: node for node in network.nodes}
    alone, channels = _read_once(network), network.channels
    replaced: dict[str, list[Node]] = {}
    for node in network.nodes:
        if not isinstance(node, Conv) or node.raw or node.format == FLOAT or node.source not in alone:
            continue
        missing = -node.weight.shape[1] % FAST_CHANNELS
        source = made[node.source]
        if missing and (filled := _filled(source, made, alone, missing, channels)):
            replaced |= filled
            filler = np.zeros((len(node.weight), missing, *node.weight.shape[2:]), np.int8)
            replaced[node.output] = [replace(node, weight=np.concatenate([node.weight, filler], 1))]
    nodes = [new for node in network.nodes for new in replaced.get(node.output, [node])]
    return replace(network, nodes=tuple(nodes))


def _read_once(network: Network) -> set[str]:
    """The nodes' outputs that one node reads, and nobody else."""
    readers = network.readers
    return {node.output for node in network.nodes if len(readers[node.output]) == 1} - set(network.outputs)


def _filled(
    node: Node, made: Mapping[str, Node], alone: set[str], missing: int, channels: Mapping[str, int]
) -> dict[str, list[Node]]:
    """What stands for `node` and what it reads, by output, so that it gives `missing` more channels; empty where it
    cannot."""
    if isinstance(node, Concat):
        first = node.sources[0]
        if channels[first] < missing:
            return {}
        filler = Select(f"{node.name}_filler", first, f"{node.output}_filler", tuple(range(missing)))
        return {node.output: [filler, replace(node, sources=(*node.sources, filler.output))]}
    if isinstance(node, Select) and len(node.channels) >= missing:
        return {node.output: [replace(node, channels=node.channels + node.channels[:missing])]}
    if isinstance(node, DepthToSpace) and not node.phases_first and node.source in alone:
        return _filled(made[node.source], made, alone, missing * node.block**2, channels)
    return {}


def _depth_first_sources(network: Network) -> dict[str, int]:
    """Block of each DepthToSpace whose input is a convolution that nothing else reads."""
    alone = _read_once(network)
    convolved = {
        node.output for node in network.nodes if isinstance(node, Conv) and not node.raw and node.format != FLOAT
    }
    return {
        node.source: node.block
        for node in network.nodes
        if isinstance(node, DepthToSpace) and not node.phases_first and node.source in convolved & alone
    }


def _quantised_convolution(graph: _Graph, node: Conv, source: str, out: str, block: int | None) -> None:
    """QLinearConv. `block` orders the output channels (dy, dx, channel), for `_depth_to_space_nhwc`.

    A channel count that is no multiple of 8 is padded to one of 16 and cut again: 12 channels take twice as long as 16.
    """
    channels = len(node.weight)
    order = np.arange(channels)
    if block:
        order = order.reshape(-1, block * block).T.ravel()
    padded = channels if channels % 8 == 0 else -(-channels // 16) * 16

    def arranged(values: np.ndarray, fill: int) -> np.ndarray:
        extra = np.full((padded - channels, *values.shape[1:]), fill, values.dtype)
        return np.concatenate([values[order], extra])

    name = node.name
    scale, zero = (
        graph.constant("scale", np.float32(2.0**-ACTIVATION_EXP)),
        graph.constant("zero", np.uint8(ZERO_POINT)),
    )
    weight = graph.constant(f"{name}/weight", arranged(node.weight, 0))
    if node.format == FREE:
        steps = arranged(node.scale, 1)
    else:
        steps = np.exp2(-arranged(node.shift, MIN_SHIFT).astype(np.float32))
    weight_scale = graph.constant(f"{name}/weight_scale", steps)
    weight_zero = graph.constant(f"{name}/weight_zero", np.zeros(padded, np.int8))
    bias = graph.constant(f"{name}/bias", arranged(node.bias, 1))
    inputs = [source, scale, zero, weight, weight_scale, weight_zero, scale, zero, bias]
    if padded == channels:
        graph.add("QLinearConv", inputs, out, **_geometry(node))
        return
    wide = graph.add("QLinearConv", inputs, f"{out}/wide", **_geometry(node))
    bounds = [
        graph.constant(f"{name}/{key}", np.array([v])) for key, v in (("first", 0), ("last", channels), ("axis", 1))
    ]
    graph.add("Slice", [wide, *bounds], out)


def _depth_to_space_nhwc(graph: _Graph, node: DepthToSpace, source: str, out: str) -> None:
    """DepthToSpace of channels ordered (dy, dx, channel): one transposition of whole runs of bytes in NHWC.

    ONNX Runtime's own DepthToSpace works in NCHW, between two more transpositions of single bytes.
    """
    name, block = node.name, node.block
    x = graph.add("Transpose", [source], f"{name}/nhwc", perm=_TO_NHWC)
    rows = graph.constant(f"rows_{block}", np.array([0, 0, 0, block, -1]))
    split = graph.add("Reshape", [x, rows], f"{name}/split")
    moved = graph.add("Transpose", [split], f"{name}/moved", perm=[0, 1, 3, 2, 4])
    shape = graph.add("Shape", [x], f"{name}/shape", start=0, end=3)
    growth = graph.constant(f"growth_{block}", np.array([1, block, block]))
    grown = graph.add("Mul", [shape, growth], f"{name}/grown")
    rest = graph.constant("rest", np.array([-1]))
    target = graph.add("Concat", [grown, rest], f"{name}/target", axis=0)
    joined = graph.add("Reshape", [moved, target], f"{name}/joined")
    graph.add("Transpose", [joined], out, perm=_TO_NCHW)


def _space_to_depth_nhwc(graph: _Graph, node: SpaceToDepth, network: Network, x: str) -> str:
    """SpaceToDepth of the NHWC tensor `x`: one transposition of runs of block * channels numbers, and views."""
    name, block = f"{node.output}/packed", node.block
    runs = block * network.channels[node.source]
    columns = graph.add("Reshape", [x, graph.constant(f"{name}/runs", np.array([0, 0, -1, runs]))], f"{name}/columns")
    rows = graph.constant(f"{name}/by_rows", np.array([-1, block, 0, runs]))
    split = graph.add("Reshape", [columns, rows], f"{name}/rows")
    moved = graph.add("Transpose", [split], f"{name}/moved", perm=[0, 2, 1, 3])
    # (n * h, w, block, runs); the batch and the height come back from the input's shape.
    shape = graph.add("Shape", [x], f"{name}/shape", start=0, end=2)
    divided = graph.add("Div", [shape, graph.constant(f"{name}/blocks", np.array([1, block]))], f"{name}/sides")
    rest = graph.constant(f"{name}/rest", np.array([-1, block * runs]))
    target = graph.add("Concat", [divided, rest], f"{name}/target", axis=0)
    return graph.add("Reshape", [moved, target], name)


def _raw_convolution(graph: _Graph, node: Conv, source: str, out: str) -> None:
    """A convolution that keeps its accumulator, as products of matrices.

    ONNX Runtime's ConvInteger is some ten times slower than its quantised convolution; MatMulInteger is not.
    """
    name = node.name
    x = graph.add("Transpose", [source], f"{name}/nhwc", perm=_TO_NHWC)
    zero = graph.constant("zero", np.uint8(ZERO_POINT))
    wide = None
    for i, (row, matrix) in enumerate(_window_rows(graph, node, x, zero)):
        # One for each product: the precise mode of ONNX Runtime rewrites it, and refuses a graph where two share it.
        zero_weight = graph.constant(f"{name}/zero_weight_{i}", np.int8(0))
        weight = graph.constant(f"{name}/matrix_{i}", matrix)
        part = graph.add("MatMulInteger", [row, weight, zero, zero_weight], f"{name}/int32_{i}")
        wide = part if wide is None else graph.add("Add", [wide, part], f"{name}/sum_{i}")
    scale = np.exp2(-(ACTIVATION_EXP + node.shift.astype(np.float64)))
    wide = graph.add("Cast", [wide], f"{name}/cast", to=TensorProto.FLOAT)
    wide = graph.add("Mul", [wide, graph.constant(f"{name}/scale", scale.astype(np.float32))], f"{name}/scaled")
    bias = graph.constant(f"{name}/bias", (node.bias * scale).astype(np.float32))
    wide = graph.add("Add", [wide, bias], f"{name}/biased")
    graph.add("Transpose", [wide], out, perm=_TO_NCHW)


def _window_rows(graph: _Graph, node: Conv, x: str, zero: str) -> list[tuple[str, np.ndarray]]:
    """Each row of the windows over the NHWC tensor `x`, padded with `zero`, as (N, h, w, k * I), and its weights
    (k * I, O). A convolution is the sum of their products: whole windows would be copied k times as much."""
    name, k, stride = node.name, node.weight.shape[2], node.stride
    if node.padding:
        pads = np.array([0, node.padding, node.padding, 0] * 2, np.int64)
        x = graph.add("Pad", [x, graph.constant(f"{name}/pads", pads), zero], f"{name}/padded")
    step = graph.constant(f"step_{stride}", np.array([stride]))

    def taps(x: str, axis: int) -> list[str]:
        # Ends that stop every tap at the same position: the last window's own tap.
        bounds = [_slice_bounds(graph, offset, _tap_end(offset, k), axis) for offset in range(k)]
        return [graph.add("Slice", [x, *own, step], f"{name}/tap_{axis}_{i}") for i, own in enumerate(bounds)]

    columns = graph.add("Concat", taps(x, 2), f"{name}/columns", axis=3)
    weights = np.ascontiguousarray(node.weight.transpose(2, 3, 1, 0).reshape(k, -1, len(node.weight)))
    return list(zip(taps(columns, 1), weights, strict=True))


def _double_form(network: Network) -> bytes:
    """A network with 16-bit activations, every integer held in fp64: sums below 2**31 are exact there in any order."""
    graph = _Graph(network)
    zero_point, zero = graph.constant("zero_point", np.float64(ZERO_POINT)), graph.constant("zero", np.float64(0))
    bits = network.bits
    limits = {
        width: [graph.constant(f"least_{width}", np.float64(-(1 << (width - 1)))),
                graph.constant(f"largest_{width}", np.float64((1 << (width - 1)) - 1))]
        for width in sorted({8, *bits.values()})
    }  # fmt: skip

    def requantised(x: str, factor: np.ndarray, width: int, out: str) -> None:
        """floor(x * factor + 1/2), saturated: halves round up."""
        x = graph.add("Mul", [x, graph.constant(f"{out}/factor", factor)], f"{out}/scaled")
        x = graph.add("Add", [x, graph.constant("half", np.float64(0.5))], f"{out}/half")
        graph.add("Clip", [graph.add("Floor", [x], f"{out}/floor"), *limits[width]], out)

    def aligned(name: str, x: str, width: int) -> str:
        if bits[name] == width:
            return x
        factor = graph.constant(f"times_{width - bits[name]}", np.float64(1 << (width - bits[name])))
        return graph.add("Mul", [x, factor], f"{x}/{width}_bits")

    alias = {}
    for name in network.inputs:
        x = graph.add("Cast", [name], f"{name}/cast", to=TensorProto.DOUBLE)
        alias[name] = graph.add("Sub", [x, zero_point], f"{name}/double")
    for node in network.nodes:
        out = alias[node.output] = f"{node.output}/double"
        if isinstance(node, Conv):
            wide = None
            for i, (row, matrix) in enumerate(_window_rows(graph, node, alias[node.source], zero)):
                weight = graph.constant(f"{node.name}/matrix_{i}", matrix.astype(np.float64))
                part = graph.add("MatMul", [row, weight], f"{out}/product_{i}")
                wide = part if wide is None else graph.add("Add", [wide, part], f"{out}/sum_{i}")
            bias = graph.constant(f"{node.name}/bias", node.bias.astype(np.float64))
            wide = graph.add("Add", [wide, bias], f"{out}/accumulator")
            exponent = bits[node.source] - 1 + node.shift.astype(np.float64)
            if node.raw:
                scale = graph.constant(f"{node.name}/scale", np.exp2(-exponent))
                wide = graph.add("Mul", [wide, scale], f"{out}/scaled")
                graph.add("Cast", [wide], out, to=TensorProto.FLOAT)
            else:
                requantised(wide, np.exp2(node.bits - 1 - exponent), node.bits, out)
        elif isinstance(node, Add):
            sources = [alias[source] for source in node.sources]
            if node.raw:
                graph.add("Add", sources, out)
            else:
                wide = max(bits[source] for source in node.sources)
                terms = [aligned(source, alias[source], wide) for source in node.sources]
                requantised(
                    graph.add("Add", terms, f"{out}/sum"), np.float64(2.0 ** (node.bits - wide)), node.bits, out
                )
        elif isinstance(node, Join):
            whole, fraction = (alias[source] for source in node.sources)
            factor = graph.constant(f"times_{node.bits}", np.float64(1 << (node.bits - 8)))
            graph.add("Add", [graph.add("Mul", [whole, factor], f"{out}/whole"), fraction], out)
        elif isinstance(node, Concat):
            graph.add("Concat", [alias[source] for source in node.sources], out, axis=3)
        elif isinstance(node, DepthToSpace):
            x = graph.add("Transpose", [alias[node.source]], f"{out}/nchw", perm=_TO_NCHW)
            x = graph.add("DepthToSpace", [x], f"{out}/moved", blocksize=node.block, mode=_mode(node))
            graph.add("Transpose", [x], out, perm=_TO_NHWC)
        elif isinstance(node, SpaceToDepth):
            graph.add("Identity", [_space_to_depth_nhwc(graph, node, network, alias[node.source])], out)
        elif isinstance(node, Select):
            channels = graph.constant(f"{node.output}/channels", np.array(node.channels))
            graph.add("Gather", [alias[node.source], channels], out, axis=3)
        elif isinstance(node, EdgePad):
            pads = graph.constant(f"{out}/pads", np.array([0, node.width, node.width, 0] * 2))
            graph.add("Pad", [alias[node.source], pads], out, mode="edge")
    for name in network.outputs:
        if name in graph.raw:
            graph.add("Identity", [alias[name]], name)
        else:
            shifted = graph.add("Add", [alias[name], zero_point], f"{name}/shifted")
            graph.add("Cast", [shifted], name, to=TensorProto.UINT8)
    return graph.model(TensorProto.UINT8)


_END = np.iinfo(np.int64).max


def _slice_bounds(graph: _Graph, first: int, last: int, axis: int) -> list[str]:
    """The inputs of a Slice of one axis after its data."""
    return [
        graph.constant(f"{key}_{value}", np.array([value]))
        for key, value in (("start", first), ("end", last), ("axis", axis))
    ]


def _tap_end(offset: int, kernel: int) -> int:
    """Slice end, counted from the tensor's end, of the tap at `offset`: every window must lie inside."""
    remaining = kernel - 1 - offset
    return -remaining if remaining else _END
