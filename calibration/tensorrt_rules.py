"""What TensorRT asks of a Q/DQ graph, as a table of rules that are checked without TensorRT.

From the documentation of explicit quantisation and the ONNX parser's list of operators and types. A graph that keeps
the rules is understood as the int8 network it is; TensorRT would refuse some of the others, compute some in float, and
read a few wrongly without a word. The rules say nothing about exactness: that is `certificate`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from .certificate import RuleBroken

OPSETS = range(13, 21)
"""From the first with a scale per channel to the last that the parser of TensorRT 10.3 knows."""
WEIGHTED = {"Conv": 0, "ConvTranspose": 1}
"""Operators with weights, and the axis of their output channels."""
MOVING = {"Concat", "DepthToSpace", "SpaceToDepth", "Transpose", "Slice", "Split", "Gather", "Pad", "Resize"}
OPERATORS = {*WEIGHTED, *MOVING, "Add", "Mul", "Round", "Relu", "Clip", "QuantizeLinear", "DequantizeLinear"}
CHANNELS_PER_GROUP = 4

Finding = tuple[str, str]
"""(node or tensor, what is wrong with it)"""


class _Graph:
    """A model with what the rules look up: constants, producers, readers and types of its tensors."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model, self.nodes = model, model.graph.node
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.producer = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in node.input:
                self.readers[name].append(node)
        self.outputs = {value.name for value in model.graph.output}

    @cached_property
    def types(self) -> dict[str, int]:
        """Element type of every tensor."""
        graph = onnx.shape_inference.infer_shapes(self.model).graph
        values = [*graph.input, *graph.value_info, *graph.output]
        found = {value.name: value.type.tensor_type.elem_type for value in values}
        return {**{tensor.name: tensor.data_type for tensor in graph.initializer}, **found}

    def of(self, *operators: str) -> Iterator[onnx.NodeProto]:
        return (node for node in self.nodes if node.op_type in operators)

    def made_by(self, name: str, operator: str) -> onnx.NodeProto | None:
        """The node that makes the tensor `name`, if it is an `operator`."""
        node = self.producer.get(name)
        return node if node is not None and node.op_type == operator else None

    def scale(self, node: onnx.NodeProto) -> np.ndarray | None:
        return self.constants.get(node.input[1])

    def data(self, node: onnx.NodeProto) -> list[str]:
        """The inputs that carry data, without bounds, pads and sizes."""
        return list(node.input) if node.op_type in ("Concat", "Add") else list(node.input[:1])


def _attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _known_operators(graph: _Graph) -> Iterator[Finding]:
    for node in graph.nodes:
        if node.domain or node.op_type not in OPERATORS:
            yield node.name, f"{node.domain}{'.' if node.domain else ''}{node.op_type} is not one of them"


def _opset(graph: _Graph) -> Iterator[Finding]:
    for entry in graph.model.opset_import:
        if not entry.domain and entry.version not in OPSETS:
            yield "the model", f"it has opset {entry.version}"


def _static_channels(graph: _Graph) -> Iterator[Finding]:
    for value in graph.model.graph.input:
        shape = value.type.tensor_type.shape.dim
        if len(shape) != 4 or shape[3].dim_value < 1:
            yield value.name, "it is not four-dimensional with a fixed last dimension"


def _types(graph: _Graph) -> Iterator[Finding]:
    for name, kind in graph.types.items():
        parameter = kind == TensorProto.INT64 and name in graph.constants
        if kind not in (TensorProto.INT8, TensorProto.FLOAT) and not parameter:
            yield name, f"it is {TensorProto.DataType.Name(kind).lower()}"


def _zero_points(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        zero, scale = (graph.constants.get(name) for name in [*node.input, ""][2:0:-1])
        if zero is None or zero.dtype != np.int8 or zero.any() or (scale is not None and zero.size != scale.size):
            yield node.name, "it has no constant int8 zero point of zeros, one for each scale"


def _scales(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        scale = graph.scale(node)
        if scale is None or scale.dtype != np.float32 or not (scale > 0).all():
            yield node.name, "its scale is not a positive float32 constant"


def _per_channel(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        scale, data = graph.scale(node), graph.constants.get(node.input[0])
        if scale is None or scale.size == 1:
            continue
        if data is None:
            yield node.name, "it has a scale per channel and reads an activation"
            continue
        axis = _attribute(node, "axis", 1)
        for reader in graph.readers[node.output[0]]:
            if axis != WEIGHTED.get(reader.op_type) or scale.size != data.shape[axis]:
                yield node.name, f"its {scale.size} scales along axis {axis} are not {reader.name}'s output channels"


def _in_float(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Whether a weighted operator is one in float32 on purpose: its weights are, and what it reads is no int8 tensor's
    twin (nor is its result quantised), so that nothing is fused into int8."""
    weight = graph.constants.get(node.input[1], np.empty(0))
    readers = {reader.op_type for reader in graph.readers[node.output[0]]}
    return (
        weight.dtype == np.float32
        and graph.made_by(node.input[0], "DequantizeLinear") is None
        and ("QuantizeLinear" not in readers)
    )


def _weighted_inputs(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of(*WEIGHTED):
        if _in_float(graph, node):
            continue
        data, weight = (graph.made_by(name, "DequantizeLinear") for name in node.input[:2])
        if data is None or data.input[0] in graph.constants:
            yield node.name, f"its input {node.input[0]} is not dequantised"
        if weight is None or graph.constants.get(weight.input[0], np.empty(0)).dtype != np.int8:
            yield node.name, f"its weights {node.input[1]} are not a dequantised int8 constant"


def _biases(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of(*WEIGHTED):
        if len(node.input) > 2 and graph.constants.get(node.input[2], np.empty(0)).dtype != np.float32:
            yield node.name, f"its bias {node.input[2]} is not a float32 constant"


def _one_quantisation(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of(*WEIGHTED, "Add"):
        readers = graph.readers[node.output[0]]
        kinds = {reader.op_type for reader in readers}
        if "QuantizeLinear" in kinds and (len(readers) > 1 or node.output[0] in graph.outputs):
            yield node.name, "its result is quantised and also used as it is"


def _adds(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("Add"):
        sources = [graph.made_by(name, "DequantizeLinear") for name in node.input]
        if any(sources) or any(r.op_type == "QuantizeLinear" for r in graph.readers[node.output[0]]):
            yield from _equal_scales(graph, node, sources)


def _movements(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of(*MOVING):
        sources = [graph.made_by(name, "DequantizeLinear") for name in graph.data(node)]
        readers = [reader for name in node.output for reader in graph.readers[name]]
        quantised = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
        if not any(sources) and not quantised:
            continue  # it moves raw float results
        if len(quantised) < len(readers) or not readers or graph.outputs & set(node.output):
            yield node.name, "its result is not always quantised"
        yield from _equal_scales(graph, node, [*sources, *quantised])


def _equal_scales(graph: _Graph, node: onnx.NodeProto, around: list[onnx.NodeProto | None]) -> Iterator[Finding]:
    """`around` are the Q/DQ nodes beside `node`; None stands for an input that is not dequantised."""
    if None in around:
        yield node.name, "not all of its inputs are dequantised"
    scales = [graph.scale(neighbour) for neighbour in around if neighbour is not None]
    if any(scale is None or not np.array_equal(scale, scales[0]) for scale in scales):
        yield node.name, "the scales around it differ"


def _int8_between(graph: _Graph) -> Iterator[Finding]:
    for name, kind in graph.types.items():
        if kind == TensorProto.INT8 and name not in graph.constants:
            for reader in graph.readers[name]:
                if reader.op_type != "DequantizeLinear":
                    yield reader.name, f"{reader.op_type} reads the int8 tensor {name}"


def _groups(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of(*WEIGHTED):
        group = _attribute(node, "group", 1)
        weight = graph.made_by(node.input[1], "DequantizeLinear")
        if weight is None or weight.input[0] not in graph.constants or group == 1:
            continue
        # Conv has (out, in / groups, k, k), ConvTranspose (in, out / groups, k, k).
        first, second = graph.constants[weight.input[0]].shape[:2]
        if (first // group) % CHANNELS_PER_GROUP or second % CHANNELS_PER_GROUP:
            yield node.name, f"its {group} groups have {first // group} and {second} channels"


def _pads(graph: _Graph) -> Iterator[Finding]:
    for node in graph.of("Pad"):
        value = graph.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else np.float32(0)
        if _attribute(node, "mode", b"constant") != b"constant" or value is None or np.any(value):
            yield node.name, "it does not pad with 0"


@dataclass(frozen=True)
class Rule:
    """One rule, what happens where it is broken, and the function that finds where."""

    name: str
    otherwise: str
    find: Callable[[_Graph], Iterator[Finding]]


RULES = (
    Rule("known operators", "the parser has no QLinearConv, ConvInteger or com.microsoft", _known_operators),
    Rule(f"opset {OPSETS[0]} to {OPSETS[-1]}", "older ones lack scales per channel, newer ones 10.3 lacks", _opset),
    Rule("int8 and float32 only", "uint8 is refused or read as int8", _types),
    Rule("channels are static", "weights need to know their channels when the engine is built", _static_channels),
    Rule("zero points are constant zeros", "only symmetric quantisation exists", _zero_points),
    Rule("scales are positive constants", "the parser refuses others", _scales),
    Rule("scales per channel on weights only", "activations have one scale", _per_channel),
    Rule("weighted operators are of one kind", "int8 is read by float weights, or the reverse", _weighted_inputs),
    Rule("biases are float32 constants", "a quantised bias is not fused", _biases),
    Rule("one quantisation per sum", "a result that is also used unquantised is computed in float", _one_quantisation),
    Rule("additions read quantised tensors of one scale", "the skip input would be converted to float", _adds),
    Rule("movements keep the scale", "they would run in float, between two conversions", _movements),
    Rule("int8 only between Q and DQ", "the parser lists no int8 for other operators", _int8_between),
    Rule("groups of 4 channels", "grouped int8 kernels take multiples of 4", _groups),
    Rule("padding with 0", "other values are not the zero point", _pads),
)


def broken(model: bytes) -> Iterator[tuple[Rule, str, str]]:
    """(rule, node, what is wrong) for everything in a serialized Q/DQ model that breaks a rule."""
    graph = _Graph(onnx.load_from_string(model))
    for rule in RULES:
        for node, detail in rule.find(graph):
            yield rule, node, detail


def check(models: Mapping[str, bytes]) -> None:
    """Raise RuleBroken for the first rule that one of the models, by network name, breaks."""
    for name, model in models.items():
        for rule, node, detail in broken(model):
            raise RuleBroken(name, node, f"TensorRT: {rule.name}", f"{detail} ({rule.otherwise})")
