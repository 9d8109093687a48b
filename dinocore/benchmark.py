"""Measure a model's speed, memory and FLOPs on this machine."""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

from .boxes import to_cxcywh
from .config import Config
from .data.batch import Batch
from .errors import EnvironmentFault
from .losses import criterion
from .model.build import build_model
from .model.dino import DINO
from .model.inference import CompiledModel, for_inference
from .model.ops import use_backend
from .structures import Target
from .system.device import INT8, float32_throughout, pick_precision
from .system.files import write_atomically
from .system.memory import keep_memory, peak_memory_mb
from .train.optim import build_optimizer
from .weights.file import load_exactly, load_weights


class Case(NamedTuple):
    """What to measure."""

    config: Config
    size: tuple[int, int]  # height and width of the images
    batch: int
    train: bool  # a training step instead of inference
    ops: str  # auto, or reference: plain eager PyTorch without optimizations
    amp: str
    device: torch.device
    objects: int  # per image, for training
    repeats: int
    weights: Path | None = None  # None: random weights
    compiled: bool = False  # use torch.compile


class Measurement(NamedTuple):
    """The results of a benchmark."""

    parameters: int
    flops: int  # of one call; 2 per multiply-add
    latency_p50_s: float
    latency_p90_s: float
    images_per_s: float
    peak_memory_mb: float  # in addition to the process's memory before the model was built
    threads: int
    precision: str
    device: str


def measure(case: Case, each: Callable[[int], None] = lambda done: None) -> Measurement:
    """Build the model, warm up, and time `repeats` calls.

    Args:
        each: called after every timed call, with the number of calls so far.

    Raises:
        EnvironmentFault: the device is missing, or torch.compile fails.
    """
    before = peak_memory_mb(case.device)
    call, model = prepare(case)
    with use_backend(case.ops), float32_throughout(case.amp == "off"):
        call()  # first without the counter, so that errors of torch.compile are raised here
        with FlopCounterMode(display=False, custom_mapping=CORRECTED) as counter:
            call()
        seconds = []
        for done in range(case.repeats):
            seconds.append(timed(call, case.device))
            each(done + 1)
    median = statistics.median(seconds)
    ranked = sorted(seconds)
    dtype = pick_precision(case.amp, case.device)
    return Measurement(
        parameters=sum(p.numel() for p in model.parameters()),
        flops=counter.get_total_flops(),
        latency_p50_s=median,
        latency_p90_s=ranked[min(len(ranked) - 1, round(0.9 * (len(ranked) - 1)))],
        images_per_s=case.batch / median,
        peak_memory_mb=peak_memory_mb(case.device) - before,
        threads=torch.get_num_threads(),
        precision=INT8 if case.amp == INT8 else str(dtype or torch.float32).removeprefix("torch."),
        device=str(case.device),
    )


def prepare(case: Case) -> tuple[Callable[[], Any], DINO]:
    """The call to measure, and its model."""
    torch.manual_seed(0)
    if case.ops == "auto":
        keep_memory()
    model = build_model(case.config.model)
    if case.weights is not None:
        load_exactly(model, load_weights(case.weights).tensors, case.weights)
    model = model.to(case.device)
    compiled: Any = partial(torch.compile, dynamic=False) if case.compiled else lambda module: module
    batch = random_batch(case)
    dtype = pick_precision(case.amp, case.device)
    if case.train:
        return _training_call(compiled(model.train()), batch, case, dtype), model
    if case.ops == "auto":
        optimized = for_inference(model, dtype, case.device, int8=case.amp == INT8, to_compile=case.compiled)
        images = batch.images.to(next(optimized.backbone.parameters()).dtype)
        run = _compiled_or_fail(optimized) if case.compiled else optimized
        return torch.inference_mode()(lambda: run(images, batch.padding)), model
    plain = compiled(model.eval())
    return torch.inference_mode()(lambda: _cast(plain, batch, dtype)), model


def _compiled_or_fail(model: DINO) -> Callable[[Tensor, Tensor], Any]:
    compiled = CompiledModel(model, model, after=0)

    def run(images: Tensor, padding: Tensor) -> Any:
        output = compiled(images, padding)
        if not compiled.compiled:  # it fell back to eager, with a warning
            raise EnvironmentFault(
                "torch.compile does not work here, so there is nothing to time", fix="drop --compile"
            )
        return output

    return run


def random_batch(case: Case) -> Batch:
    """A batch of random images and objects, already normalised."""
    images = torch.randn(case.batch, 3, *case.size).to(memory_format=torch.channels_last).to(case.device)
    padding = torch.zeros(case.batch, *case.size, dtype=torch.bool, device=case.device)
    corners = torch.rand(case.batch, case.objects, 2, 2).sort(dim=2).values.flatten(2)  # (B, T, 4) xyxy
    labels = torch.randint(case.config.model.num_classes, (case.batch, case.objects))
    targets = [
        Target(k.to(case.device), to_cxcywh(c).to(case.device), seed=i)
        for i, (k, c) in enumerate(zip(labels, corners, strict=True))
    ]
    return Batch(images, padding, targets, list(range(case.batch)), [case.size] * case.batch, [])


def profile(case: Case, trace: Path, rows: int = 15) -> list[tuple[str, float, int]]:
    """Run one call under torch's profiler and write its trace for chrome://tracing.

    Returns:
        the operations with the most self time: name, seconds, calls.
    """
    call, _ = prepare(case)
    with use_backend(case.ops), float32_throughout(case.amp == "off"):
        call()
        with torch.profiler.profile() as profiler:
            call()
            _wait(case.device)
    write_atomically(trace, lambda temporary: profiler.export_chrome_trace(str(temporary)))
    table = profiler.key_averages()
    seconds = [
        (entry.key, max(entry.self_cpu_time_total, entry.self_device_time_total) / 1e6, entry.count) for entry in table
    ]
    return sorted(seconds, key=lambda entry: -entry[1])[:rows]


@register_flop_formula(torch.ops.dino.ms_deform_attn)
def _sampling_flops(value_shape, shapes, locations_shape, weights_shape, *args, out_shape=None, **kwargs) -> int:
    """Five multiply-adds, for four corners and a weight, per channel of each sample."""
    return 2 * 5 * math.prod(weights_shape) * value_shape[-1]


@register_flop_formula(torch.ops.dino.ms_deform_attn_backward)
def _sampling_backward_flops(grad_shape, value_shape, shapes, locations_shape, weights_shape, *args, **kwargs) -> int:
    """Twice the forward, as for a matrix product."""
    return 2 * _sampling_flops(value_shape, shapes, locations_shape, weights_shape)


@register_flop_formula(torch.ops.dino.sample_fused)
def _sampling_around_flops(value_shape, padding_shape, sizes, reference_shape, offsets_shape, logits_shape, **kwargs):
    return _sampling_flops(value_shape, sizes, offsets_shape, logits_shape)


@register_flop_formula(torch.ops.dino.depthwise_weight_grad)
def _depthwise_gradient_flops(padded_shape, grad_shape, side, *args, **kwargs) -> int:
    """A multiply-add for every element of the gradient and every weight of its channel."""
    return 2 * math.prod(grad_shape) * side * side


def _linear_flops(x_shape, *args, out_shape=(), **kwargs) -> int:
    """A multiply-add for every element of the input and channel of the output."""
    return 2 * math.prod(x_shape) * out_shape[-1]


register_flop_formula(torch.ops.dino.int8_linear)(_linear_flops)


@register_flop_formula(torch.ops.dino.int8_feed_forward)
def _int8_feed_forward_flops(x_shape, first_shapes, *args, **kwargs) -> int:
    """Two linear layers; the inner width is that of the first one's scales."""
    return 2 * 2 * math.prod(x_shape) * first_shapes[2][0]


@register_flop_formula(torch.ops.dino.int8_convolution)
def _int8_convolution_flops(x_shape, shapes, kernel, *args, out_shape=(), **kwargs) -> int:
    return 2 * math.prod(out_shape) * x_shape[1] * math.prod(kernel)


def _fused_convolution_flops(x_shape, second, third, *args, out_shape=(), **kwargs) -> int:
    """A multiply-add for every element of the output and weight of its channel; weights are third if a sum is fused."""
    weight_shape = third if third is not None and len(third) == 4 else second
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:])


def _convolution_backward_flops(grad_shape, x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    """As much as the forward for each requested gradient; torch's own formula ignores groups."""
    requested = args[-1][:2]  # gradients of x and of the weight
    return sum(requested) * 2 * math.prod(grad_shape) * math.prod(weight_shape[1:])


def _attention_flops(q_shape, k_shape, v_shape, *args, **kwargs) -> int:
    return sdpa_flop_count(q_shape, k_shape, v_shape)


def _attention_backward_flops(grad_shape, q_shape, k_shape, v_shape, *args, **kwargs) -> int:
    return sdpa_backward_flop_count(grad_shape, q_shape, k_shape, v_shape)


# formulas that torch gets wrong, or lacks on CPUs
CORRECTED: dict[Any, Callable[..., int]] = {
    torch.ops.aten.convolution_backward: _convolution_backward_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
if torch.backends.mkldnn.is_available():
    CORRECTED[torch.ops.mkldnn._convolution_pointwise] = _fused_convolution_flops
    CORRECTED[torch.ops.mkldnn._linear_pointwise] = _linear_flops


def _training_call(model: DINO, batch: Batch, case: Case, dtype: torch.dtype | None) -> Callable[[], None]:
    optimizer = build_optimizer(model, case.config.train)

    def step() -> None:
        output = _cast(model, batch, dtype, batch.targets)
        terms = criterion(output, batch.targets, float(case.batch * case.objects), case.config.loss)
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), case.config.train.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def _cast(model: DINO, batch: Batch, dtype: torch.dtype | None, targets: list[Target] | None = None):
    with torch.autocast(batch.images.device.type, dtype=dtype, enabled=dtype is not None):
        return model(batch.images, batch.padding, targets)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """The time of a call in seconds, until the device has finished."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
