"""Build a TensorRT engine from an exported ONNX file and compare its detections with ONNX Runtime's.

python benchmarks/tensorrt_check.py model.onnx --image img.jpg [--fp16]

It takes a CUDA device, torch and TensorRT (pip install tensorrt). It has not been run by us yet. The file must have
been exported with --pixels float32.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from dinocore.export.runtime import ExportedDetector, load
from dinocore.export.verify import TOLERANCES, compare


def build_engine(path: Path, canvas: list[int], batch: int, fp16: bool) -> bytes:
    """An engine for 1 to `batch` images.

    Raises:
        SystemExit: TensorRT cannot parse the file.
    """
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(path.read_bytes()):
        sys.exit("\n".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    settings = builder.create_builder_config()
    if fp16:
        settings.set_flag(trt.BuilderFlag.FP16)
    profile = builder.create_optimization_profile()
    for name, rest in (("images", (*canvas, 3)), ("sizes", (2,))):
        profile.set_shape(name, (1, *rest), (batch, *rest), (batch, *rest))
    settings.add_optimization_profile(profile)
    return bytes(builder.build_serialized_network(network, settings))


def run_engine(engine: bytes, images: np.ndarray, sizes: np.ndarray) -> dict[str, np.ndarray]:
    """Labels, scores and boxes of the engine."""
    import tensorrt as trt

    loaded = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(engine)
    context = loaded.create_execution_context()
    tensors = {"images": torch.from_numpy(images).cuda(), "sizes": torch.from_numpy(sizes).cuda()}
    for name, tensor in tensors.items():
        context.set_input_shape(name, tuple(tensor.shape))
    for name, dtype in (("labels", torch.int64), ("scores", torch.float32), ("boxes", torch.float32)):
        tensors[name] = torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device="cuda")
    for name, tensor in tensors.items():
        context.set_tensor_address(name, tensor.data_ptr())
    stream = torch.cuda.Stream()
    context.execute_async_v3(stream.cuda_stream)
    stream.synchronize()
    return {name: tensors[name].cpu().numpy() for name in ("labels", "scores", "boxes")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--image", required=True)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--fp16", action="store_true")
    given = parser.parse_args()
    detector = ExportedDetector(given.file)
    if detector.info["pixels"] != "float32":
        sys.exit(f"{given.file} takes bytes; export it with --pixels float32")
    image = load(given.image)
    pixels, sizes = detector.place([np.asarray(image.resize(detector.input_size(image.size)))] * given.batch)
    expected = detector.run(pixels, sizes)
    got = run_engine(build_engine(given.file, detector.info["canvas"], given.batch, given.fp16), pixels, sizes)
    found = compare(*((rows[0][0], rows[1][0], rows[2][0]) for rows in (expected, list(got.values()))),
                    tolerance := TOLERANCES["int8" if given.fp16 else "float32"])  # fmt: skip
    print(f"{torch.cuda.get_device_name()}: {found}, {'good' if found.within(tolerance) else 'NOT the same'}")


if __name__ == "__main__":
    main()
