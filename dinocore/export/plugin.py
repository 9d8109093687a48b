"""ONNX with TensorRT's own plug-in for deformable attention instead of standard operators.

ONNX Runtime doesn't have the plug-in. So the graph is first written with an ONNX function of the same name that
implements it in standard operators, and is compared with the model like any other file. The function is then removed,
because TensorRT's parser looks for a function before it looks for a plug-in (onnx-tensorrt 10.1, ModelImporter.cpp).

Source: the plug-in's inputs and outputs, NVIDIA/TensorRT, plugin/multiscaleDeformableAttnPlugin/README.md
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..model.ops import reference
from ..model.ops.dispatch import to_shapes
from .checksum import check_checksum
from .graph import INPUTS, OUTPUTS
from .onnx_graph import OPSET, to_onnx
from .programs import METADATA

PLUGIN = "MultiscaleDeformableAttnPlugin_TRT"
VERSION = "2"  # implements IPluginV3; version 1 has been deprecated since TensorRT 10.11
PLUGIN_INPUTS = ("value", "shapes", "starts", "locations", "weights")
DOMAIN = "tensorrt"  # of the node; TensorRT's parser ignores it


class _Call(NamedTuple):
    """Shapes that are the same in every call of the operation in a model."""

    sizes: tuple[int, ...]  # of the maps: H_1, W_1, H_2, W_2, ...
    heads: tuple[int, ...]  # M, D
    points: tuple[int, ...]  # M, L, P, 2

    @property
    def starts(self) -> list[int]:
        """Index of each map's first token."""
        counts = [height * width for height, width in to_shapes([*self.sizes])]
        return [sum(counts[:k]) for k in range(len(counts))]


class _Sampling(nn.Module):
    """The plug-in's computation in PyTorch."""

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        self.shapes = to_shapes([*sizes])

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        """(B, S, M, D), (B, N, M, L, P, 2) and (B, N, M, L, P) -> (B, N, M, D)."""
        return reference.sample(value, self.shapes, locations, weights).unflatten(-1, (value.shape[2], -1))


def to_onnx_with_plugin(program: ExportedProgram) -> Any:
    """An `onnx.ModelProto` that uses the plug-in for deformable attention, with a function that implements the plug-in.

    Args:
        program: traced with `use_backend("operator")`, for a single canvas size.
    """
    import onnx
    from onnx.defs import OpSchema
    from onnxscript import opset18
    from onnxscript.values import Op, Opset

    op: Any = opset18
    calls: list[_Call] = []
    takes = [OpSchema.FormalParameter(name, "I" if name in ("shapes", "starts") else "F") for name in PLUGIN_INPUTS]
    version = OpSchema.Attribute("plugin_version", OpSchema.AttrType.STRING, required=True)
    schema = OpSchema(
        PLUGIN, DOMAIN, 1, inputs=takes, outputs=[OpSchema.FormalParameter("samples", "F")], attributes=[version],
        type_constraints=[("F", ["tensor(float)"], ""), ("I", ["tensor(int32)"], "")],
    )  # fmt: skip
    node = Op(Opset(DOMAIN, 1), PLUGIN, schema)

    def sample(value: Any, sizes: Sequence[int], locations: Any, weights: Any) -> Any:
        calls.append(_Call(tuple(sizes), tuple(value.shape)[2:], tuple(locations.shape)[2:]))
        rows, columns = op.Constant(value_ints=[-1, 2]), op.Constant(value_ints=[0, 0, -1])
        shapes = op.Cast(op.Reshape(op.Constant(value_ints=[*sizes]), rows), to=onnx.TensorProto.INT32)
        starts = op.Cast(op.Constant(value_ints=calls[-1].starts), to=onnx.TensorProto.INT32)
        samples = node(value, shapes, starts, locations, weights, plugin_version=VERSION)
        return op.Reshape(samples, columns)  # (B, N, M, D) -> (B, N, M * D)

    model = to_onnx(program, INPUTS, OUTPUTS, {torch.ops.dino.ms_deform_attn.default: sample})
    [call] = set(calls)  # encoder and decoder attend to the same maps
    model.functions.append(_as_function(call))
    return model


def _as_function(call: _Call) -> Any:
    """The plug-in implemented in standard operators, an `onnx.FunctionProto`."""
    import onnx

    batch, queries = Dim("batch"), Dim("queries")
    free = ({0: batch}, {0: batch, 1: queries}, {0: batch, 1: queries})
    example = (
        torch.zeros(2, call.starts[-1] + call.sizes[-2] * call.sizes[-1], *call.heads),
        torch.zeros(2, 3, *call.points),
        torch.zeros(2, 3, *call.points[:-1]),
    )
    program = torch.export.export(_Sampling(call.sizes), example, dynamic_shapes=free)
    graph = to_onnx(program, ["value", "locations", "weights"], ["samples"]).graph
    constants = [onnx.helper.make_node("Constant", [], [x.name], value=x) for x in graph.initializer]
    return onnx.helper.make_function(
        DOMAIN, PLUGIN, [*PLUGIN_INPUTS], ["samples"],
        [*constants, *graph.node], [onnx.helper.make_opsetid("", OPSET)], ["plugin_version"],
    )  # fmt: skip


def remove_function(path: Path) -> None:
    """Remove the function from a verified file, so that TensorRT uses its plug-in."""
    import onnx

    model = onnx.load(path)
    del model.functions[:]
    onnx.save(model, path)


def plugin_info(path: Path) -> dict[str, Any] | None:
    """Metadata of a file that uses the plug-in and so cannot be opened here; None for other files or without `onnx`."""
    if path.suffix.lower() != ".onnx" or find_spec("onnx") is None:
        return None
    import onnx

    try:
        check_checksum(path)
        properties = onnx.load(path, load_external_data=False).metadata_props
        info = next(json.loads(entry.value) for entry in properties if entry.key == METADATA)
    except Exception:  # a wrong checksum, or one of protobuf's various errors
        return None
    return info if info.get("plugin") else None
