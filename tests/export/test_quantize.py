"""Matrix products in int8."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from dinocore.export.quantize import quantize_linears  # noqa: E402


def matmul_model(weight: np.ndarray, scope: str):
    """A model with one matrix product, exported from the module `scope`."""
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=f"['', 'model', '{scope}', 'linear']")
    shape = ["b", "n", len(weight)]
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape[:2], weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run_model(model, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def test_each_token_and_each_channel_has_its_own_scale():
    rng = np.random.default_rng()
    weight = (rng.normal(size=(48, 32)) * 10.0 ** rng.integers(-3, 3, 32)).astype(np.float32)
    x = (rng.normal(size=(2, 7, 48)) * 10.0 ** rng.integers(-3, 3, (2, 7, 1))).astype(np.float32)
    model = matmul_model(weight, "model.encoder.layers.0.ffn.net.0")
    assert quantize_linears(model) == 1
    assert not any(node.op_type == "MatMul" for node in model.graph.node)
    size = np.linalg.norm(x, axis=-1, keepdims=True) * np.linalg.norm(weight, axis=0)
    assert (np.abs(run_model(model, x) - x @ weight) / size).max() < 0.01


def test_quantization_steps_are_half_as_large_after_a_relu():
    rng = np.random.default_rng(2)
    weight, x = rng.normal(size=(48, 32)).astype(np.float32), rng.normal(size=(1, 500, 48)).astype(np.float32)
    weight = np.rint(weight * 127 / np.abs(weight).max(0)) * np.abs(weight).max(0) / 127  # exact in int8
    errors = {}
    for name in ("plain", "after a ReLU"):
        model, positive = matmul_model(weight, "model.encoder.layers.0.ffn.net.2"), np.maximum(x, 0)
        if name != "plain":
            model.graph.node.insert(0, onnx.helper.make_node("Relu", ["x"], ["hidden"]))
            model.graph.node[1].input[0] = "hidden"
        assert quantize_linears(model) == 1
        errors[name] = np.abs(run_model(model, positive if name == "plain" else x) - positive @ weight).mean()
    assert errors["after a ReLU"] == pytest.approx(errors["plain"] * 127 / 255, rel=0.05)


def test_a_token_of_zeros_stays_zero():
    model = matmul_model(np.ones((4, 3), np.float32), "model.decoder.layers.1.cross_attn.value")
    quantize_linears(model)
    assert (run_model(model, np.zeros((1, 2, 4), np.float32)) == 0).all()


@pytest.mark.parametrize(
    "scope", ["model.decoder.class_heads.0", "model.backbone.stages.1", "model.proposer.box_head.0",
              "model.encoder.layers.0.attn.offsets", "model.decoder.layers.2.cross_attn.weights"],
)  # fmt: skip
def test_backbone_heads_and_sampling_layers_are_not_quantized(scope):
    with pytest.raises(RuntimeError, match="no matrix product of the encoder or decoder"):
        quantize_linears(matmul_model(np.ones((4, 3), np.float32), scope))
