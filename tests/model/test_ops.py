"""Multi-scale deformable attention: every backend compared with slow loops, and the operator in PyTorch."""

import importlib.util
import math
import os
import signal
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from dinocore.model.ops import dispatch, ms_deform_attn, use_backend

NUMBA = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="needs numba")
TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
BACKENDS = [pytest.param("auto", marks=NUMBA), "reference"]
MAPS = [(5, 7), (3, 2), (1, 1)]


def inputs(batch=2, queries=3, heads=2, dim=4, maps=MAPS, points=2, dtype=torch.float32, seed=0):
    """Random value, maps, locations (about half of them near or outside an edge) and weights."""
    random = torch.Generator().manual_seed(seed)
    value = torch.randn(batch, sum(h * w for h, w in maps), heads, dim, generator=random, dtype=torch.float64)
    shape = (batch, queries, heads, len(maps), points)
    locations = torch.rand(*shape, 2, generator=random, dtype=torch.float64) * 1.8 - 0.4
    weights = torch.randn(shape, generator=random, dtype=torch.float64)
    return value.to(dtype), maps, locations.to(dtype), weights.to(dtype)


def reference_loop(value: Tensor, maps, locations: Tensor, weights: Tensor) -> Tensor:
    """The definition with loops: a token's weight falls linearly to 0 at distance 1, in x and in y."""
    batch, _, heads, dim = value.shape
    sums = [torch.zeros(0, heads * dim, dtype=value.dtype)] * batch
    for b in range(batch):
        for n in range(locations.shape[1]):
            heads_of_query = [
                reference_loop_of_head(value[b, :, m], maps, locations[b, n, m], weights[b, n, m]) for m in range(heads)
            ]
            sums[b] = torch.cat([sums[b], torch.cat(heads_of_query)[None]])
    return torch.stack(sums)


def reference_loop_of_head(value: Tensor, maps, locations: Tensor, weights: Tensor) -> Tensor:
    total, first = torch.zeros(value.shape[1], dtype=value.dtype), 0
    for level, (height, width) in enumerate(maps):
        for (x, y), weight in zip(locations[level], weights[level], strict=True):
            for token in range(height * width):
                column, row = token % width + 0.5, token // width + 0.5  # centre of the token
                across = 1 - (x * width - column).abs()
                down = 1 - (y * height - row).abs()
                if across > 0 and down > 0:
                    total = total + weight * across * down * value[first + token]
        first += height * width
    return total


def gradients(function, value, maps, locations, weights):
    """Output, and gradients of value, locations and weights for the same fixed gradient of the output."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (value, locations, weights)]
    output = function(leaves[0], maps, leaves[1], leaves[2])
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    output.backward(grad.to(output.dtype))
    return [output.detach(), *(leaf.grad for leaf in leaves)]


def compiled(*arguments):
    """The operation, after a check that it did not silently fall back to the reference."""
    result = ms_deform_attn(*arguments)
    assert dispatch.is_reference() or not dispatch._failed_devices
    return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_output_and_gradients_equal_those_of_an_explicit_loop(backend, dtype):
    case = inputs(dtype=dtype)
    with use_backend(backend):
        ours = gradients(compiled, *case)
    expected = gradients(reference_loop, *inputs(dtype=torch.float64))
    for mine, theirs in zip(ours, expected, strict=True):
        tolerance = 1e-12 if dtype == torch.float64 else 2e-5
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, atol=tolerance, rtol=tolerance)


def test_samples_computed_by_hand():
    value = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1)
    points = [(0.25, 0.25), (0.5, 0.25), (0.5, 0.5), (1.0, 0.75), (1.3, 0.5)]  # token, edge, middle, border, outside
    locations = torch.tensor(points).view(1, 5, 1, 1, 1, 2)
    for backend in ("auto", "reference"):
        with use_backend(backend):
            output = ms_deform_attn(value, [(2, 2)], locations, torch.ones(1, 5, 1, 1, 1))
        assert output.flatten().tolist() == pytest.approx([1, 1.5, 2.5, 2, 0])


@NUMBA
@pytest.mark.parametrize("dim", [1, 3, 32, *(pytest.param(d, marks=pytest.mark.slow) for d in (2, 7, 16, 24, 64, 128))])
def test_heads_of_any_width_agree_with_the_reference(dim):
    case = inputs(dim=dim, queries=11)
    with use_backend("reference"):
        expected = gradients(ms_deform_attn, *case)
    for mine, theirs in zip(gradients(compiled, *case), expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


@NUMBA
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_no_more_than_one_rounding(dtype):
    value, maps, locations, weights = inputs(queries=20)
    value = value.to(dtype)
    ours = gradients(compiled, value, maps, locations, weights)
    expected = gradients(lambda v, *rest: ms_deform_attn(v.float(), *rest).to(dtype), value, maps, locations, weights)
    assert [tensor.dtype for tensor in ours] == [dtype, dtype, torch.float32, torch.float32]
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine.float(), theirs.float(), atol=1e-5, rtol=2 * torch.finfo(dtype).eps)
    for mine, theirs in zip(ours[:2], expected[:2], strict=True):  # rounded to nearest, except ties
        assert (mine == theirs).double().mean() > 0.97


@NUMBA
def test_half_precision_locations_and_weights_get_gradients_of_their_dtype():
    value, maps, locations, weights = inputs(dtype=torch.bfloat16)
    ours = gradients(compiled, value, maps, locations, weights)
    assert all(tensor.dtype == torch.bfloat16 for tensor in ours)
    exact = reference_loop(value.double(), maps, locations.double(), weights.double())
    torch.testing.assert_close(ours[0].double(), exact, atol=1e-5, rtol=0.01)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    value, maps, locations, weights = inputs(batch=1, queries=2, maps=[(4, 3), (2, 2)], dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda v, p, w: compiled(v, maps, p, w), leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("coordinate", [1e3, -1e9, 1e30, math.inf, -math.inf, math.nan])
def test_locations_off_the_map_add_nothing_and_nan_gives_nan(backend, coordinate):
    value, maps, locations, weights = inputs(queries=2)
    locations[:, 0, 0, 1, 0, 0] = coordinate
    with use_backend(backend):
        output, grad_value, _, _ = gradients(compiled, value, maps, locations, weights)
    assert output[:, 1].isfinite().all() and output[:, 0, 4:].isfinite().all()
    assert grad_value.isfinite().all()
    if math.isfinite(coordinate):
        weights[:, 0, 0, 1, 0] = 0
        torch.testing.assert_close(
            output, reference_loop(value, maps, locations.nan_to_num(), weights), atol=1e-5, rtol=1e-5
        )
    else:
        assert output[:, 0, :4].isnan().all()


@NUMBA
def test_non_finite_values_do_not_spread():
    value, maps, locations, weights = inputs(batch=1, heads=1, queries=1)
    locations[...] = 5.0  # every location is outside
    value[0, ::2] = math.nan
    value[0, 1::2] = math.inf
    assert (compiled(value, maps, locations, weights) == 0).all()
    weights[...] = math.nan
    assert compiled(value, maps, locations, weights).isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [{"queries": 0}, {"batch": 0}, {"maps": [(3, 4)]}, {"points": 1, "maps": [(1, 1)]}])
def test_small_and_empty_inputs_have_small_and_empty_outputs_and_gradients(backend, size):
    case = inputs(**size)
    with use_backend(backend):
        ours = gradients(compiled, *case)
    expected = (
        gradients(reference_loop, *case)
        if case[2].numel()
        else [torch.zeros(*case[2].shape[:2], 8), *case[::2], case[3]]
    )
    for mine, theirs in zip(ours[:1], expected[:1], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert [tensor.shape for tensor in ours[1:]] == [tensor.shape for tensor in (case[0], case[2], case[3])]
    if not case[2].numel():
        assert (ours[1] == 0).all()


@NUMBA
def test_the_memory_layout_of_inputs_does_not_matter():
    value, maps, locations, weights = inputs()
    expected = gradients(compiled, value, maps, locations, weights)
    transposed = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (value, locations, weights)]
    assert not transposed[0].is_contiguous()
    for mine, theirs in zip(gradients(compiled, transposed[0], maps, *transposed[1:]), expected, strict=True):
        assert mine.equal(theirs)
    value.requires_grad_()
    compiled(value, maps, locations, weights).sum().backward()  # the gradient of a sum is an expanded scalar
    torch.testing.assert_close(value.grad.sum(), reference_loop(torch.ones_like(value), maps, locations, weights).sum())


@NUMBA
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_bitwise_equal_for_any_number_of_threads(dtype):
    value, maps, locations, weights = inputs(batch=3, queries=50, heads=3)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5, 1):
            torch.set_num_threads(threads)
            results.append(gradients(compiled, value.to(dtype), maps, locations, weights))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(mine.equal(first) for mine, first in zip(result, results[0], strict=True))


@NUMBA
def test_threads_may_call_it_at_the_same_time():
    cases = [inputs(queries=200, seed=seed) for seed in range(4)]
    expected = [gradients(compiled, *case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda case: gradients(compiled, *case), cases * 8))
    for number, result in enumerate(results):
        assert all(mine.equal(first) for mine, first in zip(result, expected[number % 4], strict=True))


@NUMBA
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_can_still_call_it():
    case = inputs(queries=50)
    expected = compiled(*case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads is tested here
        child = os.fork()
    if child == 0:
        signal.alarm(20)  # kills a child that waits for threads lost in the fork
        try:
            os._exit(0 if ms_deform_attn(*case).equal(expected) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@NUMBA
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # raised by opcheck itself
def test_operators_pass_opcheck():
    value, _, locations, weights = inputs(batch=1, maps=[(2, 3)])
    grad = torch.ones(1, 3, 8)
    torch.library.opcheck(torch.ops.dino.ms_deform_attn_backward.default, (grad, value, [2, 3], locations, weights))
    leaves = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    torch.library.opcheck(torch.ops.dino.ms_deform_attn.default, (leaves[0], [2, 3], *leaves[1:]))


class Sampler(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 4)

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(self.project(value), MAPS, locations, weights) * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_compiles_to_one_graph(backend):
    value, _, locations, weights = inputs()
    model = Sampler()
    with use_backend(backend):
        expected = model(value, locations, weights)
        expected.sum().backward()
        grad = model.project.weight.grad.clone()
        model.zero_grad()
        output = torch.compile(model, backend="aot_eager", fullgraph=True)(value, locations, weights)
        output.sum().backward()
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(model.project.weight.grad, grad)


@pytest.mark.parametrize("backend", BACKENDS)
def test_export_keeps_one_node_or_plain_operators(backend):
    value, _, locations, weights = inputs()
    model = Sampler().eval()
    with use_backend(backend):
        exported = torch.export.export(model, (value, locations, weights))
    assert ("dino.ms_deform_attn" in str(exported.graph)) == (backend == "auto")
    torch.testing.assert_close(exported.module()(value, locations, weights), model(value, locations, weights))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_samples_in_the_dtype_of_the_layers(backend):
    value, _, locations, weights = inputs()
    model = Sampler()
    with use_backend(backend), torch.autocast("cpu", torch.bfloat16):
        output = model(value, locations, weights)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    torch.testing.assert_close(output.float(), model(value, locations, weights), atol=0.1, rtol=0.05)
    assert model.project.weight.grad.isfinite().all()


@pytest.mark.parametrize("failure", ["import", "run"])
def test_without_the_compiled_backend_it_warns_once_and_is_still_correct(failure, monkeypatch):
    monkeypatch.setattr(dispatch, "_failed_devices", set())
    if failure == "import":
        monkeypatch.setitem(sys.modules, "dinocore.model.ops.numba.cpu", None)
        monkeypatch.delattr("dinocore.model.ops.numba.cpu", raising=False)
    else:
        cpu = pytest.importorskip("dinocore.model.ops.numba.cpu")
        monkeypatch.setattr(cpu, "forward_kernel", lambda *_: 1 / 0)
    case = inputs(dtype=torch.float64)
    with pytest.warns(UserWarning, match="slow deformable attention on cpu") as caught:
        results = [gradients(ms_deform_attn, *case), gradients(ms_deform_attn, *case)]
    assert len(caught) == 1
    for result in results:
        for mine, theirs in zip(result, gradients(reference_loop, *case), strict=True):
            torch.testing.assert_close(mine, theirs)


def test_wide_heads_use_the_reference(monkeypatch):
    monkeypatch.setattr(dispatch, "compiled_backend", lambda device: pytest.fail("the head is too wide"))
    case = inputs(batch=1, queries=1, heads=1, dim=dispatch.MAX_WIDTH + 1, maps=[(2, 2)])
    torch.testing.assert_close(ms_deform_attn(*case), reference_loop(*case), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, s, p, w: (v, s[:2], p, w), "have 41 tokens, value has 42"),
        (lambda v, s, p, w: (v, s, p[:, :1], w), "weights must be"),
        (lambda v, s, p, w: (v, s, p, w[:, :, :1]), "weights must be"),
        (lambda v, s, p, w: (v, s, p[..., :1], w), "locations"),
        (lambda v, s, p, w: (v.flatten(2), s, p, w), r"value must be \(B, S, M, D\)"),
    ],
)
def test_mismatched_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(*change(*inputs()))


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="'cuda'; choose one of auto, reference"), use_backend("cuda"):
        pass


def run_python(code: str, **environment: str) -> None:
    paths = [os.path.dirname(__file__), *filter(None, sys.path)]
    env = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@TRITON
@pytest.mark.slow
def test_triton_in_its_interpreter_agrees_with_an_explicit_loop():
    run_python(
        """
import torch
from dinocore.model.ops import triton
from test_ops import gradients, inputs, reference_loop

class Triton(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value, maps, locations, weights):
        ctx.maps = maps
        ctx.save_for_backward(value, locations, weights)
        return triton.forward(value, maps, locations, weights)

    @staticmethod
    def backward(ctx, grad):
        value, *rest = ctx.saved_tensors
        grads = triton.backward(grad, value, ctx.maps, *rest)
        return grads[0], None, *grads[1:]

for dim, dtype, tolerance in ((3, torch.float64, 1e-12), (32, torch.float32, 5e-5), (4, torch.bfloat16, 0.1)):
    case = inputs(dim=dim, dtype=dtype)
    expected = gradients(reference_loop, case[0].double(), case[1], case[2].double(), case[3].double())
    for mine, theirs in zip(gradients(Triton.apply, *case), expected, strict=True):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.double(), theirs, atol=tolerance, rtol=tolerance)

value, maps, locations, weights = inputs(batch=1)
locations[0, 0], locations[0, 1] = float("nan"), 1e30
output = triton.forward(value, maps, locations, weights)
assert output[0, 0].isnan().all() and (output[0, 1] == 0).all() and output[0, 2].isfinite().all()
for empty in (inputs(queries=0), inputs(batch=0)):
    assert triton.forward(*empty).numel() == 0 and (triton.backward(triton.forward(*empty), *empty)[0] == 0).all()
""",
        TRITON_INTERPRET="1",
    )


@TRITON
@pytest.mark.slow
@pytest.mark.parametrize("name", ["_forward", "_backward"])
@pytest.mark.parametrize(("value", "other", "real"), [("bf16", "fp32", "float32"), ("fp64", "fp64", "float64")])
def test_triton_kernels_compile_without_a_gpu(name, value, other, real):
    run_python(
        f"""
import triton
import triton.language as tl
from dinocore.model.ops import triton as kernels
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

kernel = kernels.{name}
constants = dict(M=8, P=4, D=24, ITEMS=16, WIDTH=32, real=tl.{real})
types = dict.fromkeys(("value", "output", "grad"), "*{value}") | dict.fromkeys(constants, "constexpr")
types |= dict(maps="*i32") | dict.fromkeys(("tokens", "num_queries", "levels"), "i32")
signature = {{name: types.get(name, "*{other}") for name in kernel.arg_names}}
constants = {{(kernel.arg_names.index(name),): value for name, value in constants.items()}}
assert triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 80, 32)).asm["ptx"]
"""
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_agrees_with_the_reference_on_the_cpu(dtype):
    value, maps, locations, weights = inputs(queries=300, dim=32)
    with use_backend("reference"):
        expected = gradients(ms_deform_attn, value.to(dtype), maps, locations, weights)
    case = [tensor.cuda() for tensor in (value.to(dtype), locations, weights)]
    ours = gradients(lambda v, s, p, w: compiled(v, s, p, w).cpu(), case[0], maps, *case[1:])
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs, atol=1e-3, rtol=2e-2 if dtype == torch.bfloat16 else 1e-3)
