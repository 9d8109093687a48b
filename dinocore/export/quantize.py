"""Quantize linear layers of an ONNX graph to 8 bits: weights per output channel, activations per token.

An activation's scale is that of its own token and is found when it is computed, so there is nothing to calibrate and no
set of images to choose. What says where to look stays in float32 (offsets and weights of attention: their rounding cost
half a point of AP), and so do boxes, heads and the backbone's convolutions.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

QUANTISED = re.compile(r"model\.(encoder|decoder)\.layers\.\d+\.(ffn\.|\w+\.(value|output)\b)")  # modules
MIDDLE = 128  # stands for 0 where there are two signs; CPUs have a fast product of unsigned by signed bytes


def quantize_linears(model: Any) -> int:
    """Replace the large products of encoder and decoder layers by products of bytes, in place; returns how many.

    Args:
        model: an `onnx.ModelProto` whose nodes know which module they come from.
    """
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    constants = _Constants(model.graph)
    rectified = {node.output[0] for node in model.graph.node if node.op_type == "Relu"}
    nodes, replaced = [], 0
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights or not _in_parts(node):
            nodes.append(node)
            continue
        weight = numpy_helper.to_array(weights[node.input[1]])  # (C_in, C_out)
        nodes += quantized_product(node, weight, constants, node.input[0] in rectified)
        replaced += 1
    if not replaced:
        raise RuntimeError("found no matrix product of the encoder or decoder in the graph")
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return replaced


def quantize_weight(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(C_in, C_out) to signed bytes, and the scale of each output channel, (C_out,)."""
    scale = np.maximum(np.abs(weight).max(0), 1e-12) / 127
    return np.rint(weight / scale).astype(np.int8), scale.astype(np.float32)


def quantized_product(node: Any, weight: np.ndarray, constants: "_Constants", positive: bool = False) -> Iterator[Any]:
    """The nodes that stand for a product of x (..., C_in) with a constant matrix.

    Args:
        positive: x has one sign, as behind a ReLU; then 255 steps reach as far as 127 do otherwise.
    """
    from onnx import TensorProto, helper

    x, result, name = node.input[0], node.output[0], node.output[0]
    quantized, scale = quantize_weight(weight)
    matrix = constants.add(f"{name}_int8", quantized)
    channel = constants.add(f"{name}_scale", scale)
    last, least = constants.add("last_axis", np.array([-1])), constants.add("least", np.float32(1e-12))
    number, middle = (255, 0) if positive else (127, MIDDLE)
    steps, moved = (
        constants.add(f"steps_{number}", np.float32(number)),
        constants.add(f"middle_{middle}", np.float32(middle)),
    )
    zero = constants.add(f"zero_point_{middle}", np.uint8(middle))
    plan = [
        ("Abs", [x], "abs", {}),
        ("ReduceMax", [f"{name}_abs", last], "peak", {"keepdims": 1}),  # of each token
        ("Max", [f"{name}_peak", least], "floor", {}),
        ("Div", [f"{name}_floor", steps], "step", {}),
        ("Div", [x, f"{name}_step"], "scaled", {}),
        ("Round", [f"{name}_scaled"], "whole", {}),
        ("Add", [f"{name}_whole", moved], "moved", {}),
        ("Cast", [f"{name}_moved"], "bytes", {"to": TensorProto.UINT8}),
        ("MatMulInteger", [f"{name}_bytes", matrix, zero], "sum", {}),
        ("Cast", [f"{name}_sum"], "float", {"to": TensorProto.FLOAT}),
        ("Mul", [f"{name}_float", f"{name}_step"], "by_token", {}),
    ]
    for kind, inputs, output, options in plan:
        yield helper.make_node(kind, inputs, [f"{name}_{output}"], name=f"{name}_{output}_node", **options)
    yield helper.make_node("Mul", [f"{name}_by_token", channel], [result], name=f"{name}_by_channel_node")


class _Constants:
    """The initializers of a graph; a name is added once."""

    def __init__(self, graph: Any):
        self.graph = graph
        self.names = {tensor.name for tensor in graph.initializer}

    def add(self, name: str, value: np.ndarray | np.generic) -> str:
        from onnx import numpy_helper

        name = f"quantized_{name}"
        if name not in self.names:
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
            self.names.add(name)
        return name


def _in_parts(node: Any) -> bool:
    """Whether a node comes from a layer that is to be quantised."""
    scopes = " ".join(entry.value for entry in node.metadata_props if entry.key.startswith("pkg.torch.onnx"))
    return QUANTISED.search(scopes) is not None
