"""Build a TensorRT engine from an exported ONNX file, compare its detections with ONNX Runtime's, and time it.

python benchmarks/tensorrt_check.py model.onnx --image img.jpg [--fp16] [--plugin plugin.onnx]

Needs a CUDA device, torch and TensorRT 10 or newer (pip install tensorrt). We have not run it yet. The file must have
been exported with --pixels float32. The batch has the image in several shapes. With --plugin (TensorRT 10.11 or newer),
the engine is built from that file, exported from the same weights with --tensorrt-plugin, and compared with the results
of ONNX Runtime for model.onnx. Exit code 1: the engine cannot be built, or its detections differ.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinocore.export.runtime import ExportedDetector, load
from dinocore.export.verify import TOLERANCES, Difference, Tolerance, compare

OUTPUTS = {"labels": torch.int64, "scores": torch.float32, "boxes": torch.float32}
WARM_UP, REPEATS = 10, 50  # untimed and timed calls


def build_engine(path: Path, canvas: list[int], batch: int, fp16: bool) -> bytes:
    """Build an engine for 1 to `batch` images.

    Raises:
        SystemExit: TensorRT cannot parse the file, or cannot build an engine from it.
    """
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        sys.exit("\n".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    settings = builder.create_builder_config()
    settings.clear_flag(trt.BuilderFlag.TF32)  # on by default: it rounds the inputs of float32 products to 10 bits
    if fp16:
        settings.set_flag(trt.BuilderFlag.FP16)
    profile = builder.create_optimization_profile()
    for name, rest in (("images", (*canvas, 3)), ("sizes", (2,))):
        profile.set_shape(name, (1, *rest), (batch, *rest), (batch, *rest))
    settings.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, settings)
    if engine is None:
        sys.exit(f"TensorRT parsed {path} and cannot build an engine of it; its own messages are above")
    return bytes(engine)


def run_engine(engine: bytes, images: np.ndarray, sizes: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """Labels, scores and boxes from the engine, and the median seconds per call."""
    import tensorrt as trt

    loaded = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(engine)
    context = loaded.create_execution_context()
    tensors = {"images": torch.from_numpy(images).cuda(), "sizes": torch.from_numpy(sizes).cuda()}
    for name, tensor in tensors.items():
        context.set_input_shape(name, tuple(tensor.shape))
    for name, dtype in OUTPUTS.items():
        tensors[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device="cuda")
    for name, tensor in tensors.items():
        context.set_tensor_address(name, tensor.data_ptr())
    torch.cuda.synchronize()  # the inputs were copied on another stream
    stream, milliseconds = torch.cuda.Stream(), list[float]()
    for _ in range(WARM_UP + REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record(stream)
        if not context.execute_async_v3(stream.cuda_stream):
            sys.exit("TensorRT did not run the engine; its own messages are above")
        end.record(stream)
        stream.synchronize()
        milliseconds.append(start.elapsed_time(end))
    return {name: tensors[name].cpu().numpy() for name in OUTPUTS}, statistics.median(milliseconds[WARM_UP:]) / 1000


def inputs(detector: ExportedDetector, path: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch that repeats an image, its transpose and its left half, as float32; and the sizes."""
    image = load(path)
    shapes = [image, image.rotate(90, expand=True), image.crop((0, 0, max(1, image.width // 2), image.height))]
    chosen = [shapes[k % len(shapes)] for k in range(batch)]
    pixels, sizes = detector.place([np.asarray(x.resize(detector.input_size(x.size))) for x in chosen])
    return pixels.astype(np.float32), sizes


def check_plugin_file(path: Path, info: dict[str, Any]) -> None:
    """Check that a file with the plug-in has the same inputs and outputs as the other one.

    Raises:
        SystemExit: it does not use the plug-in, or was exported with other options.
    """
    import onnx

    metadata = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
    other = json.loads(metadata.get("dino", "{}"))
    if not other.get("plugin"):
        sys.exit(f"{path} has no plug-in; export it with --tensorrt-plugin")
    if differing := [key for key in ("pixels", "canvas", "max_dets", "names") if other.get(key) != info[key]]:
        sys.exit(f"{path} differs in {', '.join(differing)}; export both from the same weights with the same options")


def compare_batch(expected: list[np.ndarray], got: list[np.ndarray], tolerance: Tolerance) -> Difference:
    """The largest difference over all images of a batch."""
    worst = Difference()
    for one, other in zip(zip(*expected, strict=True), zip(*got, strict=True), strict=True):
        worst = worst.combined(compare(one, other, tolerance))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--image", required=True)
    parser.add_argument("--plugin", type=Path, help="build the engine from this file, which has the plug-in")
    parser.add_argument("--batch", type=int, default=3)
    parser.add_argument("--fp16", action="store_true")
    given = parser.parse_args()
    detector = ExportedDetector(given.file)
    if detector.info["pixels"] != "float32":
        sys.exit(f"{given.file} takes bytes; export it with --pixels float32")
    if detector.info["precision"] != "float32":
        sys.exit(f"{given.file} is in int8, whose products TensorRT does not read; export it without --precision")
    if given.plugin:
        check_plugin_file(given.plugin, detector.info)
    pixels, sizes = inputs(detector, given.image, given.batch)
    engine = build_engine(given.plugin or given.file, [*pixels.shape[1:3]], given.batch, given.fp16)
    got, seconds = run_engine(engine, pixels, sizes)
    tolerance = TOLERANCES["int8" if given.fp16 else "float32"]
    found = compare_batch([*detector.run(pixels, sizes)], [got[name] for name in OUTPUTS], tolerance)
    good = found.within(tolerance)
    how = f"{'fp16' if given.fp16 else 'float32'}{', plug-in' if given.plugin else ''}"
    print(
        f"{torch.cuda.get_device_name()}, {how}, batch {given.batch}: "
        f"{1000 * seconds:.2f} ms, {given.batch / seconds:.1f} images/s; {found}, "
        f"{found.off} of {found.compared} detections are off, {'good' if good else 'NOT the same'}"
    )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
