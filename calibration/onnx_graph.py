"""What the ONNX spellings of integer networks are made with: a graph as it grows, and operators that they share."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..runtime.network import Conv, DepthToSpace, Network, SpaceToDepth

OPSET = 17
IR_VERSION = 8
"""What ONNX Runtime 1.14 and TensorRT 10.3 both read."""
ZERO_POINT = 128
"""Of the uint8 tensors that the forms for ONNX Runtime take and give."""
TO_NCHW, TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]
END = np.iinfo(np.int64).max


class Graph:
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


def conv_geometry(node: Conv) -> dict[str, list[int]]:
    k = node.weight.shape[2]
    return {"kernel_shape": [k, k], "strides": [node.stride] * 2, "pads": [node.padding] * 4}


def depth_mode(node: DepthToSpace) -> str:
    return "DCR" if node.phases_first else "CRD"


def slice_bounds(graph: Graph, first: int, last: int, axis: int) -> list[str]:
    """The inputs of a Slice of one axis after its data."""
    return [
        graph.constant(f"{key}_{value}", np.array([value]))
        for key, value in (("start", first), ("end", last), ("axis", axis))
    ]


def space_to_depth_nhwc(graph: Graph, node: SpaceToDepth, network: Network, x: str) -> str:
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


def window_rows(graph: Graph, node: Conv, x: str, zero: str) -> list[tuple[str, np.ndarray]]:
    """Each row of the windows over the NHWC tensor `x`, padded with `zero`, as (N, h, w, k * I), and its weights
    (k * I, O). A convolution is the sum of their products: whole windows would be copied k times as much."""
    name, k, stride = node.name, node.weight.shape[2], node.stride
    if node.padding:
        pads = np.array([0, node.padding, node.padding, 0] * 2, np.int64)
        x = graph.add("Pad", [x, graph.constant(f"{name}/pads", pads), zero], f"{name}/padded")
    step = graph.constant(f"step_{stride}", np.array([stride]))

    def taps(x: str, axis: int) -> list[str]:
        # Ends that stop every tap at the same position: the last window's own tap.
        bounds = [slice_bounds(graph, offset, _tap_end(offset, k), axis) for offset in range(k)]
        return [graph.add("Slice", [x, *own, step], f"{name}/tap_{axis}_{i}") for i, own in enumerate(bounds)]

    columns = graph.add("Concat", taps(x, 2), f"{name}/columns", axis=3)
    weights = np.ascontiguousarray(node.weight.transpose(2, 3, 1, 0).reshape(k, -1, len(node.weight)))
    return list(zip(taps(columns, 1), weights, strict=True))


def _tap_end(offset: int, kernel: int) -> int:
    """Slice end, counted from the tensor's end, of the tap at `offset`: every window must lie inside."""
    remaining = kernel - 1 - offset
    return -remaining if remaining else END
