"""A traced program as an ONNX graph."""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

import torch
from torch.export import ExportedProgram

OPSET = 18  # from 20 on, TensorRT reads GridSample as nearest (NVIDIA/TensorRT#4646)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep exporters' remarks about their own work away; stdout is for results, and errors are raised."""
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
        translations: of operators that aren't PyTorch's, as `torch.onnx.export` takes them.
    """
    with quiet():
        exported = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET, input_names=list(inputs), output_names=list(outputs),
            verbose=False, custom_translation_table=translations,
        )  # fmt: skip
    if exported is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    return exported.model_proto


def name_free_sizes(graph: Any) -> None:
    """Name the images' free dimensions `batch`, `height` and `width`, in place; PyTorch uses names such as `s34`.

    Args:
        graph: an `onnx.GraphProto` whose first input is the images, (N, H, W, 3).
    """
    of_images = graph.input[0].type.tensor_type.shape.dim
    names = {size.dim_param: name for size, name in zip(of_images, ("batch", "height", "width"), strict=False)}
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = names.get(size.dim_param, size.dim_param)
