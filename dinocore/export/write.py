"""Write a traced detector to a file in each format, with the metadata needed to run it."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ..errors import ConfigError, EnvironmentFault
from ..system.extras import install_line
from ..system.files import check_file
from ..words import did_you_mean
from . import plugin
from .graph import INPUTS, OUTPUTS
from .onnx_graph import name_dynamic_dims, quiet, to_onnx
from .programs import METADATA

PRECISIONS = ("float32", "int8")
RANGED = ("onnx", "torch-export")  # formats tested with a range of canvas sizes


def write_onnx(program: ExportedProgram, path: Path, info: dict[str, Any]) -> list[Path]:
    """Write an .onnx file."""
    import onnx

    model = plugin.to_onnx_with_plugin(program) if info["plugin"] else to_onnx(program, INPUTS, OUTPUTS)
    if info["precision"] == "int8":
        from .quantize import quantize_linears

        quantize_linears(model)
    name_dynamic_dims(model.graph)
    onnx.helper.set_model_props(model, {METADATA: json.dumps(info)})
    onnx.save(model, path)
    return [path]


def write_openvino(program: ExportedProgram, path: Path, info: dict[str, Any]) -> list[Path]:
    """Write an .xml file and its .bin, by way of ONNX.

    OpenVINO (2026.4) can also read traced graphs, but converts them wrongly: it replaces a sum of booleans by their
    disjunction, which changed the scores of `tiny` by 0.2.
    """
    import openvino

    model = openvino.Core().read_model(to_onnx(program, INPUTS, OUTPUTS).SerializeToString())
    for port, name in zip([*model.inputs, *model.outputs], [*INPUTS, *OUTPUTS], strict=True):
        port.get_tensor().set_names({name})
    model.set_rt_info(json.dumps(info), [METADATA])
    openvino.save_model(model, path, compress_to_fp16=False)
    return [path, path.with_suffix(".bin")]


def write_torch_export(program: ExportedProgram, path: Path, info: dict[str, Any]) -> list[Path]:
    """Write a .pt2 file for `torch.export.load`."""
    with quiet():
        torch.export.save(program, path, extra_files={METADATA: json.dumps(info)})
    return [path]


def write_aoti(program: ExportedProgram, path: Path, info: dict[str, Any]) -> list[Path]:
    """Write a .pt2 file with machine code for this type of CPU, for `torch._inductor.aoti_load_package`."""
    import torch._inductor

    configs = {"aot_inductor.metadata": {METADATA: json.dumps(info)}}
    with quiet():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
    return [path]


FORMATS: dict[str, tuple[Callable[[ExportedProgram, Path, dict[str, Any]], list[Path]], str, Sequence[str], str]] = {
    # writer, suffix, required packages, and the extra that installs them
    "onnx": (write_onnx, ".onnx", ("onnx", "onnxscript", "onnxruntime"), "export"),
    "openvino": (write_openvino, ".xml", ("openvino", "onnx", "onnxscript"), "openvino"),
    "torch-export": (write_torch_export, ".pt2", (), ""),
    "aoti": (write_aoti, ".pt2", (), ""),
}


def check_format(name: str, precision: str, out: Path, ranged: bool = False, with_plugin: bool = False) -> None:
    """Check before any work that a file can be written in this format.

    Args:
        ranged: whether it is for a range of canvas sizes.
        with_plugin: whether it uses TensorRT's plug-in for deformable attention.

    Raises:
        ConfigError: there is no such format or precision, options don't fit together, or the suffix is wrong.
        EnvironmentFault: a package or a compiler is not installed.
    """
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS) or f"; choose {', '.join(FORMATS)}"
        raise ConfigError(f"unknown format `{name}`{hint}")
    _, suffix, packages, extra = FORMATS[name]
    if precision not in PRECISIONS:
        raise ConfigError(f"unknown precision `{precision}`; choose {' or '.join(PRECISIONS)}")
    if precision == "int8" and name != "onnx":
        raise ConfigError(f"--precision int8 only works with ONNX, not with {name}; use --format onnx")
    if ranged and name not in RANGED:
        raise ConfigError(f"--format {name} needs a single --size; a range only works with {' and '.join(RANGED)}")
    if with_plugin and (name != "onnx" or precision != "float32" or ranged):
        raise ConfigError("--tensorrt-plugin needs --format onnx, --precision float32 and a single --size")
    if fitting := [other for other, (_, ending, *_) in FORMATS.items() if ending == out.suffix.lower() != suffix]:
        choice = " or ".join(f"--format {other}" for other in fitting)
        other = out.with_suffix(suffix)
        raise ConfigError(f"--out {out} does not match --format {name}; add {choice}, or try {other}")
    check_file("--out", out, suffix)
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise EnvironmentFault(
            f"--format {name} needs {', '.join(missing)}, which is not installed", fix=install_line(extra)
        )
    if name == "aoti" and not (shutil.which("g++") or shutil.which("clang++")):
        raise EnvironmentFault("--format aoti needs a C++ compiler; install g++, or use --format onnx")
