"""Convert a traced program to an ONNX graph."""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch.export import ExportedProgram

OPSET = 18  # from opset 20, TensorRT treats GridSample as nearest (NVIDIA/TensorRT#4646)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' log messages and warnings, and send their stdout to stderr; errors are still raised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def to_onnx(
    program: ExportedProgram, inputs: Sequence[str], outputs: Sequence[str], translations: dict[Any, Any] | None = None
) -> Any:
    """An `onnx.ModelProto` with standard operators only, opset 18.

    Args:
        inputs, outputs: their names.
        translations: for custom operators, as in `torch.onnx.export`'s `custom_translation_table`.
    """
    with quiet():
        exported = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET, input_names=list(inputs), output_names=list(outputs),
            verbose=False, custom_translation_table=translations,
        )  # fmt: skip
    if exported is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return exported.model_proto


def name_dynamic_dims(graph: Any) -> None:
    """Name the dynamic dimensions `batch`, `height` and `width`, in place; PyTorch uses names such as `s34`.

    Args:
        graph: an `onnx.GraphProto` whose first input is the images, (N, H, W, 3).
    """
    image_dims = graph.input[0].type.tensor_type.shape.dim
    names = {size.dim_param: name for size, name in zip(image_dims, ("batch", "height", "width"), strict=False)}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = names.get(size.dim_param, size.dim_param)
