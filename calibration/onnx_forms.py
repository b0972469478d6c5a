"""Two ONNX spellings of an integer network, both made here because the device has no onnx package.

`qdq_form`: QuantizeLinear/DequantizeLinear around float operators, int8 with zero point 0, as TensorRT wants it.
`onnxruntime_form`: QLinearConv and MatMulInteger over uint8 activations with zero point 128, for which ONNX Runtime has
its fast x86 kernels. The shift of the zero point changes no value. Both take and give NHWC tensors, and hold integers
of more than 8 bits in float32.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from onnx import TensorProto

from ..runtime.errors import UsageError
from ..runtime.network import (
    ACTIVATION_EXP,
    EXACT,
    FLOAT,
    FREE,
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
from .onnx_double import double_form
from .onnx_fillers import OUTPUTS, only_readers, widened, with_fillers
from .onnx_graph import (
    END,
    TO_NCHW,
    TO_NHWC,
    ZERO_POINT,
    Graph,
    conv_geometry,
    depth_mode,
    slice_bounds,
    space_to_depth_nhwc,
    window_rows,
)
from .onnx_wide import WideIntegers

MOST_RUNS = 4
"""Of neighbouring channels that a Select takes, for which slices are faster than a Gather."""


def qdq_form(network: Network) -> bytes:
    """The network as Q/DQ ONNX. Boundary tensors are int8 NHWC (raw outputs float32).

    What only moves integers stands between a DequantizeLinear and a QuantizeLinear of the same scale: TensorRT's
    parser lists no int8 for those operators, and takes such a group as the movement of int8 that it is. Raises
    UsageError for formats other than int8-exact and fp32-exact.
    """
    if network.formats - {EXACT, FLOAT}:
        raise UsageError(f"network {network.name} has no Q/DQ form: it is not exact in fp32")
    graph = Graph(network)
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

    integers = WideIntegers(graph, widened, narrowed)
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
        moved("Slice", [source], output, *slice_bounds(graph, first, last, axis))
        return output

    alias = {name: f"{name}/nchw" for name in network.inputs}
    for name, inside in alias.items():
        moved("Transpose", [name], inside, perm=TO_NCHW)
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
            graph.add("Conv", [dequantised(alias[node.source]), weight, bias], result, **conv_geometry(node))
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
            moved("DepthToSpace", [alias[node.source]], out, blocksize=node.block, mode=depth_mode(node))
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
                last = taken(rows, -1, END, axis, f"{padded}/last")
                moved("Concat", [first] * node.width + [rows] + [last] * node.width, padded, axis=axis)
                rows = padded
    for name in network.outputs:
        moved("Transpose", [alias[name]], name, perm=TO_NHWC)
    return graph.model(TensorProto.INT8)


def onnxruntime_form(network: Network) -> bytes:
    """The network over uint8 with zero point 128. Boundary tensors are uint8 NHWC (raw outputs float32)."""
    if WIDE in network.formats:
        return double_form(network)
    network = with_fillers(network)
    graph = Graph(network)
    scale = graph.constant("scale", np.float32(2.0**-ACTIVATION_EXP))
    zero = graph.constant("zero", np.uint8(ZERO_POINT))
    alias = {name: graph.add("Transpose", [name], f"{name}/nchw", perm=TO_NCHW) for name in network.inputs}
    depth_first = _depth_first_sources(network)

    def widened(name: str, factor: float, output: str) -> str:
        return graph.add(
            "DequantizeLinear", [name, graph.constant(f"step_of_{factor:g}", np.float32(factor)), zero], output
        )

    def narrowed(name: str, factor: float, output: str) -> str:
        return graph.add(
            "QuantizeLinear", [name, graph.constant(f"step_of_{factor:g}", np.float32(factor)), zero], output
        )

    integers = WideIntegers(graph, widened, narrowed)
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
            x = graph.add("Transpose", [alias[node.source]], f"{out}/nhwc", perm=TO_NHWC)
            packed = space_to_depth_nhwc(graph, node, network, x)
            graph.add("Transpose", [packed], out, perm=TO_NCHW)
        elif isinstance(node, Select):
            _selected(graph, node, alias[node.source], out)
        elif isinstance(node, EdgePad):
            pads = graph.constant(f"{out}/pads", np.array([0, 0, node.width, node.width] * 2))
            graph.add("Pad", [alias[node.source], pads], out, mode="edge")
    for name in network.outputs:
        graph.add("Transpose", [alias[name]], name, perm=TO_NHWC)
    return graph.model(TensorProto.UINT8)


def _selected(graph: Graph, node: Select, source: str, out: str) -> None:
    """Channels in a few runs as slices, which ONNX Runtime moves run by run; a Gather moves single bytes."""
    starts = [0, *(np.flatnonzero(np.diff(node.channels) != 1) + 1), len(node.channels)]
    if len(starts) - 1 > MOST_RUNS:
        channels = graph.constant(f"{node.output}/channels", np.array(node.channels))
        graph.add("Gather", [source, channels], out, axis=1)
        return
    runs = [(node.channels[a], node.channels[b - 1] + 1) for a, b in itertools.pairwise(starts)]
    if len(runs) == 1:
        graph.add("Slice", [source, *slice_bounds(graph, *runs[0], 1)], out)
        return
    names = [f"{out}/run_{i}" for i in range(len(runs))]
    for run, name in zip(runs, names, strict=True):
        graph.add("Slice", [source, *slice_bounds(graph, *run, 1)], name)
    graph.add("Concat", names, out, axis=1)


def _beside(network: Network, node: Conv) -> list[Conv]:
    """The convolutions in format FLOAT that one can do together with `node`, which is one of them."""

    def keeps_planes(other: Node) -> bool:
        fits = isinstance(other, Conv) and other.format == FLOAT and other.source == node.source
        return fits and other.stride == 1 and 2 * other.padding + 1 == other.weight.shape[2]

    return [other for other in network.nodes if keeps_planes(other)] if keeps_planes(node) else [node]


def _depth_first_sources(network: Network) -> dict[str, int]:
    """Block of each DepthToSpace whose input is a convolution that nothing else reads."""
    convolved = {
        node.output for node in network.nodes if isinstance(node, Conv) and not node.raw and node.format != FLOAT
    }
    alone = convolved & only_readers(network).keys()
    return {
        node.source: node.block
        for node in network.nodes
        if isinstance(node, DepthToSpace) and not node.phases_first and node.source in alone
    }


def _quantised_convolution(graph: Graph, node: Conv, source: str, out: str, block: int | None) -> None:
    """QLinearConv. `block` orders the output channels (dy, dx, channel), for `_depth_to_space_nhwc`."""
    channels = len(node.weight)
    if block:
        order = np.arange(channels).reshape(-1, block * block).T.ravel()
        scale = None if node.scale is None else node.scale[order]
        node = replace(node, weight=node.weight[order], bias=node.bias[order], shift=node.shift[order], scale=scale)
    readers = graph.network.readers[node.output]
    node = widened(node, -channels % OUTPUTS)
    name = node.name
    scale, zero = (
        graph.constant("scale", np.float32(2.0**-ACTIVATION_EXP)),
        graph.constant("zero", np.uint8(ZERO_POINT)),
    )
    weight = graph.constant(f"{name}/weight", node.weight)
    steps = node.scale if node.format == FREE else np.exp2(-node.shift.astype(np.float32))
    weight_scale = graph.constant(f"{name}/weight_scale", steps)
    weight_zero = graph.constant(f"{name}/weight_zero", np.zeros(len(steps), np.int8))
    bias = graph.constant(f"{name}/bias", node.bias)
    inputs = [source, scale, zero, weight, weight_scale, weight_zero, scale, zero, bias]
    # Who selects channels does not mind that there are more.
    uncut = len(steps) == channels or (readers and all(isinstance(reader, Select) for reader in readers))
    result = graph.add("QLinearConv", inputs, out if uncut else f"{out}/wide", **conv_geometry(node))
    if not uncut:
        graph.add("Slice", [result, *slice_bounds(graph, 0, channels, 1)], out)


def _depth_to_space_nhwc(graph: Graph, node: DepthToSpace, source: str, out: str) -> None:
    """DepthToSpace of channels ordered (dy, dx, channel): one transposition of whole runs of bytes in NHWC.

    ONNX Runtime's own DepthToSpace works in NCHW, between two more transpositions of single bytes.
    """
    name, block = node.name, node.block
    x = graph.add("Transpose", [source], f"{name}/nhwc", perm=TO_NHWC)
    rows = graph.constant(f"rows_{block}", np.array([0, 0, 0, block, -1]))
    split = graph.add("Reshape", [x, rows], f"{name}/split")
    moved = graph.add("Transpose", [split], f"{name}/moved", perm=[0, 1, 3, 2, 4])
    shape = graph.add("Shape", [x], f"{name}/shape", start=0, end=3)
    growth = graph.constant(f"growth_{block}", np.array([1, block, block]))
    grown = graph.add("Mul", [shape, growth], f"{name}/grown")
    rest = graph.constant("rest", np.array([-1]))
    target = graph.add("Concat", [grown, rest], f"{name}/target", axis=0)
    joined = graph.add("Reshape", [moved, target], f"{name}/joined")
    graph.add("Transpose", [joined], out, perm=TO_NCHW)


def _raw_convolution(graph: Graph, node: Conv, source: str, out: str) -> None:
    """A convolution that keeps its accumulator, as products of matrices.

    ONNX Runtime's ConvInteger is some ten times slower than its quantised convolution; MatMulInteger is not.
    """
    name = node.name
    x = graph.add("Transpose", [source], f"{name}/nhwc", perm=TO_NHWC)
    zero = graph.constant("zero", np.uint8(ZERO_POINT))
    wide = None
    for i, (row, matrix) in enumerate(window_rows(graph, node, x, zero)):
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
    graph.add("Transpose", [wide], out, perm=TO_NCHW)
