"""TensorRT's rules for Q/DQ graphs: what the exporter writes keeps them all, and each has an example that breaks it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from linnet.runtime.network import Add, Concat, Conv, DepthToSpace, Network

onnx = pytest.importorskip("onnx")
from onnx import helper, numpy_helper  # noqa: E402

from linnet.calibration import onnx_forms, tensorrt_rules  # noqa: E402
from linnet.calibration.certificate import RuleBroken  # noqa: E402
from linnet.runtime.bundle import Bundle  # noqa: E402


def conv(name: str, source: str, channels: int, *, raw: bool = False) -> Conv:
    weight = np.full((8, channels, 3, 3), 2, np.int8)
    return Conv(name, source, name, weight, np.ones(8, np.int32), np.full(8, 6, np.uint8), 1, 1, raw)


NETWORK = Network(
    "net",
    {"x": 8},
    ("wide", "out"),
    (
        conv("a", "x", 8),
        Add("sum", ("x", "a"), "sum", raw=False),
        Concat("both", ("a", "sum"), "both"),
        DepthToSpace("out", "both", "out", 2),
        conv("wide", "both", 16, raw=True),
    ),
)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def set_constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    """Add a constant, or replace the one of this name."""
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, numpy_helper.from_array(value, name)])


def set_attribute(model: onnx.ModelProto, name: str, key: str, value: object) -> None:
    target = node(model, name)
    kept = [attribute for attribute in target.attribute if attribute.name != key]
    del target.attribute[:]
    target.attribute.extend([*kept, helper.make_attribute(key, value)])


def insert(model: onnx.ModelProto, after: str, new: onnx.NodeProto) -> None:
    position = [node.name for node in model.graph.node].index(after)
    model.graph.node.insert(position + 1, new)


# One example per rule: each changes the good graph in one place.


def an_integer_convolution(model: onnx.ModelProto) -> None:
    node(model, "a/nchw/wide").op_type = "ConvInteger"


def an_old_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 12


def uint8_at_the_border(model: onnx.ModelProto) -> None:
    set_constant(model, "zero", np.uint8(0))
    for value in (model.graph.input[0], model.graph.output[1]):
        value.type.tensor_type.elem_type = onnx.TensorProto.UINT8


def open_channels(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "channels"


def a_zero_point(model: onnx.ModelProto) -> None:
    set_constant(model, "zero", np.int8(3))


def a_negative_scale(model: onnx.ModelProto) -> None:
    set_constant(model, "a/weight_scale", np.full(8, -0.5, np.float32))


def an_activation_with_scales(model: onnx.ModelProto) -> None:
    set_constant(model, "scales", np.full(8, 2.0**-7, np.float32))
    set_constant(model, "zeros", np.zeros(8, np.int8))
    node(model, "a/nchw").input[1:] = ["scales", "zeros"]


def scales_along_the_inputs(model: onnx.ModelProto) -> None:
    set_attribute(model, "a/weight_float", "axis", 1)


def a_float_input(model: onnx.ModelProto) -> None:
    node(model, "a/nchw/wide").input[0] = "x/nchw/moved"


def a_quantised_bias(model: onnx.ModelProto) -> None:
    set_constant(model, "a/bias_int8", np.ones(8, np.int8))
    insert(model, "a/weight_float", helper.make_node(
        "DequantizeLinear", ["a/bias_int8", "scale", "zero"], ["a/bias_float"], name="a/bias_float"
    ))  # fmt: skip
    node(model, "a/nchw/wide").input[2] = "a/bias_float"


def a_sum_used_twice(model: onnx.ModelProto) -> None:
    node(model, "sum/nchw/wide").input[1] = "a/nchw/wide"


def a_float_skip(model: onnx.ModelProto) -> None:
    node(model, "sum/nchw/wide").input[0] = "x/nchw/moved"


def another_scale_in_an_addition(model: onnx.ModelProto) -> None:
    set_constant(model, "other", np.float32(0.25))
    node(model, "a/nchw/float").input[1] = "other"


def another_scale_after_a_concatenation(model: onnx.ModelProto) -> None:
    set_constant(model, "other", np.float32(0.25))
    node(model, "both/nchw").input[1] = "other"


def a_transposed_int8_tensor(model: onnx.ModelProto) -> None:
    node(model, "x/nchw/moved").input[0] = "x"


def thin_groups(model: onnx.ModelProto) -> None:
    set_constant(model, "a/weight", np.full((8, 2, 3, 3), 2, np.int8))
    set_attribute(model, "a/nchw/wide", "group", 4)


def padding_with_one(model: onnx.ModelProto) -> None:
    set_constant(model, "pads", np.array([0, 0, 0, 0, 0, 0, 0, 0]))
    set_constant(model, "one", np.float32(1))
    node(model, "x/nchw/moved").output[0] = "x/unpadded"
    insert(model, "x/nchw/moved", helper.make_node(
        "Pad", ["x/unpadded", "pads", "one"], ["x/nchw/moved"], name="x/padded"
    ))  # fmt: skip


EXAMPLES: list[tuple[Callable[[onnx.ModelProto], None], str, str]] = [
    (an_integer_convolution, "known operators", "a/nchw/wide"),
    (an_old_opset, "opset 13 to 20", "the model"),
    (uint8_at_the_border, "int8 and float32 only", "x"),
    (open_channels, "channels are static", "x"),
    (a_zero_point, "zero points are constant zeros", "x/float"),
    (a_negative_scale, "scales are positive constants", "a/weight_float"),
    (an_activation_with_scales, "scales per channel on weights only", "a/nchw"),
    (scales_along_the_inputs, "scales per channel on weights only", "a/weight_float"),
    (a_float_input, "weighted operators are of one kind", "a/nchw/wide"),
    (a_quantised_bias, "biases are float32 constants", "a/nchw/wide"),
    (a_sum_used_twice, "one quantisation per sum", "a/nchw/wide"),
    (a_float_skip, "additions read quantised tensors of one scale", "sum/nchw/wide"),
    (another_scale_in_an_addition, "additions read quantised tensors of one scale", "sum/nchw/wide"),
    (another_scale_after_a_concatenation, "movements keep the scale", "both/nchw/moved"),
    (a_transposed_int8_tensor, "int8 only between Q and DQ", "x/nchw/moved"),
    (thin_groups, "groups of 4 channels", "a/nchw/wide"),
    (padding_with_one, "padding with 0", "x/padded"),
]


def good() -> onnx.ModelProto:
    return onnx.load_from_string(onnx_forms.qdq_form(NETWORK))


def test_the_unchanged_graph_keeps_every_rule() -> None:
    assert list(tensorrt_rules.broken(good().SerializeToString())) == []


@pytest.mark.parametrize(("change", "rule", "place"), EXAMPLES, ids=[change.__name__ for change, _, _ in EXAMPLES])
def test_each_rule_finds_its_example(change: Callable[[onnx.ModelProto], None], rule: str, place: str) -> None:
    model = good()
    change(model)
    found = [(rule.name, place) for rule, place, _ in tensorrt_rules.broken(model.SerializeToString())]
    assert (rule, place) in found


def test_every_rule_has_an_example() -> None:
    assert {rule for _, rule, _ in EXAMPLES} == {rule.name for rule in tensorrt_rules.RULES}


def test_a_broken_rule_names_network_node_and_reason() -> None:
    model = good()
    a_float_skip(model)
    with pytest.raises(RuleBroken, match=r"network net, layer sum/nchw/wide .* additions read quantised .* skip input"):
        tensorrt_rules.check({"net": model.SerializeToString()})


def test_the_graphs_of_the_shipped_networks_keep_every_rule() -> None:
    networks = Bundle.open().networks
    tensorrt_rules.check({name: onnx_forms.qdq_form(network) for name, network in networks.items()})


def test_the_graphs_in_the_shipped_bundle_keep_every_rule() -> None:
    tensorrt_rules.check(Bundle.open().graphs("qdq"))
