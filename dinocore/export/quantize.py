"""Quantize linear layers of an ONNX graph to 8 bits: weights per output channel, activations per token.

Quantization is dynamic: each token's scale is computed at run time, so no calibration images are needed. The layers for
sampling offsets and attention weights stay in float32 (rounding them cost half a point of AP), and so do boxes, heads
and the backbone's convolutions.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

QUANTIZED = re.compile(r"model\.(encoder|decoder)\.layers\.\d+\.(ffn\.|\w+\.(value|output)\b)")  # modules
ZERO_POINT = 128  # of signed activations; CPUs have fast products of unsigned and signed bytes


def quantize_linears(model: Any) -> int:
    """Replace the large matrix products in encoder and decoder layers by int8 products, in place; return how many.

    Args:
        model: an `onnx.ModelProto` whose nodes have PyTorch's metadata about their module.
    """
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    constants = _Constants(model.graph)
    relu_outputs = {node.output[0] for node in model.graph.node if node.op_type == "Relu"}
    nodes, replaced = [], 0
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights or not _is_quantized_layer(node):
            nodes.append(node)
            continue
        weight = numpy_helper.to_array(weights[node.input[1]])  # (C_in, C_out)
        nodes += quantized_product(node, weight, constants, node.input[0] in relu_outputs)
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
    """Quantize (C_in, C_out) to signed bytes; return them and the scale of each output channel, (C_out,)."""
    scale = np.maximum(np.abs(weight).max(0), 1e-12) / 127
    return np.rint(weight / scale).astype(np.int8), scale.astype(np.float32)


def quantized_product(node: Any, weight: np.ndarray, constants: "_Constants", positive: bool = False) -> Iterator[Any]:
    """The nodes that replace a product of x (..., C_in) with a constant matrix.

    Args:
        positive: x is non-negative, as after a ReLU, so that all 255 levels can be used instead of 127.
    """
    from onnx import TensorProto, helper

    x, result, name = node.input[0], node.output[0], node.output[0]
    quantized, scale = quantize_weight(weight)
    matrix = constants.add(f"{name}_int8", quantized)
    channel = constants.add(f"{name}_scale", scale)
    last, least = constants.add("last_axis", np.array([-1])), constants.add("least", np.float32(1e-12))
    num_levels, zero_point = (255, 0) if positive else (127, ZERO_POINT)
    levels = constants.add(f"steps_{num_levels}", np.float32(num_levels))
    shift = constants.add(f"middle_{zero_point}", np.float32(zero_point))
    zero = constants.add(f"zero_point_{zero_point}", np.uint8(zero_point))
    plan = [
        ("Abs", [x], "abs", {}),
        ("ReduceMax", [f"{name}_abs", last], "peak", {"keepdims": 1}),  # per token
        ("Max", [f"{name}_peak", least], "floor", {}),
        ("Div", [f"{name}_floor", levels], "step", {}),
        ("Div", [x, f"{name}_step"], "scaled", {}),
        ("Round", [f"{name}_scaled"], "whole", {}),
        ("Add", [f"{name}_whole", shift], "moved", {}),
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


def _is_quantized_layer(node: Any) -> bool:
    """Whether a node belongs to a layer that is to be quantized."""
    scopes = " ".join(entry.value for entry in node.metadata_props if entry.key.startswith("pkg.torch.onnx"))
    return QUANTIZED.search(scopes) is not None
