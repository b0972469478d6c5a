"""The ONNX spelling of a network with 16-bit activations, for ONNX Runtime: all of it in fp64."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from ..runtime.network import Add, Concat, Conv, DepthToSpace, EdgePad, Join, Network, Select, SpaceToDepth
from .onnx_graph import TO_NCHW, TO_NHWC, ZERO_POINT, Graph, depth_mode, space_to_depth_nhwc, window_rows


def double_form(network: Network) -> bytes:
    """A network with 16-bit activations, every integer held in fp64: sums below 2**31 are exact there in any order."""
    graph = Graph(network)
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
            for i, (row, matrix) in enumerate(window_rows(graph, node, alias[node.source], zero)):
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
            x = graph.add("Transpose", [alias[node.source]], f"{out}/nchw", perm=TO_NCHW)
            x = graph.add("DepthToSpace", [x], f"{out}/moved", blocksize=node.block, mode=depth_mode(node))
            graph.add("Transpose", [x], out, perm=TO_NHWC)
        elif isinstance(node, SpaceToDepth):
            graph.add("Identity", [space_to_depth_nhwc(graph, node, network, alias[node.source])], out)
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
